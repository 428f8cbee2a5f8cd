# SPDX-License-Identifier: BSD-3-Clause
"""Storage that fails: a call of the kernel's returns an error, or the disk is full.

The client that asked is told, everybody else goes on, and so does it as soon as the storage does.  The simulation
(tests/unit/test-faults.c) knows more of what is then on storage; here the kernel says it to a real daemon.
"""

import os
import random
import subprocess

import pytest

from lib import nbdraw, tools
from lib.daemon import blockdev, die_with_parent
from lib.nbdproto import *                               # noqa: F403

K, M = 1 << 10, 1 << 20
BLOCK, BLOCKS = 4 * K, 256
NUMBERS = {"EIO": EIO, "ENOSPC": ENOSPC}


class Guest:
    """Works on its disk; knows what each block may hold."""

    def __init__(self, connection, seed):
        self.c, self.rng = connection, random.Random(seed)
        self.may = [{0} for _ in range(BLOCKS)]
        self.errors = []

    def put(self, block, value, error):
        self.may[block] = self.may[block] | {value} if error else {value}

    def step(self, number):
        kind, block, n = self.rng.randrange(11), self.rng.randrange(BLOCKS - 40), self.rng.choice((1, 2, 5, 8, 40))
        at, length = block * BLOCK, n * BLOCK
        if kind < 5:
            a = self.c.call(CMD_WRITE, at, data=bytes([number]) * length, flags=1 if kind == 0 else 0)
            for b in range(block, block + n):
                self.put(b, number, a.error)
        elif kind < 7:
            a = self.c.call(CMD_WRITE_ZEROES, at, length, 2 * (kind == 5))
            for b in range(block, block + n):
                self.put(b, 0, a.error)
        elif kind == 7:
            a = self.c.call(CMD_FLUSH)
        elif kind == 8:
            a = self.c.call(CMD_TRIM, at, length)
            for b in range(block, block + n):
                self.put(b, 0, True)
        else:
            a = self.look(block, n)
        if a.error:
            self.errors.append((kind, a.error))

    def look(self, block, n):
        a = self.c.call(CMD_READ, block * BLOCK, n * BLOCK)
        if not a.error:
            data = a.assemble(block * BLOCK, n * BLOCK)
            for i in range(n):
                piece = data[i * BLOCK:(i + 1) * BLOCK]
                assert piece == piece[:1] * BLOCK and piece[0] in self.may[block + i], f"block {block + i}: {piece[:8]}"
        return a


def traced(monkeypatch, tmp, image, calls, error, when):
    """The daemon's system calls CALLS on IMAGE fail at the WHEN-th."""
    monkeypatch.setenv("MERINO_IO", "threads")           # what the ring does cannot be traced
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # nor can leaks be looked for under a tracer
    monkeypatch.setenv("MERINOD_WRAPPER", f"{tools.need('strace')} -D -f -q -o {tmp}/trace -P {image} -e signal=none "
                                          f"-e trace={calls} -e inject={calls}:error={error}:when={when}")


def fail_once(daemon, tmp, monkeypatch, fmt, calls, error, when):
    image = tools.create(tmp / f"{fmt}.{when}", BLOCKS * BLOCK, fmt)
    other = tools.create(tmp / f"other.{when}", M, "raw")
    traced(monkeypatch, tmp, image, calls, error, when)
    d = daemon.start("--blockdev", blockdev(image, fmt, "disk"), "--export", "nbd,id=d,node-name=disk,writable=on",
                     "--blockdev", blockdev(other, "raw", "o"), "--export", "nbd,id=o,node-name=o,writable=on")
    guest, neighbour = Guest(d.enter("disk"), when), d.enter("o")
    for i in range(1, 60):
        guest.step(i)
        if i % 10 == 0:
            neighbour.write(0, bytes([i]) * 512)
            neighbour.flush()
    guest.look(0, BLOCKS)
    flushes = [guest.c.call(CMD_FLUSH).error for _ in range(2 if "sync" in calls else 16)]     # for each worker's count
    injected = "INJECTED" in (tmp / "trace").read_text(errors="replace")
    if "sync" in calls and any(kind in (0, 7) for kind, _ in guest.errors):
        assert all(flushes), "a flush after one that failed"
    elif "sync" in calls:                                # it may have been one of these two
        assert not flushes[0] or flushes[1], "a flush after one that failed"
    else:                                                # a table that found no room is written by another flush
        assert not all(flushes) or error == "EIO" or any(kind == 0 for kind, _ in guest.errors), flushes
    assert injected or not any(flushes)
    assert len(guest.errors) < 30 or any(flushes)
    guest.c.close()

    # Opened again, it is as good as new (but each of the daemon's threads has its own count of calls).
    for _ in range(16):
        if reopened(d, image, fmt):
            break
    else:
        raise AssertionError("it never works again")
    d.stop()
    if fmt == "qcow2":
        tools.check(image)
    return injected


def reopened(d, image, fmt):
    """Whether the image, opened anew, takes a write and a flush and gives back what was written."""
    d.qmp.cmd("block-export-del", {"id": "d", "mode": "hard"})
    d.qmp.cmd("blockdev-del", {"node-name": "disk"})
    for _ in range(16):                                  # to open it takes calls that may fail, too
        if "return" in d.qmp.exchange("blockdev-add", {
                "driver": fmt, "node-name": "disk", "discard": "unmap",
                "file": {"driver": "file", "filename": str(image), "discard": "unmap"}}):
            break
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "d", "node-name": "disk", "writable": True})
    c = d.enter("disk")
    answers = [c.call(CMD_WRITE, 0, data=b"after" * 100), c.call(CMD_FLUSH), c.call(CMD_READ, 0, 500)]
    if any(a.error for a in answers):
        return False
    assert answers[-1].assemble(0, 500) == b"after" * 100
    return True


