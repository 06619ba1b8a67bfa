#!/usr/bin/env python3
"""Makes docs/results.md: tunes and runs what docs/results/grid.toml names, with `lapwing simulate`.

Usage: results.py LAPWING DATA [--jobs N] [--work FOLDER] [--only tune|report]

DATA is a folder with `fashion-mnist` and `mnist` as IDX files. Every run is kept in FOLDER (target/results) under the name
of its settings, and is not computed again: a command that was interrupted is given once more. With `--only report` the page
is written from the runs that are there.
"""

import argparse
import datetime
import itertools
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
BASELINES = ["fedavg", "s-fedavg", "d-psgd", "dcd-psgd", "choco-sgd"]
MIB = 2**20


class Runs:
    """Runs that are kept, a folder for each setting and seed."""

    def __init__(self, arguments, grid):
        self.arguments, self.grid = arguments, grid

    def folder(self, case, algorithm, keys, seed):
        settings = {**self.grid["job"], **keys}
        name = ",".join(f"{key}={value}" for key, value in sorted(settings.items()))
        where = "-".join(str(case[key]) for key in ("model", "data", "partition", "epochs", "points"))
        network = self.grid["run"]["network"] + "-" + str(self.grid["run"]["nodes"])
        return self.arguments.work / network / where.replace(":", "_") / algorithm / name / str(seed)

    def read(self, *setting):
        kept = sorted(self.folder(*setting).glob("*.json"))
        return json.loads(kept[0].read_text()) if kept else None

    def make(self, setting):
        case, algorithm, keys, seed = setting
        if self.read(*setting) is not None:
            return
        folder = self.folder(*setting)
        job = {
            "model": case["model"],
            "data": f"idx:{self.arguments.data / case['data']}",
            "seed": seed,
            **self.grid["job"],
            **keys,
        }
        command = [self.arguments.lapwing, "simulate", "--threads=1", "--json", f"--algorithm={algorithm}"]
        command += [f"--nodes={self.grid['run']['nodes']}", f"--network={self.grid['run']['network']}"]
        command += [f"--partition={case['partition']}", f"--epochs={case['epochs']}", f"--points={case['points']}"]
        command += [f"--set={key}={value}" for key, value in job.items()] + [f"--out={folder}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")
        print(f"{datetime.datetime.now():%H:%M:%S} {folder.relative_to(self.arguments.work)}", flush=True)

    def make_all(self, settings):
        if self.arguments.only == "report":
            return
        with ThreadPoolExecutor(self.arguments.jobs) as pool:
            for _ in pool.map(self.make, settings):
                pass


def case(grid, **different):
    return {**{key: grid["run"][key] for key in ("model", "epochs", "points")}, **different}


def candidates(grid, algorithm):
    """All settings of an algorithm's grid."""
    tuning = grid["tuning"]
    return [{"lr": lr, **own} for lr, own in itertools.product(tuning["lr"], tuning["own"][algorithm])]


def accuracy(run, which="averaged"):
    """At the end; nothing at all where training diverged."""
    return run["points"][-1][f"{which}_accuracy"] if run["ended"] == "done" and run["points"] else 0.0


def sent_and_received(point):
    return point["sent_bytes_per_node"] + point["received_bytes_per_node"]


def tuned(runs, grid):
    """The best setting of each algorithm, and what all reached."""
    tuning = grid["tuning"]
    where = case(grid, data=tuning["data"], partition=tuning["partition"], epochs=tuning["epochs"], points=1)
    settings = [
        (where, algorithm, keys, tuning["seed"]) for algorithm in tuning["own"] for keys in candidates(grid, algorithm)
    ]
    runs.make_all(settings)
    best, tried = {}, []
    for setting in settings:
        run = runs.read(*setting)
        if run is None:
            continue
        _, algorithm, keys, _ = setting
        tried.append((algorithm, keys, accuracy(run), run["points"][-1] if run["points"] else None))
        if algorithm not in best or accuracy(run) > best[algorithm][1]:
            best[algorithm] = (keys, accuracy(run))
    return {algorithm: keys for algorithm, (keys, _) in best.items()}, tried


def mean(values):
    return statistics.fmean(values)


def percent(values):
    values = [100 * value for value in values]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread}"


def size(number):
    return "0" if number == 0 else f"{number / MIB:.3g} MiB" if number < 1000 * MIB else f"{number / MIB:.0f} MiB"


def span(seconds):
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


