# SPDX-License-Identifier: BSD-3-Clause
"""Exports as devices: query-block, query-blockstats, qom-*, stop and cont, each held against QEMU's own answers."""

import contextlib
import json
import re
import threading
import time

import pytest

from lib import nbdraw, tools
from lib.nbdproto import *                               # noqa: F403
from lib.patience import HANG
from lib.peer import Peer
from lib.qmp import without_sizes
from lib.schema import Schema

pytestmark = pytest.mark.merino_only
MIB = 1 << 20


def nodes(path, raw):
    """blockdev-add arguments of a chain and a raw file."""
    return [{"driver": "qcow2", "node-name": "q", "discard": "unmap", "cache": {"no-flush": True},
             "file": {"driver": "file", "filename": path, "node-name": "qf"},
             "backing": {"driver": "qcow2", "node-name": "b", "file": {
                 "driver": "file", "node-name": "bf", "filename": path.replace("top", "base")}}},
            {"driver": "file", "node-name": "f", "filename": raw, "read-only": True},
            {"driver": "raw", "node-name": "r", "file": "f", "read-only": True}]


@pytest.fixture
def images(tmp):
    base = tools.create(tmp / "base.qcow2", "4M")
    tools.qemu_io(base, "write -P 3 1M 256k")
    top = tools.create(tmp / "top.qcow2", None, backing=base)
    tools.qemu_io(top, "write -P 1 0 128k")
    tools.run("qemu-img", "bitmap", "--add", "-g", "32k", top, "pb")
    return top, tools.create(tmp / "r.raw", "1M", "raw")


