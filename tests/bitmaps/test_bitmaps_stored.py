# SPDX-License-Identifier: BSD-3-Clause
"""Persistent bitmaps: stored at a clean close as the qcow2 specification says, read and written by QEMU too."""

import contextlib
import os
import threading

import pytest

from lib import dirty, tools
from lib.cutter import Cutter
from lib.dirty import add, by_qemu, merge, ranges, states, verb
from lib.patience import HANG

K, M = 1 << 10, 1 << 20
SIZE = 4 * M
TOUCHED = [(5, 1), (M - 1, 2), (2 * M + 100, 200 * K), (SIZE - 1, 1)]


def touch(d, name="disk", touched=TOUCHED):
    c = d.enter(name)
    for at, n in touched:
        c.write(at, b"x" * n)


@pytest.mark.parametrize("granularity", [512, 4096, 65536, M, 1 << 31])
def test_survives_a_clean_restart(daemon, image, granularity):
    d = daemon.serve(image)
    add(d, "b", persistent=True, granularity=granularity)
    touch(d)
    d.stop()
    tools.check(image)
    d = daemon.serve(image)
    assert states(d)["b"] == {"name": "b", "recording": True, "persistent": True, "busy": False,
                              "granularity": granularity, "count": dirty.count(TOUCHED, granularity)}
    assert ranges(d, "b") == dirty.model(TOUCHED, granularity, SIZE)


def test_survives_quit(daemon, image):
    d = daemon.serve(image)
    add(d, "b", persistent=True)
    touch(d)
    d.qmp.cmd("quit")
    d.wait_end()
    assert ranges(daemon.serve(image), "b") == dirty.model(TOUCHED, 65536, SIZE)


def test_survives_blockdev_del(daemon, image):
    d = daemon.serve(image)
    add(d, "b", persistent=True)
    touch(d)
    d.close_clients()
    d.qmp.cmd("block-export-del", {"id": "disk", "mode": "hard"})
    d.qmp.event("BLOCK_EXPORT_DELETED")
    d.qmp.cmd("blockdev-del", {"node-name": "disk"})
    assert tools.bitmaps(image) == {"b": {"name": "b", "granularity": 65536, "flags": ["auto"]}}


@pytest.mark.parametrize("granularity", [512, 4096, 65536, M])
def test_qemu_reads_it(daemon, tmp, image, granularity):
    d = daemon.serve(image)
    add(d, "b", persistent=True, granularity=granularity)
    touch(d)
    d.stop()
    assert tools.bitmaps(image) == {"b": {"name": "b", "granularity": granularity, "flags": ["auto"]}}
    assert by_qemu(image, "b", tmp) == dirty.model(TOUCHED, granularity, SIZE)


@pytest.mark.parametrize("granularity", ["512", "4k", "64k", "1M"])
def test_reads_what_qemu_wrote(daemon, image, granularity):
    """A bitmap made by qemu-img, filled by qemu-io."""
    tools.run("qemu-img", "bitmap", "--add", "-g", granularity, image, "b")
    tools.qemu_io(image, *[f"write {at} {n}" for at, n in TOUCHED])
    g = {"512": 512, "4k": 4096, "64k": 65536, "1M": M}[granularity]
    assert ranges(daemon.serve(image), "b") == dirty.model(TOUCHED, g, SIZE)


def test_qemu_goes_on_where_we_stopped(daemon, tmp, image):
    d = daemon.serve(image)
    add(d, "b", persistent=True)
    touch(d, touched=[(0, 1)])
    d.stop()
    tools.qemu_io(image, "write 1M 1")
    d = daemon.serve(image)
    touch(d, touched=[(2 * M, 1)])
    d.stop()
    tools.check(image)
    assert by_qemu(image, "b", tmp) == [(0, 65536), (M, 65536), (2 * M, 65536)]


def test_transient_ones_are_not_stored(daemon, image):
    d = daemon.serve(image)
    add(d, "t")
    add(d, "p", persistent=True)
    d.stop()
    assert list(tools.bitmaps(image)) == ["p"]


def test_disabled_is_stored_as_disabled(daemon, image):
    d = daemon.serve(image)
    add(d, "b", persistent=True)
    touch(d, touched=[(0, 1)])
    verb(d, "disable", "b")
    d.stop()
    assert tools.bitmaps(image)["b"]["flags"] == []
    d = daemon.serve(image)
    touch(d, touched=[(M, 1)])
    assert not states(d)["b"]["recording"] and ranges(d, "b") == [(0, 65536)]


