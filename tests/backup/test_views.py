# SPDX-License-Identifier: BSD-3-Clause
"""QEMU's fleecing sequence: copy-before-write under a live export, snapshot-access read by nbdcopy and qemu-img."""

import contextlib
import os
import threading

import nbd
import pytest

from lib import pattern, tools
from lib.daemon import DidNotStart
from lib.patience import wait_until

MIB = 1 << 20
SIZE = 16 * MIB
PATH = "/machine/peripheral/e/virtio-backend"


def disk_options(path, fmt):
    return {"driver": fmt, "node-name": "disk", "discard": "unmap",
            "file": {"driver": "file", "filename": str(path)}}


@pytest.fixture(params=["raw", "qcow2", "overlay"])
def image(request, tmp):
    """(path, format, content as a raw file)"""
    fmt = "raw" if request.param == "raw" else "qcow2"
    path = tmp / f"disk.{fmt}"
    (tmp / "old.raw").write_bytes(pattern.block(1, SIZE // 2) + bytes(SIZE // 2))
    if request.param == "overlay":
        tools.run("cp", tmp / "old.raw", tmp / "base.raw")
        tools.create(path, str(SIZE), "qcow2", tmp / "base.raw", "raw")
        tools.qemu_io(path, "write -P 7 1M 3M", "write -z 5M 1M")
        tools.run("qemu-img", "convert", "-O", "raw", path, tmp / "old.raw")
    else:
        tools.run("qemu-img", "convert", "-f", "raw", "-O", fmt, tmp / "old.raw", path)
    return path, fmt, tmp / "old.raw"


class Rig:
    def __init__(self, daemon, path, fmt, tmp, *options):
        self.tmp = tmp
        self.d = daemon.start(*options)
        self.add(disk_options(path, fmt))
        self.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "name": "disk", "writable": True})
        self.guest = self.d.libnbd("disk")

    def cmd(self, name, arguments):
        return self.d.qmp.cmd(name, arguments)

    def add(self, options):
        self.cmd("blockdev-add", options)

    def target(self, fmt="qcow2", path=None, size=SIZE, **more):
        path = path or self.tmp / f"target.{fmt}"
        if not os.path.exists(path):
            tools.create(path, str(size), fmt)
        self.add({"driver": fmt, "node-name": "target", "discard": "unmap",
                  "file": {"driver": "file", "filename": str(path)}} | more)

    def insert(self, **more):
        self.add({"driver": "copy-before-write", "node-name": "cbw", "discard": "unmap", "file": "disk",
                  "target": "target"} | more)
        self.drive("cbw")

    def drive(self, node):
        self.cmd("qom-set", {"path": PATH, "property": "drive", "value": node})

    def show(self, writable=False, **more):
        self.add({"driver": "snapshot-access", "node-name": "snap", "discard": "unmap", "file": "cbw"})
        self.cmd("block-export-add", {"type": "nbd", "id": "s", "node-name": "snap", "name": "snap",
                                      "writable": writable} | more)

    def take_away(self):
        self.cmd("block-export-del", {"id": "s", "mode": "hard"})
        self.cmd("blockdev-del", {"node-name": "snap"})
        self.drive("disk")
        self.cmd("blockdev-del", {"node-name": "cbw"})
        self.cmd("blockdev-del", {"node-name": "target"})


@pytest.fixture
def rig(daemon, tmp, image):
    return Rig(daemon, image[0], image[1], tmp)


def overwrite(guest):
    """Writes, zeroes and discards all over the disk, small and large."""
    for i in range(40):
        guest.pwrite(pattern.block(100 + i, 4096 + 512 * (i % 5)), (i * 397 * 1024) % (SIZE - 8192))
    guest.zero(MIB, 2 * MIB)
    guest.trim(2 * MIB, 5 * MIB + 4096)
    guest.pwrite(pattern.block(5, 3 * MIB), 9 * MIB)


def copied(rig, name="snap"):
    out = rig.tmp / "copy.raw"
    if out.exists():
        out.unlink()
    tools.run("nbdcopy", rig.d.uri(name), out)
    return out


def test_what_was_there_is_read_while_the_guest_writes(rig, image):
    rig.target()
    rig.insert(**{"on-cbw-error": "break-snapshot", "cbw-timeout": 30})
    rig.show()
    stop = threading.Event()
    rounds = []

    def writes():
        h = rig.d.libnbd("disk")
        while not stop.is_set():
            overwrite(h)
            rounds.append(1)

    overwrite(rig.guest)
    t = threading.Thread(target=writes)
    t.start()
    try:
        for _ in range(3):
            tools.compare(copied(rig), image[2], "raw", "raw")
        tools.run("qemu-img", "compare", "-f", "raw", "-F", "raw", rig.d.uri("snap"), image[2])
        wait_until(lambda: rounds)
    finally:
        stop.set()
        t.join()
    rig.take_away()
    rig.guest.pwrite(b"after", 0)
    assert rig.guest.pread(5, 0) == b"after"
    assert rig.d.qmp.cmd("query-block-exports")[0]["node-name"] == "disk"


