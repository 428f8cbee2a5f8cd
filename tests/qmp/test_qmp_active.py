# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-set-active: an image is handed to QEMU and back.  (QEMU has it since 10.0.)"""

import nbd
import pytest

from lib import nbdproto, tools

pytestmark = pytest.mark.merino_only
MIB = 1 << 20


@pytest.fixture
def disk(daemon, tmp):
    d = daemon.start()
    d.image = tools.create(tmp / "a.qcow2", "4M")
    d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "q", "file": {
        "driver": "file", "node-name": "f", "filename": d.image}})
    return d


def export(d, **more):
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "q", "writable": True, **more})


def set_active(d, active, node="q"):
    d.qmp.cmd("blockdev-set-active", {"node-name": node, "active": active} if node else {"active": active})


def nodes(d):
    return {n["node-name"]: (n["active"], n["ro"]) for n in d.qmp.cmd("query-named-block-nodes")}


@pytest.mark.parametrize("which", ["q", None])
def test_handed_over_and_back(disk, which):
    export(disk, **{"allow-inactive": True})
    c = disk.enter("q")
    c.write(0, b"ours" * 1024)
    assert tools.run("qemu-io", "-f", "qcow2", "-c", "write 0 512", disk.image, check=False).returncode == 1
    set_active(disk, False, which)
    assert nodes(disk) == {"q": (False, False), "f": (False, False)}
    assert c.read(0, 4) == b"ours"
    assert c.call(nbdproto.CMD_WRITE, 0, data=b"no").error == nbdproto.EPERM
    tools.qemu_io(disk.image, "read -P 0x6f 0 1", "write -P 7 1M 64k", "write -P 8 3M 64k")
    tools.check(disk.image)
    set_active(disk, True, which)
    assert nodes(disk) == {"q": (True, False), "f": (True, False)}
    assert c.read(MIB, 4) == b"\x07" * 4 and c.read(3 * MIB, 4) == b"\x08" * 4
    c.write(2 * MIB, b"again" * 100)
    assert tools.run("qemu-io", "-f", "qcow2", "-c", "write 0 512", disk.image, check=False).returncode == 1
    c.close()
    disk.stop()
    tools.check(disk.image)


def test_bitmaps_are_stored_and_come_back(disk):
    disk.qmp.cmd("block-dirty-bitmap-add", {"node": "q", "name": "b", "persistent": True})
    export(disk, **{"allow-inactive": True})
    disk.enter("q").write(0, b"x" * 512)
    set_active(disk, False)
    assert "in-use" not in str(tools.bitmaps(disk.image)["b"]["flags"])
    tools.qemu_io(disk.image, "write 1M 64k")            # QEMU goes on recording
    set_active(disk, True)
    bitmap, = disk.qmp.cmd("query-block")[0]["inserted"]["dirty-bitmaps"]
    assert (bitmap["name"], bitmap["count"], bitmap["recording"]) == ("b", 131072, True)


def test_refused(disk):
    assert disk.qmp.error("blockdev-set-active", {"node-name": "nope", "active": True})[1] == (
        "Failed to find node with node-name='nope'")
    assert disk.qmp.error("blockdev-set-active", {"node-name": "f", "active": False})[1] == "Node has active parent node"
    assert disk.qmp.error("blockdev-set-active", {})[1] == "Parameter 'active' is missing"
    assert disk.qmp.error("blockdev-set-active", {"active": "no"})[1] == (
        "Invalid parameter type for 'active', expected: boolean")
    assert disk.qmp.error("blockdev-set-active", {"node-name": "x" * 70000, "active": False})[0] == "GenericError"
    export(disk)
    assert disk.qmp.error("blockdev-set-active", {"node-name": "q", "active": False})[1] == (
        "Failed to inactivate node: Operation not permitted")
    disk.enter("q").write(0, b"still writable")
    assert nodes(disk) == {"q": (True, False), "f": (True, False)}


def test_an_export_activates_its_node(disk):
    set_active(disk, False)
    export(disk)
    assert nodes(disk)["q"] == (True, False)
    disk.enter("q").write(0, b"x")


