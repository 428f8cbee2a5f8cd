# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 in the middle of writing: nothing that was acknowledged is lost, and nothing is leaked after the next open.

Power losses are simulated in tests/unit/test-powerloss.c, and the death of the process at every single write in
tests/unit/test-crashlog.c; here it really dies, several times on one image.
"""

import itertools
import random
import struct
import threading
import time

import nbd
import pytest

from lib import tools
from lib.patience import HANG

K, M = 1 << 10, 1 << 20
BLOCK = 4 * K
SIZE = 16 * M
WRITERS = 4


class Writer(threading.Thread):
    """Writes, zeroes, trims and flushes blocks of its own until the server is gone.

    self.may: for each block the values that it may hold: the last one that is safe, and all later ones.
    """

    def __init__(self, handle, seed, blocks, may, count, acknowledged):
        super().__init__(daemon=True)
        self.handle, self.rng, self.blocks, self.may, self.count = handle, random.Random(seed), blocks, may, count
        self.acknowledged = acknowledged
        self.error = None
        self.doing = ""

    def done(self, block, fua=False):
        """The last request for the block was answered."""
        if self.acknowledged or fua:
            del self.may[block][:-1]

    def flush(self):
        answered = {b: len(self.may[b]) for b in self.blocks}
        self.handle.flush()
        for b, n in answered.items():
            del self.may[b][:n - 1]

    def write(self, block, fua):
        value = next(self.count)
        self.may[block].append(value)
        self.handle.pwrite(struct.pack("<QQ", value, block) * (BLOCK // 16), block * BLOCK,
                           nbd.CMD_FLAG_FUA if fua else 0)
        self.done(block, fua)

    def step(self):
        kind, block = self.rng.random(), self.rng.choice(self.blocks)
        self.doing = f"{kind:.2f} of block {block}"
        if kind < 0.08:
            self.flush()
        elif kind < 0.16:
            self.may[block].append(0)
            self.handle.zero(BLOCK, block * BLOCK)
            self.done(block)
        elif kind < 0.24:
            self.may[block].append(0)
            self.handle.trim(BLOCK, block * BLOCK)
            self.handle.zero(BLOCK, block * BLOCK)     # a trim alone promises nothing
            self.done(block)
        else:
            self.write(block, kind > 0.97)

    def run(self):
        try:
            while True:
                self.step()
        except Exception as e:      # pylint: disable=broad-except
            self.error = e

    def ended(self):
        """The server is dead: the connection must break, unless the kernel is still busy with the dead."""
        self.join(HANG)
        assert not self.is_alive(), f"the connection has not ended: {self.doing}"
        assert isinstance(self.error, nbd.Error), repr(self.error)


def value_of(data, block):
    """The value that a block holds; None when it was never written like that, or is torn."""
    if data == bytes(BLOCK):
        return 0
    value, where = struct.unpack_from("<QQ", data)
    return value if where == block and data == struct.pack("<QQ", value, block) * (BLOCK // 16) else None


def verify(daemon, path, fmt, may, options):
    """Every block holds something that it may; from now on it is that."""
    d = daemon.serve(path, fmt, blockdev=options)
    h = d.libnbd()
    for at in range(0, SIZE, M):
        data = h.pread(M, at)
        for block in range(at // BLOCK, (at + M) // BLOCK):
            start = block * BLOCK - at
            value = value_of(data[start:start + BLOCK], block)
            assert value in may[block], f"block {block} holds {value}, not one of {may[block]}"
            may[block] = [value]
    return d


def ones():
    return b"".join(struct.pack("<QQ", 1, b) * (BLOCK // 16) for b in range(SIZE // BLOCK))


def make(tmp, kind):
    """The image, and what each block holds."""
    fmt = "raw" if kind == "raw" else "qcow2"
    options = {"cluster_size": "4k"} if kind == "small clusters" else {}
    if kind == "subclusters":
        options = {"extended_l2": "on"}
    if kind not in ("overlay", "snapshot"):
        return tools.create(tmp / "image", SIZE, fmt, **options), [[0] for _ in range(SIZE // BLOCK)]
    base = tmp / "base"
    base.write_bytes(ones())
    if kind == "overlay":
        path = tools.create(tmp / "image", SIZE, fmt, base, "raw")
    else:
        path = str(tmp / "image")
        tools.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", base, path)
        tools.run("qemu-img", "snapshot", "-c", "before", path)
    return path, [[1] for _ in range(SIZE // BLOCK)]


def kill_rounds(daemon, tmp, kind, rounds, options="", acknowledged=True):
    fmt = "raw" if kind == "raw" else "qcow2"
    path, may = make(tmp, kind)
    rng, count = random.Random(kind), itertools.count(2)     # which threads may share
    for _ in range(rounds):
        d = daemon.serve(path, fmt, blockdev=options)
        writers = [Writer(d.libnbd(), rng.random(), range(i, SIZE // BLOCK, WRITERS), may, count, acknowledged)
                   for i in range(WRITERS)]
        for w in writers:
            w.start()
        time.sleep(rng.uniform(0.02, 0.3))
        d.proc.kill()
        for w in writers:
            w.ended()
        d.kill()
        if fmt == "qcow2":
            done = tools.run("qemu-img", "check", "-f", "qcow2", path, check=False)
            assert done.returncode in (0, 3), done.stdout + done.stderr
        verify(daemon, path, fmt, may, options).stop()
        if fmt == "qcow2":
            tools.check(path)           # no leak is left
        assert not list(tmp.glob(".*.crash-log"))
    if kind == "snapshot":
        tools.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", "before", path, tmp / "old")
        assert (tmp / "old").read_bytes() == ones()


KINDS = ["raw", "qcow2", "small clusters", "overlay", "snapshot", "subclusters"]


@pytest.mark.merino_only
@pytest.mark.parametrize("kind", KINDS)
def test_acknowledged_data_survives_a_killed_process(daemon, tmp, kind):
    kill_rounds(daemon, tmp, kind, 5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_acknowledged_data_survives_200_killed_processes(daemon, tmp, kind):
    kill_rounds(daemon, tmp, kind, 200)


# QEMU passes most of the time: it uses a freed cluster again before the table that freed it is written, so that after
# a kill a block that was trimmed or zeroed now and then holds another block's data.
@pytest.mark.merino_only
@pytest.mark.parametrize("kind", ["qcow2", "overlay"])
def test_flushed_data_survives_without_a_crash_log(daemon, tmp, kind):
    kill_rounds(daemon, tmp, kind, 3, "crash-log=off", acknowledged=False)
