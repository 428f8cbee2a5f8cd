# SPDX-License-Identifier: BSD-3-Clause
"""add, remove, clear, enable, disable, merge: one verb at a time."""

import pytest

from lib import dirty, tools
from lib.daemon import disk_args
from lib.dirty import add, merge, ranges, states, verb

K, M = 1 << 10, 1 << 20
BUSY = "Bitmap 'b' is currently in use by another operation and cannot be used"


def fails(d, command, **arguments):
    """The text of the GenericError."""
    kind, text = d.qmp.error(command, arguments)
    assert kind == "GenericError"
    return text


def test_add_shows_in_the_query(disk):
    add(disk, "b")
    assert states(disk) == {"b": {"name": "b", "recording": True, "persistent": False, "busy": False,
                                  "granularity": 65536, "count": 0}}


@pytest.mark.parametrize("cluster, granularity", [("512", 4096), ("4k", 4096), ("64k", 65536), ("2M", 65536)])
def test_default_granularity_is_the_cluster_within_4k_and_64k(daemon, tmp, cluster, granularity):
    d = daemon.serve(tools.create(tmp / "c.qcow2", 4 * M, cluster_size=cluster))
    add(d, "b")
    assert states(d)["b"]["granularity"] == granularity


def test_default_granularity_on_raw(two):
    add(two, "b", "other")
    assert states(two, "other")["b"]["granularity"] == 65536


@pytest.mark.parametrize("granularity", [0, 1, 256, 511, 513, 3000])
def test_granularity_must_be_a_power_of_two_from_512(disk, granularity):
    text = fails(disk, "block-dirty-bitmap-add", node="disk", name="b", granularity=granularity)
    assert text == "Granularity must be power of 2 and at least 512"


@pytest.mark.parametrize("granularity", [-1, 1 << 32])
def test_granularity_is_32_bits(disk, granularity):
    text = fails(disk, "block-dirty-bitmap-add", node="disk", name="b", granularity=granularity)
    assert text == "Parameter 'granularity' expects uint32_t"


def test_granularity_of_2_gigabytes(disk):
    add(disk, "b", granularity=1 << 31)
    disk.enter().write(0, b"x")
    assert ranges(disk, "b") == [(0, 4 * M)]
    assert states(disk)["b"]["count"] == 1 << 31


def test_name_twice(disk):
    add(disk, "b")
    assert fails(disk, "block-dirty-bitmap-add", node="disk", name="b") == "Bitmap already exists: b"


def test_same_name_on_two_nodes(two):
    add(two, "b")
    add(two, "b", "other")
    two.enter("other").write(0, b"x")
    assert (states(two)["b"]["count"], states(two, "other")["b"]["count"]) == (0, 65536)


def test_empty_name(disk):
    assert fails(disk, "block-dirty-bitmap-add", node="disk", name="") == "Bitmap name cannot be empty"


def test_name_of_1023_bytes_and_no_more(disk):
    add(disk, "n" * 1023)
    assert fails(disk, "block-dirty-bitmap-add", node="disk", name="n" * 1024).startswith("Bitmap name too long")


def test_unknown_node(disk):
    text = fails(disk, "block-dirty-bitmap-add", node="nope", name="b")
    assert text == "Cannot find device='nope' nor node-name='nope'"


@pytest.mark.parametrize("what", ["remove", "clear", "enable", "disable"])
def test_verbs_on_what_is_not_there(disk, what):
    assert fails(disk, f"block-dirty-bitmap-{what}", node="disk", name="nope") == "Dirty bitmap 'nope' not found"
    assert fails(disk, f"block-dirty-bitmap-{what}", node="nope", name="b") == "Node 'nope' not found"


def test_remove(disk):
    add(disk, "b")
    verb(disk, "remove", "b")
    assert states(disk) == {}
    add(disk, "b")                                       # the name is free again


