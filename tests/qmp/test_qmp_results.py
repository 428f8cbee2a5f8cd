# SPDX-License-Identifier: BSD-3-Clause
"""What queries return: at least the members that clients use, with QEMU's values on the same setup."""

import pytest

from lib import tools

OURS = ["block-dirty-bitmap-add", "block-dirty-bitmap-clear", "block-dirty-bitmap-disable", "block-dirty-bitmap-enable",
        "block-dirty-bitmap-merge", "block-dirty-bitmap-remove", "block-export-add", "block-export-del", "blockdev-add",
        "blockdev-del", "nbd-server-start", "nbd-server-stop", "qmp_capabilities", "query-block", "query-block-exports",
        "query-commands", "query-named-block-nodes", "query-version", "quit", "transaction"]


def node(d, name):
    found = [n for n in d.qmp.cmd("query-named-block-nodes") if n["node-name"] == name]
    assert len(found) == 1
    return found[0]


def test_query_commands(bare):
    commands = bare.qmp.cmd("query-commands")
    assert all(c.keys() == {"name"} for c in commands)
    names = [c["name"] for c in commands]
    assert set(OURS) <= set(names) and len(names) == len(set(names))


def test_every_listed_command_exists(bare):
    """An argument that none has: refused by the command, not as unknown."""
    for c in bare.qmp.cmd("query-commands"):
        assert bare.qmp.error(c["name"], {"no-such-argument": 1})[0] == "GenericError"


def test_query_version_is_that_of_the_greeting(bare):
    assert bare.qmp.cmd("query-version") == bare.qmp.greeting["QMP"]["version"]


def test_no_nodes(bare):
    assert bare.qmp.cmd("query-named-block-nodes") == []
    assert bare.qmp.cmd("query-block-exports") == []
    assert isinstance(bare.qmp.cmd("query-block"), list)


def test_qcow2_node(setup):
    n = node(setup, "q")
    want = {"node-name": "q", "drv": "qcow2", "ro": False, "encrypted": False, "backing_file_depth": 0,
            "detect_zeroes": "off", "write_threshold": 0, "file": setup.image,
            "bps": 0, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
            "cache": {"writeback": True, "direct": False, "no-flush": False}}
    assert {k: n.get(k) for k in want} == want
    assert "dirty-bitmaps" not in n


def test_qcow2_image_info(setup):
    image = node(setup, "q")["image"]
    assert image.pop("actual-size") > 0
    assert image.pop("format-specific") == {"type": "qcow2", "data": {
        "compat": "1.1", "compression-type": "zlib", "lazy-refcounts": False, "refcount-bits": 16, "corrupt": False,
        "extended-l2": False}}
    assert image == {"filename": setup.image, "format": "qcow2", "virtual-size": 4 << 20, "cluster-size": 65536,
                     "dirty-flag": False}


def test_children_are_nodes_too(setup):
    """The file below q has a made-up name, as in QEMU; "f" and "r" their own."""
    nodes = setup.qmp.cmd("query-named-block-nodes")
    assert sorted(n["drv"] for n in nodes) == ["file", "file", "qcow2", "raw"]
    below, = [n for n in nodes if n["drv"] == "file" and n["node-name"] != "f"]
    assert below["node-name"].startswith("#block") and below["image"]["filename"] == setup.image


def test_raw_and_file_nodes(setup):
    assert (node(setup, "r")["image"]["format"], node(setup, "f")["image"]["format"]) == ("raw", "file")
    assert node(setup, "r")["image"]["virtual-size"] == node(setup, "f")["image"]["virtual-size"] == 1 << 20


def test_backing_image_is_shown(daemon, tmp):
    base = tools.create(tmp / "base.qcow2", "4M")
    d = daemon.serve(tools.create(tmp / "top.qcow2", None, backing=base))
    n = node(d, "disk")
    assert n["backing_file_depth"] == 1 and n["backing_file"] == base
    image = n["image"]
    assert image["backing-filename"] == base and image["full-backing-filename"] == base
    assert image["backing-filename-format"] == "qcow2" and image["backing-image"]["filename"] == base


def test_read_only_node(daemon, tmp):
    d = daemon.serve(tools.create(tmp / "a.qcow2", "4M"), writable=False)
    assert node(d, "disk")["ro"] is True


def test_bitmaps_in_the_node(setup):
    for name in ("a", "b"):
        setup.qmp.cmd("block-dirty-bitmap-add", {"node": "q", "name": name, "persistent": name == "b"})
    got = {b["name"]: b for b in node(setup, "q")["dirty-bitmaps"]}
    for name in ("a", "b"):
        assert got[name].pop("crash-safe", False) in (False, name == "b")        # merinod's own
        assert got[name] == {"name": name, "granularity": 65536, "count": 0, "recording": True, "busy": False,
                             "persistent": name == "b"}


def test_stored_bitmaps_in_the_image_info(daemon, tmp):
    path = tools.create(tmp / "a.qcow2", "4M")
    tools.run("qemu-img", "bitmap", "--add", path, "b")
    d = daemon.serve(path)
    bitmap, = node(d, "disk")["image"]["format-specific"]["data"]["bitmaps"]
    assert bitmap["name"] == "b" and bitmap["granularity"] == 65536 and sorted(bitmap["flags"]) == ["auto", "in-use"]


