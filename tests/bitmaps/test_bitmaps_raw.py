# SPDX-License-Identifier: BSD-3-Clause
"""Persistent bitmaps of raw images, kept beside them: right after a restart and a kill; never believed after somebody
else wrote to the image."""

import os
import random
import re
import shutil
import threading
import time

import nbd
import pytest

from lib import checkpoints, differential, dirty, tools
from lib.daemon import DidNotStart
from lib.dirty import add, crash_safe, ranges, states, verb
from lib.patience import wait_until

pytestmark = pytest.mark.merino_only

SIZE = 8 << 20
G = 65536


def image(tmp, name="a.raw", size=SIZE):
    return tmp / tools.create(tmp / name, size, "raw")


def sidecar(path):
    return path.parent / f".{path.name}.bitmaps"


def nodes(path, layout="raw", extra="", writable=True):
    """Command line of node and export "disk"; LAYOUT: as people write it."""
    ro = "" if writable else ",read-only=on"
    file = f"driver=file,filename={path},discard=unmap{ro}"
    out = {"raw": ["--blockdev", f"driver=raw,node-name=disk,discard=unmap{ro}{extra},"
                   + ",".join("file." + o for o in file.split(","))],
           "file": ["--blockdev", f"{file},node-name=disk{extra}"],
           "libvirt": ["--blockdev", f"{file},node-name=storage",
                       "--blockdev", f"driver=raw,node-name=disk,discard=unmap,file=storage{ro}{extra}"]}[layout]
    return [*out, "--export", f"type=nbd,id=disk,node-name=disk,name=disk,writable={'on' if writable else 'off'}"]


def start(daemon, path, *args, **kw):
    return daemon.start(*nodes(path, *args, **kw))


def broken(d, name="b"):
    """The bitmap is there, and nobody can use it; what the log says of it."""
    assert states(d)[name]["inconsistent"] and states(d)[name]["count"] == 0
    return re.search(f"bitmap is inconsistent.*bitmap={name}", d.stderr()).group()


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("layout", ["raw", "file", "libvirt"])
def test_several_lives(daemon, tmp, layout, end):
    """Each collects more; what was written is dirty, and nothing else."""
    path, model, touched = image(tmp), bytearray(SIZE), []
    grains = (512, 4096, 65536)
    for life in range(4):
        d = start(daemon, path, layout)
        if life == 0:
            for g in grains:
                add(d, f"g{g}", persistent=True, granularity=g)
        assert all(b["persistent"] and b["recording"] for b in states(d).values())
        for g in grains:
            assert ranges(d, f"g{g}") == dirty.model(touched, g, SIZE)
        r = differential.Run(f"{layout} {end} {life}", [d.enter()], model, 65536)
        r.go(40)
        touched += r.touched
        assert sidecar(path).exists()
        getattr(d, end)()
    d = start(daemon, path, layout)
    for g in grains:
        assert states(d)[f"g{g}"]["count"] == dirty.count(touched, g)


def test_what_becomes_of_bitmaps_is_kept(daemon, tmp):
    """Disabled, cleared, merged, removed; over a clean end and a kill."""
    path = image(tmp)
    d = start(daemon, path)
    for name in ("off", "cleared", "sum", "gone"):
        add(d, name, persistent=True, granularity=G)
    add(d, "passing")
    d.enter().write(G, b"x")
    verb(d, "disable", "off")
    verb(d, "clear", "cleared")
    d.enter().write(5 * G, b"x")
    dirty.merge(d, "sum", ["off", "cleared"])
    verb(d, "remove", "gone")
    want = {"off": [(G, G)], "cleared": [(5 * G, G)], "sum": [(G, G), (5 * G, G)]}
    for end in ("kill", "stop", "kill"):
        getattr(d, end)()
        d = start(daemon, path)
        assert {n: ranges(d, n) for n in states(d)} == want
        assert {n: b["recording"] for n, b in states(d).items()} == {"off": False, "cleared": True, "sum": True}


def test_without_bitmaps_nothing_is_left_beside_the_image(daemon, tmp):
    path = image(tmp)
    before = set(os.listdir(tmp))
    d = start(daemon, path)
    add(d, "passing")
    d.enter().write(0, b"x")
    assert not sidecar(path).exists()
    add(d, "b", persistent=True)
    assert sidecar(path).exists()
    verb(d, "remove", "b")
    assert not sidecar(path).exists()
    d.stop()
    assert {n for n in os.listdir(tmp) if "a.raw" in n} == {n for n in before if "a.raw" in n}