def test_records_writes_zeroes_and_trims(disk):
    add(disk, "b")
    c = disk.enter()
    c.write(0, b"x")
    c.zero(M, 65536)
    c.write(2 * M, b"x" * 65536)
    c.trim(2 * M, 65536)
    assert ranges(disk, "b") == [(0, 65536), (M, 65536), (2 * M, 65536)]
    assert states(disk)["b"]["count"] == 3 * 65536


def test_trim_is_recorded(disk):
    """What it leaves may differ from before, so an incremental backup must look there."""
    c = disk.enter()
    c.write(0, b"x" * 131072)
    add(disk, "b")
    c.trim(65536, 65536)
    assert ranges(disk, "b") == [(65536, 65536)]


def test_reads_and_flushes_are_not_recorded(disk):
    add(disk, "b")
    c = disk.enter()
    c.read(0, 4 * M)
    c.ok(5, 0, 4 * M)                                    # CACHE
    c.flush()
    assert states(disk)["b"]["count"] == 0


def test_records_through_every_connection_and_export(disk):
    add(disk, "b")
    disk.qmp.cmd("block-export-add", {"type": "nbd", "id": "e2", "node-name": "disk", "name": "second",
                                      "writable": True})
    disk.enter().write(0, b"x")
    disk.enter("second").write(M, b"x")
    assert ranges(disk, "b") == [(0, 65536), (M, 65536)]


def test_disabled_does_not_record(disk):
    add(disk, "b", disabled=True)
    c = disk.enter()
    c.write(0, b"x")
    assert states(disk)["b"] | {"recording": False, "count": 0} == states(disk)["b"]
    verb(disk, "enable", "b")
    c.write(M, b"x")
    verb(disk, "disable", "b")
    c.write(2 * M, b"x")
    assert not states(disk)["b"]["recording"]
    assert ranges(disk, "b") == [(M, 65536)]


def test_clear(disk):
    add(disk, "b")
    c = disk.enter()
    c.write(0, b"x" * M)
    verb(disk, "clear", "b")
    assert states(disk)["b"]["count"] == 0 and states(disk)["b"]["recording"]
    c.write(M, b"x")
    assert ranges(disk, "b") == [(M, 65536)]


def test_merge_is_the_union(disk):
    add(disk, "b1")
    c = disk.enter()
    c.write(0, b"x")
    verb(disk, "disable", "b1")
    add(disk, "b2")
    c.write(M, b"x")
    add(disk, "sum", disabled=True)
    merge(disk, "sum", ["b1", "b2"])
    assert ranges(disk, "sum") == [(0, 65536), (M, 65536)]
    assert ranges(disk, "b1") == [(0, 65536)] and ranges(disk, "b2") == [(M, 65536)]


@pytest.mark.parametrize("source, target", [(4096, 65536), (65536, 4096), (M, 512), (512, M)])
def test_merge_across_granularities(disk, source, target):
    """The target covers every granule of the source, and no more of its own than those touch."""
    add(disk, "s", granularity=source)
    touched = [(5000, 1), (M - 1, 2), (4 * M - 1, 1)]
    c = disk.enter()
    for at, n in touched:
        c.write(at, b"x" * n)
    add(disk, "t", granularity=target, disabled=True)
    merge(disk, "t", ["s"])
    assert ranges(disk, "t") == dirty.model(dirty.model(touched, source, 4 * M), target, 4 * M)


def test_merge_from_another_node(two):
    add(two, "b")
    add(two, "b", "other")
    two.enter().write(0, b"x")
    two.enter("other").write(M, b"x")
    merge(two, "b", [{"node": "other", "name": "b"}])
    assert ranges(two, "b") == [(0, 65536), (M, 65536)]
    assert ranges(two, "b", "other") == [(M, 65536)]


