# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's lock bytes, all of them: who may open an image beside whom.

Six ways to use one file, each beside each: 36 cells.  QEMU against QEMU says what is right, then merinod stands on
either side, and on both.
"""

import itertools
import os
import subprocess
import time

import pytest

from lib import tools

# Name: (file to open, format, writable).  "image" is what is fought over; "overlay" has it as its backing image.
WAYS = {"raw-ro": ("image", "raw", False), "raw-rw": ("image", "raw", True), "qcow2-ro": ("image", "qcow2", False),
        "qcow2-rw": ("image", "qcow2", True), "backing-ro": ("overlay", "qcow2", False),
        "backing-rw": ("overlay", "qcow2", True)}
IMG = {"info": ("info", "image"), "check": ("check", "image"), "resize": ("resize", "-f", "qcow2", "image", "+1M"),
       "map": ("map", "overlay"), "commit": ("commit", "-d", "other"), "convert": ("convert", "-O", "raw", "image", "out")}


@pytest.fixture
def files(tmp, monkeypatch):
    monkeypatch.chdir(tmp)
    tools.create("image", "1M")
    for name in "overlay", "other":
        tools.create(name, "1M", backing="image", backing_fmt="qcow2")
    return tmp


class QemuNbd:
    """One use of the file by QEMU."""

    number = itertools.count()

    def __init__(self, way):
        name, fmt, writable = WAYS[way]
        n = next(self.number)
        name = {"overlay": f"overlay.{n}"}.get(name, name)
        if name != WAYS[way][0]:                        # an overlay of one's own: it is the base that matters
            tools.create(name, "1M", backing="image", backing_fmt="qcow2")
        pid = f"{n}.pid"
        # Our child, not its own daemon: only wait() says that every thread of it has given its locks back.
        self.proc = subprocess.Popen(["qemu-nbd", "--pid-file", pid, "-k", os.path.abspath(f"{n}.nbd"), "-t", "-f", fmt,
                                      *([] if writable else ["-r"]), name], stderr=subprocess.PIPE, text=True)
        while not os.path.exists(pid) and self.proc.poll() is None:     # it is written when the image is open
            time.sleep(0.002)
        self.ok = self.proc.poll() is None
        if not self.ok:
            error = self.proc.communicate()[1]
            assert "lock" in error, error

    def end(self):
        if self.ok:
            self.proc.kill()
            self.proc.communicate()


class Merinod:
    """The same by a merinod that runs already."""

    def __init__(self, daemon, way):
        name, fmt, writable = WAYS[way]
        if name == "overlay":
            name = f"overlay.m{daemon.proc.pid}"
            if not os.path.exists(name):
                tools.create(name, "1M", backing="image", backing_fmt="qcow2")
        self.qmp = daemon.qmp
        self.ok = self.command("blockdev-add", {"driver": fmt, "node-name": "n", "read-only": not writable,
                                                "file": {"driver": "file", "filename": os.path.abspath(name)}})
        if self.ok and not self.command("block-export-add", {"type": "nbd", "id": "e", "node-name": "n",
                                                             "writable": writable}):
            self.qmp.cmd("blockdev-del", {"node-name": "n"})
            self.ok = False

    def command(self, name, arguments):
        reply = self.qmp.exchange(name, arguments)
        assert "return" in reply or "lock" in reply["error"]["desc"], reply
        return "return" in reply

    def end(self):
        if self.ok:
            self.qmp.cmd("block-export-del", {"id": "e", "mode": "hard"})
            self.qmp.cmd("blockdev-del", {"node-name": "n"})


def allowed(make_holder, make_opener):
    """{(holder, opener): whether both may be}."""
    out = {}
    for holder in WAYS:
        h = make_holder(holder)
        assert h.ok, holder
        for opener in WAYS:
            o = make_opener(opener)
            out[holder, opener] = o.ok
            o.end()
        h.end()
    return out


def by_qemu_img(make_holder):
    out = {}
    for holder in WAYS:
        h = make_holder(holder)
        for name, argv in IMG.items():
            done = tools.run("qemu-img", *argv, check=False)
            assert done.returncode == 0 or "lock" in done.stderr, (holder, name, done.stderr)
            out[holder, name] = done.returncode == 0
        h.end()
    return out


@pytest.mark.merino_only
@pytest.mark.slow
def test_as_qemu_with_itself(daemon, files):
    a, b = (daemon.start("--lock-wait", "0") for _ in range(2))
    right = allowed(QemuNbd, QemuNbd)
    assert len(right) == 36 and any(right.values()) and not all(right.values())
    ours, beside = (lambda way: Merinod(a, way)), (lambda way: Merinod(b, way))
    for what, holder, opener in ("merinod holds, qemu-nbd opens", ours, QemuNbd), \
                                ("qemu-nbd holds, merinod opens", QemuNbd, ours), ("merinod beside merinod", ours, beside):
        got = allowed(holder, opener)
        wrong = {cell: f"{got[cell]}, should be {right[cell]}" for cell in right if got[cell] != right[cell]}
        assert not wrong, f"{what}: {wrong}"


@pytest.mark.merino_only
def test_qemu_img_beside_us_as_beside_qemu(daemon, files):
    d = daemon.start()
    right = by_qemu_img(QemuNbd)
    assert any(right.values()) and not all(right.values())
    assert by_qemu_img(lambda way: Merinod(d, way)) == right
