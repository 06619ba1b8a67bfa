"""The control protocol of go-libp2p-daemon, and of libp2p's protocols as much as it leaves to its user.

Protocol buffers and addresses are written by hand: what is needed of them is a page, and the tests need nothing
installed but the daemon.
"""

import os
import socket
import time

PING = "/ipfs/ping/1.0.0"
IDENTIFY = "/ipfs/id/1.0.0"


class Refused(Exception):
    """The daemon has answered with an error."""


# Protocol buffers.


def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, value):
    """A field that holds a number, or anything with a length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data):
    """Every field of a message, by number, each a list."""
    found, at = {}, 0
    while at < len(data):
        key, at = read_varint(data, at)
        value, at = read_varint(data, at)
        if key & 7 == 2:
            value, at = data[at : at + value], at + value
        elif key & 7 != 0:
            raise ValueError(f"wire type {key & 7} is not expected")
        found.setdefault(key >> 3, []).append(value)
    return found


# Identities and addresses.

ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def peer_to_bytes(text):
    value = 0
    for char in text:
        value = value * 58 + ALPHABET.index(char)
    zeros = len(text) - len(text.lstrip("1"))
    return bytes(zeros) + value.to_bytes((value.bit_length() + 7) // 8, "big")


def peer_to_text(data):
    value, text = int.from_bytes(data, "big"), ""
    while value:
        value, digit = divmod(value, 58)
        text = ALPHABET[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


IP4, UDP, QUIC_V1, P2P, CIRCUIT = 0x04, 0x0111, 0x01CD, 0x01A5, 0x0122


def address_to_bytes(text):
    parts, out = iter(text.strip("/").split("/")), b""
    for part in parts:
        if part == "ip4":
            out += varint(IP4) + socket.inet_aton(next(parts))
        elif part == "udp":
            out += varint(UDP) + int(next(parts)).to_bytes(2, "big")
        elif part == "quic-v1":
            out += varint(QUIC_V1)
        elif part == "p2p":
            peer = peer_to_bytes(next(parts))
            out += varint(P2P) + varint(len(peer)) + peer
        elif part == "p2p-circuit":
            out += varint(CIRCUIT)
        else:
            raise ValueError(f"/{part} is not known here")
    return out


def address_to_text(data):
    """The address, or None when there is something in it that the tests do not use."""
    at, text = 0, ""
    while at < len(data):
        code, at = read_varint(data, at)
        if code == IP4:
            text, at = text + "/ip4/" + socket.inet_ntoa(data[at : at + 4]), at + 4
        elif code == UDP:
            text, at = text + f"/udp/{int.from_bytes(data[at : at + 2], 'big')}", at + 2
        elif code == QUIC_V1:
            text += "/quic-v1"
        elif code == P2P:
            size, at = read_varint(data, at)
            text, at = text + "/p2p/" + peer_to_text(data[at : at + size]), at + size
        elif code == CIRCUIT:
            text += "/p2p-circuit"
        else:
            return None
    return text


class Connection:
    """One connection with the daemon, which becomes a stream to a peer when one is opened over it."""

    def __init__(self, path, patience=10):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(patience)
        self.socket.connect(path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def read(self, size):
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise Refused("the stream has ended")
            data += more
        return data

    def write(self, data):
        try:
            self.socket.sendall(data)
        except ConnectionError as error:
            raise Refused("the stream has ended") from error

    def read_delimited(self):
        head = b""
        while not head or head[-1] > 0x7F:
            head += self.read(1)
        return self.read(read_varint(head, 0)[0])

    def ask(self, kind, *rest):
        body = field(1, kind) + b"".join(rest)
        self.write(varint(len(body)) + body)
        answer = fields(self.read_delimited())
        if answer[1] != [0]:
            raise Refused(fields(answer[2][0])[1][0].decode())
        return answer


class Daemon:
    """A daemon that listens at a socket in the file system."""

    def __init__(self, path):
        self.path = path

    def identity(self):
        """Its peer id, and where it listens."""
        with Connection(self.path) as connection:
            said = fields(connection.ask(0)[4][0])
        addresses = [address_to_text(address) for address in said.get(2, [])]
        return peer_to_text(said[1][0]), [address for address in addresses if address]

    def connect(self, peer, address, seconds=10):
        """Connects to a peer at an address, which does not name it."""
        where = field(1, peer_to_bytes(peer)) + field(2, address_to_bytes(address)) + field(3, seconds)
        with Connection(self.path, seconds + 5) as connection:
            connection.ask(1, field(2, where))

    def peers(self):
        """Whom it is connected to."""
        with Connection(self.path) as connection:
            return [peer_to_text(fields(peer)[1][0]) for peer in connection.ask(5).get(6, [])]

    def open(self, peer, protocol, seconds=5):
        """A stream, which the caller closes."""
        connection = Connection(self.path, seconds + 5)
        try:
            what = field(1, peer_to_bytes(peer)) + field(2, protocol.encode()) + field(3, seconds)
            connection.ask(2, field(3, what))
        except BaseException:
            connection.socket.close()
            raise
        return connection

    def ping(self, peer):
        """Milliseconds there and back, as libp2p's ping has it: 32 bytes that come back."""
        with self.open(peer, PING) as stream:
            asked_at = time.monotonic()
            for _ in range(3):
                said = os.urandom(32)
                stream.write(said)
                if stream.read(32) != said:
                    raise Refused("something else came back")
            return (time.monotonic() - asked_at) * 1e3 / 3

    def identify(self, peer):
        """What a peer says of itself: its agent, and its protocols."""
        with self.open(peer, IDENTIFY) as stream:
            said = fields(stream.read_delimited())
        return said[6][0].decode(), [protocol.decode() for protocol in said.get(3, [])]
