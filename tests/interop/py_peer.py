"""A py-libp2p node that obeys lines on standard input, and answers each with a line of JSON; see README.md.

Its argument is where it listens. It neither relays nor is reached through relays.
"""

import json
import sys

import trio
from libp2p import new_host
from libp2p.host.ping import PingService
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from multiaddr import Multiaddr

PATIENCE = 10


class Verbs:
    def __init__(self, host):
        self.host, self.pings = host, PingService(host)

    async def status(self):
        listen = [str(address) for address in self.host.get_addrs()]
        connected = [str(peer) for peer in self.host.get_network().connections]
        return {"peer": str(self.host.get_id()), "listen": listen, "connected": connected, "circuits": []}

    async def dial(self, address):
        await self.host.connect(info_from_p2p_addr(Multiaddr(address)))
        return {}

    async def ping(self, peer):
        took = await self.pings.ping(ID.from_string(peer), 3)
        return {"ms": sum(took) / len(took)}

    async def streams(self, peer, count):
        refused = 0

        async def open(nth):
            nonlocal refused
            try:
                await self.host.new_stream(ID.from_string(peer), [f"/no/such/{nth}"])
            except Exception:
                refused += 1

        async with trio.open_nursery() as nursery:
            for nth in range(int(count)):
                nursery.start_soon(open, nth)
        return {"refused": refused}


async def main():
    listen = [Multiaddr(sys.argv[1])]
    host = new_host(listen_addrs=listen, enable_quic=True, enable_tcp=False)
    async with host.run(listen_addrs=listen):
        verbs = Verbs(host)
        async for line in trio.wrap_file(sys.stdin):
            verb, *words = line.split()
            try:
                with trio.fail_after(PATIENCE):
                    answer = await getattr(verbs, verb)(*words)
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)


trio.run(main)
