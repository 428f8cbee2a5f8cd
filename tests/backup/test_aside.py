# SPDX-License-Identifier: BSD-3-Clause
"""On qcow2, whole clusters that a guest overwrites stay for the view: they are free again when it ends, or when the
process died."""

import os
import random

import nbd
import pytest

from lib import checkpoints, pattern, tools
from lib.daemon import disk_args
from lib.patience import wait_until

MIB = 1 << 20
SIZE = 32 * MIB
OLD = pattern.block("old", SIZE)
NEW = pattern.block("new", SIZE)


def image(tmp, **options):
    path = tools.create(tmp / "disk.qcow2", SIZE, **options)
    (tmp / "old").write_bytes(OLD)
    tools.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", tmp / "old", path)
    return path


def overwrite(d, first=0, end=SIZE, piece=MIB):
    g = d.libnbd("disk")
    for off in range(first, end, piece):
        g.pwrite(NEW[off:off + piece], off)
    g.shutdown()


def limited(tmp, path, more, *args):
    """The image at the beginning of a device that has room for MORE bytes."""
    size = os.path.getsize(path) + more
    tools.run("truncate", "-s", size, path)
    return ["--blockdev", f"driver=qcow2,node-name=disk,discard=unmap,file.driver=raw,file.size={size},"
            f"file.file.driver=file,file.file.filename={path}",
            "--export", "nbd,id=e,node-name=disk,name=disk,writable=on", *args]


def is_lost(d, c):
    """The view is given up: its reader is told, and the guest is not."""
    h = checkpoints.handle(c, 0)
    with pytest.raises(nbd.Error):
        h.pread(4096, 0)
    h.shutdown()
    return wait_until(lambda: "a view is given up" in d.stderr())


def view(d):
    return next(c["disks"][0]["view"] for c in d.qmp.cmd("query-checkpoints") if c["state"] == "pending")


def test_clusters_stay_and_go(daemon, tmp):
    """Nothing of them goes to the log; what the reader gives back and what the end of the view frees is used again."""
    path = image(tmp)
    length = tools.info(path)["actual-size"]
    d = daemon.serve(path)
    for i in range(3):
        c = checkpoints.begin(d, ["disk"], name=f"c{i}")
        overwrite(d)
        assert view(d)["stored"] == SIZE and view(d)["memory"] < MIB
        assert checkpoints.pull(c, 0) == (OLD if i == 0 else NEW)
        checkpoints.end(d, f"c{i}")
        g = d.libnbd("disk")
        g.flush()
        g.flush()
        g.shutdown()
    d.stop()
    assert tools.info(path)["actual-size"] < length + 1.5 * SIZE
    tools.check(path)
    assert tools.content(path) == NEW


def test_small_and_odd_writes(daemon, tmp):
    path = image(tmp)
    d = daemon.serve(path)
    c = checkpoints.begin(d, ["disk"], name="c")
    overwrite(d, 0, 4 * MIB, 4096)
    assert view(d)["stored"] == 0
    g = d.libnbd("disk")
    g.pwrite(NEW[5 * MIB + 512:7 * MIB + 3 * 512], 5 * MIB + 512)
    g.zero(MIB, 8 * MIB)
    g.trim(MIB, 9 * MIB)
    overwrite(d, 3 * MIB)
    overwrite(d, 0, SIZE)
    assert checkpoints.pull(c, 0) == OLD
    checkpoints.end(d, "c", success=False)
    g.shutdown()
    d.stop()
    tools.check(path)
    assert tools.content(path) == NEW


def test_flushes(daemon, tmp):
    """Who flushes every few writes has his tables left alone; who stops that is as any other."""
    path = image(tmp)
    d = daemon.serve(path)
    c = checkpoints.begin(d, ["disk"], name="c")
    g = d.libnbd("disk")
    length = os.path.getsize(path)
    for off in range(0, 12 * MIB, MIB):
        g.pwrite(NEW[off:off + MIB], off)
        g.flush()
    assert os.path.getsize(path) < length + 2 * MIB     # the first one: nobody knew
    g.shutdown()
    overwrite(d, 12 * MIB)
    assert os.path.getsize(path) >= length + 13 * MIB   # 8 MiB later
    assert checkpoints.pull(c, 0) == OLD
    checkpoints.end(d, "c", success=False)
    d.stop()
    tools.check(path)
    assert tools.content(path) == NEW


