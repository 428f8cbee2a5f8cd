# SPDX-License-Identifier: BSD-3-Clause
"""merino:changes:NAME: what was zeroed or discarded since is told apart from what was written, and never by mistake."""

import json
import pathlib

import pytest

from lib import daemon as daemons
from lib import differential, dirty, tools
from lib.nbdproto import *                               # noqa: F403

pytestmark = pytest.mark.merino_only

DIRTY, ZERO, HOLE = 1, 2, 4
G = 65536
NAMES = ["qemu:dirty-bitmap:b", "merino:changes:b"]


def add(d, node="disk", export="x", owner=None, writable=True, **options):
    """Bitmap "b" on a node, offered by an export of its own."""
    dirty.add(d, "b", node=owner or node, granularity=G, **options)
    offer(d, node, export, owner, writable)


def offer(d, node="disk", export="x", owner=None, writable=True):
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": export, "node-name": node, "name": export, "writable": writable,
                                   "bitmaps": [{"node": owner or node, "name": "b"}]})


def changes(c):
    """[(offset in granules, granules, flags)] of what is not clean."""
    return [(at // G, -(-n // G), f) for at, n, f in c.status_all("merino:changes:b") if f]


def make(tmp, kind, size):
    path = tmp / f"{kind}.img"
    if kind == "raw":
        return daemons.blockdev(tools.create(path, size, "raw"), "raw", "disk")
    if kind == "qcow2":
        return daemons.blockdev(tools.create(path, size), "qcow2", "disk")
    base = tools.create(tmp / "base", size, "raw")
    (tmp / "base").write_bytes(b"\x55" * size)
    return daemons.blockdev(tools.create(path, size, backing=base, backing_fmt="raw", compat=kind), "qcow2", "disk")


@pytest.mark.parametrize("kind", ["raw", "qcow2", "1.1", "0.10"])
def test_claims_against_a_model(daemon, tmp, kind):
    """Many requests at once; "1.1" and "0.10" lie over an image that would show through a discard."""
    size = (4 << 20) + 512
    d = daemon.start("--blockdev", make(tmp, kind, size))
    add(d)
    c, model = d.enter("x", NAMES), bytearray(size)
    model[:] = c.read(0, size)
    weights = {"write": 20, "read": 5, "zero": 40, "trim": 40, "flush": 1, "fua": 2}
    for seed in range(4):
        r = differential.Run(f"{kind} {seed}", [c, d.enter("x")], model, G, weights=weights)
        r.go(150)
        c.zero((17 + seed) * G, 2 * G, F_NO_HOLE if seed % 2 else 0)
        model[(17 + seed) * G:(19 + seed) * G] = bytes(2 * G)
        claimed = 0
        for at, n, flags in c.status_all("merino:changes:b"):
            assert flags in (0, DIRTY, DIRTY | ZERO, DIRTY | ZERO | HOLE)
            if flags & ZERO:
                assert model[at:at + n] == bytes(n), f"{at:#x}+{n:#x} is not zero"
                claimed += n
        assert claimed >= 2 * G
        plain = [(at, n) for at, n, f in c.status_all("qemu:dirty-bitmap:b") if f]
        assert plain == joined([(at, n) for at, n, f in c.status_all("merino:changes:b") if f & DIRTY])


def joined(ranges):
    out = []
    for at, n in ranges:
        if out and sum(out[-1]) == at:
            out[-1] = (out[-1][0], out[-1][1] + n)
        else:
            out.append((at, n))
    return out


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_what_becomes_of_a_granule(daemon, tmp, fmt):
    d = daemon.start("--blockdev", make(tmp, fmt, 16 * G))
    add(d)
    c = d.enter("x", NAMES)
    c.write(0, b"x" * (8 * G))
    assert changes(c) == [(0, 8, DIRTY)]
    c.zero(G, G, F_NO_HOLE)
    c.zero(2 * G, G)
    c.trim(3 * G, G)
    assert changes(c) == [(0, 1, DIRTY), (1, 1, DIRTY | ZERO), (2, 2, DIRTY | ZERO | HOLE), (4, 4, DIRTY)]
    c.write(2 * G + 5, b"x")                             # written again
    c.zero(4 * G, G - 512)                               # not all of it
    c.zero(3 * G, 512)                                   # zero it was, zero it stays
    c.zero(9 * G + 512, G)                               # two parts of clean ones
    c.zero(12 * G, 4 * G)
    assert changes(c) == [(0, 1, DIRTY), (1, 1, DIRTY | ZERO), (2, 1, DIRTY), (3, 1, DIRTY | ZERO | HOLE), (4, 4, DIRTY),
                          (9, 2, DIRTY), (12, 4, DIRTY | ZERO | HOLE)]
    # One answer with both contexts, as a client asks for them.
    answer = c.ok(CMD_BLOCK_STATUS, 0, 16 * G).extents()
    assert answer[c.contexts["merino:changes:b"]][:3] == [(G, DIRTY), (G, DIRTY | ZERO), (G, DIRTY)]
    assert answer[c.contexts["qemu:dirty-bitmap:b"]] == [(8 * G, DIRTY), (G, 0), (2 * G, DIRTY), (G, 0), (4 * G, DIRTY)]


def test_after_a_restart_all_is_written(daemon, tmp):
    d = daemon.start("--blockdev", make(tmp, "qcow2", 16 * G))
    add(d, persistent=True)
    c = d.enter("x", NAMES)
    c.zero(G, 3 * G)
    assert changes(c) == [(1, 3, DIRTY | ZERO | HOLE)]
    d.stop()
    d = daemon.start("--blockdev", daemons.blockdev(tmp / "qcow2.img", "qcow2", "disk"))
    offer(d)
    assert changes(d.enter("x", NAMES)) == [(1, 3, DIRTY)]


def test_what_fails_is_written(daemon, tmp):
    """The error strikes once: some of the request may have been done, or none."""
    path = tools.create(tmp / "a.raw", 16 * G, "raw")
    for i, kind in enumerate(("write-zeroes", "discard")):
        d = daemon.start("--blockdev", f"driver=blkdebug,node-name=disk,discard=unmap,image.driver=file,image.filename={path},"
                         f"image.discard=unmap,inject-error.0.event=none,inject-error.0.iotype={kind},"
                         "inject-error.0.once=on")
        add(d)
        c = d.enter("x", NAMES)
        command = CMD_TRIM if kind == "discard" else CMD_WRITE_ZEROES
        assert c.call(command, G, 2 * G).error
        assert changes(c) == [(1, 2, DIRTY)]
        c.ok(command, G, 2 * G)
        assert changes(c) == [(1, 2, DIRTY | ZERO | HOLE)]
        d.stop()


def test_a_bitmap_that_does_not_record(daemon, tmp):
    """Its dirty ranges stay as they are; what it says of zeroes is about now."""
    d = daemon.start("--blockdev", make(tmp, "raw", 16 * G))
    add(d)
    c = d.enter("x", NAMES)
    c.zero(0, 4 * G)
    d.qmp.cmd("block-export-del", {"id": "x", "mode": "hard"})
    d.qmp.event("BLOCK_EXPORT_DELETED")
    dirty.verb(d, "disable", "b")
    offer(d)
    c = d.enter("x", NAMES)
    c.write(G, b"x")
    c.write(8 * G, b"x")
    assert changes(c) == [(0, 1, DIRTY | ZERO | HOLE), (1, 1, DIRTY), (2, 2, DIRTY | ZERO | HOLE)]


def test_merged_bitmaps(daemon, tmp):
    d = daemon.start("--blockdev", make(tmp, "raw", 16 * G), "--export", "type=nbd,id=disk,node-name=disk,writable=on")
    c = d.enter("disk")
    dirty.add(d, "b", granularity=G)
    dirty.add(d, "finer", granularity=4096)
    c.zero(0, 4 * G)
    dirty.verb(d, "clear", "finer")
    c.zero(4 * G, 2 * G)
    c.write(8 * G, b"x")
    dirty.verb(d, "clear", "b")
    c.trim(G, G)
    c.write(2 * G, b"x")
    dirty.merge(d, "b", ["finer"])
    offer(d)
    # Granules of two sizes: what was a hole is zero, no more.
    assert changes(d.enter("x", NAMES)) == [(1, 1, DIRTY | ZERO), (2, 1, DIRTY), (4, 2, DIRTY | ZERO), (8, 1, DIRTY)]


def test_an_overlay_says_nothing_of_zeroes_below_it(daemon, tmp):
    """The bitmap of the image below, offered by what lies over it and has data of its own."""
    make(tmp, "raw", 16 * G)
    top = tools.create(tmp / "top", 16 * G, backing=tmp / "raw.img", backing_fmt="raw")
    d = daemon.start("--blockdev", daemons.blockdev(tmp / "raw.img", "raw", "base"),
                     "--export", "type=nbd,id=base,node-name=base,writable=on")
    dirty.add(d, "b", node="base", granularity=G)
    d.enter("base").zero(0, 4 * G)
    dirty.verb(d, "disable", "b", node="base")
    offer(d, "base", "below")
    assert changes(d.enter("below", NAMES)) == [(0, 4, DIRTY | ZERO | HOLE)]
    for export in ("base", "below"):
        d.qmp.cmd("block-export-del", {"id": export, "mode": "hard"})
        d.qmp.event("BLOCK_EXPORT_DELETED")
    d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "top", "file": {"driver": "file", "filename": str(top)},
                               "backing": "base"})
    offer(d, "top", "above", "base")
    c = d.enter("above", NAMES)
    c.write(G, b"x")
    assert changes(c) == [(0, 4, DIRTY)]