def test_the_target_alone_is_the_old_disk(rig, image):
    """As the older scheme reads it: a qcow2 target over the disk has what was overwritten at once."""
    rig.target(backing="disk")
    rig.insert()
    rig.cmd("block-export-add", {"type": "nbd", "id": "t", "node-name": "target", "name": "target"})
    overwrite(rig.guest)
    tools.compare(copied(rig, "target"), image[2], "raw", "raw")


def refused(call, *args):
    with pytest.raises(nbd.Error) as e:
        call(*args)
    return e.value.errno


def test_bitmap(rig, image):
    """Only what is dirty can be read, and is kept; the bitmap was copied."""
    rig.cmd("block-dirty-bitmap-add", {"node": "disk", "name": "b", "granularity": 65536})
    rig.guest.pwrite(b"x" * 4096, 3 * MIB)
    rig.guest.pwrite(b"y" * 4096, 12 * MIB)
    old = rig.guest.pread(65536, 3 * MIB)
    rig.cmd("block-dirty-bitmap-disable", {"node": "disk", "name": "b"})
    rig.target()
    rig.insert(bitmap={"node": "disk", "name": "b"})
    rig.cmd("block-dirty-bitmap-add", {"node": "disk", "name": "new"})
    rig.show(bitmaps=[{"node": "disk", "name": "b"}])
    overwrite(rig.guest)
    rig.guest.zero(65536, 3 * MIB)
    h = rig.d.libnbd("snap", ["qemu:dirty-bitmap:b"])
    assert h.pread(65536, 3 * MIB) == old
    assert h.pread(4096, 12 * MIB) == b"y" * 4096
    for at in (0, 3 * MIB - 512, 4 * MIB, SIZE - 512):
        assert refused(h.pread, 1024 if at + 1024 <= SIZE else 512, at) == "EPERM"
    seen = []
    h.block_status(SIZE, 0, lambda context, offset, e, err: seen.extend(e))
    assert seen[:4] == [3 * MIB, 0, 65536, 1]


def test_a_failed_copy_breaks_the_write_or_the_snapshot(rig, image, tmp):
    """The target has no room."""
    for how in ("break-guest-write", "break-snapshot"):
        rig.add({"driver": "blkdebug", "node-name": "target",
                 "image": {"driver": "null-co", "size": SIZE, "read-zeroes": True},
                 "inject-error": [{"event": "none", "iotype": "write", "errno": 28}]})
        rig.insert(**{"on-cbw-error": how})
        rig.show()
        h = rig.d.libnbd("snap")
        before = rig.guest.pread(65536, MIB)
        if how == "break-guest-write":
            assert refused(rig.guest.pwrite, b"z" * 65536, MIB) == "ENOSPC"
            assert rig.guest.pread(65536, MIB) == h.pread(65536, MIB) == before
        else:
            rig.guest.pwrite(b"z" * 65536, MIB)
            assert refused(h.pread, 512, 8 * MIB) in ("EPERM", "EIO")
            assert rig.guest.pread(65536, MIB) == b"z" * 65536
        h.shutdown()
        rig.take_away()
    wait_until(lambda: "given up" in rig.d.stderr())


def test_a_slow_target(rig, image):
    """cbw-timeout: the write waits no longer; the snapshot is gone, the guest is not."""
    rig.cmd("object-add", {"qom-type": "throttle-group", "id": "g", "limits": {"bps-write": 1024}})
    rig.target(path=rig.tmp / "slow.qcow2")
    rig.add({"driver": "throttle", "node-name": "slow", "throttle-group": "g", "file": "target"})
    rig.insert(target="slow", **{"on-cbw-error": "break-snapshot", "cbw-timeout": 1})
    rig.show()
    for i in range(8):
        rig.guest.pwrite(b"w" * 4096, i * MIB)
    assert refused(rig.d.libnbd("snap").pread, 512, 0) in ("EPERM", "EIO")
    assert rig.guest.pread(4096, 7 * MIB) == b"w" * 4096


def blocks(path):
    return os.stat(path).st_blocks * 512


