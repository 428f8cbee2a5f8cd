# SPDX-License-Identifier: BSD-3-Clause
"""The same random operations on an export and on a bytearray.

Many are in flight at once, over several connections; two that overlap are only when both read, so that the outcome is
one.  A range that was trimmed may read as before or as zeroes, per byte; what it reads as is then the truth.
A run depends on its seed alone, but for the order in which the server answers.
"""

import random

from lib import pattern
from lib.nbdproto import *                               # noqa: F403

WEIGHTS = {"write": 40, "read": 25, "zero": 15, "trim": 8, "flush": 4, "fua": 8}


class Op:
    def __init__(self, kind, offset, length, conn, cookie):
        self.kind, self.start, self.end, self.conn, self.cookie = kind, offset, offset + length, conn, cookie
        self.data = b""

    def overlaps(self, start, end):
        return self.start < end and start < self.end


class Run:
    """CONNS: raw connections to one export; MODEL: bytearray of its content; GRAIN: its cluster size."""

    def __init__(self, seed, conns, model, grain, depth=24, weights=None):
        self.rnd = random.Random(f"differential {seed}")
        self.conns, self.model, self.grain, self.depth = conns, model, grain, depth
        self.weights = weights or WEIGHTS
        self.flying = []
        self.done = 0
        self.touched = []               # (offset, length) of every write, zero and trim, in order

    def place(self):
        """An offset and a length: near borders of clusters more often than not, sometimes long."""
        rnd, size = self.rnd, len(self.model)
        length = min(size, rnd.choice((1, 512, 513, 4096, self.grain - 1, self.grain, self.grain + 1,
                                       rnd.randrange(1, 4 * self.grain), rnd.randrange(1, 65536))))
        length = max(1, min(length, 1 << 20))
        offset = rnd.randrange(size)
        if rnd.random() < 0.6:
            offset = offset // self.grain * self.grain + rnd.choice((-512, -1, 0, 0, 0, 1, 512))
        return max(0, min(offset, size - length)), length

    def settle(self, start, end, writes):
        """Wait for those in flight that must not meet a new operation on [start, end)."""
        for op in [o for o in self.flying if o.overlaps(start, end) and (writes or o.kind != "read")]:
            self.finish(op)

    def step(self):
        rnd, conn = self.rnd, self.rnd.choice(self.conns)
        kind = rnd.choices(list(self.weights), list(self.weights.values()))[0]
        offset, length = self.place()
        if kind == "flush":
            self.flying.append(Op("flush", 0, 0, conn, conn.start(CMD_FLUSH)))
        elif kind == "read":
            self.settle(offset, offset + length, False)
            op = Op("read", offset, length, conn, conn.start(CMD_READ, offset, length))
            op.data = bytes(self.model[offset:offset + length])
            self.flying.append(op)
        else:
            self.settle(offset, offset + length, True)
            self.flying.append(self.change(kind, conn, offset, length))
            self.touched.append((offset, length))
        if len(self.flying) > self.depth:
            self.finish(self.flying[rnd.randrange(8)])

    def change(self, kind, conn, offset, length):
        end = offset + length
        if kind == "zero":
            cookie = conn.start(CMD_WRITE_ZEROES, offset, length, self.rnd.choice((0, 0, F_NO_HOLE, F_FUA)))
            self.model[offset:end] = bytes(length)
        elif kind == "trim":
            cookie = conn.start(CMD_TRIM, offset, length)
        else:
            data = pattern.block((self.done, len(self.touched)), length)
            cookie = conn.start(CMD_WRITE, offset, flags=F_FUA if kind == "fua" else 0, data=data)
            self.model[offset:end] = data
        return Op(kind, offset, length, conn, cookie)

    def finish(self, op):
        self.flying.remove(op)
        self.done += 1
        answer = op.conn.answer(op.cookie)
        where = f"operation {self.done}: {op.kind} {op.start:#x}+{op.end - op.start:#x}"
        assert answer.error == 0, f"{where}: error {answer.error} {answer.text}"
        if op.kind == "read":
            got = answer.assemble(op.start, op.end - op.start)
            assert (d := pattern.first_difference(got, op.data)) is None, f"{where}: {d}"
        elif op.kind == "trim":
            old = self.model[op.start:op.end]
            got = op.conn.read(op.start, op.end - op.start)
            if got != bytes(len(got)):
                assert all(g in (0, o) for g, o in zip(got, old)), f"{where}: neither old nor zero"
            self.model[op.start:op.end] = got

    def go(self, steps):
        for _ in range(steps):
            self.step()
        while self.flying:
            self.finish(self.flying[0])
        self.verify()

    def verify(self):
        """The whole disk, read through the export."""
        for at in range(0, len(self.model), 8 << 20):
            n = min(8 << 20, len(self.model) - at)
            got = self.conns[0].read(at, n)
            assert (d := pattern.first_difference(got, self.model[at:at + n])) is None, f"chunk {at:#x}: {d}"
