# SPDX-License-Identifier: BSD-3-Clause
"""Every command with every flag at every edge of offset and length, against lib/nbdoracle.py.

QEMU's server, where it is told the same, must be allowed the same: that is what the oracle itself is checked with.
`make check` takes some thousand of the combinations, another part of them in each variant; `make soak` takes all.
"""

import itertools
import random

import pytest

from lib import nbdraw, nbdoracle, pattern, tools
from lib.nbdproto import *                               # noqa: F403
from lib.patience import HANG, wait_until

SIZE = 192 << 10
BIG = [(1 << 31) - 1, 1 << 31, (1 << 32) - 512, (1 << 32) - 1, 1 << 32, (1 << 63) - 512, (1 << 63) - 1, 1 << 63,
       (1 << 64) - 512, (1 << 64) - 1]
SMALL = [0, 1, 511, 512, 4096, 65536, SIZE - 65536, SIZE - 512, SIZE - 1, SIZE, SIZE + 1, SIZE + 512]
LENGTHS = SMALL + [MAX_REQUEST, MAX_REQUEST + 1] + BIG
FLAGS = [0, F_FUA, F_NO_HOLE, F_DF, F_REQ_ONE, F_FAST_ZERO, F_FUA | F_NO_HOLE, F_FAST_ZERO | F_NO_HOLE | F_FUA,
         F_PAYLOAD_LEN, F_PAYLOAD_LEN | F_FUA, F_PAYLOAD_LEN | F_DF, 0x40, 0x80, 0x8000, 0xFFFF]
COMMANDS = [*nbdoracle.COMMANDS, 8, 9, 99, 0xFFFF]
MODES = {"compact": {"structured": False}, "structured": {}, "extended": {"extended": True}}


def combinations(mode):
    for cmd, offset, length, flags in itertools.product(COMMANDS, SMALL + BIG, LENGTHS, FLAGS):
        if mode == "extended" or length < 1 << 32:
            yield cmd, offset, length, flags


class Checker:
    """One client after the other, and what the disk holds as far as they know."""

    def __init__(self, d, mode, writable, contexts, allowed):
        self.allowed = allowed
        self.d, self.mode, self.wanted = d, mode, ["base:allocation"] if contexts else []
        self.content = bytearray(pattern.block("edges", SIZE))
        self.connect()
        self.oracle = nbdoracle.Export(SIZE, writable, mode != "compact", mode == "extended", contexts)

    def connect(self):
        self.d.close_clients()
        self.c = self.d.enter(contexts=self.wanted, **MODES[self.mode])
        self.c.sock.settimeout(HANG)

    def ask(self, cmd, offset, length, flags):
        """The answer: an NBD error or 0, and the Answer; or CLOSE."""
        payload = nbdoracle.payload_of(self.oracle, cmd, length, flags)
        data = pattern.block(f"{offset}-{length}", min(payload, SIZE)).ljust(payload, b"\0") \
            if payload <= MAX_REQUEST else b""
        if cmd == CMD_BLOCK_STATUS:
            data = bytes(len(data))
        try:
            self.c.pump(self.c.pack(cmd, offset, length, flags, data))
            a = self.c.answer(self.c.last_cookie)
        except (nbdraw.Closed, ConnectionError):
            self.connect()
            return nbdoracle.CLOSE, None, data
        return a.error, a, data

    def check(self, cmd, offset, length, flags):
        what = f"command {cmd} offset {offset:#x} length {length:#x} flags {flags:#x}"
        allowed = self.allowed(self.oracle, cmd, offset, length, flags)
        error, a, data = self.ask(cmd, offset, length, flags)
        assert error in allowed, f"{what}: {error}, allowed is {allowed}"
        if error:
            if nbdoracle.CLOSE in allowed and error != nbdoracle.CLOSE:
                self.connect()
            return
        if cmd == CMD_READ:
            got = a.assemble(offset, length) if self.c.structured else a.chunks[0].data
            assert got == self.content[offset:offset + length], f"{what}: wrong bytes"
        elif cmd == CMD_BLOCK_STATUS:
            extents = a.extents()[self.c.contexts["base:allocation"]]
            assert 0 < sum(n for n, _ in extents) <= length, what
        elif cmd == CMD_WRITE:
            self.content[offset:offset + length] = data
        elif cmd == CMD_WRITE_ZEROES:
            self.content[offset:offset + length] = bytes(length)
        elif cmd == CMD_TRIM and length:
            now = self.c.read(offset, length)
            assert all(n in (0, o) for n, o in zip(now, self.content[offset:offset + length])), what
            self.content[offset:offset + length] = now

    def end(self):
        """Still there, in step, and everything is where it belongs."""
        assert self.c.read(0, SIZE) == self.content
        assert self.c.disconnect()


def image(tmp, fmt):
    (tmp / "raw").write_bytes(pattern.block("edges", SIZE))
    if fmt == "qcow2":
        tools.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp / "raw", tmp / "disk.qcow2")
        return str(tmp / "disk.qcow2")
    return str(tmp / "raw")


def run(daemon, tmp, mode, fmt, writable, contexts, some, allowed=nbdoracle.allowed):
    path = image(tmp, fmt)
    d = daemon.serve(path, fmt, writable=writable)
    fds = d.descriptors()
    all_of_them = list(combinations(mode))
    random.Random(f"{mode} {fmt} {writable}").shuffle(all_of_them)
    checker = Checker(d, mode, writable, contexts, allowed)
    for request in all_of_them[:some]:
        checker.check(*request)
    checker.end()
    d.close_clients()
    wait_until(lambda: d.descriptors() <= fds + 2)       # its monitor
    d.stop()
    if fmt == "qcow2":
        tools.check(path)


VARIANTS = [pytest.param(mode, fmt, writable, contexts, id=f"{mode}-{fmt}-{'rw' if writable else 'ro'}")
            for (mode, contexts), fmt, writable in itertools.product(
                [("compact", False), ("structured", True), ("extended", True)], ["raw", "qcow2"], [True, False])]


@pytest.mark.merino_only
@pytest.mark.parametrize("mode, fmt, writable, contexts", VARIANTS)
def test_edges(daemon, tmp, mode, fmt, writable, contexts):
    run(daemon, tmp, mode, fmt, writable, contexts, 800)


@pytest.mark.merino_only
@pytest.mark.parametrize("mode", ["structured", "extended"])
def test_edges_without_contexts(daemon, tmp, mode):
    run(daemon, tmp, mode, "raw", True, False, 500)


@pytest.mark.merino_only
@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode, fmt, writable, contexts", VARIANTS)
def test_all_edges(daemon, tmp, mode, fmt, writable, contexts):
    run(daemon, tmp, mode, fmt, writable, contexts, None)


def qemu_allowed(e, cmd, offset, length, flags):
    """QEMU 7.2 replies EINVAL to writes where the specification SHOULDs ENOSPC and EPERM, and before it hangs up."""
    allowed = set(nbdoracle.allowed(e, cmd, offset, length, flags))
    if allowed == {nbdoracle.CLOSE} or (cmd in nbdoracle.WRITES and 0 not in allowed):
        allowed.add(EINVAL)
    return allowed


@pytest.mark.parametrize("mode, fmt, writable, contexts", [v for v in VARIANTS if "extended" not in v.id])
def test_the_oracle_allows_what_qemu_does(daemon, tmp, monkeypatch, mode, fmt, writable, contexts):
    monkeypatch.setenv("MERINOD", "qemu-storage-daemon")
    run(daemon, tmp, mode, fmt, writable, contexts, 500, qemu_allowed)