def test_merge_from_nodes_of_another_size(daemon, tmp, image):
    d = daemon.start(*disk_args(image), *disk_args(tools.create(tmp / "s.raw", M, "raw"), "raw", "small"))
    add(d, "b")
    add(d, "s", "small")
    text = fails(d, "block-dirty-bitmap-merge", node="disk", target="b", bitmaps=[{"node": "small", "name": "s"}])
    assert text == ("Bitmaps are of different sizes (destination size is 4194304, source size is 1048576) and can't be "
                    "merged")


def test_merge_into_itself_changes_nothing(disk):
    add(disk, "b")
    disk.enter().write(0, b"x")
    merge(disk, "b", ["b"])
    assert ranges(disk, "b") == [(0, 65536)]


@pytest.mark.merino_only                                 # QEMU 7.2 crashes
def test_merge_of_nothing(disk):
    add(disk, "b")
    merge(disk, "b", [])
    assert states(disk)["b"]["count"] == 0


def test_merge_with_one_missing_source_changes_nothing(disk):
    add(disk, "t")
    add(disk, "s")
    disk.enter().write(0, b"x")
    verb(disk, "clear", "t")
    text = fails(disk, "block-dirty-bitmap-merge", node="disk", target="t", bitmaps=["s", "nope"])
    assert text == "Dirty bitmap 'nope' not found"
    assert states(disk)["t"]["count"] == 0


def exported(d):
    add(d, "b")
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "disk", "name": "e", "writable": True,
                                   "bitmaps": ["b"]})


@pytest.mark.parametrize("what", ["remove", "clear", "enable", "disable"])
def test_busy_while_exported(disk, what):
    exported(disk)
    assert states(disk)["b"]["busy"]
    assert fails(disk, f"block-dirty-bitmap-{what}", node="disk", name="b") == BUSY


def test_busy_for_merge(disk):
    exported(disk)
    add(disk, "free")
    for target, source in (("b", "free"), ("free", "b")):
        assert fails(disk, "block-dirty-bitmap-merge", node="disk", target=target, bitmaps=[source]) == BUSY


def test_free_again_when_the_export_is_gone(disk):
    exported(disk)
    disk.qmp.cmd("block-export-del", id="e")
    disk.qmp.event("BLOCK_EXPORT_DELETED")
    assert not states(disk)["b"]["busy"]
    verb(disk, "remove", "b")


def test_goes_on_recording_while_exported(disk):
    exported(disk)
    c = disk.enter("e", ["qemu:dirty-bitmap:b"])
    disk.enter().write(M, b"x")
    assert c.status_all()[1] == (M, 65536, 1)


def test_enabled_bitmap_on_a_read_only_export(disk):
    add(disk, "b")
    text = fails(disk, "block-export-add", type="nbd", id="e", **{"node-name": "disk"}, name="e", bitmaps=["b"])
    assert text == "Enabled bitmap 'b' incompatible with readonly export"


def test_disabled_bitmap_on_a_read_only_export(disk):
    add(disk, "b")
    disk.enter().write(0, b"x")
    verb(disk, "disable", "b")
    assert ranges(disk, "b", writable=False) == [(0, 65536)]


def test_unknown_bitmap_in_an_export(disk):
    text = fails(disk, "block-export-add", type="nbd", id="e", **{"node-name": "disk"}, name="e", bitmaps=["nope"])
    assert text == "Bitmap 'nope' is not found"


def test_bitmap_of_a_backing_node_in_an_export(daemon, tmp, image):
    """The export finds it down the chain, as libvirt's checkpoints need."""
    tools.run("qemu-img", "bitmap", "--add", image, "below")
    d = daemon.serve(tools.create(tmp / "over.qcow2", None, backing=image), bitmaps=("below",))
    assert d.enter(contexts=["qemu:dirty-bitmap:below"]).status_all() == [(0, 4 * M, 0)]


def test_many_bitmaps_at_once(disk):
    for i in range(40):
        add(disk, f"b{i}", granularity=512 << i % 8)
    disk.enter().write(5 * 65536 + 3, b"x")
    assert all(b["count"] == b["granularity"] for b in states(disk).values()) and len(states(disk)) == 40