def test_qemu_img_disable_and_enable_are_obeyed(daemon, image):
    for b in ("on", "off"):
        tools.run("qemu-img", "bitmap", "--add", image, b)
    tools.run("qemu-img", "bitmap", "--disable", image, "off")
    d = daemon.serve(image)
    touch(d, touched=[(0, 1)])
    assert states(d)["on"]["count"] == 65536 and states(d)["off"]["count"] == 0


@pytest.mark.parametrize("all_of_them", [True, False])
def test_removed_is_removed_from_the_image(daemon, image, all_of_them):
    d = daemon.serve(image)
    add(d, "b", persistent=True, granularity=512)
    add(d, "c", persistent=True)
    touch(d)
    d.stop()
    d = daemon.serve(image)
    verb(d, "remove", "b")
    if all_of_them:
        verb(d, "remove", "c")
    d.stop()
    assert list(tools.bitmaps(image)) == ([] if all_of_them else ["c"])
    tools.check(image)                                   # its clusters are free: no leaks


def test_removed_in_the_session_that_added_it(daemon, image):
    d = daemon.serve(image)
    add(d, "b", persistent=True)
    verb(d, "remove", "b")
    d.stop()
    assert tools.bitmaps(image) == {}
    tools.check(image)


def test_cleared_is_stored_clean(daemon, tmp, image):
    d = daemon.serve(image)
    add(d, "b", persistent=True)
    touch(d)
    d.stop()
    d = daemon.serve(image)
    verb(d, "clear", "b")
    d.stop()
    assert by_qemu(image, "b", tmp) == []


def test_merged_is_stored(daemon, tmp, image):
    d = daemon.serve(image)
    add(d, "p", persistent=True, disabled=True)
    add(d, "t")
    touch(d)
    merge(d, "p", ["t"])
    d.stop()
    assert by_qemu(image, "p", tmp) == dirty.model(TOUCHED, 65536, SIZE)


def test_qemu_img_merges_and_clears_ours(daemon, tmp, image):
    d = daemon.serve(image)
    for b in ("a", "b"):
        add(d, b, persistent=True)
        touch(d, touched=[(0 if b == "a" else M, 1)])
    d.stop()
    tools.run("qemu-img", "bitmap", "--clear", "--merge", "a", image, "b")
    assert ranges(daemon.serve(image), "b") == [(0, 65536), (M, 65536)]


def test_unaligned_disk_size(daemon, tmp):
    size = 3 * M + 512
    path = tools.create(tmp / "odd.qcow2", size)
    d = daemon.serve(path)
    add(d, "b", persistent=True)
    touch(d, touched=[(size - 1, 1)])
    d.stop()
    tools.check(path)
    assert by_qemu(path, "b", tmp) == [(3 * M, 512)]
    assert ranges(daemon.serve(path), "b") == [(3 * M, 512)]


@pytest.mark.parametrize("cluster", ["512", "4k", "2M"])
def test_other_cluster_sizes(daemon, tmp, cluster):
    """512-byte clusters hold 4096 granules each: a table with many entries, most of them not stored."""
    path = tools.create(tmp / "c.qcow2", 64 * M, cluster_size=cluster)
    d = daemon.serve(path)
    add(d, "b", persistent=True, granularity=512)
    touched = [(0, 1), (20 * M, 3 * M), (64 * M - 1, 1)]
    touch(d, touched=touched)
    d.stop()
    tools.check(path)
    assert by_qemu(path, "b", tmp) == dirty.model(touched, 512, 64 * M)
    assert ranges(daemon.serve(path), "b") == dirty.model(touched, 512, 64 * M)


def test_wholly_dirty(daemon, tmp, image):
    """Parts of the table that are all ones need no cluster."""
    d = daemon.serve(image)
    add(d, "b", persistent=True)
    d.enter().zero(0, SIZE)
    d.stop()
    tools.check(image)
    assert by_qemu(image, "b", tmp) == [(0, SIZE)]
    assert ranges(daemon.serve(image), "b") == [(0, SIZE)]


def test_many_and_long_names(daemon, tmp, image):
    d = daemon.serve(image)
    names = [f"bitmap-{i}-" + "n" * (i * 30 % 1000) for i in range(30)] + ["n" * 1023, "Ünïcode €"]
    for n in names:
        add(d, n, persistent=True)
    d.stop()
    tools.check(image)
    assert sorted(tools.bitmaps(image)) == sorted(names)
    assert sorted(states(daemon.serve(image))) == sorted(names)