def test_read_only(daemon, tmp):
    """Shown, and nothing is written beside the image, after a clean end and after a kill."""
    path = image(tmp)
    d = start(daemon, path)
    add(d, "b", persistent=True, granularity=G)
    d.enter().write(G, b"x")
    for end in ("kill", "stop"):
        getattr(d, end)()
        before = sidecar(path).read_bytes(), os.stat(sidecar(path)).st_ino
        d = start(daemon, path, writable=False)
        assert states(d)["b"]["count"] == G
        assert ranges(d, "b", writable=False) == [(G, G)]
        assert "readonly" in d.qmp.error("block-dirty-bitmap-clear", node="disk", name="b")[1]
        d.stop()
        assert (sidecar(path).read_bytes(), os.stat(sidecar(path)).st_ino) == before
        d = start(daemon, path)
        assert ranges(d, "b") == [(G, G)]


# --- somebody else writes

def with_bitmap(daemon, path, end, **kw):
    d = start(daemon, path, **kw)
    add(d, "b", persistent=True, granularity=G)
    d.enter().write(G, b"x")
    getattr(d, end)()


@pytest.mark.parametrize("end", ["stop", "kill"])
@pytest.mark.parametrize("how", ["write", "grow", "shrink", "new"])
def test_a_foreign_writer_is_seen(daemon, tmp, end, how):
    path = image(tmp)
    with_bitmap(daemon, path, end)
    if end == "kill":
        time.sleep(2.1)                                  # as doc/formats/bitmaps-sidecar.md says
    if how == "write":
        tools.qemu_io(path, "write 1M 512", fmt="raw")
    elif how == "new":
        os.rename(path, tmp / "old")
        shutil.copyfile(tmp / "old", path)
    else:
        tools.run("qemu-img", "resize", *(["--shrink"] if how == "shrink" else []), "-f", "raw", path,
                  "+1M" if how == "grow" else "-1M")
    d = start(daemon, path)
    if how == "new":                                     # not even the same file
        assert states(d) == {}
        assert "it is of another file" in d.stderr()
        add(d, "b", persistent=True, granularity=G)
    else:
        assert "somebody else" in broken(d) or "another size" in broken(d)
        verb(d, "remove", "b")
        add(d, "b", persistent=True, granularity=G)
    d.enter().write(3 * G, b"x")
    d.stop()
    d = start(daemon, path)
    assert ranges(d, "b") == [(3 * G, G)]


def test_a_reader_is_not_taken_for_a_writer(daemon, tmp):
    path = image(tmp)
    with_bitmap(daemon, path, "stop")
    tools.qemu_io(path, "read 0 1M", fmt="raw")
    tools.run("qemu-img", "convert", "-O", "raw", "-f", "raw", path, tmp / "copy")
    assert ranges(start(daemon, path), "b") == [(G, G)]


def test_inconsistent_stays_inconsistent(daemon, tmp):
    path = image(tmp)
    with_bitmap(daemon, path, "stop")
    tools.qemu_io(path, "write 1M 512", fmt="raw")
    for end in ("stop", "kill", "stop"):
        d = start(daemon, path)
        broken(d)
        getattr(d, end)()


def test_a_copy_has_no_bitmaps_and_a_renamed_image_has(daemon, tmp):
    path = image(tmp)
    with_bitmap(daemon, path, "stop")
    shutil.copy2(path, tmp / "copy.raw")
    shutil.copy2(sidecar(path), sidecar(tmp / "copy.raw"))
    d = start(daemon, tmp / "copy.raw")
    assert states(d) == {} and "it is of another file" in d.stderr()
    d.stop()
    os.rename(path, tmp / "alone.raw")
    d = start(daemon, tmp / "alone.raw")
    assert states(d) == {}
    d.stop()
    os.rename(tmp / "alone.raw", tmp / "c.raw")
    os.rename(sidecar(path), sidecar(tmp / "c.raw"))
    assert ranges(start(daemon, tmp / "c.raw"), "b") == [(G, G)]


def test_others_keep_off_while_it_is_in_use(daemon, tmp):
    """Even if nothing is exported: what they write the bitmaps would not see."""
    path = image(tmp)
    with_bitmap(daemon, path, "stop")
    d = daemon.start(*nodes(path, "libvirt")[:-2])
    assert tools.run("qemu-io", "-f", "raw", "-c", "write 0 512", path, check=False).returncode
    with pytest.raises(DidNotStart):
        start(daemon, path)
    kind, text = d.qmp.error("block-export-add", type="nbd", id="s", **{"node-name": "storage"}, writable=True)
    assert "does not allow 'write'" in text
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "s", "node-name": "storage", "writable": False})
    d.stop()
    assert ranges(start(daemon, path), "b") == [(G, G)]