CALLS = {"write": "pwrite64,pwritev2", "read": "pread64,preadv2", "sync": "fdatasync,fsync", "zero": "fallocate"}


@pytest.mark.merino_only
@pytest.mark.slow
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("what, error", [("write", "ENOSPC"), ("write", "EIO"), ("read", "EIO"), ("sync", "EIO"),
                                         ("zero", "ENOSPC")])
def test_a_call_fails(daemon, tmp, monkeypatch, fmt, what, error):
    assert fail_once(daemon, tmp, monkeypatch, fmt, CALLS[what], error, {"write": 4, "sync": 2, "zero": 1}.get(what, 5))


@pytest.mark.soak
@pytest.mark.merino_only
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("what, error", [("write", "ENOSPC"), ("write", "EIO"), ("read", "EIO"), ("sync", "EIO"),
                                         ("sync", "ENOSPC"), ("zero", "ENOSPC"), ("zero", "EIO")])
def test_each_call_fails(daemon, tmp, monkeypatch, fmt, what, error):
    first = 1 if what == "zero" else 6                   # the first calls of the others are those of the open
    hits = [fail_once(daemon, tmp, monkeypatch, fmt, CALLS[what], error, n) for n in range(first, 201)]
    assert any(hits)


@pytest.mark.merino_only
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_an_open_fails(daemon, tmp, monkeypatch, fmt):
    image = tools.create(tmp / "image", M, fmt)
    for error in "EIO", "EMFILE", "ENOMEM", "EINTR":
        traced(monkeypatch, tmp, image, "openat", error, "1")
        d = daemon.start()
        args = {"driver": fmt, "node-name": "n", "file": {"driver": "file", "filename": str(image)}}
        replies = [d.qmp.exchange("blockdev-add", args)]
        while "error" in replies[-1] and len(replies) < 16:   # each of the workers has a first call
            assert "Could not open" in replies[-1]["error"]["desc"]
            replies.append(d.qmp.exchange("blockdev-add", args))
        assert "return" in replies[-1] and len(replies) > (error != "EINTR")
        d.stop()


# --- a full disk

@pytest.fixture
def small_disk(tmp):
    """A tmpfs of 4 MiB that programs see which are started with the words that this returns; and its path for us."""
    where = tmp / "small"
    where.mkdir()
    user = [] if os.geteuid() == 0 else ["-r"]
    holder = subprocess.Popen(["unshare", "-m", *user, "sh", "-c",
                               f"mount -t tmpfs -o size=4m none {where} && echo ready && exec cat"],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=die_with_parent)
    if holder.stdout.readline() != b"ready\n":
        pytest.skip("no mount namespace may be made here")
    enter = ["nsenter", "-t", str(holder.pid), *(["-U", "--preserve-credentials"] if user else []), "-m", "--"]
    yield enter, f"/proc/{holder.pid}/root{where}", where
    holder.stdin.close()
    holder.wait()


def fill(c, size, block=64 * K):
    """Writes until there is no room; what was answered."""
    done = []
    for at in range(0, size, block):
        a = c.call(CMD_WRITE, at, data=bytes([at // block % 255 + 1]) * block)
        if a.error:
            assert a.error == ENOSPC, a.error
            return done
        done.append(at)
    raise AssertionError("the disk was never full")


@pytest.mark.merino_only
@pytest.mark.slow
@pytest.mark.parametrize("io", ["threads", "ring"])
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_full_disk(daemon, tmp, monkeypatch, small_disk, fmt, io):
    enter, seen, path = small_disk
    monkeypatch.setenv("MERINO_IO", io)
    monkeypatch.setenv("MERINOD_WRAPPER", " ".join(enter))
    tools.run(*enter, "qemu-img", "create", "-q", "-f", fmt, path / "image", "64M")
    with open(f"{seen}/ballast", "wb") as f:
        f.write(bytes(M + 777))
    other = tools.create(tmp / "other", M, "raw")
    d = daemon.start("--blockdev", blockdev(path / "image", fmt, "disk"), "--export", "nbd,id=d,node-name=disk,writable=on",
                     "--blockdev", blockdev(other, "raw", "o"), "--export", "nbd,id=o,node-name=o,writable=on")
    c, neighbour = d.enter("disk"), d.enter("o")
    done = fill(c, c.size)
    neighbour.write(0, b"n" * 4096)
    neighbour.flush()
    for at in done:
        assert c.read(at, 64 * K) == bytes([at // (64 * K) % 255 + 1]) * (64 * K)
    full = len(done) * 64 * K
    assert c.call(CMD_WRITE, full, data=b"f" * 64 * K, flags=1).error == ENOSPC       # still, and durably
    if done:
        c.write(done[0], b"again" * 100)                # what has its place already
    os.unlink(f"{seen}/ballast")                        # and there is room again
    c.flush()
    more = fill_from(c, full)
    assert more
    c.flush()
    assert c.read(full, 64 * K) == b"m" * 64 * K
    for at in done[1:]:
        assert c.read(at, 64 * K) == bytes([at // (64 * K) % 255 + 1]) * (64 * K)
    c.trim(0, c.size)                                   # gives it all back
    c.write(0, b"t" * M)
    c.flush()
    d.stop()
    if fmt == "qcow2":
        tools.run(*enter, "qemu-img", "check", "-q", path / "image")


def fill_from(c, at, block=64 * K):
    n = 0
    while c.call(CMD_WRITE, at + n * block, data=b"m" * block).error == 0:
        n += 1
    return n