def test_discard_by_the_reader_gives_space_back(rig, image):
    rig.target("raw")
    rig.insert()
    rig.show(writable=True)
    rig.guest.pwrite(pattern.block(9, 4 * MIB), MIB)
    taken = blocks(rig.tmp / "target.raw")
    assert taken >= 2 * MIB
    h = rig.d.libnbd("snap")
    old = h.pread(65536, 2 * MIB)
    h.trim(MIB, MIB)
    h.trim(2 * MIB, 3 * MIB)
    assert old == image[2].read_bytes()[2 * MIB:2 * MIB + 65536]
    assert refused(h.pread, 512, 4 * MIB) == "EPERM"
    assert h.pread(512, 6 * MIB)
    assert blocks(rig.tmp / "target.raw") <= taken - 2 * MIB
    rig.guest.pwrite(pattern.block(10, 4 * MIB), MIB)         # is not kept again
    assert blocks(rig.tmp / "target.raw") <= taken - 2 * MIB
    assert refused(h.pwrite, b"x" * 512, 0)


@pytest.mark.parametrize("more, text", [
    ({"min-cluster-size": 5000}, "min-cluster-size needs to be a power of 2"),
    ({"on-cbw-error": "ignore"}, "does not accept value 'ignore'"),
    ({"target": "nope"}, "nope"),
    ({"target": "small"}, "smaller"),
    ({"bitmap": {"node": "disk", "name": "nope"}}, "Dirty bitmap 'nope' not found"),
    ({"bitmap": {"node": "disk"}}, "name"),
])
def test_what_is_refused(daemon, tmp, more, text):
    path = tools.create(tmp / "d.raw", str(SIZE), "raw")
    rig = Rig(daemon, path, "raw", tmp)
    rig.target()
    rig.add({"driver": "null-co", "node-name": "small", "size": MIB})
    kind, desc = rig.d.qmp.error("blockdev-add", {"driver": "copy-before-write", "node-name": "cbw", "file": "disk",
                                                 "target": "target"} | more)
    assert kind == "GenericError" and text in desc


@pytest.mark.parametrize("parent", [{"parent-type": "qdev", "qdev-id": "e"}, {"parent-type": "qdev", "qdev-id": PATH},
                                    {"parent-type": "export", "export-id": "e"}])
