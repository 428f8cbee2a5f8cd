# SPDX-License-Identifier: BSD-3-Clause
"""Bitmaps of images that were not closed: never taken for the truth."""

import struct

import pytest

from lib import dirty, qcow2bytes, tools
from lib.dirty import add, ranges, states, verb

M = 1 << 20
TEXT = "Bitmap 'b' is inconsistent and cannot be used"


@pytest.fixture
def abandoned(image):
    """A bitmap that QEMU had in use when it died."""
    tools.run("qemu-img", "bitmap", "--add", image, "b")
    tools.run("qemu-io", "-f", "qcow2", "-c", "write 0 64k", "-c", "flush", "-c", "abort", image, check=False)
    assert "in-use" in tools.bitmaps(image)["b"]["flags"]
    return image


def test_is_shown_as_inconsistent(daemon, abandoned):
    assert states(daemon.serve(abandoned))["b"] == {
        "name": "b", "recording": False, "persistent": True, "busy": False, "granularity": 65536, "count": 0,
        "inconsistent": True}


@pytest.mark.parametrize("what", ["clear", "enable", "disable"])
def test_cannot_be_used(daemon, abandoned, what):
    d = daemon.serve(abandoned)
    assert d.qmp.error(f"block-dirty-bitmap-{what}", node="disk", name="b") == ("GenericError", TEXT)


def test_cannot_be_merged(daemon, abandoned):
    d = daemon.serve(abandoned)
    add(d, "t")
    for target, source in (("t", "b"), ("b", "t")):
        kind_and_text = d.qmp.error("block-dirty-bitmap-merge", node="disk", target=target, bitmaps=[source])
        assert kind_and_text == ("GenericError", TEXT)


def test_cannot_be_exported(daemon, abandoned):
    d = daemon.serve(abandoned)
    kind_and_text = d.qmp.error("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "name": "e",
                                                     "writable": True, "bitmaps": ["b"]})
    assert kind_and_text == ("GenericError", TEXT)


def test_its_name_is_taken(daemon, abandoned):
    d = daemon.serve(abandoned)
    assert d.qmp.error("block-dirty-bitmap-add", node="disk", name="b")[1] == "Bitmap already exists: b"


def test_can_be_removed_and_made_anew(daemon, tmp, abandoned):
    d = daemon.serve(abandoned)
    verb(d, "remove", "b")
    add(d, "b", persistent=True)
    d.enter().write(M, b"x")
    d.stop()
    tools.check(abandoned)
    assert dirty.by_qemu(abandoned, "b", tmp) == [(M, 65536)]


def test_stays_inconsistent_over_our_clean_close(daemon, abandoned):
    d = daemon.serve(abandoned)
    d.enter().write(M, b"x")
    d.stop()
    tools.check(abandoned)
    assert "in-use" in tools.bitmaps(abandoned)["b"]["flags"]


def test_others_beside_it_work(daemon, tmp, abandoned):
    d = daemon.serve(abandoned)
    add(d, "good", persistent=True)
    d.enter().write(M, b"x")
    d.stop()
    tools.check(abandoned)
    assert dirty.by_qemu(abandoned, "good", tmp) == [(M, 65536)]


def test_marked_in_use_while_we_have_it_open(daemon, image):
    """So that nobody trusts it if we die."""
    tools.run("qemu-img", "bitmap", "--add", image, "b")
    daemon.serve(image)
    told = tools.run("qemu-img", "info", "-U", "--output=json", image).stdout
    assert '"in-use"' in told


def test_kill_does_not_leave_a_bitmap_that_lacks_writes(daemon, image):
    """After kill -9 QEMU must not trust it, and we only if it covers all that was written."""
    tools.run("qemu-img", "bitmap", "--add", image, "b")
    d = daemon.serve(image)
    d.enter().write(2 * M, b"x" * 100000)
    d.kill()
    assert "in-use" in tools.bitmaps(image)["b"]["flags"]
    d = daemon.serve(image)
    b = states(d)["b"]
    assert b.get("inconsistent") or (2 * M, 131072) in ranges(d, "b")


def test_a_writer_that_knows_no_bitmaps(daemon, image):
    """It clears the autoclear bit; then the bitmaps are out of date, and must not be trusted."""
    tools.run("qemu-img", "bitmap", "--add", image, "b")
    qcow2bytes.put(image, autoclear=qcow2bytes.get(image, "autoclear") & ~1)
    d = daemon.serve(image)
    b = states(d).get("b")
    assert b is None or b.get("inconsistent")


@pytest.mark.merino_only                                 # QEMU does not open the disk (CLIENTS.md P15)
@pytest.mark.parametrize("damage", ["directory outside the file", "directory size", "entry", "table"])
def test_a_damaged_directory_costs_the_bitmaps_never_the_disk(daemon, image, damage):
    tools.run("qemu-img", "bitmap", "--add", image, "b")
    tools.qemu_io(image, "write -P 1 0 64k")
    (kind, data), = [e for e in qcow2bytes.extensions(image) if e[0] == qcow2bytes.EXT_BITMAPS]
    count, reserved, size, offset = struct.unpack(">IIQQ", data)
    others = [e for e in qcow2bytes.extensions(image) if e[0] != kind]
    if damage == "directory outside the file":
        qcow2bytes.put_extensions(image, [*others, (kind, struct.pack(">IIQQ", count, reserved, size, 1 << 40))])
    elif damage == "directory size":
        qcow2bytes.put_extensions(image, [*others, (kind, struct.pack(">IIQQ", count, reserved, 1 << 50, offset))])
    elif damage == "entry":
        qcow2bytes.put64(image, offset + 8, 0xFFFFFFFFFFFFFFFF)
    else:
        qcow2bytes.put64(image, offset, 1 << 55)
    d = daemon.serve(image)
    c = d.enter()
    assert c.read(0, 65536) == b"\1" * 65536
    c.write(M, b"x")