def test_node_that_is_inactive_from_the_beginning(daemon, tmp):
    """Two daemons have one image, one at a time."""
    a, image = daemon.start(), tools.create(tmp / "a.qcow2", "4M")
    node = {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": image}}
    a.qmp.cmd("blockdev-add", node)
    export(a, **{"allow-inactive": True})
    b = daemon.start()
    b.qmp.cmd("blockdev-add", {**node, "active": False})
    export(b, **{"allow-inactive": True})
    a.enter("q").write(0, b"from a")
    assert b.qmp.error("blockdev-set-active", {"node-name": "q", "active": True})[1].startswith("Failed to get")
    assert nodes(b)["q"] == (False, False)
    set_active(a, False)
    set_active(b, True)
    c = b.enter("q")
    assert c.read(0, 6) == b"from a"
    c.write(MIB, b"from b")
    set_active(b, False)
    set_active(a, True)
    assert a.enter("q").read(MIB, 6) == b"from b"


def test_inactive_nodes_are_not_reopened_or_resized(disk):
    set_active(disk, False)
    assert disk.qmp.error("blockdev-reopen", {"options": [{"driver": "qcow2", "node-name": "q", "file": "f"}]})[1] == (
        "Node 'q' is inactive")
    assert disk.qmp.error("block_resize", {"node-name": "q", "size": 8 * MIB})[0] == "GenericError"
    set_active(disk, False)                              # twice is nothing
    disk.qmp.cmd("blockdev-del", {"node-name": "q"})
    tools.check(disk.image)


def test_what_cannot_be_stored_is_not_handed_over(daemon, tmp):
    """The tables cannot be written: the image stays ours, and says so."""
    d = daemon.start()
    d.image = tools.create(tmp / "a.qcow2", "4M")
    debug = {"driver": "blkdebug", "node-name": "b", "image": "f"}
    d.qmp.cmd("blockdev-add", {"driver": "file", "node-name": "f", "filename": d.image})
    d.qmp.cmd("blockdev-add", debug)
    d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "q", "file": "b"})
    export(d, **{"allow-inactive": True})
    c = d.enter("q")
    c.write(MIB, b"mine" * 1024)
    full = {**debug, "inject-error": [{"event": "none", "iotype": "write", "errno": 28}]}
    d.qmp.cmd("blockdev-reopen", {"options": [full]})
    assert d.qmp.error("blockdev-set-active", {"node-name": "q", "active": False})[1] == (
        "Could not flush node 'q': No space left on device")
    assert nodes(d)["q"] == (True, False)
    assert c.read(MIB, 4) == b"mine"
    d.qmp.cmd("blockdev-reopen", {"options": [debug]})
    set_active(d, False)
    tools.qemu_io(d.image, "read -P 0x6d 1M 1")


def test_all_or_none(daemon, tmp):
    """One cannot go: those that went before it are active again, and written to."""
    d = daemon.start()
    for name in "abc":
        d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": name, "file": {
            "driver": "file", "node-name": name + "f", "filename": tools.create(tmp / name, "1M")}})
        d.qmp.cmd("block-export-add", {"type": "nbd", "id": name, "node-name": name, "name": name, "writable": True,
                                       "allow-inactive": name != "b"})
    assert d.qmp.error("blockdev-set-active", {"active": False})[1] == (
        "Failed to inactivate node: Operation not permitted")
    assert nodes(d) == {name: (True, False) for name in ("a", "af", "b", "bf", "c", "cf")}
    for name in "abc":
        d.libnbd(name).pwrite(b"x" * 512, 0)