def test_put_in_and_taken_away_by_blockdev_replace(rig, image, parent):
    rig.target()
    rig.add({"driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "target"})
    rig.cmd("blockdev-replace", parent | {"new-child": "cbw"})
    assert rig.d.qmp.cmd("query-block-exports")[0]["node-name"] == "cbw"
    rig.show()
    overwrite(rig.guest)
    tools.compare(copied(rig), image[2], "raw", "raw")
    rig.cmd("block-export-del", {"id": "s", "mode": "hard"})
    rig.cmd("blockdev-del", {"node-name": "snap"})
    rig.cmd("blockdev-replace", parent | {"new-child": "disk"})
    rig.cmd("blockdev-del", {"node-name": "cbw"})
    rig.guest.pwrite(b"after", 0)


def test_blockdev_replace_of_a_nodes_child(daemon, tmp):
    rig = Rig(daemon, tools.create(tmp / "d.raw", str(SIZE), "raw"), "raw", tmp)
    tools.create(tmp / "other.raw", str(SIZE), "raw")
    rig.add({"driver": "file", "node-name": "other", "filename": str(tmp / "other.raw")})
    rig.guest.pwrite(b"one", 0)
    rig.cmd("blockdev-replace", {"parent-type": "driver", "node-name": "disk", "child": "file", "new-child": "other"})
    assert rig.guest.pread(3, 0) == bytes(3)
    rig.guest.pwrite(b"two", 0)
    assert (tmp / "other.raw").read_bytes()[:3] == b"two" and (tmp / "d.raw").read_bytes()[:3] == b"one"
    for more, text in [({"parent-type": "driver", "node-name": "disk", "child": "nope"}, "does not have a child 'nope'"),
                       ({"parent-type": "driver", "node-name": "disk"}, "Parameter 'child' is missing"),
                       ({"parent-type": "export", "export-id": "nope"}, "Export 'nope' is not found"),
                       ({"parent-type": "qdev", "qdev-id": "nope"}, "Device 'nope' not found"),
                       ({"parent-type": "qdev", "qdev-id": "e", "child": "file"}, "Parameter 'child' is unexpected")]:
        assert text in rig.d.qmp.error("blockdev-replace", more | {"new-child": "other"})[1]


def test_nodes_on_several_threads(daemon, tmp):
    """The filter is where its disk is; a target that nobody uses follows, one that is used does not."""
    rig = Rig(daemon, tools.create(tmp / "d.raw", str(SIZE), "raw"), "raw", tmp, "--loops", "3")
    for i in range(4):
        path = tools.create(tmp / f"t{i}.qcow2", str(SIZE), "qcow2")
        rig.add({"driver": "qcow2", "node-name": f"t{i}", "file": {"driver": "file", "filename": str(path)}})
    for i in range(3):
        rig.guest.pwrite(b"%d" % i * 4096, 0)
        rig.insert(target=f"t{i}")
        rig.show()
        rig.guest.pwrite(b"z" * 4096, 0)
        assert rig.d.libnbd("snap").pread(4096, 0) == b"%d" % i * 4096
        rig.cmd("block-export-del", {"id": "s", "mode": "hard"})
        rig.cmd("blockdev-del", {"node-name": "snap"})
        rig.drive("disk")
        rig.cmd("blockdev-del", {"node-name": "cbw"})


def test_snapshot_of_no_filter(daemon, tmp):
    rig = Rig(daemon, tools.create(tmp / "d.raw", str(SIZE), "raw"), "raw", tmp)
    _, desc = rig.d.qmp.error("blockdev-add", {"driver": "snapshot-access", "node-name": "s", "file": "disk"})
    assert "copy-before-write" in desc


def test_nobody_writes_beside_the_filter(daemon, tmp):
    """… and the snapshot's disk keeps its size and its images."""
    rig = Rig(daemon, tools.create(tmp / "d.raw", str(SIZE), "raw"), "raw", tmp)
    rig.target()
    rig.insert()
    rig.show()
    _, desc = rig.d.qmp.error("block-export-add", {"type": "nbd", "id": "e2", "node-name": "disk", "name": "e2",
                                                  "writable": True})
    assert "Conflicts with use by node 'cbw' as 'file', which does not allow 'write' on disk" in desc
    assert rig.d.qmp.error("qom-set", {"path": PATH, "property": "drive", "value": "disk"})
    rig.guest.pwrite(b"still", 0)
    assert rig.d.qmp.error("block_resize", {"node-name": "cbw", "size": MIB})
    assert "reopening" in rig.d.qmp.error("blockdev-reopen", {"options": [{
        "driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "target",
        "on-cbw-error": "break-snapshot"}]})[1]
    assert rig.d.libnbd("snap").pread(5, 0) == bytes(5)


def fleece_logs(d):
    """What /proc says of the daemon's files that have no name."""
    at = f"/proc/{d.proc.pid}/fd"
    links = []
    for fd in os.listdir(at):
        with contextlib.suppress(FileNotFoundError):     # a connection's, which is over
            links.append(os.readlink(f"{at}/{fd}"))
    return [x for x in links if x.endswith("(deleted)") and "memfd" not in x]


@pytest.mark.parametrize("options", [[], ["--allow-dir"]])
def test_fleece_dir_and_fleece_max(daemon, tmp, options):
    """The log lies where the options say, also in a sandbox; when it is full the guest does not notice."""
    (tmp / "logs").mkdir()
    (tmp / "images").mkdir()
    path = tools.create(tmp / "images/d.raw", str(128 * MIB), "raw")
    tools.qemu_io(path, "write -P 17 0 128M", fmt="raw")
    if options:
        options = ["--allow-dir", str(tmp / "images")]
    rig = Rig(daemon, path, "raw", tmp, *options, "--fleece-dir", str(tmp / "logs"), "--fleece-max", "8M")
    rig.cmd("checkpoint-begin", {"id": "c", "disks": [{"node": "disk", "name": "then"}]})
    assert [os.path.dirname(x) for x in fleece_logs(rig.d)] == [str(tmp / "logs")]
    h = rig.d.libnbd("then")
    rig.guest.pwrite(bytes(65536), 0)
    assert h.pread(65536, 0) == b"\x11" * 65536
    for at in range(0, 128 * MIB, MIB):
        rig.guest.pwrite(b"n" * MIB, at)
    assert refused(h.pread, 512, 0) == "EIO"
    assert rig.guest.pread(MIB, 127 * MIB) == b"n" * MIB
    wait_until(lambda: "fleece log is full" in rig.d.stderr())
    rig.cmd("checkpoint-end", {"id": "c", "success": False})
    wait_until(lambda: fleece_logs(rig.d) == [])
    assert os.listdir(tmp / "logs") == []


@pytest.mark.parametrize("option, text", [(["--fleece-dir", "logs"], "must be an absolute path"),
                                          (["--fleece-max", "x"], "--fleece-max")])
def test_fleece_options_that_are_refused(daemon, option, text):
    with pytest.raises(DidNotStart, match=text):
        daemon.start(*option)