class Row:
    def __init__(self, algorithm, runs):
        self.algorithm, self.runs = algorithm, runs
        self.local = [accuracy(run, "local") for run in runs]
        self.averaged = [accuracy(run) for run in runs]
        ends = [run["points"][-1] for run in runs]
        self.bytes = mean([sent_and_received(end) for end in ends])
        self.seconds = mean([end["virtual_seconds"] for end in ends])

    def to(self, target):
        """Bytes and seconds to the first evaluation at which the mean over the seeds has that accuracy, if it ever has."""
        for points in zip(*(run["points"] for run in self.runs)):
            if mean([point["averaged_accuracy"] or 0 for point in points]) >= target:
                return mean([sent_and_received(p) for p in points]), mean([p["virtual_seconds"] for p in points])
        return None

    def within(self, limit):
        """The best averaged accuracy within so many bytes, in the mean; nothing if one has no evaluation by then."""
        best = [
            max(
                (p["averaged_accuracy"] or 0 for p in run["points"] if sent_and_received(p) <= limit * 1.001),
                default=None,
            )
            for run in self.runs
        ]
        return mean(best) if all(value is not None for value in best) else None


def table(header, rows):
    aligned = "| " + " | ".join(header) + " |\n|" + "|".join([" --- "] + [" ---: "] * (len(header) - 1)) + "|\n"
    return aligned + "".join("| " + " | ".join(row) + " |\n" for row in rows)


def block(rows, seeds):
    """The table of one kind of data, and what it says of the default."""
    by_name = {row.algorithm: row for row in rows}
    baselines = [by_name[name] for name in BASELINES if name in by_name]
    baselines.sort(key=lambda row: -mean(row.averaged))
    best = next(iter(baselines), None)
    target = mean(best.averaged) if best else None
    lines = []
    for row in rows:
        reached = row.to(target) if target else None
        reached = [size(reached[0]), span(reached[1])] if reached else ["–", "–"]
        name = f"`{row.algorithm}`" + (f" ({len(row.runs)} of {seeds} seeds)" if len(row.runs) < seeds else "")
        lines.append([name, percent(row.local), percent(row.averaged), size(row.bytes), span(row.seconds)] + reached)
    goal = f"to {100 * target:.2f} %" if target else "to the best"
    header = ["algorithm", "local, %", "averaged, %", "bytes a node", "time", f"bytes {goal}", f"time {goal}"]
    return table(header, lines) + "\n" + "\n".join(findings(by_name, baselines)) + "\n"


def verdict(holds):
    return "**holds**" if holds else "**does not hold**"


def savings(default, row, is_best):
    """What the default needs less than another row to that one's accuracy at the end."""
    what = f"`{row.algorithm}` ({100 * mean(row.averaged):.2f} %)"
    claim = "38.5 % less traffic and 49.8 % less time to the accuracy of the best of the five, " if is_best else "To that of "
    ours = default.to(mean(row.averaged))
    if ours is None:
        return f"{claim}{what}: " + (f"{verdict(False)}; its mean does not reach it." if is_best else "its mean does not reach it.")
    traffic, time = (100 * (1 - mine / its) for mine, its in zip(ours, (row.bytes, row.seconds)))
    amount = f"{traffic:.1f} % less traffic, {time:.1f} % less time"
    return f"{claim}{what}: " + (f"{verdict(traffic >= 38.5 and time >= 49.8)} ({amount})." if is_best else f"{amount}.")


def findings(by_name, baselines):
    default, dense = by_name.get("default"), by_name.get("all-reduce")
    if default is None:
        return []
    found = []
    if dense:
        apart = 100 * (mean(dense.averaged) - mean(default.averaged))
        fewer = dense.bytes / default.bytes
        kept = apart <= 1 and fewer >= 60
        found.append(
            f"* Within a point of `all-reduce` with at least 60 times fewer bytes: {verdict(kept)} "
            f"({apart:.2f} points below it, {fewer:.0f} times fewer)."
        )
    ahead, behind = [], []
    for row in by_name.values():
        if row is default or row.algorithm == "local" or row.bytes == 0:
            continue
        limit = min(row.bytes, default.bytes)
        ours, theirs = default.within(limit), row.within(limit)
        if ours is None:
            behind.append(f"`{row.algorithm}` (the default was not evaluated within {size(limit)})")
        elif theirs is not None:
            text = f"`{row.algorithm}` ({100 * ours:.2f} against {100 * theirs:.2f} % within {size(limit)})"
            (ahead if ours >= theirs else behind).append(text)
        else:
            ahead.append(f"`{row.algorithm}` (whose first evaluation comes after {size(limit)})")
    found.append(f"* Ahead at equal bytes: {verdict(not behind)}." + (f" Behind {', '.join(behind)}." if behind else "")
                 + (f" Ahead of {', '.join(ahead)}." if ahead else ""))
    for row in baselines:
        found.append(f"* {savings(default, row, row is baselines[0])}")
    return found