def test_a_second_daemon_does_not_disturb_the_first(daemon, tmp):
    path = image(tmp)
    with_bitmap(daemon, path, "stop")
    d = start(daemon, path)
    ino = os.stat(sidecar(path)).st_ino
    e = daemon.start(*nodes(path)[:-2])                  # opened for writing, and used by nobody
    assert states(e) == {} and "others use it" in e.stderr()
    e.stop()
    assert os.stat(sidecar(path)).st_ino == ino
    d.enter().write(2 * G, b"x")
    d.kill()
    assert ranges(start(daemon, path), "b") == [(G, 2 * G)]


def test_inactive_while_another_writes(daemon, tmp):
    path = image(tmp)
    with_bitmap(daemon, path, "stop")
    d = daemon.start(*nodes(path)[:-2])
    d.qmp.cmd("blockdev-set-active", {"node-name": "disk", "active": False})
    d.qmp.cmd("blockdev-set-active", {"node-name": "disk", "active": True})
    assert states(d)["b"]["count"] == G
    d.qmp.cmd("blockdev-set-active", {"node-name": "disk", "active": False})
    tools.qemu_io(path, "write 1M 512", fmt="raw")
    d.qmp.cmd("blockdev-set-active", {"node-name": "disk", "active": True})
    broken(d)


def test_reopened(daemon, tmp):
    """Read only for a while, and back."""
    path = image(tmp)
    for layout in ("raw", "file"):
        with_bitmap(daemon, path, "stop", layout=layout)
        d = daemon.start(*nodes(path, layout)[:-2])
        file = {"driver": "file", "filename": str(path), "discard": "unmap"}
        for ro in (True, False, True):
            options = ({"driver": "raw", "node-name": "disk", "read-only": ro, "file": d.qmp.cmd("query-named-block-nodes")
                        and [n["node-name"] for n in d.qmp.cmd("query-named-block-nodes") if n["drv"] == "file"][0]}
                       if layout == "raw" else {**file, "node-name": "disk", "read-only": ro})
            d.qmp.cmd("blockdev-reopen", {"options": [options]})
            assert states(d)["b"]["count"] == G
        d.stop()
        d = start(daemon, path, layout)
        assert ranges(d, "b") == [(G, G)]
        verb(d, "remove", "b")
        d.stop()


# --- what cannot be

def test_refused(daemon, tmp):
    path = image(tmp)
    d = start(daemon, path, extra=",offset=65536")
    assert "Operation not supported" in d.qmp.error("block-dirty-bitmap-add", node="disk", name="b", persistent=True)[1]
    d.stop()
    d = start(daemon, path, "libvirt")
    add(d, "b", persistent=True)
    assert "bitmaps" in d.qmp.error("block-dirty-bitmap-add", node="storage", name="b", persistent=True)[1]
    d.stop()
    with pytest.raises(DidNotStart, match="absolute"):
        start(daemon, path, extra=",sidecar-dir=here")


def test_no_place_for_it(daemon, tmp):
    """The directory cannot take a file: the bitmap is refused, the disk works."""
    path = image(tmp)
    d = start(daemon, path, extra=f",sidecar-dir={tmp}/none")
    assert "Can't make bitmap" in d.qmp.error("block-dirty-bitmap-add", node="disk", name="b", persistent=True)[1]
    assert states(d) == {}
    d.enter().write(0, b"x")


def test_in_a_directory_of_its_own(daemon, tmp):
    path = image(tmp)
    (tmp / "side").mkdir()
    d = start(daemon, path, extra=f",sidecar-dir={tmp}/side")
    add(d, "b", persistent=True, granularity=G)
    d.enter().write(G, b"x")
    d.stop()
    assert not sidecar(path).exists() and [n for n in os.listdir(tmp / "side") if n.startswith("bitmaps-")]
    assert ranges(start(daemon, path, extra=f",sidecar-dir={tmp}/side"), "b") == [(G, G)]


# --- hostile sidecars