def test_flat_leaves_the_backing_images_out(daemon, tmp):
    base = tools.create(tmp / "base.qcow2", "4M")
    d = daemon.serve(tools.create(tmp / "top.qcow2", None, backing=base))
    for n in d.qmp.cmd("query-named-block-nodes", {"flat": True}):
        assert "backing-image" not in n["image"]


def test_block_exports(setup):
    setup.qmp.cmd("block-export-add", {"type": "nbd", "id": "e1", "node-name": "q", "name": "n"})
    setup.qmp.cmd("block-export-add", {"type": "nbd", "id": "e2", "node-name": "f", "writable": True})
    got = {e["id"]: e for e in setup.qmp.cmd("query-block-exports")}
    assert got == {"e1": {"id": "e1", "type": "nbd", "node-name": "q", "shutting-down": False},
                   "e2": {"id": "e2", "type": "nbd", "node-name": "f", "shutting-down": False}}


def test_export_name_defaults_to_the_node_name(setup):
    setup.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q"})
    assert setup.enter("q").size == 4 << 20


def test_exports_are_read_only_by_default(setup):
    setup.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q"})
    assert setup.enter("q").flags & 2


def test_two_exports_of_one_node(setup):
    setup.qmp.cmd("block-export-add", {"type": "nbd", "id": "e1", "node-name": "q", "name": "w", "writable": True})
    setup.qmp.cmd("block-export-add", {"type": "nbd", "id": "e2", "node-name": "q", "name": "r"})
    setup.enter("w").write(100, b"abc")
    assert setup.enter("r").read(100, 3) == b"abc"


def test_blockdev_del_frees_node_and_file(setup):
    setup.qmp.cmd("blockdev-del", {"node-name": "q"})
    assert [n["node-name"] for n in setup.qmp.cmd("query-named-block-nodes") if n["drv"] == "qcow2"] == []
    tools.qemu_io(setup.image, "write 0 64k")            # its lock is gone
    setup.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "q",
                                   "file": {"driver": "file", "filename": setup.image}})


def test_blockdev_del_top_down(setup):
    setup.qmp.cmd("blockdev-del", {"node-name": "r"})
    setup.qmp.cmd("blockdev-del", {"node-name": "f"})
    assert all(n["node-name"] not in "rf" for n in setup.qmp.cmd("query-named-block-nodes"))


def test_node_name_of_31_bytes(setup):
    name = "n" * 31
    setup.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": name, "file": "f", "read-only": True})
    assert node(setup, name)["drv"] == "raw"


@pytest.mark.parametrize("offset, size", [(512, None), (0, 65536), (4096, 8192)])
def test_raw_offset_and_size(daemon, tmp, offset, size):
    data = bytes(range(256)) * 4096
    (tmp / "a").write_bytes(data)
    more = {"size": size} if size else {}
    d = daemon.start()
    d.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "n", "offset": offset, **more,
                               "file": {"driver": "file", "filename": str(tmp / "a")}})
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n", "writable": True})
    c = d.enter("n")
    want = data[offset:offset + size] if size else data[offset:]
    assert c.size == len(want) and c.read(0, c.size) == want
    c.write(c.size - 3, b"end")
    assert (tmp / "a").read_bytes()[offset + len(want) - 3:][:4] == b"end" + data[offset + len(want):][:1]


def test_quit_replies_before_it_ends(bare):
    bare.qmp.send('{"execute": "quit", "id": "q"}')
    assert bare.qmp.reply() == {"return": {}, "id": "q"}
    bare.wait_end()


@pytest.mark.parametrize("value", [
    "driver=qcow2,node-name=n,file.driver=file,file.filename=IMAGE",
    "qcow2,node-name=n,file.driver=file,file.filename=IMAGE",
    '{"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": "IMAGE"}}',
    "qcow2,node-name=n,read-only=on,cache.direct=off,cache.no-flush=off,discard=unmap,detect-zeroes=off,"
    "file.driver=file,file.filename=IMAGE"])
def test_forms_of_blockdev_on_the_command_line(daemon, tmp, value):
    path = tools.create(tmp / "a.qcow2", "4M")
    d = daemon.start("--blockdev", value.replace("IMAGE", path))
    assert node(d, "n")["image"]["virtual-size"] == 4 << 20


def test_comma_in_a_file_name_is_doubled(daemon, tmp):
    path = tools.create(tmp / "a,b.raw", "1M", "raw")
    d = daemon.start("--blockdev", f"file,node-name=n,filename={path.replace(',', ',,')}")
    assert node(d, "n")["image"]["filename"] == path


def test_file_node_of_its_own_on_the_command_line(daemon, tmp):
    path = tools.create(tmp / "a.qcow2", "4M")
    d = daemon.start("--blockdev", f"file,node-name=f,filename={path}", "--blockdev", "qcow2,node-name=n,file=f",
                     "--export", "nbd,id=e,node-name=n,name=disk,writable=on")
    assert d.enter().size == 4 << 20
