# SPDX-License-Identifier: BSD-3-Clause
"""block_resize, block-set-write-threshold, the hash of a bitmap, and the events of failing storage."""

import hashlib
import time

import pytest

from lib import nbdproto, qcow2bytes, tools
from lib.peer import Peer

MIB = 1 << 20


# --- block_resize


@pytest.mark.parametrize("size", [8 * MIB, 4 * MIB, 1 << 40])
def test_resize_qcow2(setup, size):
    setup.qmp.cmd("block_resize", {"node-name": "q", "size": size})
    setup.qmp.cmd("blockdev-del", {"node-name": "q"})
    assert tools.info(setup.image)["virtual-size"] == size
    tools.check(setup.image)


def test_resize_raw_both_ways(setup):
    for size in (3 * MIB, 512, MIB):
        setup.qmp.cmd("block_resize", {"node-name": "r", "size": size})
        with open(setup.rawfile, "rb") as f:
            assert len(f.read()) == size


@pytest.mark.parametrize("arguments, text", [
    (None, "Parameter 'size' is missing"),
    ({"size": MIB}, "Cannot find device='' nor node-name=''"),
    ({"node-name": "nope", "size": MIB}, "Cannot find device='' nor node-name='nope'"),
    ({"device": "nope", "size": MIB}, "Cannot find device='nope' nor node-name=''"),
    ({"node-name": "q", "size": -5}, "Parameter 'size' expects a >0 size"),
    ({"node-name": "q", "size": 1000}, "The new size must be a multiple of 512"),
    ({"node-name": "q", "size": "1M"}, "Invalid parameter type for 'size', expected: integer"),
    ({"node-name": "q" * 70000, "size": 512}, None),
])
def test_resize_refused(setup, arguments, text):
    kind, got = setup.qmp.error("block_resize", arguments)
    assert kind == "GenericError" and (text is None or got == text)


@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 512])
def test_resize_too_large(setup, size):
    kind, text = setup.qmp.error("block_resize", {"node-name": "q", "size": size})
    assert "large" in text or "exceeds maximum" in text
    assert [n["image"]["virtual-size"] for n in setup.qmp.cmd("query-named-block-nodes") if n["node-name"] == "q"] == [
        4 * MIB]


@pytest.mark.merino_only
def test_resize_of_what_others_stand_on(setup):
    assert setup.qmp.error("block_resize", {"node-name": "f", "size": 512}) == (
        "GenericError", "Node 'f' is used by node 'r'; resize that one")


@pytest.mark.merino_only
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_clients_see_the_new_size_when_they_ask_again(daemon, tmp, fmt):
    d = daemon.serve(tools.create(tmp / "a", "4M", fmt), fmt, name="q")
    c = d.enter("q")
    d.qmp.cmd("block-dirty-bitmap-add", {"node": "q", "name": "b"})
    c.write(0, b"a" * 4096)
    d.qmp.cmd("block_resize", {"device": "q", "size": 8 * MIB})
    again = d.enter("q")
    assert (c.size, again.size) == (4 * MIB, 8 * MIB)
    again.write(8 * MIB - 512, b"z" * 512)
    assert c.read(0, 4096) == b"a" * 4096 and again.read(6 * MIB, 4096) == bytes(4096)
    bitmap, = d.qmp.cmd("query-block")[0]["inserted"]["dirty-bitmaps"]
    assert bitmap["count"] == 2 * 65536


# --- block-set-write-threshold


def test_write_threshold(daemon, tmp):
    d = daemon.serve(tools.create(tmp / "a.raw", "4M", "raw"), "raw", name="q", blockdev="file.node-name=qf")
    d.qmp.cmd("block-set-write-threshold", {"node-name": "qf", "write-threshold": MIB})
    shown, = [n["write_threshold"] for n in d.qmp.cmd("query-named-block-nodes") if n["node-name"] == "qf"]
    assert shown == MIB
    c = d.enter("q")
    c.write(MIB - 4096, b"x" * 4096)                     # up to it, not past it
    assert d.qmp.silent()
    c.write(MIB - 512, b"x" * 4096)
    assert d.qmp.event("BLOCK_WRITE_THRESHOLD")["data"] == {
        "node-name": "qf", "amount-exceeded": 4096 - 512, "write-threshold": MIB}
    c.write(2 * MIB, b"x" * 4096)                        # it was for one time
    assert d.qmp.silent()
    assert not any(n["write_threshold"] for n in d.qmp.cmd("query-named-block-nodes"))


@pytest.mark.parametrize("arguments, text", [
    ({"write-threshold": 5}, "Parameter 'node-name' is missing"),
    ({"node-name": "q"}, "Parameter 'write-threshold' is missing"),
    ({"node-name": "nope", "write-threshold": 5}, "Device 'nope' not found"),
    ({"node-name": "q", "write-threshold": "5"}, "Parameter 'write-threshold' expects uint64"),
])
def test_write_threshold_refused(setup, arguments, text):
    assert setup.qmp.error("block-set-write-threshold", arguments) == ("GenericError", text)


