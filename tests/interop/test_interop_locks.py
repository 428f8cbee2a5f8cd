# SPDX-License-Identifier: BSD-3-Clause
"""Lock bytes: merinod holds those that QEMU's tools hold, and they refuse each other as among themselves."""

import os
import pathlib
import subprocess

import pytest

from lib import tools
from lib.daemon import DidNotStart, disk_args, is_qsd
from lib.patience import listening


def held(pid, path):
    """The bytes of PATH on which process PID holds an OFD read lock."""
    inode = os.stat(path).st_ino
    found = set()
    for fd in pathlib.Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            text = fd.read_text()
        except FileNotFoundError:
            continue                                     # closed meanwhile
        for line in text.splitlines():
            if not line.startswith("lock:"):
                continue
            _, _, kind, _, access, _, where, first, last = line.split()
            if int(where.split(":")[2]) == inode:
                assert (kind, access) == ("OFDLCK", "READ"), line
                found |= set(range(int(first), int(last) + 1))
    return found


@pytest.fixture
def images(tmp):
    tools.create(tmp / "raw", "1M", "raw")
    tools.create(tmp / "base", "1M")
    tools.create(tmp / "qcow2", "1M")
    tools.create(tmp / "overlay", "1M", backing="base", backing_fmt="qcow2")
    return tmp


@pytest.fixture
def qemu_nbd(tmp):
    """Starts qemu-nbd; its process."""
    running = []

    def start(path, fmt, writable):
        socket = tmp / f"q{len(running)}"
        running.append(subprocess.Popen([tools.need("qemu-nbd"), "-t", "-f", fmt, *([] if writable else ["-r"]),
                                         "-k", socket, path]))
        listening(socket, running[-1])
        tools.run("nbdinfo", "--size", f"nbd+unix:///?socket={socket}")     # it opens the image after the socket
        return running[-1]
    yield start
    for p in running:
        p.kill()
        p.wait()


STATES = [("raw", "raw", True, {100, 101, 203}), ("raw", "raw", False, {100, 203}),
          ("qcow2", "qcow2", True, {100, 101, 103, 201, 203}), ("qcow2", "qcow2", False, {100, 201, 203}),
          ("overlay", "qcow2", True, {100, 101, 103, 201, 203})]
NAMES = ["raw-rw", "raw-ro", "qcow2-rw", "qcow2-ro", "overlay-rw"]


@pytest.mark.parametrize("name, fmt, writable, want", STATES, ids=NAMES)
def test_bytes_are_qemus(daemon, images, qemu_nbd, name, fmt, writable, want):
    theirs = qemu_nbd(images / name, fmt, writable)
    assert held(theirs.pid, images / name) == want
    theirs.kill()                               # qemu-nbd may miss a SIGTERM while it starts
    theirs.wait()
    ours = daemon.serve(images / name, fmt, writable=writable)
    assert held(ours.proc.pid, images / name) == want
    if name == "overlay":
        assert held(ours.proc.pid, images / "base") == {100, 201, 203}
    ours.stop()


def starts(daemon, path, fmt, writable):
    try:
        wait = () if is_qsd() else ("--lock-wait", "0")
        daemon.start(*wait, *disk_args(path, fmt, "disk", writable)).stop()
    except DidNotStart as e:
        assert "lock" in e.stderr and "Is another process using the image" in e.stderr, e.stderr
        return False
    return True


def qemu_starts(path, fmt, writable):
    """Whether qemu-io can open it so."""
    done = tools.run("qemu-io", *([] if writable else ["-r"]), "-f", fmt, "-c", "read 0 512", path, check=False)
    assert done.returncode == 0 or "lock" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("first", [True, False], ids=["rw", "ro"])
@pytest.mark.parametrize("second", [True, False], ids=["rw", "ro"])
def test_two_processes(daemon, images, qemu_nbd, fmt, first, second):
    """Ours beside qemu-nbd, qemu-io beside ours, and ours beside ours, as qemu-io beside qemu-nbd."""
    path = images / fmt
    theirs = qemu_nbd(path, fmt, first)
    among_themselves = qemu_starts(path, fmt, second)
    assert fmt == "raw" or among_themselves == (not first and not second)
    # Our export of a raw image asks for less than qemu-io does: never refused where that is not.
    ours_beside_theirs = starts(daemon, path, fmt, second)
    assert ours_beside_theirs == among_themselves or fmt == "raw"
    theirs.kill()
    theirs.wait()
    daemon.serve(path, fmt, writable=first)
    assert qemu_starts(path, fmt, second) == among_themselves
    assert starts(daemon, path, fmt, second) == ours_beside_theirs


def test_offline_tools_are_refused(daemon, images):
    d = daemon.serve(images / "overlay")
    for argv in [("check", images / "overlay"), ("info", images / "overlay"), ("resize", images / "overlay", "2M"),
                 ("create", "-f", "qcow2", images / "overlay", "1M"), ("commit", images / "overlay"),
                 ("resize", images / "base", "2M")]:
        done = tools.run("qemu-img", *argv, check=False)
        assert done.returncode and "lock" in done.stderr, argv
    tools.run("qemu-img", "info", "-U", images / "overlay")
    tools.run("qemu-img", "info", images / "base")              # readers may share a backing image
    d.stop()
    tools.check(images / "overlay")


def test_locks_go_with_the_process(daemon, images):
    """However it ends."""
    d = daemon.serve(images / "qcow2")
    d.kill()
    assert starts(daemon, images / "qcow2", "qcow2", True)


def test_deleted_nodes_hold_nothing(daemon, images):
    d = daemon.serve(images / "overlay")
    q = d.qmp
    q.cmd("block-export-del", id="disk")
    q.event("BLOCK_EXPORT_DELETED")
    q.cmd("blockdev-del", **{"node-name": "disk"})
    assert held(d.proc.pid, images / "overlay") == held(d.proc.pid, images / "base") == set()