def plain(value):
    """Without what later QEMUs and merinod added, and in an order."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in ("children", "active", "crash-safe")}
    if isinstance(value, list):
        return sorted((plain(v) for v in value), key=lambda v: json.dumps(v, sort_keys=True))
    return re.sub("^#block[0-9]+$", "#block", value) if isinstance(value, str) else value


@pytest.mark.parametrize("flat", [False, True])
def test_named_nodes_are_described_as_qemu_does(daemon, tmp, images, flat):
    arguments = nodes(*images)
    before = open(images[0], "rb").read()
    with Peer(tmp, "qemu-storage-daemon") as peer:
        for a in arguments:
            peer.qmp.cmd("blockdev-add", a)
        want = plain(peer.qmp.cmd("query-named-block-nodes", {"flat": flat}))
    with open(images[0], "wb") as f:
        f.write(before)                                  # the peer has stored its bitmaps
    d = daemon.start()
    for a in arguments:
        d.qmp.cmd("blockdev-add", a)
    got = plain(d.qmp.cmd("query-named-block-nodes", {"flat": flat}))
    for n in got:
        n["image"]["virtual-size"] += -n["image"]["virtual-size"] % 512      # QEMU counts sectors, we bytes
    assert without_sizes(got) == without_sizes(want) and len(want) == 6
    assert all(n["image"]["actual-size"] > 0 for n in got if n["drv"] == "qcow2")


def test_query_block_is_as_qemu_shows_a_disk(daemon, tmp, images):
    top, _ = images
    node = {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": top}}
    with Peer(tmp, "qemu-system-x86_64", "-blockdev", f"qcow2,node-name=q,file.driver=file,file.filename={top}",
              "-device", "virtio-blk-device,drive=q,id=vda") as peer:
        want, = plain(peer.qmp.cmd("query-block"))
        stats, = peer.qmp.cmd("query-blockstats")
    d = daemon.start()
    d.qmp.cmd("blockdev-add", node)
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "vda", "node-name": "q", "writable": True})
    got, = plain(d.qmp.cmd("query-block"))
    assert want.pop("qdev") == "vda" and got.pop("qdev") == "/machine/peripheral/vda/virtio-backend"
    assert want.pop("io-status") == "ok"                 # where errors stop the guest; ours are told to it
    assert without_sizes(got) == without_sizes(want)
    ours, = d.qmp.cmd("query-blockstats")

    def shape(s):
        return {k: shape(v) if isinstance(v, dict) else type(v) for k, v in s.items() if k != "driver-specific"}

    assert shape(ours) == shape(stats)


@pytest.fixture
def disk(daemon, tmp):
    """Export "vda" of a qcow2 node "q" of 4 MiB, and a read-only export of it."""
    d = daemon.serve(tools.create(tmp / "a.qcow2", "4M"), name="q", blockdev="file.node-name=qf")
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "ro", "node-name": "q", "name": "ro"})
    return d


PATH = "/machine/peripheral/q/virtio-backend"


def test_only_writable_exports_are_devices(disk):
    assert [b["qdev"] for b in disk.qmp.cmd("query-block")] == [PATH]
    disk.qmp.cmd("block-export-del", {"id": "q"})
    assert disk.qmp.cmd("query-block") == [] == disk.qmp.cmd("query-blockstats")


def test_results_are_as_the_schema_says(disk):
    schema = Schema(disk.qmp.cmd("query-qmp-schema"))
    disk.enter("q").write(0, b"x" * 4096)
    disk.qmp.cmd("block-dirty-bitmap-add", {"node": "q", "name": "b", "persistent": True})
    for name, arguments in [("query-block", {}), ("query-blockstats", {}), ("query-blockstats", {"query-nodes": True}),
                            ("query-named-block-nodes", {}), ("query-block-exports", {}), ("query-version", {}),
                            ("query-commands", {}), ("query-status", {}), ("query-name", {}), ("query-tpm", {}),
                            ("query-iothreads", {}), ("qom-list", {"path": "/machine/peripheral"}),
                            ("qom-get", {"path": PATH, "property": "drive"})]:
        result = disk.qmp.cmd(name, arguments)
        assert schema.faults(result, schema.commands[name]["ret-type"], name) == []
        assert schema.faults(arguments, schema.commands[name]["arg-type"]) == []


def stats(d, node="q"):
    device, = d.qmp.cmd("query-blockstats")
    nodes_now = {n["node-name"]: n["stats"] for n in d.qmp.cmd("query-blockstats", {"query-nodes": True})}
    return device["stats"], nodes_now[node], device


def test_counters_count_what_a_client_does(disk):
    c = disk.enter("q")
    c.write(MIB, b"a" * 65536)
    c.write(0, b"b" * 512)
    assert c.read(0, 4096)[:512] == b"b" * 512
    disk.enter("ro").read(0, 512)                        # another client, another export: not this device
    h = disk.libnbd("q")
    h.zero(4096, 8192)
    h.trim(65536, 2 * MIB)
    h.flush()
    h.shutdown()
    device, node, whole = stats(disk)
    want = {"rd_bytes": 4096, "rd_operations": 1, "wr_bytes": 65536 + 512 + 4096, "wr_operations": 3,
            "unmap_bytes": 65536, "unmap_operations": 1, "flush_operations": 1, "failed_rd_operations": 0,
            "failed_wr_operations": 0, "wr_highest_offset": MIB + 65536}
    assert {k: device[k] for k in want} == want
    assert device["wr_total_time_ns"] > 0 and device["rd_total_time_ns"] > 0
    assert node["wr_bytes"] == want["wr_bytes"] and node["rd_operations"] == 2
    assert whole["parent"]["node-name"] == "qf" and whole["parent"]["stats"]["wr_bytes"] >= 65536 + 512


def test_large_and_streamed_requests_are_counted(daemon, tmp):
    d = daemon.serve(tools.create(tmp / "a.raw", "16M", "raw"), "raw")
    h = d.libnbd()
    h.pwrite(b"x" * (8 * MIB), 0)
    h.pread(8 * MIB, 0)
    h.shutdown()
    device, _, _ = stats(d, "disk")
    assert (device["wr_bytes"], device["wr_operations"], device["rd_bytes"]) == (8 * MIB, 1, 8 * MIB)


# --- qom


def test_qom_list(disk):
    def names(path):
        return {p["name"]: p["type"] for p in disk.qmp.cmd("qom-list", {"path": path})}
    assert names("/") == {"type": "string", "objects": "child<container>", "machine": "child<container>"}
    assert set(names("/machine/peripheral")) == {"type", "q"}
    assert names("/machine/peripheral/q")["virtio-backend"].startswith("child<")
    assert names(PATH)["drive"] == "str"


@pytest.mark.parametrize("command, more, want", [
    ("qom-get", {"path": "/nope", "property": "drive"}, ("DeviceNotFound", "Device '/nope' not found")),
    ("qom-list", {"path": "/machine/peripheral/nope"},
     ("DeviceNotFound", "Device '/machine/peripheral/nope' not found")),
    ("qom-list", {"path": PATH + "/x"}, ("DeviceNotFound", f"Device '{PATH}/x' not found")),
    ("qom-get", {"path": PATH, "property": "nope"},
     ("GenericError", "Property 'virtio-blk-device.nope' not found")),
    ("qom-set", {"path": PATH, "property": "nope", "value": 1},
     ("GenericError", "Property 'virtio-blk-device.nope' not found")),
    ("qom-set", {"path": PATH, "property": "drive", "value": 5},
     ("GenericError", "Invalid parameter type for 'drive', expected: string")),
    ("qom-set", {"path": PATH, "property": "drive", "value": None},
     ("GenericError", "Invalid parameter type for 'drive', expected: string")),
    ("qom-set", {"path": PATH, "property": "drive", "value": "nope"},
     ("GenericError", "Cannot find device='' nor node-name='nope'")),
    ("qom-set", {"path": PATH, "property": "drive", "value": "n" * 100000},
     ("GenericError", None)),
    ("qom-set", {"path": "/" * 100000, "property": "drive", "value": "q"}, ("DeviceNotFound", None)),
    ("qom-set", {"path": PATH, "property": "drive"}, ("GenericError", "Parameter 'value' is missing")),
])
def test_qom_refusals(disk, command, more, want):
    """Texts are those that qemu-system says of its own devices."""
    kind, text = disk.qmp.error(command, more)
    assert kind == want[0] and (want[1] is None or text == want[1])
    assert disk.qmp.cmd("qom-get", {"path": PATH, "property": "drive"}) == "q"


def test_drive_becomes_another_node_under_its_clients(disk):
    """A filter goes above the disk and away again, as backup programs do, while a client writes and reads back."""
    disk.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "filter", "file": "q"})
    c = disk.enter("q")
    stop, faults, rounds = threading.Event(), [], [0]

    def work():
        while not stop.is_set():
            data = bytes([rounds[0] % 256]) * 4096
            c.write(4096 * (rounds[0] % 64), data)
            if c.read(4096 * (rounds[0] % 64), 4096) != data:
                faults.append(rounds[0])
            rounds[0] += 1

    t = threading.Thread(target=work)
    t.start()
    i, end = 0, time.monotonic() + HANG
    try:
        while i < 60 or i % 2 or (rounds[0] <= 20 and t.is_alive() and time.monotonic() < end):
            node = "filter" if i % 2 == 0 else "q"
            i += 1
            disk.qmp.cmd("qom-set", {"path": PATH, "property": "drive", "value": node})
            assert disk.qmp.cmd("qom-get", {"path": PATH, "property": "drive"}) == node
            assert disk.qmp.cmd("query-block")[0]["inserted"]["node-name"] == node
    finally:
        stop.set()
        t.join()
    assert faults == [] and rounds[0] > 20
    disk.qmp.cmd("blockdev-del", {"node-name": "filter"})
    assert c.read(0, 512) is not None


def test_the_present_drive_is_in_use_the_former_is_not(disk, tmp):
    disk.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "other", "file": {
        "driver": "file", "filename": tools.create(tmp / "other.raw", "4M", "raw")}})
    disk.qmp.cmd("block-export-del", {"id": "ro"})
    c = disk.enter("q")
    c.write(0, b"first")
    disk.qmp.cmd("qom-set", {"path": PATH, "property": "drive", "value": "other"})
    c.write(0, b"second")
    assert disk.qmp.error("blockdev-del", {"node-name": "other"}) == ("GenericError", "Node other is in use")
    assert disk.qmp.cmd("query-block-exports")[0]["node-name"] == "other"
    disk.qmp.cmd("blockdev-del", {"node-name": "q"})
    assert (tmp / "other.raw").read_bytes()[:6] == b"second"


def test_drive_of_another_size_or_read_only_is_refused(disk, tmp):
    raw = {"driver": "raw", "file": {"driver": "file", "filename": tools.create(tmp / "o.raw", "1M", "raw")}}
    disk.qmp.cmd("blockdev-add", {**raw, "node-name": "small"})
    kind, text = disk.qmp.error("qom-set", {"path": PATH, "property": "drive", "value": "small"})
    assert kind == "GenericError" and "another size" in text
    disk.qmp.cmd("blockdev-del", {"node-name": "small"})
    disk.qmp.cmd("blockdev-add", {**raw, "node-name": "ro", "read-only": True})
    assert disk.qmp.error("qom-set", {"path": PATH, "property": "drive", "value": "ro"}) == (
        "GenericError", "Block node is read-only")
    assert disk.enter("q").read(0, 512) == bytes(512)


# --- stop and cont


def test_stop_makes_clients_wait(disk):
    assert disk.qmp.cmd("query-status") == {"status": "running", "singlestep": False, "running": True}
    c, done = disk.enter("q"), threading.Event()
    c.write(0, b"before")
    disk.qmp.cmd("stop")
    disk.qmp.event("STOP")
    assert disk.qmp.cmd("query-status") == {"status": "paused", "singlestep": False, "running": False}
    disk.qmp.cmd("stop")                                 # a second one does nothing

    def write():
        c.write(0, b"behind")
        done.set()

    t = threading.Thread(target=write)
    t.start()
    assert not done.wait(0.3)
    assert disk.enter("ro").read(0, 6) == b"before"      # readers of the read-only export go on
    disk.qmp.cmd("qom-set", {"path": PATH, "property": "drive", "value": "q"})
    assert not done.wait(0.2)
    disk.qmp.cmd("cont")
    t.join()
    disk.qmp.event("RESUME")
    assert c.read(0, 6) == b"behind"


def test_an_export_that_comes_while_stopped_waits_too(disk):
    disk.qmp.cmd("stop")
    disk.qmp.cmd("block-export-add", {"type": "nbd", "id": "late", "node-name": "q", "name": "late", "writable": True})
    c, done = disk.enter("late"), threading.Event()
    t = threading.Thread(target=lambda: (c.read(0, 512), done.set()))
    t.start()
    assert not done.wait(0.2)
    disk.qmp.cmd("cont")
    t.join()


def test_stopped_exports_can_be_deleted_and_the_daemon_can_end(disk):
    c = disk.enter("q")
    disk.qmp.cmd("stop")
    t = threading.Thread(target=lambda: pytest.raises(Exception, c.write, 0, b"x"))
    t.start()
    disk.qmp.cmd("block-export-del", {"id": "q", "mode": "hard"})
    t.join()
    assert disk.qmp.cmd("query-block") == []
    disk.stop()


@pytest.mark.parametrize("size", [4096, 3 * MIB])        # held whole, and written as it arrives
@pytest.mark.parametrize("end", ["export", "daemon"])
def test_what_a_stop_holds_back_is_not_written_when_the_export_ends(daemon, tmp, size, end):
    path = tools.create(tmp / "a.raw", "4M", "raw")
    d = daemon.serve(path, "raw")
    c = d.enter()

    def write():
        with contextlib.suppress(Exception):             # what is too long to hold is not taken whole
            c.send(c.pack(CMD_WRITE, 0, size, data=b"!" * size))

    d.qmp.cmd("stop")
    t = threading.Thread(target=write)
    t.start()
    time.sleep(0.3)                                      # until it waits; no harm when it does not yet
    if end == "export":
        d.qmp.cmd("block-export-del", id="disk", mode="hard")
    d.stop()
    t.join()
    with open(path, "rb") as f:
        assert not any(f.read(size))


def test_clients_come_and_work_while_the_drive_changes(daemon, tmp):
    """Two nodes above one file take turns; whoever comes at that moment gets one of them."""
    path = tools.create(tmp / "a.raw", "8M", "raw")
    d = daemon.start("--loops", "2", "--blockdev", f"file,node-name=f,filename={path}", "--blockdev", "raw,node-name=n,file=f",
                     "--blockdev", "raw,node-name=m,file=f", "--export", "nbd,id=e,node-name=n,name=disk,writable=on")
    stop, bad = threading.Event(), []

    def come():
        try:
            while not stop.is_set():
                with nbdraw.Conn(d.nbd_address) as c:
                    c.enter("disk").read(0, 4096)
        except Exception as e:
            bad.append(repr(e))

    def work():
        try:
            with nbdraw.Conn(d.nbd_address) as c:
                c.enter("disk", contexts=["base:allocation"])
                while not stop.is_set():
                    cookies = [c.start(cmd, 4096 * i, 3 * MIB) for i in range(4)
                               for cmd in (CMD_READ, CMD_WRITE_ZEROES, CMD_CACHE, CMD_BLOCK_STATUS)]
                    assert all(c.answer(cookie).error == 0 for cookie in cookies)
        except Exception as e:
            bad.append(repr(e))

    threads = [threading.Thread(target=f) for f in (come, come, work)]
    for t in threads:
        t.start()
    end = time.monotonic() + 3
    while time.monotonic() < end and not bad:
        for name in "m", "n":
            d.qmp.cmd("qom-set", {"path": "/machine/peripheral/e/virtio-backend", "property": "drive", "value": name})
    stop.set()
    for t in threads:
        t.join()
    assert not bad