def test_requests(daemon, tmp):
    """Who flushes every few writes has them done in one piece each, wherever they begin."""
    path = image(tmp)
    tools.run("truncate", "-s", 3 * SIZE, path)
    below = daemon.serve(path, "raw")
    d = daemon.start("--blockdev", "driver=qcow2,node-name=disk,file.driver=nbd,file.server.type=unix,"
                     f"file.server.path={below.nbd_address},file.export=disk",
                     "--export", "nbd,id=e,node-name=disk,name=disk,writable=on")

    def written():
        return sum(s["stats"]["wr_operations"] for s in below.qmp.cmd("query-blockstats"))

    c = checkpoints.begin(d, ["disk"], name="c")
    g = d.libnbd("disk")
    before, n, piece = written(), 0, 256 << 10
    for off in range(4096, SIZE - piece, piece):
        g.pwrite(NEW[off:off + piece], off)
        g.flush()
        n += 1
    assert n <= written() - before <= n + 8             # the first one, and its tables
    g.shutdown()
    assert checkpoints.pull(c, 0) == OLD
    checkpoints.end(d, "c", success=False)
    d.stop()
    below.stop()


def test_killed(daemon, tmp):
    """What stayed is leaked then, and the next open frees it."""
    path = image(tmp)
    d = daemon.serve(path)
    checkpoints.begin(d, ["disk"], name="c")
    overwrite(d, 0, SIZE // 2)
    assert view(d)["stored"] == SIZE // 2
    d.kill()
    d = daemon.serve(path)
    d.stop()
    tools.check(path)
    assert tools.content(path) == NEW[:SIZE // 2] + OLD[SIZE // 2:]


def test_no_room(daemon, tmp):
    """An image on a device that is full: the guest's writes succeed, and the view keeps what it overwrites elsewhere."""
    path = image(tmp)
    d = daemon.start(*limited(tmp, path, 4 * MIB))
    c = checkpoints.begin(d, ["disk"], name="c")
    overwrite(d)
    assert 0 < view(d)["stored"]
    assert checkpoints.pull(c, 0) == OLD
    checkpoints.end(d, "c", success=False)
    d.stop()
    tools.check(path)
    assert tools.content(path) == NEW


@pytest.mark.parametrize("kind", ["write", "zero"])
def test_no_room_for_the_guest(daemon, tmp, kind):
    """What a guest writes for the first time needs the clusters that stay: the view gives way."""
    path = tools.create(tmp / "disk.qcow2", 32 * MIB, cluster_size="4k")
    d = daemon.serve(path)
    g = d.libnbd("disk")
    g.pwrite(OLD[:8 * MIB], 0)
    g.shutdown()
    d.stop()
    d = daemon.start(*limited(tmp, path, 4 * MIB))
    c = checkpoints.begin(d, ["disk"], name="c")
    overwrite(d, 0, 8 * MIB)
    held = view(d)["stored"]
    assert 3 * MIB < held <= 4 * MIB
    assert checkpoints.read(c, 0, 0, 8 * MIB) == OLD[:8 * MIB]
    g = d.libnbd("disk")
    if kind == "write":
        g.pwrite(NEW[8 * MIB:11 * MIB], 8 * MIB)
    else:
        for off in range(8 * MIB, 32 * MIB, 2 * MIB):       # a table for flags each
            g.zero(MIB, off, nbd.CMD_FLAG_NO_HOLE)
            g.pwrite(NEW[off:off + MIB // 8], off)
    g.shutdown()
    assert is_lost(d, c)
    checkpoints.end(d, "c", success=False)
    d.stop()
    tools.check(path)
    after = tools.content(path)
    assert after[:8 * MIB] == NEW[:8 * MIB]
    if kind == "write":
        assert after[8 * MIB:11 * MIB] == NEW[8 * MIB:11 * MIB]


@pytest.mark.parametrize("discard", ["unmap", "ignore"])
def test_no_room_for_many(daemon, tmp, discard):
    """The same for writes beside each other: those that come while clusters are given back wait for them."""
    path = tools.create(tmp / "disk.qcow2", 32 * MIB, cluster_size="4k")
    d = daemon.serve(path)
    g = d.libnbd("disk")
    g.pwrite(OLD[:16 * MIB], 0)
    g.shutdown()
    d.stop()
    d = daemon.start(*[a.replace("discard=unmap", f"discard={discard}") for a in limited(tmp, path, 12 * MIB)])
    c = checkpoints.begin(d, ["disk"], name="c")
    overwrite(d, 0, 16 * MIB)
    assert view(d)["stored"] > 8 * MIB
    g = d.libnbd("disk")
    piece = 64 << 10
    cookies = [g.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(NEW[off:off + piece])), off)
               for off in range(16 * MIB, 24 * MIB, piece)]
    while g.aio_in_flight():
        g.poll(-1)
    for cookie in cookies:
        assert g.aio_command_completed(cookie)
    g.shutdown()
    assert is_lost(d, c)
    checkpoints.end(d, "c", success=False)
    d.stop()
    tools.check(path)
    assert tools.content(path)[:24 * MIB] == NEW[:24 * MIB]


def test_stopped(daemon, tmp):
    """An image that is closed has no leaks, even if it was read as it was."""
    path = image(tmp)
    d = daemon.serve(path)
    checkpoints.begin(d, ["disk"], name="c")
    overwrite(d)
    assert view(d)["stored"] == SIZE
    d.stop()
    tools.check(path)
    assert tools.content(path) == NEW


def test_not_reopened(daemon, tmp):
    """What would open the image anew, or lend it to another process, is refused while a backup reads it."""
    path = image(tmp)
    d = daemon.start("--blockdev", f"driver=file,node-name=disk-file,filename={path}",
                     "--blockdev", "driver=qcow2,node-name=disk,file=disk-file",
                     "--export", "nbd,id=e,node-name=disk,name=disk,writable=on")
    c = checkpoints.begin(d, ["disk"], name="c")
    overwrite(d, 0, 8 * MIB)
    assert "in use" in d.qmp.error("blockdev-reopen", {"options": [{
        "driver": "qcow2", "node-name": "disk", "file": "disk-file", "backing": None, "l2-cache-size": MIB}]})[1]
    d.qmp.error("blockdev-set-active", {"node-name": "disk", "active": False})
    overwrite(d, 8 * MIB)
    assert checkpoints.pull(c, 0) == OLD
    checkpoints.end(d, "c", success=False)
    d.stop()
    tools.check(path)
    assert tools.content(path) == NEW


def test_limit(daemon, tmp):
    """--fleece-max counts clusters that stay; what is beyond it waits in memory."""
    path = image(tmp)
    d = daemon.start(*disk_args(path), "--fleece-max", "8M")
    c = checkpoints.begin(d, ["disk"], name="c")
    overwrite(d, 0, 8 * MIB)
    assert view(d)["stored"] == 8 * MIB
    overwrite(d, 8 * MIB, 24 * MIB)
    assert view(d)["stored"] == 8 * MIB
    assert checkpoints.pull(c, 0) == OLD
    checkpoints.end(d, "c", success=False)
    d.stop()
    tools.check(path)


def test_push(daemon, tmp):
    """A backup job gives back each cluster once it has copied it."""
    path = image(tmp)
    d = daemon.serve(path)
    q = d.connect_qmp()
    q.cmd("blockdev-add", {"driver": "file", "node-name": "t-file", "filename": str(tools.create(tmp / "t", SIZE, "raw"))})
    q.cmd("blockdev-add", {"driver": "raw", "node-name": "t", "file": "t-file"})
    q.cmd("blockdev-backup", {"job-id": "j", "device": "disk", "target": "t", "sync": "full", "speed": MIB // 4})
    for _ in range(3):
        overwrite(d, 0, SIZE, 2 * MIB)
    q.cmd("block-job-set-speed", {"device": "j", "speed": 0})
    assert "error" not in q.event("BLOCK_JOB_COMPLETED")["data"]
    d.stop()
    tools.check(path)
    assert (tmp / "t").read_bytes() == OLD
    assert tools.content(path) == NEW


def test_two_views(daemon, tmp):
    """One of them holds clusters, the other one saves: both are right, whichever ends first."""
    path = image(tmp)
    d = daemon.serve(path)
    first = checkpoints.begin(d, ["disk"], name="a")
    overwrite(d, 0, 8 * MIB)
    q = d.connect_qmp()
    q.cmd("blockdev-add", {"driver": "file", "node-name": "t-file", "filename": str(tools.create(tmp / "t", SIZE, "raw"))})
    q.cmd("blockdev-add", {"driver": "raw", "node-name": "t", "file": "t-file"})
    q.cmd("blockdev-backup", {"job-id": "j", "device": "disk", "target": "t", "sync": "full", "speed": MIB // 4})
    overwrite(d)
    assert checkpoints.pull(first, 0) == OLD
    checkpoints.end(d, "a", success=False)
    overwrite(d, 0, SIZE // 2)
    q.cmd("block-job-set-speed", {"device": "j", "speed": 0})
    q.event("BLOCK_JOB_COMPLETED")
    d.stop()
    tools.check(path)
    assert (tmp / "t").read_bytes() == NEW[:8 * MIB] + OLD[8 * MIB:]


@pytest.mark.parametrize("options", [{"compat": "0.10"}, {"extended_l2": "on"}, {"cluster_size": "512"},
                                     {"cluster_size": "2M"}])
def test_other_images(daemon, tmp, options):
    """Those that are not searched for leaks after a crash, or cannot do it: the log has what is overwritten."""
    path = image(tmp, **options)
    d = daemon.serve(path)
    c = checkpoints.begin(d, ["disk"], name="c")
    overwrite(d, 0, SIZE, 4 * MIB)
    assert (view(d)["memory"] < MIB) == ("2M" in options.values())
    assert checkpoints.pull(c, 0) == OLD
    checkpoints.end(d, "c", success=False)
    d.stop()
    tools.check(path)
    assert tools.content(path) == NEW


def test_what_else_happens(daemon, tmp):
    """The disk grows, gets a bitmap, is trimmed and zeroed while clusters stay."""
    path = image(tmp)
    d = daemon.serve(path)
    c = checkpoints.begin(d, ["disk"], name="c")
    overwrite(d, 0, 8 * MIB)
    d.qmp.cmd("block-dirty-bitmap-add", {"node": "disk", "name": "b", "persistent": True})
    d.qmp.cmd("block_resize", {"node-name": "disk", "size": SIZE + 8 * MIB})
    g = d.libnbd("disk")
    g.pwrite(NEW[:8 * MIB], SIZE)
    g.trim(4 * MIB, 4 * MIB)
    g.zero(4 * MIB, 12 * MIB)
    g.pwrite(NEW[16 * MIB:20 * MIB], 16 * MIB, nbd.CMD_FLAG_FUA)
    assert checkpoints.read(c, 0, 0, SIZE // 2) == OLD[:SIZE // 2]
    g.pwrite(NEW[:16 * MIB], 0)
    h = checkpoints.handle(c, 0)
    assert bytes(h.pread(SIZE // 2, SIZE // 2)) == OLD[SIZE // 2:]
    h.shutdown()
    checkpoints.end(d, "c", success=False)
    g.shutdown()
    d.stop()
    tools.check(path)
    assert "b" in tools.bitmaps(path)
    after = tools.content(path)
    assert after[:20 * MIB] == NEW[:20 * MIB] and after[20 * MIB:SIZE] == OLD[20 * MIB:] and after[SIZE:] == NEW[:8 * MIB]


def test_storage_fails(daemon, tmp):
    """A write to a new cluster that fails: the guest's is done where the old one is, and the view has kept that."""
    path = image(tmp)
    size = (tmp / "disk.qcow2").stat().st_size
    rng = random.Random(5)
    bad = [{"event": "none", "iotype": "write", "errno": 5, "sector": (size + rng.randrange(SIZE)) // 512, "once": True}
           for _ in range(6)]
    d = daemon.start()
    q = d.qmp
    q.cmd("blockdev-add", {"driver": "qcow2", "node-name": "disk", "file": {
        "driver": "blkdebug", "inject-error": bad, "image": {"driver": "file", "filename": str(path)}}})
    q.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "name": "disk", "writable": True})
    c = checkpoints.begin(d, ["disk"], name="c")
    overwrite(d)
    assert checkpoints.pull(c, 0) == OLD
    checkpoints.end(d, "c")
    d.stop()
    tools.check(path)
    assert tools.content(path) == NEW