def test_a_part_of_a_file_cannot_store(daemon, tmp):
    path = tools.create(tmp / "a.raw", SIZE, "raw")
    d = daemon.start("--blockdev", f"driver=raw,node-name=part,offset=65536,file.driver=file,file.filename={path}")
    kind, text = d.qmp.error("block-dirty-bitmap-add", node="part", name="b", persistent=True)
    assert (kind, text) == ("GenericError", "Can't store persistent bitmaps to part: Operation not supported")


def test_read_only_image_keeps_its_bitmaps(daemon, image):
    """Shown, readable, not changed by anybody."""
    tools.run("qemu-img", "bitmap", "--add", image, "b")
    tools.qemu_io(image, "write 0 1")
    before = open(image, "rb").read()
    d = daemon.serve(image, writable=False)
    assert states(d)["b"]["count"] == 65536
    assert ranges(d, "b", writable=False) == [(0, 65536)]
    d.stop()
    assert open(image, "rb").read() == before


@pytest.mark.parametrize("what", ["clear", "remove"])
def test_read_only_bitmap_cannot_be_changed(daemon, image, what):
    tools.run("qemu-img", "bitmap", "--add", image, "b")
    d = daemon.serve(image, writable=False)
    kind, text = d.qmp.error(f"block-dirty-bitmap-{what}", node="disk", name="b")
    assert (kind, text) == ("GenericError", "Bitmap 'b' is readonly and cannot be modified")


def test_read_only_bitmap_is_no_target_of_merge(daemon, image):
    tools.run("qemu-img", "bitmap", "--add", image, "b")
    d = daemon.serve(image, writable=False)
    add(d, "t")
    kind, text = d.qmp.error("block-dirty-bitmap-merge", node="disk", target="b", bitmaps=["t"])
    assert (kind, text) == ("GenericError", "Bitmap 'b' is readonly and cannot be modified")
    merge(d, "t", ["b"])


class Holding(Cutter):
    """Once .armed is set, the next bytes either way stop everything until .go_on(), and .held is set."""

    def __init__(self, path, target):
        self.armed, self.held = threading.Event(), threading.Event()
        super().__init__(path, target)

    def pump(self, x, y, left):
        with contextlib.suppress(OSError):
            while data := x.recv(65536):
                if self.armed.is_set():
                    self.armed.clear()
                    self.stall()
                    self.held.set()
                self.flowing.wait()
                y.sendall(data)
        self.part(x, y)


@pytest.mark.merino_only
@pytest.mark.parametrize("names", [["b"], ["b", "c"]])
def test_guests_go_on_while_bitmaps_are_removed(daemon, tmp, image, names):
    """The image's storage does not answer; what a guest reads without it is there at once."""
    for name in *names, "kept":
        tools.run("qemu-img", "bitmap", "--add", image, name)
    os.truncate(image, os.path.getsize(image) + M)          # what NBD serves does not grow
    below = daemon.serve(image, "raw")
    proxy = Holding(tmp / "proxy", below.nbd_address)
    try:
        d = daemon.start("--blockdev", f"driver=qcow2,node-name=disk,file.driver=nbd,file.export=disk,file.server.type=unix,"
                         f"file.server.path={proxy.path}", "--export", "type=nbd,id=disk,node-name=disk,name=disk,writable=on")
        guest = d.enter()
        proxy.armed.set()
        remove = threading.Thread(target=d.qmp.cmd, args=("transaction", {"actions": [
            {"type": "block-dirty-bitmap-remove", "data": {"node": "disk", "name": name}} for name in names]}))
        remove.start()
        assert proxy.held.wait(HANG)
        assert guest.read(2 * M, 512) == bytes(512)
        assert remove.is_alive()
        proxy.go_on()
        remove.join(HANG)
        assert set(states(d)) == {"kept"}
        d.stop()
    finally:
        proxy.close()
    below.stop()
    tools.check(image)
    assert set(tools.bitmaps(image)) == {"kept"}


@pytest.mark.merino_only
def test_removal_of_several_is_all_or_nothing(daemon, image):
    d = daemon.serve(image)
    add(d, "a", persistent=True)
    d.stop()
    d = daemon.serve(image)
    for second in "a", "nope":
        d.qmp.error("transaction", {"actions": [
            {"type": "block-dirty-bitmap-remove", "data": {"node": "disk", "name": name}} for name in ("a", second)]})
        assert states(d)["a"]["persistent"] and not states(d)["a"]["busy"]
    d.stop()
    assert set(tools.bitmaps(image)) == {"a"}
