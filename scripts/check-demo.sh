#!/usr/bin/env bash
# The demo keeps what the README promises, and leaves nothing behind. Usage: check-demo.sh LAPWING
set -euo pipefail
lapwing=$(realpath "$1")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
# Others may run the same binary, under whatever shell quotes it: only what was not there before was left behind.
running() { pgrep -f "^$lapwing (node|gateway)" | sort || true; }
running >before
"$lapwing" demo --json | tee events | tail -n 1 >result
cat result
python3 - result <<'P'
import json, sys
r = json.load(open(sys.argv[1]))
promises = {
    "averaged accuracy is at least 95 %": r["averaged_accuracy"] >= 0.95,
    "at most a tenth of a dense exchange is sent": r["sent_bytes_per_node"] * 10 <= r["dense_bytes_per_node"],
    "the killed leader was replaced": r["leader_changes"] >= 1,
    # On two idle cores; a machine that runs something else beside it is slower.
    "it takes less than 90 seconds": r["seconds"] < 90,
}
for promise, kept in promises.items():
    print("kept  " if kept else "BROKEN", promise)
sys.exit(not all(promises.values()))
P
test -s "$(python3 -c 'import json;print(json.load(open("result"))["report"])')"
left=$(running | comm -13 before -)
if [ -n "$left" ]; then
    echo "processes were left behind:"
    # One that has ended since is not shown.
    ps -o pid,ppid,args -p "$(paste -sd, <<<"$left")" || true
    exit 1
fi
