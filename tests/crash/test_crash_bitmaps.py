# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 under random writes, trims and zeroes: the bitmap says exactly what was written, and the incremental onto the
last full equals the disk, without falling back to a full one.

Power losses are simulated in tests/unit/test-live-powerloss.c; here processes really die.
"""

import random
import threading

import nbd
import pytest

from lib import dirty, tools

K, M = 1 << 10, 1 << 20
BLOCK = 4 * K
SIZE = 32 * M
GRANULARITY = 64 * K
WRITERS = 3


class Writer(threading.Thread):
    """Writes, zeroes and trims at random until the server is gone; self.sent: all that may be on the disk."""

    def __init__(self, handle, seed):
        super().__init__(daemon=True)
        self.handle, self.rng = handle, random.Random(seed)
        self.sent, self.answered, self.error = [], [], None

    def step(self):
        blocks = self.rng.choice([1, 1, 1, 2, 17])
        at = self.rng.randrange(SIZE // BLOCK - blocks) * BLOCK
        kind = self.rng.random()
        self.sent.append((at, blocks * BLOCK))
        if kind < 0.7:
            self.handle.pwrite(self.rng.randbytes(blocks * BLOCK), at)
        elif kind < 0.85:
            self.handle.zero(blocks * BLOCK, at)
        else:
            self.handle.trim(blocks * BLOCK, at)
        self.answered.append(self.sent[-1])

    def run(self):
        try:
            while True:
                self.step()
        except nbd.Error as e:
            self.error = e

    def ended(self):
        self.join(60)
        assert not self.is_alive() and self.error


def granules(touched):
    return {g for at, n in touched for g in range(at // GRANULARITY, (at + n - 1) // GRANULARITY + 1)}


def marked(d, name="b"):
    return {g for at, n in dirty.ranges(d, name) for g in range(at // GRANULARITY, (at + n - 1) // GRANULARITY + 1)}


def incremental(d, full, name="b"):
    """What the bitmap names is copied onto the full backup; how many bytes."""
    h, copied = d.libnbd(), 0
    with open(full, "r+b") as f:
        for at, n in dirty.ranges(d, name):
            f.seek(at)
            for piece in range(at, at + n, M):
                f.write(h.pread(min(M, at + n - piece), piece))
            copied += n
    return copied


def same_as_disk(d, full):
    h = d.libnbd()
    with open(full, "rb") as f:
        for at in range(0, SIZE, M):
            assert f.read(M) == h.pread(M, at), f"the backup differs in the MiB at {at}"


def cycles(daemon, tmp, image, count, seed):
    full = tmp / "full.raw"
    with open(full, "wb") as f:
        f.truncate(SIZE)
    options = "discard=unmap"
    d = daemon.serve(image, blockdev=options)
    dirty.add(d, "b", persistent=True, granularity=GRANULARITY)
    rng = random.Random(seed)
    for n in range(count):
        writers = [Writer(d.libnbd(), rng.random()) for _ in range(WRITERS)]
        for w in writers:
            w.start()
        writers[0].join(rng.uniform(0.02, 0.25))
        d.kill()
        for w in writers:
            w.ended()
        assert tools.run("qemu-img", "check", "-q", image, check=False).returncode in (0, 3)     # 3: leaks
        d = daemon.serve(image, blockdev=options)
        state = dirty.states(d)["b"]
        assert "inconsistent" not in state and state["recording"] and state["persistent"], state
        sent = granules(at for w in writers for at in w.sent)
        answered = granules(at for w in writers for at in w.answered)
        now = marked(d)
        assert answered <= now, f"cycle {n}: the bitmap lacks {sorted(answered - now)[:5]}"
        assert now <= sent, f"cycle {n}: the bitmap names what was not written: {sorted(now - sent)[:5]}"
        assert incremental(d, full) <= len(sent) * GRANULARITY
        same_as_disk(d, full)
        dirty.verb(d, "clear", "b")
    d.stop()
    tools.check(image)
    assert list(tools.bitmaps(image)["b"]["flags"]) == ["auto"]


def test_kill(daemon, tmp):
    cycles(daemon, tmp, tools.create(tmp / "disk.qcow2", SIZE), 5, 1)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_kill_100_times(daemon, tmp):
    cycles(daemon, tmp, tools.create(tmp / "disk.qcow2", SIZE), 100, 2)
