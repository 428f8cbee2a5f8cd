# SPDX-License-Identifier: BSD-3-Clause
"""Hostile images (lib/hostile.py): opened or refused at once, in little memory, without a look at anybody's files.

Every case is opened for writing and read-only by a traced daemon.  Refused: not a byte of the image has changed.
Opened: it serves requests of all kinds, and whatever they are answered with, nothing hangs, nothing dies and nothing
but the image is written to.
"""

import hashlib
import os
import re
import shutil
import socket

import pytest

from lib import hostile, nbdraw, tools
from lib.hostile import OPENED, REFUSED
from lib.nbdproto import *                               # noqa: F403
from lib.patience import HANG

SECONDS, MEMORY = 2, 256 << 20
GROUPS = sorted({c.group for c in hostile.CASES})
PARTS = [(g, n) for g in GROUPS for n in range(-(-sum(c.group == g for c in hostile.CASES) // 24))]

# What any program opens: the loader's, the C library's and the sanitizer's files.
OURS = re.compile(r"/(etc/(ld\.so|nsswitch|localtime|gnutls|ssl/openssl)|lib|lib64|usr|proc|sys)\b|/dev/(null|shm|urandom)\b|/tmp/tsan\.")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return hostile.templates(tmp_path_factory.mktemp("images"))


@pytest.fixture
def place(tmp, images):
    """The directory that images are in, and what they may name in it."""
    here = tmp / "here"
    here.mkdir()
    (here / "foreign").mkdir()
    (here / "foreign" / "victim").write_bytes(b"secret" * 1000)
    sockets = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
    sockets[0].bind(str(here / "foreign" / "socket"))
    sockets[1].bind(str(here / "unix"))
    os.mkfifo(here / "fifo")
    (here / "base").write_bytes(b"base" * 16384)
    (here / "base.qcow2").write_bytes(images["plain"])
    (here / "hostile.qcow2").write_bytes(b"QFI\xfb" + b"\xff" * 508)
    guest = hostile.Image(images["plain"])
    guest.backing(bytes(here / "foreign" / "victim"))
    (here / "guest.raw").write_bytes(guest.bytes())
    loop = hostile.Image(images["plain"])
    loop.backing(bytes(here / "image"), b"qcow2")
    (here / "loop.qcow2").write_bytes(loop.bytes())
    (here / "chain").mkdir()
    for i in range(150):
        link = hostile.Image(images["plain"][:65536 * 6])
        if i:
            link.backing(bytes(here / "chain" / str(i - 1)), b"qcow2")
        (here / "chain" / str(i)).write_bytes(link.bytes())
    yield here
    for s in sockets:
        s.close()


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read(64 << 20)).hexdigest(), os.stat(path).st_size


def others(place):
    """All files that are not the image or its crash log, and what is in them."""
    return {p: digest(p) for p in sorted(place.rglob("*"))
            if p.is_file() and p.name not in ("image", ".image.crash-log")}


@pytest.fixture
def traced(daemon, tmp, monkeypatch):
    """A daemon whose opens are written down; it works with threads, because the ring's opens are no system calls."""
    monkeypatch.setenv("MERINO_IO", "threads")
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # leaks cannot be looked for under a tracer
    monkeypatch.setenv("MERINOD_WRAPPER", f"{tools.need('strace')} -D -f -q -s 4096 -e trace=openat,open,openat2,creat,connect "
                                          f"-e signal=none -o {tmp}/trace")
    d = daemon.start("--nbd-server", f"addr.type=unix,addr.path={tmp}/served", listen=None)
    d.served = str(tmp / "served")
    return d


def requests(d, writable):
    """All kinds of requests, at the beginning, in the middle and at the end; what they answer is the image's business."""
    with nbdraw.Conn(d.served, timeout=HANG) as c:
        c.enter("n", ["base:allocation"])
        size = c.size
        if not size:
            return
        places = sorted({0, size // 2 & ~511, max(0, size - 65536) & ~511})
        spans = [(at, min(65536, size - at)) for at in places]

        def ask():
            for at, n in spans:
                c.call(CMD_READ, at, n)
                c.call(CMD_BLOCK_STATUS, at, min(size - at, 0x7FFFFE00))
        ask()
        if writable:
            for at, n in spans:
                c.call(CMD_WRITE, at, data=b"w" * min(n, 5000))
                c.call(CMD_WRITE_ZEROES, at, min(n, 4096))
                c.call(CMD_WRITE_ZEROES, at, n, 2)
                c.call(CMD_TRIM, at, n)
                c.call(CMD_WRITE, at, data=b"x" * n)
            c.call(CMD_FLUSH)
        ask()
        assert c.disconnect()


def try_open(d, path, writable):
    """The error's text, or None when it was opened."""
    began = d.cpu_seconds()
    reply = d.qmp.exchange("blockdev-add", {
        "driver": "qcow2", "node-name": "n", "read-only": not writable, "discard": "unmap",
        "file": {"driver": "file", "filename": str(path), "read-only": not writable}})
    took = d.cpu_seconds() - began
    assert took < SECONDS, f"took {took:.1f} s"
    assert d.memory("VmHWM") < MEMORY, f"{d.memory('VmHWM') >> 20} MiB"
    return reply["error"]["desc"] if "error" in reply else None


def run_case(d, path, case, data, tail, writable):
    with open(path, "wb") as f:
        f.write(data)
        f.truncate(len(data) + tail)
    before = digest(path)
    error = try_open(d, path, writable)
    if error is None:
        d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n", "name": "n", "writable": writable})
        requests(d, writable)
        d.qmp.cmd("block-export-del", {"id": "e", "mode": "hard"})
        d.qmp.cmd("blockdev-del", {"node-name": "n"})
    assert d.qmp.cmd("query-named-block-nodes") == []
    assert d.memory("VmHWM") < MEMORY, f"{d.memory('VmHWM') >> 20} MiB"
    if error is not None or not writable:
        assert digest(path) == before, "the image was changed"
    assert not (case.expect == REFUSED and error is None and writable), "was opened"
    assert not (case.expect == OPENED and error is not None), error


def foreign(trace, tmp, place):
    """Lines of the trace that open what is neither ours nor the cases'."""
    out = []
    for line in trace.read_text(errors="replace").splitlines():
        if "connect(" in line:
            out.append(line)
        path = re.search(r'(?:open|openat|openat2|creat)\((?:AT_FDCWD, |\d+, )?"([^"]*)"', line)
        if path and path[1].startswith(str(place / "foreign")) or path and not (
                OURS.match(path[1]) or path[1].startswith(str(tmp)) or path[1] == "/dev/tty"):
            out.append(line)
    return out


@pytest.mark.merino_only                                 # QEMU refuses others, and a few of these kill it
@pytest.mark.slow
@pytest.mark.parametrize("group, part", PARTS)
def test_hostile(traced, tmp, place, images, group, part):
    cases = [c for c in hostile.CASES if c.group == group][part * 24:part * 24 + 24]
    safe = others(place)
    failures = []
    for case in cases:
        data, tail = case.build(images, place)
        for writable in True, False:
            try:
                run_case(traced, place / "image", case, data, tail, writable)
            except (AssertionError, OSError, nbdraw.ProtocolError, nbdraw.Closed) as e:
                failures.append(f"{case.name} {'rw' if writable else 'ro'}: {e}"[:500])
                if not traced.alive():
                    break
        if not traced.alive():
            break
    assert not failures, "\n".join(failures)
    assert others(place) == safe, "another file was written to"
    traced.stop()
    assert foreign(tmp / "trace", tmp, place) == []


def test_there_are_many():
    assert len(hostile.CASES) >= 120 and len({c.name for c in hostile.CASES}) == len(hostile.CASES)
