"""The processes that take part: ours, go-libp2p's daemon, js-libp2p. One interface for all that are not ours."""

import json
import os
import select
import socket
import subprocess
import time

import p2pd

PATIENCE = 20

# Of our own network namespace only, which nothing leaves. Relays of go-libp2p give no reservation at a private
# address, and js-libp2p names no public one before others have confirmed it.
PUBLIC, PRIVATE = "11.0.0.1", "10.0.0.1"


def anywhere(host):
    """Where to listen: at a port of the system's choice."""
    return f"/ip4/{host}/udp/0/quic-v1"


def free_port(host):
    """A port that nobody uses, and that nobody but the tests could take."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind((host, 0))
        return bound.getsockname()[1]


class Failed(Exception):
    """Something that should hold does not."""


def until(what, condition, patience=PATIENCE):
    """What a condition gives once it gives something; asked again and again until then."""
    deadline = time.monotonic() + patience
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {patience} s")
        # Between two questions, not in place of one.
        time.sleep(0.02)


class Process:
    """A child, whose errors are kept in a file. It is to be made `ready` before it is asked anything."""

    # Whether it can be asked for what a peer says of itself.
    identifies = True

    def __init__(self, name, command, folder):
        self.name = name
        self.log = open(os.path.join(folder, f"{name}.log"), "wb")
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def stop(self):
        """Ends it: with its input where it obeys that, by force where it does not."""
        self.child.stdin.close()
        try:
            self.child.wait(2)
        except subprocess.TimeoutExpired:
            self.child.terminate()
            try:
                self.child.wait(5)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.child.stdout.close()
        self.log.close()


class Liner(Process):
    """A process that answers each line with a line of JSON."""

    def __init__(self, name, command, folder):
        super().__init__(name, command, folder)
        self.unread = b""

    def ask(self, *words, patience=PATIENCE):
        """The answer; an error that it tells is raised."""
        line = " ".join(str(word) for word in words)
        self.child.stdin.write(line.encode() + b"\n")
        self.child.stdin.flush()
        deadline = time.monotonic() + patience
        while b"\n" not in self.unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.child.stdout], [], [], left)[0]:
                raise Failed(f"{self.name} has not answered {line!r} within {patience} s")
            more = os.read(self.child.stdout.fileno(), 1 << 16)
            if not more:
                raise Failed(f"{self.name} has ended, see {self.log.name}")
            self.unread += more
        answer, self.unread = self.unread.split(b"\n", 1)
        answer = json.loads(answer)
        if "error" in answer:
            raise p2pd.Refused(answer["error"])
        return answer


class Ours(Liner):
    """A node of Lapwing."""

    def __init__(self, name, role, host, folder, binary):
        super().__init__(name, [binary, role, anywhere(host)], folder)

    def ready(self):
        status = self.ask("status")
        self.id, self.address = status["peer"], status["listen"][0]

    def peer(self, peer):
        """What it knows of a peer."""
        return next((known for known in self.ask("status")["peers"] if known["peer"] == peer), None)

    def learn(self, peer, *addresses):
        self.ask("learn", peer, *addresses)

    def echo(self, peer, patience=5):
        """Has a node of ours answer; milliseconds."""
        return self.ask("echo", peer, patience * 1000, patience=patience + 5)["ms"]

    def dial(self, peer, address):
        """Dials a peer that is no node of ours, and returns what is said about that."""
        self.learn(peer, address)
        try:
            self.echo(peer)
        except p2pd.Refused as refused:
            return str(refused)
        raise Failed(f"{peer} has answered as a node of ours")

    def met(self, peer, agent):
        """Waits until the peer has said what it is and answered a ping; milliseconds."""

        def has_met():
            known = self.peer(peer)
            return known if known and known["agent"] and known["pinged"] else None

        known = until(f"{self.name} meets {peer}", has_met)
        if agent not in known["agent"]:
            raise Failed(f"{peer} says it is {known['agent']!r}, and not {agent!r}")
        return known["pinged"]["secs"] * 1e3 + known["pinged"]["nanos"] / 1e6

    def circuit(self, relay):
        """Waits until a relay has granted a reservation; the address that others come by."""

        def held():
            status = self.ask("status")
            if relay not in status["reservations"]:
                return None
            return next((address for address in status["advertised"] if relay in address), None)

        return until(f"{self.name} holds a reservation at {relay}", held)


class Go(Process):
    """go-libp2p, by its daemon."""

    kind, agent, host = "go-libp2p", "p2pd", PUBLIC

    def __init__(self, name, folder, install, relay=None):
        path = os.path.join(folder, f"{name}.sock")
        command = [os.path.join(install, "go", "p2pd"), "-listen", f"/unix{path}"]
        command += ["-hostAddrs", anywhere(self.host), "-bootstrapPeers", ""]
        if relay:
            # It wants a table of peers before it looks for a relay, and none to look for others than this one.
            command += ["-autoRelay", "-relayDiscovery=false", "-dht", "-trustedRelays", relay]
            command += ["-forceReachabilityPrivate"]
        else:
            command += ["-forceReachabilityPublic"]
        super().__init__(name, command, folder)
        self.daemon = p2pd.Daemon(path)

    def ready(self):
        def identity():
            try:
                return self.daemon.identity()
            except (FileNotFoundError, ConnectionRefusedError):
                return None

        self.id, addresses = until(f"{self.name} starts", identity)
        # None where it takes itself for private: then it names the relay's only.
        self.address = next((address for address in addresses if "p2p-circuit" not in address), None)

    def dial(self, peer, address):
        self.daemon.connect(peer, address)

    def ping(self, peer):
        return self.daemon.ping(peer)

    def identify(self, peer):
        return self.daemon.identify(peer)

    def flood(self, peer, count):
        """Opens streams for protocols that nobody speaks, and then many that are left half open; how many of the
        former were refused."""
        refused, held = 0, []
        for nth in range(count):
            try:
                held.append(self.daemon.open(peer, f"/no/such/{nth}"))
            except p2pd.Refused:
                refused += 1
        try:
            for _ in range(count):
                held.append(self.daemon.open(peer, p2pd.PING))
        except p2pd.Refused:
            # The other end has had enough, as it may.
            pass
        finally:
            for stream in held:
                stream.socket.close()
        return refused

    def connected(self, peer):
        return peer in self.daemon.peers()

    def reserved(self, relay):
        """Waits until it holds a reservation."""

        def held():
            _, addresses = self.daemon.identity()
            return any(f"{relay}/p2p-circuit" in address for address in addresses)

        until(f"{self.name} holds a reservation", held)


class Scripted(Liner):
    """A node that is a script of ours around their library."""

    def __init__(self, name, folder, command, relay, listen=None):
        listen = listen or anywhere(self.host)
        super().__init__(name, command + [listen] + ([f"{relay}/p2p-circuit"] if relay else []), folder)

    def ready(self):
        status = self.ask("status")
        self.id = status["peer"]
        self.address = status["listen"][0].rsplit("/p2p/", 1)[0]

    def dial(self, peer, address):
        self.ask("dial", f"{address}/p2p/{peer}")

    def ping(self, peer):
        return self.ask("ping", peer)["ms"]

    def identify(self, peer):
        said = self.ask("identify", peer)
        return said["agent"], said["protocols"]

    def flood(self, peer, count):
        """Opens streams for protocols that nobody speaks; how many were refused."""
        return self.ask("streams", peer, count)["refused"]

    def connected(self, peer):
        return peer in self.ask("status")["connected"]

    def reserved(self, relay):
        def held():
            return any(f"{relay}/p2p-circuit" in address for address in self.ask("status")["circuits"])

        until(f"{self.name} holds a reservation", held)


class Js(Scripted):
    """js-libp2p."""

    kind, agent, host = "js-libp2p", "js-libp2p", PRIVATE

    def __init__(self, name, folder, install, relay=None, public=False):
        command, listen = ["node", os.path.join(install, "js", "js_peer.mjs")], None
        if public:
            # What is told to others is written before the system has chosen a port.
            command.append("--public")
            listen = f"/ip4/{PUBLIC}/udp/{free_port(PUBLIC)}/quic-v1"
        super().__init__(name, folder, command, relay, listen)

    def direct(self, peer):
        return peer in self.ask("status")["direct"]


class Py(Scripted):
    """py-libp2p."""

    kind, agent, host = "py-libp2p", "py-libp2p", PRIVATE
    # Whoever answers identify stops reading, and py-libp2p 0.8.1 takes that for the end of both directions (RFC 9000
    # section 3.5 has it for one): it loses the answer, by whatever library of Rust it was sent.
    identifies = False

    def __init__(self, name, folder, install, relay=None):
        here = os.path.dirname(os.path.abspath(__file__))
        python = os.path.join(install, "py", "bin", "python")
        super().__init__(name, folder, [python, os.path.join(here, "py_peer.py")], relay)
