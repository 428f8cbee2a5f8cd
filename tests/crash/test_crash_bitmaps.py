# SPDX-License-Identifier: BSD-3-Clause
"""kill -9 under random writes, trims and zeroes: the bitmap says exactly what was written, and the incremental onto the
last full equals the disk, without falling back to a full one.

Power losses are simulated in tests/unit/test-live-powerloss.c; here processes really die.
"""

import os
import random
import threading

import nbd
import pytest

from lib import dirty, tools
from lib.patience import HANG

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
        self.join(HANG)
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


def cycles(daemon, tmp, fmt, count, seed):
    image = tools.create(tmp / "disk", SIZE, fmt)
    full = tmp / "full.raw"
    with open(full, "wb") as f:
        f.truncate(SIZE)
    options = "discard=unmap"
    d = daemon.serve(image, fmt, blockdev=options)
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
        if fmt == "qcow2":
            assert tools.run("qemu-img", "check", "-q", image, check=False).returncode in (0, 3)     # 3: leaks
        d = daemon.serve(image, fmt, blockdev=options)
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
    if fmt == "qcow2":
        tools.check(image)
        assert list(tools.bitmaps(image)["b"]["flags"]) == ["auto"]


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_kill(daemon, tmp, fmt):
    cycles(daemon, tmp, fmt, 5, 1)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_kill_100_times(daemon, tmp, fmt):
    cycles(daemon, tmp, fmt, 100, 2)


@pytest.fixture
def killed(daemon, tmp):
    """An image whose server was killed: "old" was stored before, "new" was not; both know two writes."""
    image = tools.create(tmp / "disk.qcow2", SIZE)
    tools.run("qemu-img", "bitmap", "--add", image, "old")
    d = daemon.serve(image)
    dirty.add(d, "new", persistent=True)
    assert dirty.crash_safe(d, "old") and dirty.crash_safe(d, "new")
    c = d.enter()
    c.write(5 * M, b"x" * 100)
    c.write(9 * M, b"x" * 70000)
    d.kill()
    return image


WRITTEN = [(5 * M, 64 * K), (9 * M, 128 * K)]


def test_what_was_never_stored_comes_back(daemon, killed):
    d = daemon.serve(killed)
    assert dirty.ranges(d, "old") == dirty.ranges(d, "new") == WRITTEN
    d.stop()
    tools.check(killed)
    assert set(tools.bitmaps(killed)) == {"old", "new"}


def test_read_only_shows_them_and_changes_nothing(daemon, killed):
    before = open(killed, "rb").read()
    d = daemon.serve(killed, writable=False, blockdev="read-only=on")
    assert dirty.ranges(d, "old", writable=False) == dirty.ranges(d, "new", writable=False) == WRITTEN
    d.stop()
    assert open(killed, "rb").read() == before
    assert dirty.ranges(daemon.serve(killed), "new") == WRITTEN


def test_a_foreign_writer_is_noticed(daemon, killed):
    tools.qemu_io(killed, "write -P 7 20M 64k")
    d = daemon.serve(killed)
    states = dirty.states(d)
    assert states["old"]["inconsistent"] and "new" not in states


def test_killed_again_and_again(daemon, killed):
    written = list(WRITTEN)
    for at in range(16, 22):
        d = daemon.serve(killed)
        assert dirty.ranges(d, "old") == dirty.ranges(d, "new") == written
        d.enter().write(at * M, b"x")
        written.append((at * M, 64 * K))
        d.kill()
    assert dirty.ranges(daemon.serve(killed), "new") == written


def test_verbs_survive(daemon, killed):
    d = daemon.serve(killed)
    dirty.verb(d, "disable", "old")
    dirty.add(d, "third", persistent=True)
    d.enter().write(M, b"x")
    dirty.verb(d, "clear", "new")
    dirty.add(d, "gone", persistent=True)
    dirty.verb(d, "remove", "gone")
    d.kill()
    d = daemon.serve(killed)
    assert set(dirty.states(d)) == {"old", "new", "third"}
    assert not dirty.states(d)["old"]["recording"]
    assert (dirty.ranges(d, "old"), dirty.ranges(d, "new"), dirty.ranges(d, "third")) == (WRITTEN, [], [(M, 64 * K)])


def test_the_file_is_not_believed(daemon, killed, tmp):
    """Cut off, given up, of another session, with no valid table: none is believed.  The good one is."""
    live, before = tmp / ".disk.qcow2.bitmaps", open(killed, "rb").read()
    good, regions = live.read_bytes(), (tmp / ".disk.qcow2.bitmaps-regions").read_bytes()
    crash_log = (tmp / ".disk.qcow2.crash-log").read_bytes()
    for bad in (good[:5000], b"\0" + good[1:], good[:56] + bytes(16) + good[72:], b"",
                good[:4096] + bytes(len(good) - 4096), good):
        with open(killed, "r+b") as f:
            f.write(before)
            f.truncate()
        live.write_bytes(bad)
        (tmp / ".disk.qcow2.bitmaps-regions").write_bytes(regions)
        (tmp / ".disk.qcow2.crash-log").write_bytes(crash_log)
        d = daemon.serve(killed)
        if bad is good:
            assert dirty.ranges(d, "old") == WRITTEN
        else:
            assert dirty.states(d)["old"]["inconsistent"]
        d.stop()


@pytest.mark.parametrize("options", ["crash-log=off", "read-only-directory"])
def test_where_there_can_be_none(daemon, tmp, options):
    """As before, and it is said."""
    where = tmp / "dir"
    where.mkdir()
    image = tools.create(where / "disk.qcow2", SIZE)
    tools.run("qemu-img", "bitmap", "--add", image, "b")
    if options == "read-only-directory":
        where.chmod(0o555)
        if os.access(where, os.W_OK):
            pytest.skip("root may write everywhere")
    d = daemon.serve(image, blockdev="crash-log=off" if options == "crash-log=off" else "")
    assert not dirty.crash_safe(d, "b")
    assert "do not survive a crash" in d.stderr()
    d.enter().write(M, b"x")
    d.kill()
    assert "inconsistent" in dirty.states(daemon.serve(image))["b"]