@pytest.mark.parametrize("active", [False, True])
def test_clients_of_what_is_below_wait_too(daemon, tmp, active):
    """An export of the child: its requests in flight end first, those that come wait."""
    d = daemon.start()
    d.qmp.cmd("object-add", {"qom-type": "throttle-group", "id": "g", "limits": {"iops-total": 20}})
    for n in [{"driver": "file", "node-name": "f", "filename": tools.create(tmp / "a.qcow2", "4M")},
              {"driver": "throttle", "node-name": "t", "file": "f", "throttle-group": "g"},
              {"driver": "qcow2", "node-name": "q", "file": "t"}, {"driver": "raw", "node-name": "r", "file": "q"}]:
        d.qmp.cmd("blockdev-add", n)
    export(d, **{"allow-inactive": True})
    if active:
        set_active(d, False, "r")
    h = d.libnbd("q")
    results = []
    for i in range(8):
        if active:
            h.aio_pread(nbd.Buffer(4096), i << 16, lambda e: results.append(e) or 1)
        else:
            h.aio_pwrite(nbd.Buffer.from_bytearray(b"w" * 4096), i << 16, lambda e: results.append(e) or 1)
            h.aio_flush(lambda e: results.append(e) or 1)
    h.poll(0)
    set_active(d, active, "r")
    while h.aio_in_flight():
        h.poll(1000)
    assert nodes(d)["q"] == (active, False) and len(results) == (8 if active else 16)
    set_active(d, True, "r")
    h.pwrite(b"w" * 512, 0)


def test_what_cannot_become_active_leaves_its_children_alone(daemon, tmp):
    """Somebody else writes to one of two images: neither is taken back."""
    d = daemon.start()
    base, top = tools.create(tmp / "base", "4M"), tools.create(tmp / "top", "4M")
    for n in [{"driver": "qcow2", "node-name": "base", "file": {"driver": "file", "node-name": "bf", "filename": base}},
              {"driver": "file", "node-name": "tf", "filename": top},
              {"driver": "qcow2", "node-name": "q", "file": "tf", "backing": "base"}]:
        d.qmp.cmd("blockdev-add", n)
    set_active(d, False)
    other = daemon.serve(base)
    assert d.qmp.error("blockdev-set-active", {"node-name": "q", "active": True})[1].startswith("Failed to get")
    assert {active for active, _ in nodes(d).values()} == {False}
    assert d.qmp.error("blockdev-set-active", {"active": True})[1].startswith("Failed to get")
    assert {active for active, _ in nodes(d).values()} == {False}
    other.stop()
    set_active(d, True, "q")
    assert {active for active, _ in nodes(d).values()} == {True}


def test_active_nodes_have_active_children(disk):
    set_active(disk, False)
    for more, child in [({"driver": "raw", "file": "q"}, "file"),
                        ({"driver": "copy-on-read", "file": "q"}, "file")]:
        assert disk.qmp.error("blockdev-add", {"node-name": "p", **more})[1] == (
            f"Inactive 'q' can't be a {child} child of active 'p'")
    disk.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "p", "file": "q", "active": False})
    set_active(disk, True, "p")
    assert all(active for active, _ in nodes(disk).values())


def test_a_drive_becomes_active(disk, tmp):
    tools.create(tmp / "r", "4M", "raw")
    for n in [{"driver": "file", "node-name": "rf", "filename": str(tmp / "r"), "active": False},
              {"driver": "raw", "node-name": "r", "file": "rf", "active": False}]:
        disk.qmp.cmd("blockdev-add", n)
    export(disk)
    disk.qmp.cmd("qom-set", {"path": "/machine/peripheral/e/virtio-backend", "property": "drive", "value": "r"})
    assert nodes(disk)["r"] == nodes(disk)["rf"] == (True, False)
    disk.enter("q").write(0, b"x")


def test_an_inactive_node_lets_others_write_below_it(disk):
    """Copy-on-read asks to be alone, once it is active."""
    export(disk)
    disk.qmp.cmd("blockdev-add", {"driver": "copy-on-read", "node-name": "c", "file": "q", "active": False})
    disk.enter("q").write(0, b"x")
    assert disk.qmp.error("blockdev-set-active", {"node-name": "c", "active": True})[1].startswith(
        "Conflicts with use by export 'e'")
    disk.qmp.cmd("block-export-del", {"id": "e", "mode": "hard"})
    set_active(disk, True, "c")
    assert nodes(disk)["c"] == (True, False)