def toml_keys(keys):
    return ", ".join(f"`{key}` {value}" for key, value in keys.items()) or "–"


def report(runs, grid, best, tried, blocks, larger):
    run, tuning = grid["run"], grid["tuning"]
    version = subprocess.run(["git", "-C", ROOT, "log", "-1", "--format=%h of %cs"], capture_output=True, text=True)
    common = toml_keys(grid["job"])
    page = f"""# Results

Made by `scripts/results.py` from [grid.toml](results/grid.toml), with {version.stdout.strip()}, written on {datetime.date.today()}. The
same command goes on with what is missing. Settings and links are simulated as [simulating.md](simulating.md) says; the training is
real.

{run['nodes']} nodes on `{run['network']}`, `{run['model']}`, {run['epochs']} epochs; {common} for all. Mean and standard deviation
over the seeds {', '.join(map(str, run['seeds']))}. *Bytes* are sent and received, per node. *Local* is the mean of the nodes' own models at the
end, *averaged* the mean of all models; where a server holds the model, both are the server's. *To* an accuracy: the first of
{run['points']} evaluations at which the averaged model has it in the mean over the seeds, with the accuracy of the best of {', '.join(f'`{name}`' for name in BASELINES)}.

"""
    for (data, partition), rows in blocks:
        page += f"## {data}, {partition.replace(':', ' ')}\n\n"
        page += block(rows, len(run["seeds"])) if rows else ""
        missing = [f"`{name}`" for name in tuning["own"] if name not in {row.algorithm for row in rows}]
        page += ("\n" if rows else "") + f"Not computed yet: {', '.join(missing)}.\n" if missing else ""
        page += "\n"
    if larger:
        of = grid["larger"]
        page += f"## A larger model: `{of['model']}` (1,663,370 parameters), {of['data']}, {of['partition'].replace(':', ' ')}\n\n"
        page += f"{of['epochs']} epochs, seed {', '.join(map(str, of['seeds']))}; settings as above.\n\n"
        page += block(larger, len(of["seeds"])) + "\n"
    page += f"""## Tuning

Every algorithm with the same learning rates and two ways to share of its own, where it has any, {tuning['epochs']} epochs of {tuning['data']},
{tuning['partition'].replace(':', ' ')}, with seed {tuning['seed']}, which is not among those above. The best by averaged accuracy is taken for all data.

"""
    lines = []
    for name, keys, value, end in tried:
        cost = [size(sent_and_received(end)), span(end["virtual_seconds"])] if end and value else ["", ""]
        reached = f"{100 * value:.2f}" if value else "diverged"
        taken = "yes" if best[name] == keys else ""
        lines.append([f"`{name}`", ", ".join(f"`{key}` {of}" for key, of in keys.items()), reached, *cost, taken])
    page += table(["algorithm", "setting", "averaged, %", "bytes a node", "time", "taken"], lines)
    (ROOT / "docs" / "results.md").write_text(page)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lapwing", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("data", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=lambda text: pathlib.Path(text).resolve(), default=ROOT / "target" / "results")
    parser.add_argument("--only", choices=["tune", "report"])
    arguments = parser.parse_args()
    grid = tomllib.loads((ROOT / "docs" / "results" / "grid.toml").read_text())
    runs = Runs(arguments, grid)
    best, tried = tuned(runs, grid)
    if arguments.only == "tune":
        for name, keys, value, _ in tried:
            print(f"{name:12} {100 * value:6.2f} %  {keys}")
        return
    wanted = [
        (data, partition) for data in grid["run"]["data"] for partition in grid["run"]["partitions"]
    ]

    def settings(where, algorithms, seeds):
        return [(where, name, best[name], seed) for seed in seeds for name in algorithms if name in best]

    def rows(where, algorithms, seeds):
        found = []
        for name in algorithms:
            kept = [runs.read(where, name, best[name], seed) for seed in seeds] if name in best else []
            kept = [run for run in kept if run and run["points"]]
            if kept:
                found.append(Row(name, kept))
        return found

    names = list(grid["tuning"]["own"])
    cases = [case(grid, data=data, partition=partition) for data, partition in wanted]
    seeds = grid["run"]["seeds"]
    # One seed of everything first, so that a page from an interrupted command has all rows.
    for seed in seeds:
        for where in cases:
            runs.make_all(settings(where, names, [seed]))
    of = grid["larger"]
    where = {key: of[key] for key in ("model", "data", "partition", "epochs", "points")}
    runs.make_all(settings(where, of["algorithms"], of["seeds"]))
    blocks = [(pair, rows(where, names, seeds)) for pair, where in zip(wanted, cases)]
    report(runs, grid, best, tried, blocks, rows(where, of["algorithms"], of["seeds"]))


if __name__ == "__main__":
    main()
