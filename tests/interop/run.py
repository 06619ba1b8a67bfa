#!/usr/bin/env python3
"""Tries a node of Lapwing against other implementations of libp2p, over QUIC; see README.md.

    run.py PEER INSTALLED [WORD…]

PEER is net's example `interop_peer`, INSTALLED the folder that `scripts/get-interop-peers.sh` has filled. Prints a
table, and fails when anything in it does. With words, only rows that have one of them: an implementation, a test.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback

from p2pd import PING, Refused
from peers import PRIVATE, PUBLIC, Failed, Go, Js, Ours, Py, until

# Streams for protocols that nobody speaks, opened at once.
STREAMS = 300


class World:
    """The processes of one test, which end with it."""

    def __init__(self, kind, binary, installed, folder, stack):
        self.kind, self.binary, self.installed = kind, binary, installed
        self.folder, self.stack, self.count = folder, stack, 0

    def name(self):
        self.count += 1
        return f"{self.count}"

    def ours(self, role, host=None):
        host = host or self.kind.host
        node = Ours(f"{self.name()}-lapwing-{role}", role, host, self.folder, self.binary)
        self.stack.callback(node.stop)
        node.ready()
        return node

    def theirs(self, relay=None, **more):
        node = self.kind(f"{self.name()}-{self.kind.kind}", self.folder, self.installed, relay, **more)
        self.stack.callback(node.stop)
        node.ready()
        return node


def expect(what, holds):
    if not holds:
        raise Failed(what)


def milliseconds(value):
    return f"{value:.1f} ms"


def we_dial_them(world):
    ours, theirs = world.ours("home"), world.theirs()
    said = ours.dial(theirs.id, theirs.address)
    expect(f"{said!r} does not say that it is no node of ours", "no node of ours" in said)
    return "ping " + milliseconds(ours.met(theirs.id, theirs.agent))


def they_dial_us(world):
    ours, theirs = world.ours("home"), world.theirs()
    theirs.dial(ours.id, ours.address)
    took = theirs.ping(ours.id)
    if theirs.identifies:
        agent, protocols = theirs.identify(ours.id)
        expect(f"we are identified as {agent!r}", agent.startswith("lapwing/"))
        expect(f"no ping among {protocols}", PING in protocols)
    ours.met(theirs.id, theirs.agent)
    return "ping " + milliseconds(took)


def they_refuse_us_for_another(world):
    ours, other, theirs = world.ours("home"), world.ours("home"), world.theirs()
    try:
        theirs.dial(other.id, ours.address)
    except Refused as refused:
        expect("it is connected all the same", not theirs.connected(other.id) and not theirs.connected(ours.id))
        # Nothing stands in the way of dialing whom it is.
        theirs.dial(ours.id, ours.address)
        theirs.ping(ours.id)
        return "refused"
    raise Failed("it took us for another")


def we_refuse_them_for_another(world):
    ours, other, theirs = world.ours("home"), world.ours("home"), world.theirs()
    said = ours.dial(other.id, theirs.address)
    expect(f"{said!r} does not name who has answered", theirs.id in said and other.id in said)
    until("the connection is closed", lambda: not theirs.connected(ours.id))
    return "names who answered"


def unknown_protocols_do_no_harm(world):
    ours, other, theirs = world.ours("home"), world.ours("home"), world.theirs()
    theirs.dial(ours.id, ours.address)
    refused = theirs.flood(ours.id, STREAMS)
    expect(f"only {refused} of {STREAMS} streams were refused", refused == STREAMS)

    def pinged():
        # A node waits for pings on the newest stream only, which for a while may be one of those left half open.
        try:
            return theirs.ping(ours.id) or 0.01
        except Refused:
            return None

    took = until("a ping is answered", pinged)
    other.learn(ours.id, ours.address)
    other.echo(ours.id)
    return f"{refused} refused, ping {milliseconds(took)}"


def they_are_reached_through_us(world):
    relay, home = world.ours("main"), world.ours("home")
    reached = world.theirs(f"{relay.address}/p2p/{relay.id}")
    reached.reserved(relay.id)
    circuit = f"{relay.address}/p2p/{relay.id}/p2p-circuit"
    home.dial(reached.id, circuit)
    ours = home.met(reached.id, reached.agent)
    dialer = world.theirs()
    dialer.dial(reached.id, circuit)
    expect("it is not connected", dialer.connected(reached.id))
    return f"ping {milliseconds(ours)} from ours, {milliseconds(dialer.ping(reached.id))} from theirs"


def we_are_reached_through_them(world):
    relay, home, other = world.theirs(), world.ours("home"), world.ours("home")
    home.learn(relay.id, relay.address)
    home.ask("relay", relay.id)
    circuit = home.circuit(relay.id)
    other.learn(home.id, circuit)
    ours = other.echo(home.id)
    dialer = world.theirs()
    dialer.dial(home.id, circuit)
    expect("it is not connected", dialer.connected(home.id))
    home.met(dialer.id, dialer.agent)
    return f"echo {milliseconds(ours)} to ours, ping {milliseconds(dialer.ping(home.id))} to theirs"


def their_circuit_becomes_direct(world):
    relay, home = world.ours("main", PUBLIC), world.ours("home", PUBLIC)
    home.learn(relay.id, relay.address)
    home.ask("relay", relay.id)
    theirs = world.theirs(public=True)
    theirs.dial(home.id, home.circuit(relay.id))
    started_at = time.monotonic()
    until("it is connected directly", lambda: theirs.direct(home.id))
    return f"direct after {milliseconds((time.monotonic() - started_at) * 1e3)}"


DIRECT = [
    we_dial_them,
    they_dial_us,
    they_refuse_us_for_another,
    we_refuse_them_for_another,
    unknown_protocols_do_no_harm,
]
RELAYED = [they_are_reached_through_us, we_are_reached_through_them]
TESTS = [(Go, DIRECT + RELAYED), (Js, DIRECT + RELAYED + [their_circuit_becomes_direct]), (Py, DIRECT)]


ALONE = ["--pid", "--fork", "--kill-child"]


def enter_namespace():
    """Begins again in namespaces of its own: no packet gets out, and no process outlives the tests."""
    if os.environ.get("INTEROP_NAMESPACE") != "entered":
        rights = [] if os.geteuid() == 0 else ["--map-root-user"]
        os.environ["INTEROP_NAMESPACE"] = "entered"
        os.execvp("unshare", ["unshare", *rights, "--net", *ALONE, sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for host in (PUBLIC, PRIVATE):
        subprocess.run(["ip", "address", "add", f"{host}/32", "dev", "lo"], check=True)


def logs(folder):
    """The end of what every process has said."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".log"):
            with open(os.path.join(folder, name), errors="replace") as log:
                for line in log.readlines()[-10:]:
                    print(f"    {name}: {line.rstrip()}")


