# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 in the middle of writing: what was flushed is there, and the image is consistent (leaks at worst).

Power losses are simulated in tests/unit/test-powerloss.c; here the process really dies, several times on one image.
"""

import random
import struct
import threading
import time

import nbd
import pytest

from lib import tools

K, M = 1 << 10, 1 << 20
BLOCK = 4 * K
SIZE = 16 * M
ROUNDS = 5


class Writer(threading.Thread):
    """Writes, zeroes, trims and flushes blocks of its own until the server is gone.

    self.may: for each block the values that it may hold: the last one that a flush covers, and all later ones.
    """

    def __init__(self, handle, seed, blocks, may, count):
        super().__init__()
        self.handle, self.rng, self.blocks, self.may, self.count = handle, random.Random(seed), blocks, may, count
        self.error = None

    def step(self):
        kind, block = self.rng.random(), self.rng.choice(self.blocks)
        if kind < 0.08:
            answered = {b: len(self.may[b]) for b in self.blocks}
            self.handle.flush()
            for b, n in answered.items():
                del self.may[b][:n - 1]
        elif kind < 0.16:
            self.may[block].append(0)
            self.handle.zero(BLOCK, block * BLOCK)
        elif kind < 0.24:
            self.may[block].append(0)
            self.handle.trim(BLOCK, block * BLOCK)
            self.handle.zero(BLOCK, block * BLOCK)     # a trim alone promises nothing
        else:
            value = next(self.count)
            self.may[block].append(value)
            fua = nbd.CMD_FLAG_FUA if kind > 0.97 else 0
            self.handle.pwrite(struct.pack("<QQ", value, block) * (BLOCK // 16), block * BLOCK, fua)
            if fua:
                del self.may[block][:-1]

    def run(self):
        try:
            while True:
                self.step()
        except nbd.Error as e:
            self.error = e


def value_of(data, block):
    """The value that a block holds; None when it was never written like that."""
    if data == bytes(BLOCK):
        return 0
    value, where = struct.unpack_from("<QQ", data)
    return value if where == block and data == struct.pack("<QQ", value, block) * (BLOCK // 16) else None


def verify(daemon, path, fmt, may):
    """Every block holds something that it may; from now on it is that."""
    d = daemon.serve(path, fmt)
    h = d.libnbd()
    for at in range(0, SIZE, M):
        data = h.pread(M, at)
        for block in range(at // BLOCK, (at + M) // BLOCK):
            start = block * BLOCK - at
            value = value_of(data[start:start + BLOCK], block)
            assert value in may[block], f"block {block} holds {value}, not one of {may[block]}"
            may[block] = [value]
    return d


def counter():
    n = 2
    while True:
        yield n
        n += 1


# QEMU passes most of the time: it uses a freed cluster again before the table that freed it is written, so that after
# a kill a block that was trimmed or zeroed now and then holds another block's data.
@pytest.mark.merino_only
@pytest.mark.parametrize("kind", ["raw", "qcow2", "small clusters", "overlay"])
def test_flushed_data_survives_a_killed_process(daemon, tmp, kind):
    fmt = "raw" if kind == "raw" else "qcow2"
    may = [[0] for _ in range(SIZE // BLOCK)]
    base = None
    if kind == "overlay":
        base = tmp / "base"
        base.write_bytes(b"".join(struct.pack("<QQ", 1, b) * (BLOCK // 16) for b in range(SIZE // BLOCK)))
        may = [[1] for _ in may]
    options = {"cluster_size": "4k"} if kind == "small clusters" else {}
    path = tools.create(tmp / "image", SIZE, fmt, base, "raw", **options)
    rng, count = random.Random(kind), counter()
    for _ in range(ROUNDS):
        d = daemon.serve(path, fmt)
        writers = [Writer(d.libnbd(), rng.random(), range(i, SIZE // BLOCK, 3), may, count) for i in range(3)]
        for w in writers:
            w.start()
        time.sleep(rng.uniform(0.02, 0.3))
        d.proc.kill()
        for w in writers:
            w.join(20)
            assert w.error is not None
        d.kill()
        if fmt == "qcow2":
            done = tools.run("qemu-img", "check", "-f", "qcow2", path, check=False)
            assert done.returncode in (0, 3), done.stdout + done.stderr
        verify(daemon, path, fmt, may).stop()
    if fmt == "qcow2":
        tools.run("qemu-img", "check", "-r", "leaks", "-f", "qcow2", path)
