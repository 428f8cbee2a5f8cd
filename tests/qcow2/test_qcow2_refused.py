# SPDX-License-Identifier: BSD-3-Clause
"""Images that a stranger made: refused with a reason, by a daemon that goes on; damage that shows up later."""

import re
import struct

import pytest

from lib import pattern, tools
from lib.daemon import is_qsd
from lib.nbdproto import *                               # noqa: F403
from lib.qcow2bytes import (COPIED, EXT_BACKING_FORMAT, EXT_FEATURES, OFFSET_MASK, extensions, get, get64,
                            l2_entry_offset, put, put64, put_extensions)

M = 1 << 20


@pytest.fixture
def image(tmp):
    """4 MiB, its first cluster written."""
    path = tools.create(tmp / "a.qcow2", 4 * M)
    tools.qemu_io(path, "write -P 1 0 64k")
    return path


def refusal(daemon, path, **options):
    """blockdev-add must fail, and the daemon be none the worse; the text."""
    d = daemon.start()
    kind, text = d.qmp.error("blockdev-add", {
        "driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": str(path)}, **options})
    assert kind == "GenericError"
    assert d.qmp.cmd("query-named-block-nodes") == []
    good = tools.create(f"{path}.good", "1M")
    d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": good}})
    return text


BAD = [
    (dict(magic=0x51464900), "not in qcow2 format"),
    (dict(version=0), "version 0"),
    (dict(version=4), "version 4"),
    (dict(cluster_bits=8), "cluster size"),
    (dict(cluster_bits=22), "cluster size"),
    (dict(cluster_bits=0xFFFFFFFF), "cluster size"),
    (dict(size=1 << 63), "too big|too large|size"),
    (dict(size=1 << 50), "L1"),
    (dict(crypt=2), "(?i)crypt|LUKS"),
    (dict(crypt=7), "(?i)crypt"),
    (dict(l1_size=0x7FFFFFFF), "L1"),
    (dict(l1_size=0), "L1"),
    (dict(l1_offset=0x30001), "L1"),
    (dict(reftable_offset=0x10001), "(?i)reference count|refcount"),
    (dict(reftable_clusters=0x7FFFFFFF), "(?i)reference count|refcount"),
    (dict(reftable_clusters=0), "(?i)reference count|refcount"),
    (dict(snapshots=0x7FFFFFFF), "(?i)snapshot"),
    (dict(refcount_order=7), "(?i)reference count|refcount"),
    (dict(refcount_order=0xFFFFFFFF), "(?i)reference count|refcount"),
    (dict(header_length=50), "(?i)header"),
    (dict(header_length=1 << 20), "(?i)header"),
    (dict(backing_offset=1 << 40, backing_length=8), "(?i)backing"),
    (dict(backing_offset=0x200, backing_length=2000), "(?i)backing"),
    (dict(incompatible=2), "(?i)corrupt"),
]


@pytest.mark.parametrize("fields, reason", BAD, ids=lambda v: ",".join(v) if isinstance(v, dict) else "")
def test_bad_header(daemon, image, fields, reason):
    put(image, **fields)
    assert re.search(reason, refusal(daemon, image))


@pytest.mark.merino_only                                 # QEMU reads zeroes behind the end of the file
@pytest.mark.parametrize("fields", [dict(l1_offset=1 << 40), dict(reftable_offset=1 << 40),
                                    dict(snapshots=1, snapshots_offset=1 << 62)], ids=lambda v: ",".join(v))
def test_table_outside_the_file(daemon, image, fields):
    put(image, **fields)
    assert refusal(daemon, image)


def test_unknown_incompatible_feature_by_number(daemon, image):
    put(image, incompatible=1 << 40)
    text = refusal(daemon, image)
    assert re.search(r"Unsupported qcow2 feature\(s\): .*(10000000000|bit 40)", text)     # QEMU says the mask


def test_unknown_incompatible_feature_by_its_name(daemon, image):
    table = struct.pack(">BB46s", 0, 40, b"flux capacitor") + struct.pack(">BB46s", 1, 40, b"wrong kind")
    put_extensions(image, [(EXT_FEATURES, table)])
    put(image, incompatible=1 << 40)
    text = refusal(daemon, image)
    assert "Unsupported qcow2 feature(s)" in text and "flux capacitor" in text and "wrong kind" not in text


@pytest.mark.parametrize("length", [0, 3, 50, 103])
def test_file_shorter_than_a_header(daemon, image, length):
    with open(image, "r+b") as f:
        f.truncate(length)
    assert refusal(daemon, image)


def test_extension_longer_than_the_header(daemon, image):
    with open(image, "r+b") as f:
        f.seek(get(image, "header_length"))
        f.write(struct.pack(">II", 0x12345678, 0xFFFFFFF0))
    assert refusal(daemon, image)


def test_image_that_backs_itself(daemon, tmp, image):
    tools.run("qemu-img", "rebase", "-u", "-b", image, "-F", "qcow2", image)
    assert refusal(daemon, image)


def test_loop_of_two_images(daemon, tmp, image):
    other = tools.create(tmp / "b.qcow2", "4M")
    tools.run("qemu-img", "rebase", "-u", "-b", other, "-F", "qcow2", image)
    tools.run("qemu-img", "rebase", "-u", "-b", image, "-F", "qcow2", other)
    assert refusal(daemon, image)


@pytest.mark.merino_only                                 # QEMU opens whatever the image names (CVE-2024-4467)
@pytest.mark.parametrize("name", ['json:{"driver":"file","filename":"%s/secret"}', "nbd://127.0.0.1:1/x",
                                  "nbd+unix:///x?socket=%s/s"])