# --- x-debug-block-dirty-bitmap-sha256


@pytest.mark.merino_only
@pytest.mark.parametrize("size, granularity", [("4M", 65536), ("5M", 65536), ("1G", 512), ("4M", 1 << 31)])
def test_hash_of_a_bitmap_is_qemus(daemon, tmp, size, granularity):
    path = tools.create(tmp / "a.qcow2", size)
    tools.run("qemu-img", "bitmap", "--add", "-g", str(granularity), path, "b")
    tools.qemu_io(path, "write 0 64k", "write 1000k 1k", "write 3M 512")
    with Peer(tmp, "qemu-storage-daemon", "--blockdev",
              f"qcow2,node-name=q,file.driver=file,file.filename={path},read-only=on,file.read-only=on") as peer:
        want = peer.qmp.cmd("x-debug-block-dirty-bitmap-sha256", {"node": "q", "name": "b"})
    d = daemon.serve(path, name="q", writable=False)
    assert d.qmp.cmd("x-debug-block-dirty-bitmap-sha256", {"node": "q", "name": "b"}) == want


def test_hash_of_a_clean_bitmap(setup):
    setup.qmp.cmd("block-dirty-bitmap-add", {"node": "q", "name": "b"})
    assert setup.qmp.cmd("x-debug-block-dirty-bitmap-sha256", {"node": "q", "name": "b"}) == {
        "sha256": hashlib.sha256(bytes(8)).hexdigest()}
    assert setup.qmp.error("x-debug-block-dirty-bitmap-sha256", {"node": "q", "name": "nope"})[1] == (
        "Dirty bitmap 'nope' not found")
    assert setup.qmp.error("x-debug-block-dirty-bitmap-sha256", {"node": "nope", "name": "b"})[1] == (
        "Node 'nope' not found")


# --- BLOCK_IO_ERROR


@pytest.mark.merino_only
def test_errors_of_storage_are_told_once_a_second(daemon, tmp):
    image = tools.create(tmp / "a.raw", "4M", "raw")
    d = daemon.start()
    d.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "q", "file": {
        "driver": "blkdebug", "image": {"driver": "file", "filename": image},
        "inject-error": [{"event": "none", "iotype": "write", "errno": 28},
                         {"event": "none", "iotype": "read", "errno": 5}]}})
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "vda", "node-name": "q", "name": "q", "writable": True})
    c = d.enter("q")
    begun = time.monotonic()
    for _ in range(50):
        assert c.call(nbdproto.CMD_WRITE, 0, data=b"x" * 512).error
    assert c.call(nbdproto.CMD_READ, 0, 512).error
    first = d.qmp.event("BLOCK_IO_ERROR")["data"]
    assert first == {"qom-path": "/machine/peripheral/vda/virtio-backend", "device": "", "node-name": "q",
                     "operation": "write", "action": "report", "nospace": True,
                     "reason": "No space left on device"}
    second = d.qmp.event("BLOCK_IO_ERROR")["data"]
    assert time.monotonic() - begun > 0.9
    while second["operation"] == "write":                # they took more than a second
        second = d.qmp.event("BLOCK_IO_ERROR")["data"]
    assert (second["operation"], second["nospace"], second["reason"]) == ("read", False, "Input/output error")
    stats = d.qmp.cmd("query-blockstats")[0]["stats"]
    assert (stats["failed_wr_operations"], stats["failed_rd_operations"], stats["wr_operations"]) == (50, 1, 0)


@pytest.mark.merino_only
def test_a_clients_own_mistake_is_no_error_of_storage(setup):
    setup.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "q", "writable": True})
    assert setup.enter("q").call(nbdproto.CMD_WRITE, 8 * MIB, data=b"x" * 512).error
    assert setup.qmp.silent()


# --- BLOCK_IMAGE_CORRUPTED


@pytest.mark.merino_only            # QEMU ejects the disk: its query says no more then
def test_damage_that_is_found_is_told_once(daemon, tmp):
    """A guest cluster that lies on the L1 table: the write is refused, the image marked, the news told."""
    path = tools.create(tmp / "a.qcow2", "4M")
    tools.qemu_io(path, "write 0 64k")
    qcow2bytes.put64(path, qcow2bytes.l2_entry_offset(path, 0), qcow2bytes.get(path, "l1_offset") | 1 << 63)
    d = daemon.serve(path, name="q")
    d.qmp.cmd("query-version")                           # events are for those who are there
    c = d.enter("q")
    for _ in range(2):
        assert c.call(nbdproto.CMD_WRITE, 0, data=b"x" * 4096).error
    data = d.qmp.event("BLOCK_IMAGE_CORRUPTED")["data"]
    assert (data["device"], data["node-name"], data["fatal"]) == ("", "q", True) and data["msg"]
    node, = [n for n in d.qmp.cmd("query-named-block-nodes") if n["node-name"] == "q"]
    assert node["image"]["format-specific"]["data"]["corrupt"]
    assert "BLOCK_IMAGE_CORRUPTED" not in [e["event"] for e in d.qmp.events]