def damages(good, rnd):
    yield "empty", b""
    for n in (1, 79, 80, 4096, 4097, 8192, len(good) // 2, len(good) - 1):
        yield f"cut at {n}", good[:n]
    yield "zeroes", bytes(len(good))
    yield "noise", rnd.randbytes(len(good))
    for i in range(120):
        bad = bytearray(good)
        where = rnd.choice((4096, 4096 + 65536 * 4, len(bad)))
        for _ in range(rnd.choice((1, 1, 2, 8))):
            bad[rnd.randrange(where)] = rnd.choice((0, 1, 0x7f, 0x80, 0xff, rnd.randrange(256)))
        yield f"bytes {i}", bytes(bad)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_hostile_sidecars(daemon, tmp, end):
    """The disk opens and works, whatever lies beside it."""
    path = image(tmp)
    with_bitmap(daemon, path, end)
    good, rnd = sidecar(path).read_bytes(), random.Random(end)
    d = daemon.start()
    for i, (what, bad) in enumerate(damages(good, rnd)):
        sidecar(path).write_bytes(bad)
        d.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "disk", "read-only": bool(i % 2), "file": {
            "driver": "file", "filename": str(path), "read-only": bool(i % 2)}})
        assert states(d).get("b", {"count": G})["count"] in (0, G), what
        d.qmp.cmd("blockdev-del", {"node-name": "disk"})
    d.stop()


def test_what_is_no_file_beside_the_image(daemon, tmp):
    path = image(tmp)
    (tmp / "target").write_bytes(b"keep me")
    for make in (lambda p: os.mkfifo(p), lambda p: os.mkdir(p), lambda p: os.symlink(tmp / "target", p)):
        make(sidecar(path))
        d = start(daemon, path)
        assert states(d) == {}
        d.enter().write(0, b"x")
        d.stop()
        assert (tmp / "target").read_bytes() == b"keep me"
        os.rename(sidecar(path), tmp / f"was-{len(os.listdir(tmp))}")


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_first_persistent_bitmap_comes_and_goes_under_writes(daemon, tmp, fmt):
    """Guests that write while the file beside the image is made, or ended, notice nothing."""
    path = tmp / tools.create(tmp / "a", SIZE, fmt)
    d = daemon.serve(path, fmt=fmt)
    add(d, "in-memory")
    stop, failed = threading.Event(), []

    def write(seed):
        rng, h = random.Random(seed), d.libnbd()
        try:
            while not stop.is_set():
                h.pwrite(b"x" * 4096, rng.randrange(SIZE // 4096) * 4096)
        except nbd.Error as e:
            failed.append(e)

    writers = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for w in writers:
        w.start()
    for _ in range(5):
        add(d, "p", persistent=True)
        verb(d, "clear", "p")
        verb(d, "remove", "p")
        checkpoints.begin(d, ["disk"], "c")
        checkpoints.end(d, "c", success=False)
    stop.set()
    for w in writers:
        w.join()
    assert not failed


def test_older_copy_put_back_after_a_kill(daemon, tmp):
    """Its time of last write is that of the copy, which came before ours: still it is noticed."""
    path = image(tmp)
    shutil.copy2(path, tmp / "older")
    d = start(daemon, path)
    add(d, "b", persistent=True)
    d.libnbd().pwrite(b"x" * G, 0)
    d.kill()
    time.sleep(3)                               # more than a ring's last writes take
    before = os.stat(path).st_ino
    shutil.copy2(tmp / "older", path)
    assert os.stat(path).st_ino == before
    assert "written to by somebody else" in broken(start(daemon, path))


def test_file_beside_the_image_is_cut_off(daemon, tmp):
    """Its mapping has no pages any more: guests go on, and bitmaps have too much rather than too little."""
    path = image(tmp)
    d = start(daemon, path)
    add(d, "b", persistent=True, granularity=512)
    add(d, "other", granularity=512)
    assert crash_safe(d, "b")
    h = d.libnbd()
    h.pwrite(b"x" * 4096, 0)
    os.truncate(sidecar(path), 0)
    h.pwrite(b"y" * 4096, 1 << 20)
    h.trim(4096, 2 << 20)
    assert not crash_safe(d, "b")
    assert states(d)["b"]["count"] == SIZE and states(d)["other"]["count"] == 3 * 4096
    verb(d, "clear", "b")
    h.pwrite(b"z" * 512, 5 << 20)
    assert ranges(d, "b") == [(5 << 20, 512)]
    wait_until(lambda: "do not survive a crash" in d.stderr())
    h.shutdown()
    d.stop()
    d = start(daemon, path)
    assert ranges(d, "b") == [(5 << 20, 512)] and crash_safe(d, "b")