def main():
    binary, installed, *wanted = sys.argv[1:]
    enter_namespace()
    here = os.path.dirname(os.path.abspath(__file__))
    # Modules are found from where the file lies.
    shutil.copy(os.path.join(here, "js_peer.mjs"), os.path.join(installed, "js"))
    failures = 0
    print(f"{'peer':<28} {'test':<32} {'took':>7}  result")
    for kind, tests in TESTS:
        with open(os.path.join(installed, f"{kind.kind}.version")) as file:
            version = file.read().strip()
        for test in tests:
            if wanted and not {kind.kind, test.__name__} & set(wanted):
                continue
            started_at = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="interop-") as folder:
                with contextlib.ExitStack() as stack:
                    try:
                        result = test(World(kind, binary, installed, folder, stack))
                    except Exception as error:
                        failures += 1
                        result = f"FAILED: {error}"
                        if not isinstance(error, (Failed, Refused)):
                            traceback.print_exc()
                took = time.monotonic() - started_at
                print(f"{version:<28} {test.__name__:<32} {took:>5.1f} s  {result}", flush=True)
                if "FAILED" in result:
                    logs(folder)
    print("py-libp2p is not asked to relay, nor to be relayed to; see README.md")
    print("every test has passed" if failures == 0 else f"{failures} tests have failed")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