def test_names_of_contexts(daemon, tmp):
    d = daemon.start("--blockdev", make(tmp, "raw", 16 * G), "--export", "type=nbd,id=plain,name=plain,node-name=disk,writable=on")
    add(d)
    both = {"base:allocation", *NAMES}
    for export, query, want in [("x", [], both), ("x", ["merino:"], {NAMES[1]}), ("x", ["merino:changes:"], {NAMES[1]}),
                                ("x", ["qemu:"], {NAMES[0]}), ("x", ["merino:changes:b"], {NAMES[1]}),
                                ("x", ["merino:changes:c"], set()), ("x", ["merino"], set()),
                                ("plain", ["merino:"], set()), ("plain", [], {"base:allocation"})]:
        c = d.connect()
        c.greet()
        c.negotiate_structured()
        assert set(c.meta(OPT_LIST_META, export, query)) == want, query
        if query:
            exact = {q for q in query if q in want}
            assert set(c.meta(OPT_SET_META, export, query)) == exact


def test_nbdinfo_and_nbdsh(daemon, tmp):
    """Other people's clients see the same."""
    d = daemon.start("--blockdev", make(tmp, "qcow2", 16 * G))
    add(d)
    c = d.enter("x", NAMES)
    c.write(0, b"x" * G)
    c.zero(G, G, F_NO_HOLE)
    c.trim(2 * G, G)
    out = json.loads(tools.run("nbdinfo", "--json", "--map=merino:changes:b", d.uri("x")).stdout)
    assert [(e["offset"] // G, e["length"] // G, e["type"]) for e in out] == [(0, 1, 1), (1, 1, 3), (2, 1, 7), (3, 13, 0)]
    script = ("import nbd\nh = nbd.NBD()\nh.add_meta_context('merino:changes:b')\n"
              f"h.connect_uri('{d.uri('x')}')\nh.block_status({16 * G}, 0, lambda c, o, e, err: print(c, e))\n")
    assert f"merino:changes:b [{G}, 1, {G}, 3, {G}, 7, {13 * G}, 0]" in tools.run("nbdsh", "-c", script).stdout


def test_pull_reads_only_what_was_written(daemon, tmp):
    """merino pull takes the context by itself; the copy is the disk."""
    d = daemon.start("--blockdev", make(tmp, "qcow2", 64 * G))
    add(d)
    c = d.enter("x", NAMES)
    c.write(0, b"x" * (32 * G))
    merino = pathlib.Path(daemons.program()).with_name("merino")
    tools.run(merino, "pull", d.uri("x"), tmp / "full")
    d.qmp.cmd("block-export-del", {"id": "x", "mode": "hard"})
    d.qmp.event("BLOCK_EXPORT_DELETED")
    dirty.verb(d, "clear", "b")
    offer(d)
    c = d.enter("x", NAMES)
    c.zero(0, 8 * G, F_NO_HOLE)
    c.trim(16 * G, 8 * G)
    c.write(20 * G, b"y" * G)
    c.flush()
    tools.run(merino, "pull", "--bitmap=b", "-B", tmp / "full", d.uri("x"), tmp / "inc")
    assert tools.content(tmp / "inc") == c.read(0, 64 * G)


def test_through_a_snapshot(daemon, tmp):
    """What the reader of a view is told to be zero was zero then, not only now."""
    d = daemon.start("--blockdev", make(tmp, "qcow2", 16 * G), "--export", "type=nbd,id=disk,node-name=disk,writable=on")
    c = d.enter()
    c.write(0, b"x" * (16 * G))
    for name in ("before", "b"):
        dirty.add(d, name, granularity=G)
    c.zero(0, 2 * G)
    c.zero(2 * G, 2 * G)
    dirty.verb(d, "disable", "before")
    tools.create(tmp / "scratch", 16 * G)
    d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "scratch", "file": {"driver": "file", "filename": str(tmp / "scratch")}})
    d.qmp.cmd("blockdev-add", {"driver": "copy-before-write", "node-name": "cbw", "file": "disk", "target": "scratch"})
    d.qmp.cmd("qom-set", {"path": "/machine/peripheral/disk/virtio-backend", "property": "drive", "value": "cbw"})
    d.qmp.cmd("blockdev-add", {"driver": "snapshot-access", "node-name": "snap", "file": "cbw"})
    c.write(0, b"y" * G)
    c.zero(8 * G, 2 * G)
    dirty.verb(d, "disable", "b")                        # too late: it says of 8 and 9 what was not so then
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "s", "node-name": "snap", "name": "s", "bitmaps": [
        {"node": "disk", "name": "before"}, {"node": "disk", "name": "b"}]})
    s = d.enter("s", ["merino:changes:before", "merino:changes:b"])
    old = [(at // G, n // G, f) for at, n, f in s.status_all("merino:changes:before") if f]
    assert old == [(0, 1, DIRTY), (1, 3, DIRTY | ZERO | HOLE)]
    assert s.read(0, 4 * G) == bytes(4 * G) and s.read(8 * G, G) == b"x" * G
    assert changes(s) == [(0, 4, DIRTY), (8, 2, DIRTY)]
