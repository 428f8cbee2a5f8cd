# SPDX-License-Identifier: BSD-3-Clause
"""A proxy that follows the NBD protocol and breaks a connection, or goes silent, at a stage that is named.

A stage is a part of the stream and a place: before its first byte, in the middle, after its last.  It knows what
merino-vmm's connections use: options up to NBD_OPT_GO, then simple replies."""

import contextlib
import struct
import threading

from lib import nbdproto as P
from lib.cutter import Cutter

PLACES = "before", "middle", "after"
HANDSHAKE = "greeting", "flags", "option", "option data", "option reply", "option reply data"
TRANSMISSION = "request", "write data", "reply", "read data"


def all_of(sock, n):
    data = b""
    while len(data) < n:
        if not (more := sock.recv(n - len(data))):
            raise ConnectionError
        data += more
    return data


class Stages(Cutter):
    """.struck is set once it has happened, which it does once for each strike()."""

    def __init__(self, path, target):
        self.stage, self.silent, self.struck = None, False, threading.Event()
        super().__init__(path, target)

    def strike(self, part, place, silent=False):
        """At the next connection that comes there.  Silence is that of the whole server, until .go_on()."""
        self.struck.clear()
        self.silent, self.stage = silent, (part, place)

    def at(self, part, place):
        with self.lock:
            hit = self.stage == (part, place)
            if hit:
                self.stage = None
        if hit and self.silent:
            self.stall()
        if hit:
            self.struck.set()
        if hit and not self.silent:
            raise ConnectionError
        self.flowing.wait()

    def forward(self, a, b):
        reads = {}                                       # cookie: bytes that its reply brings
        for work, x, y in (self.client, a, b), (self.server, b, a):
            threading.Thread(target=self.follow, args=(work, x, y, reads), daemon=True).start()

    def follow(self, work, x, y, reads):
        with contextlib.suppress(OSError):
            work(lambda *what: self.move(x, y, *what), reads)
        self.part(x, y)

    def move(self, x, y, part, n, look=lambda data: None):
        """N bytes from X to Y; LOOK sees them before they are all there."""
        self.at(part, "before")
        first = all_of(x, n // 2)
        y.sendall(first)
        self.at(part, "middle")
        rest = all_of(x, n - n // 2)
        look(first + rest)
        y.sendall(rest)
        self.at(part, "after")
        return first + rest

    def client(self, move, reads):
        move("flags", 4)
        option = None
        while option != P.OPT_GO:
            option, n = struct.unpack(">8xLL", move("option", 16))
            if n:
                move("option data", n)
        while True:
            kind, n = struct.unpack(">6xH16xL", move("request", 28, lambda head: self.note(head, reads)))
            if kind == P.CMD_WRITE:
                move("write data", n)

    def note(self, head, reads):
        kind, cookie, n = struct.unpack(">6xHQ8xL", head)
        if kind == P.CMD_READ:
            reads[cookie] = n

    def server(self, move, reads):
        move("greeting", 18)
        option = kind = None
        while (option, kind) != (P.OPT_GO, P.REP_ACK):
            option, kind, n = struct.unpack(">8xLLL", move("option reply", 20))
            if n:
                move("option reply data", n)
        while True:
            error, cookie = struct.unpack(">4xLQ", move("reply", 16))
            n = reads.pop(cookie, 0)
            if n and not error:
                move("read data", n)
