# SPDX-License-Identifier: Apache-2.0
"""Small messages among the ranks of a site: a star of TCP connections around rank 0.

A rank that ends closes its connection, and one that does not come is silent: rank 0 sees which one
it is, and tells the others. A collective call of a process group can say neither."""
from __future__ import annotations

import os
import secrets
import selectors
import socket
import struct
import time
import weakref

from . import ConfigError, PeerLostError, RunTimeoutError

HEADER = struct.Struct("<BI")  # kind, bytes
DATA, LOST, WAITS = range(3)
TOKEN_BYTES = 16
CONNECT_S = 30
WAITS_EVERY_S = 1.0
PATIENCE_S = 1800  # for a rank that does something else, as saving a checkpoint; as torch's own

_all: "weakref.WeakSet[Wires]" = weakref.WeakSet()


def _close_in_child():
    """A worker that kept a connection open would hide that its parent has ended."""
    for wires in _all:
        wires.close()


os.register_at_fork(after_in_child=_close_in_child)


class Wires:
    """exchange(bytes) → what each rank gave, in their order. Every rank makes the same calls.

    spread: gathers a bytes object of each rank, for the beginning."""

    def __init__(self, rank, size, spread):
        self.rank, self.size = rank, size
        self.timeout_s = 10.0
        self.say = None  # for a line about a rank that does not come
        self.peers = {}  # rank → socket; of others than 0, rank 0's alone
        listener, own = None, b""
        if rank == 0:
            listener = socket.create_server(("", 0), backlog=size)
            token = secrets.token_bytes(2 * TOKEN_BYTES)
            port, names = listener.getsockname()[1], "\n".join(_names())
            own = token + struct.pack("<H", port) + names.encode()
        told = spread(own)[0]
        # what a rank says to rank 0, and what rank 0 answers: a name may lead to another machine
        self.token, self.answer = told[:TOKEN_BYTES], told[TOKEN_BYTES:2 * TOKEN_BYTES]
        (port,) = struct.unpack_from("<H", told, 2 * TOKEN_BYTES)
        problem = None
        try:
            if rank == 0:
                self._accept(listener)
            else:
                self._connect(told[2 * TOKEN_BYTES + 2:].decode().split("\n"), port)
        except OSError as error:
            late = [r for r in range(1, size) if r not in self.peers]
            problem = (f"rank {rank} and rank 0 of this site can't connect: {error}" if rank > 0
                       else f"rank 0 of this site waited for rank {' and '.join(map(str, late))} "
                       f"to connect: {error}")
        finally:
            if listener is not None:
                listener.close()
        for text in spread((problem or "").encode()):
            if text:
                self.close()
                raise ConfigError(text.decode())
        _all.add(self)

    def _accept(self, listener):
        until_s = time.monotonic() + CONNECT_S
        while len(self.peers) < self.size - 1:
            listener.settimeout(max(until_s - time.monotonic(), 0.001))
            peer, _ = listener.accept()
            peer.settimeout(5)
            try:
                token, r = _receive(peer, TOKEN_BYTES), struct.unpack("<I", _receive(peer, 4))[0]
            except OSError:
                peer.close()
                continue
            if (not secrets.compare_digest(token, self.token) or r in self.peers
                    or not 0 < r < self.size):
                peer.close()  # not one of this site
                continue
            try:
                peer.sendall(self.answer)
            except OSError:
                peer.close()
                continue
            self._keep(r, peer)

    def _connect(self, names, port):
        problem = OSError("no address")
        for name in names:
            try:
                peer = socket.create_connection((name, port), timeout=5)
            except OSError as error:
                problem = error
                continue
            try:
                peer.sendall(self.token + struct.pack("<I", self.rank))
                if not secrets.compare_digest(_receive(peer, TOKEN_BYTES), self.answer):
                    raise ConnectionRefusedError("another program answers")
                self._keep(0, peer)
                return
            except OSError as error:
                peer.close()
                problem = error
        raise OSError(f"{problem} (tried {', '.join(names)})")

    def _keep(self, r, peer):
        peer.settimeout(None)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers[r] = peer

    def close(self):
        for peer in self.peers.values():
            peer.close()
        self.peers = {}

    def exchange(self, own):
        """Blocks until all ranks call it. PeerLostError: a rank has ended."""
        if self.rank != 0:
            self._send(0, DATA, own)
            return _unpack(self._answer())
        parts = [own] + [None] * (self.size - 1)
        try:
            self._collect(parts)
            joined = b"".join(struct.pack("<I", len(part)) + part for part in parts)
            for r in self.peers:
                self._send(r, DATA, joined)
        except (PeerLostError, RunTimeoutError) as error:
            self._tell_why(error)
            raise
        return parts

    def watch(self):
        """Between exchanges, without waiting. PeerLostError: a rank has ended."""
        for r, peer in self.peers.items():
            try:
                ended = not peer.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            except OSError:
                ended = True
            if r == 0:  # it has ended, or says which has: nothing else comes now
                raise PeerLostError(self._receive_from(0)[1].decode())
            if ended:
                error = self._lost(r)
                self._tell_why(error)
                raise error

    def _tell_why(self, error):
        """Rank 0, to the others."""
        for r in self.peers:
            try:
                self._send(r, LOST, str(error).encode())
            except PeerLostError:
                pass

    def _lost(self, r):
        return PeerLostError(f"rank {r} of this site has ended")

    def _send(self, r, kind, payload):
        try:
            self.peers[r].sendall(HEADER.pack(kind, len(payload)) + payload)
        except OSError as error:
            raise self._lost(r) from error

    def _receive_from(self, r):
        try:
            kind, count = HEADER.unpack(_receive(self.peers[r], HEADER.size))
            return kind, _receive(self.peers[r], count)
        except OSError as error:
            raise self._lost(r) from error

    def _collect(self, parts):
        """Rank 0: a message of each."""
        begun_s, told_s, said = time.monotonic(), 0.0, False
        with selectors.DefaultSelector() as ready:
            for r, peer in self.peers.items():
                ready.register(peer, selectors.EVENT_READ, r)
            while ready.get_map():
                for key, _ in ready.select(WAITS_EVERY_S):
                    parts[key.data] = self._receive_from(key.data)[1]
                    ready.unregister(key.fileobj)
                waited_s = time.monotonic() - begun_s
                if ready.get_map() and waited_s - told_s >= WAITS_EVERY_S:
                    told_s = waited_s
                    late = [r for r in self.peers if parts[r] is None]
                    for r in self.peers:
                        if r not in late:
                            self._send(r, WAITS, b"")
                    said = self._tell(late, waited_s, said)

    def _answer(self):
        """Another rank: what rank 0 sends."""
        begun_s, said = time.monotonic(), False
        peer = self.peers[0]
        while True:
            with selectors.DefaultSelector() as ready:
                ready.register(peer, selectors.EVENT_READ)
                came = ready.select(WAITS_EVERY_S)
            if came:
                kind, payload = self._receive_from(0)
                if kind == DATA:
                    return payload
                if kind == LOST:
                    raise PeerLostError(payload.decode())
                begun_s = time.monotonic()  # rank 0 is there, and waits for another
            said = self._tell([0], time.monotonic() - begun_s, said)

    def _tell(self, late, waited_s, said):
        """Names ranks that do not come: in a line, and at last as an error."""
        names = " and ".join(map(str, late))
        text = (f"rank {names} of this site has not come for {waited_s:.0f} s: every rank must "
                "take each step")
        if waited_s > PATIENCE_S:
            raise RunTimeoutError(text)
        if waited_s > self.timeout_s and not said:
            if self.say is not None:
                self.say(text)
            return True
        return said


def _names():
    """Under which this machine may be reached by others of the site, and by itself."""
    host = socket.gethostname()
    names = [os.environ.get("MASTER_ADDR", ""), host, socket.getfqdn()]
    try:
        names += socket.gethostbyname_ex(host)[2]
    except OSError:
        pass
    return [*dict.fromkeys(name for name in names if name), "127.0.0.1"]


def _receive(peer, count):
    parts = []
    while count > 0:
        part = peer.recv(min(count, 1 << 20))
        if not part:
            raise ConnectionResetError("closed")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _unpack(joined):
    parts, at = [], 0
    while at < len(joined):
        (count,) = struct.unpack_from("<I", joined, at)
        parts.append(joined[at + 4:at + 4 + count])
        at += 4 + count
    return parts