def test_backing_name_that_is_no_plain_file(daemon, tmp, image, name):
    (tmp / "secret").write_bytes(bytes(M))
    name = name.replace("%s", str(tmp))
    tools.run("qemu-img", "rebase", "-u", "-b", name, "-F", "raw", image)
    assert name.split(":")[0] in refusal(daemon, image)


def forget_backing_format(path):
    """Take the header extension away that says what the backing file is."""
    offset, length = get(path, "backing_offset"), get(path, "backing_length")
    with open(path, "rb") as f:
        f.seek(offset)
        name = f.read(length)
    rest = [e for e in extensions(path) if e[0] != EXT_BACKING_FORMAT]
    put(path, backing_offset=0, backing_length=0)
    put_extensions(path, rest)
    put(path, backing_offset=offset, backing_length=length)
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(name)


@pytest.mark.merino_only                                 # QEMU probes (with a warning at creation)
def test_backing_file_that_might_be_qcow2_needs_its_format(daemon, tmp, image):
    """Probing would let the base's content choose how it is read; taking it for raw would be wrong."""
    tools.run("qemu-img", "rebase", "-u", "-b", tools.create(tmp / "base", "1M"), "-F", "qcow2", image)
    forget_backing_format(image)
    assert "format" in refusal(daemon, image)


def test_backing_file_without_format_that_is_plainly_raw(daemon, tmp, image):
    (tmp / "base").write_bytes(pattern.block("base", M))
    tools.run("qemu-img", "rebase", "-u", "-b", tmp / "base", "-F", "raw", image)
    forget_backing_format(image)
    assert daemon.serve(image).enter().read(65536, 65536) == pattern.block("base", M)[65536:131072]


def test_unknown_extension_is_kept(daemon, image):
    """With unknown content, over a session that changes the image and stores a bitmap (which rewrites the header)."""
    mine = (0xDEADBEEF, b"keep me whole")
    put_extensions(image, [mine, *extensions(image)])
    d = daemon.serve(image)
    d.enter().write(M, b"x" * 100000)
    d.qmp.cmd("block-dirty-bitmap-add", {"node": "disk", "name": "b", "persistent": True})
    d.stop()
    assert mine in extensions(image)
    assert "b" in tools.bitmaps(image)
    tools.check(image)


def test_unknown_compatible_features_are_no_hindrance(daemon, image):
    put(image, compatible=1 << 50)
    assert daemon.serve(image).enter().read(0, 512) == b"\1" * 512


def test_unknown_autoclear_bits_are_cleared_by_a_writer(daemon, image):
    put(image, autoclear=1 << 50)
    d = daemon.serve(image)
    d.enter().write(0, b"x")
    d.stop()
    assert get(image, "autoclear") & 1 << 50 == 0


# --- damage that is met after opening

def served(daemon, path):
    d = daemon.serve(path)
    return d, d.enter()


def test_unaligned_cluster_offset(daemon, image):
    """EIO for that cluster; the others and the daemon go on (HAZARDS 32)."""
    at = l2_entry_offset(image, 0)
    put64(image, at, get64(image, at) | 512)
    d, c = served(daemon, image)
    assert c.call(CMD_READ, 0, 512).error == EIO
    assert d.qmp.cmd("query-version")
    if not is_qsd():                                     # QEMU gives up the whole image
        assert c.read(M, 512) == bytes(512)


def test_unaligned_l2_table(daemon, image):
    at = get(image, "l1_offset")
    put64(image, at, get64(image, at) | 512)
    d, c = served(daemon, image)
    assert c.call(CMD_READ, 0, 512).error == EIO
    assert c.call(CMD_WRITE, 0, data=b"x" * 512).error
    assert d.qmp.cmd("query-version")


@pytest.mark.parametrize("victim", ["header", "L1 table", "L2 table", "refcount table", "refcount block"])
def test_write_onto_metadata_is_stopped(daemon, image, victim):
    """A data cluster that lies on a table: the guest's bytes must not get there."""
    entry = l2_entry_offset(image, 0)
    reftable = get(image, "reftable_offset")
    where = {"header": 0, "L1 table": get(image, "l1_offset"), "L2 table": entry & ~0xFFFF, "refcount table": reftable,
             "refcount block": get64(image, reftable) & OFFSET_MASK}[victim]
    put64(image, entry, where | COPIED)
    d, c = served(daemon, image)
    # Offset 0 reads as "not allocated": then the write goes elsewhere, which is as good.
    error = c.call(CMD_WRITE, 512, data=pattern.block("evil", 4096)).error
    assert error == EIO or where == 0
    d.kill()
    with open(image, "rb") as f:
        f.seek(where)
        assert pattern.block("evil", 4096)[:64] not in f.read(65536)


def test_data_beyond_the_end_of_the_file(daemon, image):
    """Reads as zeroes or fails; nothing worse."""
    put64(image, l2_entry_offset(image, 0), 1 << 40 | COPIED)
    _, c = served(daemon, image)
    a = c.call(CMD_READ, 0, 512)
    assert a.error == EIO or a.assemble(0, 512) == bytes(512)
    assert c.read(M, 512) == bytes(512)


@pytest.mark.merino_only
def test_l2_table_beyond_the_end_of_the_file(daemon, image):
    put64(image, get(image, "l1_offset"), 1 << 40 | COPIED)
    _, c = served(daemon, image)
    a = c.call(CMD_READ, 0, 512)
    assert a.error == EIO or a.assemble(0, 512) == bytes(512)
