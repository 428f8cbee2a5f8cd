# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-reopen: what may change, what may not, all or nothing; under clients; texts and effects as QEMU's."""

import threading
import time

import pytest

from lib import tools
from lib.patience import HANG

MIB = 1 << 20


@pytest.fixture
def chain(daemon, tmp):
    """q on f with its recorded backing image; o, another qcow2; rr on r, raw; s, another file."""
    d = daemon.start()
    base = tools.create(tmp / "base.qcow2", "4M")
    tools.qemu_io(base, "write -P 7 1M 64k")
    d.top, d.raw, d.base = tools.create(tmp / "top.qcow2", None, backing=base), str(tmp / "r.raw"), base
    d.other = tools.create(tmp / "o.qcow2", "4M")
    tools.qemu_io(d.other, "write -P 9 1M 64k")
    for path in (d.raw, str(tmp / "s.raw")):
        tools.create(path, "1M", "raw")
    for node in [{"driver": "file", "node-name": "f", "filename": d.top},
                 {"driver": "qcow2", "node-name": "q", "file": "f"},
                 {"driver": "qcow2", "node-name": "o", "read-only": True,
                  "file": {"driver": "file", "filename": d.other}},
                 {"driver": "file", "node-name": "r", "filename": d.raw},
                 {"driver": "raw", "node-name": "rr", "file": "r"},
                 {"driver": "file", "node-name": "s", "filename": str(tmp / "s.raw")}]:
        d.qmp.cmd("blockdev-add", node)
    return d


Q = {"driver": "qcow2", "node-name": "q", "file": "f"}
QB = {**Q, "backing": "o"}


def node(d, name):
    found, = [n for n in d.qmp.cmd("query-named-block-nodes") if n["node-name"] == name]
    return found


def reopen(d, *options):
    d.qmp.cmd("blockdev-reopen", {"options": list(options)})


def state(d):
    return sorted((n["node-name"], n["ro"], repr(sorted(n["cache"].items())), n["detect_zeroes"], n.get("backing_file"))
                  for n in d.qmp.cmd("query-named-block-nodes") if not n["node-name"].startswith("#"))


def refusals(d):
    f = {"driver": "file", "node-name": "f", "filename": d.top}
    return [
        ([{}], "Parameter 'options[0].driver' is missing"),
        ([{"driver": "qcow2"}], "Parameter 'options[0].file' is missing"),
        ([{**Q, "node-name": "nope"}], "Failed to find node with node-name='nope'"),
        ([Q], "backing is missing for 'q'"),
        ([{**Q, "backing": "q"}], "Making 'q' a backing child of 'q' would create a cycle"),
        ([{**Q, "backing": "nope"}], "Cannot find device='' nor node-name='nope'"),
        ([{**Q, "backing": {"driver": "qcow2"}}], "Parameter 'options[0].backing.file' is missing"),
        ([{**QB, "bogus": 1}], "Parameter 'options[0].bogus' is unexpected"),
        ([{**QB, "read-only": 5}], "Invalid parameter type for 'options[0].read-only', expected: boolean"),
        ([QB, {**QB, "bogus": 1}], "Parameter 'options[1].bogus' is unexpected"),
        ([{**f, "filename": d.raw}], "Cannot change the option 'filename'"),
        ([{**f, "read-only": True}], "Read-only block node 'f' cannot support read-write users"),
        ([{"driver": "raw", "node-name": "rr", "file": "s", "size": -5}], None),
    ]


@pytest.mark.parametrize("i", range(13))
def test_refused_and_nothing_changed(chain, i):
    options, text = refusals(chain)[i]
    before = state(chain)
    kind, got = chain.qmp.error("blockdev-reopen", {"options": options})
    assert kind == "GenericError" and (text is None or got == text)
    assert state(chain) == before


@pytest.mark.merino_only
@pytest.mark.parametrize("options", [5, [5], ["q"], [{"driver": "x" * 70000}], [{**QB}] * 1001])
def test_hostile_arguments(chain, options):
    before = state(chain)
    assert chain.qmp.error("blockdev-reopen", {"options": options})[0] == "GenericError"
    assert state(chain) == before


@pytest.mark.merino_only
def test_no_nodes(chain):
    """qemu-storage-daemon 7.2 aborts here."""
    chain.qmp.cmd("blockdev-reopen", {"options": []})


def test_flags(chain):
    reopen(chain, {**QB, "cache": {"no-flush": True}, "detect-zeroes": "unmap", "discard": "unmap"})
    n = node(chain, "q")
    assert (n["cache"]["no-flush"], n["detect_zeroes"]) == (True, "unmap")
    reopen(chain, QB)                                    # what is left out is the default again
    n = node(chain, "q")
    assert (n["cache"]["no-flush"], n["detect_zeroes"]) == (False, "off")


def test_backing_is_exchanged_and_detached(chain):
    reopen(chain, QB)
    assert (node(chain, "q")["backing_file"], node(chain, "q")["backing_file_depth"]) == (chain.other, 1)
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "q", "writable": True})
    c = chain.enter("q")
    assert c.read(MIB, 4) == b"\x09" * 4
    assert chain.qmp.error("blockdev-del", {"node-name": "o"})[0] == "GenericError"
    reopen(chain, {**Q, "backing": None})
    assert "backing_file" not in node(chain, "q") and c.read(MIB, 4) == bytes(4)
    chain.qmp.cmd("blockdev-del", {"node-name": "o"})


def test_qcow2_becomes_read_only_and_writable(chain):
    reopen(chain, QB)
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "q", "writable": True})
    chain.enter("q").write(0, b"kept" * 1024)
    assert chain.qmp.error("blockdev-reopen", {"options": [{**QB, "read-only": True}]})[1] == (
        "Read-only block node 'q' cannot support read-write users")
    chain.qmp.cmd("block-export-del", {"id": "e", "mode": "hard"})
    reopen(chain, {**QB, "read-only": True})
    assert node(chain, "q")["ro"] is True
    assert chain.qmp.error("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "writable": True})[1] == (
        "Cannot export read-only node as writable")
    assert tools.run("qemu-io", "-U", "-r", "-f", "qcow2", "-c", "read -P 107 0 1", chain.top).stdout.count("failed") == 0
    reopen(chain, QB)
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "q", "writable": True})
    c = chain.enter("q")
    assert c.read(0, 8) == b"keptkept"
    c.write(2 * MIB, b"more")
    c.close()
    chain.qmp.cmd("block-export-del", {"id": "e", "mode": "hard"})
    chain.qmp.cmd("blockdev-del", {"node-name": "q"})
    chain.qmp.cmd("blockdev-del", {"node-name": "f"})
    tools.check(chain.top)


def test_bitmaps_live_through_it(chain):
    reopen(chain, QB)
    for name in ("stored", "not"):
        chain.qmp.cmd("block-dirty-bitmap-add", {"node": "q", "name": name, "persistent": name == "stored"})
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "q", "writable": True})
    chain.enter("q").write(0, b"x" * 65536)
    chain.qmp.cmd("block-export-del", {"id": "e", "mode": "hard"})

    def bitmaps():
        return sorted((b["name"], b["count"], b["recording"], b["persistent"], b.get("inconsistent", False))
                      for b in node(chain, "q")["dirty-bitmaps"])

    before = bitmaps()
    reopen(chain, {**QB, "read-only": True})
    assert bitmaps() == before and [b[1] for b in before] == [65536, 65536]
    assert "in-use" not in tools.run("qemu-img", "info", "-U", "--output=json", chain.top).stdout
    assert chain.qmp.error("block-dirty-bitmap-clear", {"node": "q", "name": "stored"})[0] == "GenericError"
    reopen(chain, QB)
    assert bitmaps() == before
    chain.qmp.cmd("block-dirty-bitmap-clear", {"node": "q", "name": "stored"})
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "q", "writable": True})
    chain.enter("q").write(MIB, b"x" * 65536)
    assert [b[1] for b in bitmaps()] == [131072, 65536]


def test_file_by_another_way(chain):
    """cache.direct needs another descriptor; a lock stays all the time."""
    r = {"driver": "file", "node-name": "r", "filename": chain.raw}
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "rr", "name": "rr", "writable": True})
    c = chain.enter("rr")
    c.write(0, b"a" * 4096)
    reopen(chain, {**r, "cache": {"direct": True}})
    assert node(chain, "r")["cache"]["direct"] is True
    c.write(100, b"b" * 100)
    assert c.read(0, 300) == b"a" * 100 + b"b" * 100 + b"a" * 100
    resize = tools.run("qemu-img", "resize", "-q", "-f", "raw", chain.raw, "2M", check=False)
    assert 'Failed to get "resize" lock' in resize.stderr
    reopen(chain, r)
    assert c.read(0, 300) == b"a" * 100 + b"b" * 100 + b"a" * 100


def test_a_parent_and_its_file_in_either_order(chain):
    rr = {"driver": "raw", "node-name": "rr", "file": "r"}
    r = {"driver": "file", "node-name": "r", "filename": chain.raw}
    for ro in (True, False):
        for both in ([rr, r], [r, rr]):
            reopen(chain, *({**o, "read-only": ro} for o in both))
            assert (node(chain, "r")["ro"], node(chain, "rr")["ro"]) == (ro, ro)
    reopen(chain, {**rr, "read-only": True}, {**r, "read-only": True})
    tools.qemu_io(chain.raw, "write -P 5 0 512", fmt="raw")      # nobody writes to it here any more
    reopen(chain, {**r}, {**rr})
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "rr", "writable": True})
    assert chain.enter("rr").read(0, 4) == b"\x05" * 4


def test_raw_on_another_file_and_offset(chain):
    reopen(chain, {"driver": "raw", "node-name": "rr", "file": "s"})
    chain.qmp.cmd("blockdev-del", {"node-name": "r"})
    reopen(chain, {"driver": "raw", "node-name": "rr", "file": "s", "offset": 65536, "size": 4096})
    assert node(chain, "rr")["image"]["virtual-size"] == 4096
    reopen(chain, {"driver": "raw", "node-name": "rr", "file": "s"})
    assert node(chain, "rr")["image"]["virtual-size"] == MIB


@pytest.mark.merino_only
def test_all_or_nothing(chain):
    before = state(chain)
    kind, text = chain.qmp.error("blockdev-reopen", {"options": [
        {**QB, "read-only": True, "detect-zeroes": "on"},
        {"driver": "raw", "node-name": "rr", "file": "r", "offset": 1 << 40}]})
    assert "Offset" in text and state(chain) == before
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "q", "writable": True})
    chain.enter("q").write(0, b"works")


@pytest.mark.merino_only
def test_another_size_under_an_export_is_refused(chain):
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "rr", "name": "rr", "writable": True})
    c = chain.enter("rr")
    kind, text = chain.qmp.error("blockdev-reopen", {"options": [
        {"driver": "raw", "node-name": "rr", "file": "r", "offset": 4096}]})
    assert text == "Node 'rr' would have another size; it is in use"
    c.write(MIB - 512, b"x" * 512)


@pytest.mark.merino_only
def test_a_file_that_is_another_one_by_now(chain, tmp):
    (tmp / "new").write_bytes(bytes(MIB))
    (tmp / "new").rename(chain.raw)
    kind, text = chain.qmp.error("blockdev-reopen", {"options": [
        {"driver": "file", "node-name": "r", "filename": chain.raw, "cache": {"direct": True}}]})
    assert text == f"Could not reopen '{chain.raw}': it is another file now"
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "rr", "name": "rr", "writable": True})
    chain.enter("rr").write(0, b"still there")


def test_under_a_client_that_writes(chain):
    reopen(chain, QB)
    chain.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "q", "name": "q", "writable": True})
    c = chain.enter("q")
    stop, faults, rounds = threading.Event(), [], [0]

    def work():
        while not stop.is_set():
            data = bytes([rounds[0] % 251]) * 4096
            c.write(4096 * (rounds[0] % 200), data)
            if c.read(4096 * (rounds[0] % 200), 4096) != data:
                faults.append(rounds[0])
            rounds[0] += 1

    t = threading.Thread(target=work)
    t.start()
    i, end = 0, time.monotonic() + HANG
    try:
        while i < 30 or (rounds[0] <= 20 and t.is_alive() and time.monotonic() < end):
            i += 1
            reopen(chain, {**QB, "l2-cache-size": (1 + i % 3) * 65536, "discard": "unmap" if i % 2 else "ignore"})
            reopen(chain, {"driver": "file", "node-name": "f", "filename": chain.top,
                           "cache": {"direct": i % 2 == 0}})
    finally:
        stop.set()
        t.join()
    assert faults == [] and rounds[0] > 20
    c.close()
    chain.stop()
    tools.check(chain.top)


@pytest.mark.merino_only
def test_refused_after_the_size_below_changed(daemon, tmp):
    """The node is as it was, not broken: what it can read it reads."""
    d = daemon.start()
    tools.create(tmp / "r.raw", "2M", "raw")
    tools.qemu_io(str(tmp / "r.raw"), "write -P 7 0 64k", fmt="raw")
    for n in [{"driver": "file", "node-name": "f", "filename": str(tmp / "r.raw")},
              {"driver": "raw", "node-name": "a", "file": "f"}, {"driver": "raw", "node-name": "b", "file": "f"},
              {"driver": "raw", "node-name": "c", "file": "a"}]:
        d.qmp.cmd("blockdev-add", n)
    d.qmp.cmd("block_resize", {"node-name": "b", "size": MIB})
    assert d.qmp.error("blockdev-reopen", {"options": [
        {"driver": "raw", "node-name": "a", "file": "f", "read-only": True}]})[1] == (
        "Node 'a' would have another size; it is in use")
    assert node(d, "a")["drv"] == "raw" and not node(d, "a")["ro"]
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "c", "name": "c"})
    assert d.libnbd("c").pread(2, 0) == b"\x07\x07"


@pytest.mark.merino_only
def test_below_copy_on_read_nothing_becomes_read_only(daemon, tmp):
    """It writes what it has read: QEMU's permission "write unchanged"."""
    d = daemon.start()
    tools.create(tmp / "r.raw", "2M", "raw")
    for n in [{"driver": "file", "node-name": "f", "filename": str(tmp / "r.raw")},
              {"driver": "raw", "node-name": "a", "file": "f"}, {"driver": "copy-on-read", "node-name": "c", "file": "a"}]:
        d.qmp.cmd("blockdev-add", n)
    assert d.qmp.error("blockdev-reopen", {"options": [
        {"driver": "raw", "node-name": "a", "file": "f", "read-only": True}]})[1] == (
        "Read-only block node 'a' cannot support read-write users")


@pytest.mark.merino_only
def test_below_copy_on_read_writable_means_alone(daemon, tmp):
    """Once it can store what it has read, nobody else writes there: it would store what is older."""
    d = daemon.start()
    tools.create(tmp / "r.raw", "2M", "raw")
    a = {"driver": "raw", "node-name": "a", "file": "f"}
    c = {"driver": "copy-on-read", "node-name": "c", "file": "a"}
    for n in [{"driver": "file", "node-name": "f", "filename": str(tmp / "r.raw")}, {**a, "read-only": True}, c]:
        d.qmp.cmd("blockdev-add", n)
    reopen(d, a)
    export = {"type": "nbd", "id": "e", "name": "e", "writable": True}
    assert "which does not allow 'write' on a" in d.qmp.error("block-export-add", {**export, "node-name": "a"})[1]
    reopen(d, {**c, "detect-zeroes": "on", "read-only": True})
    d.qmp.cmd("block-export-add", {**export, "node-name": "c", "writable": False})
    assert node(d, "c")["drv"] == "copy-on-read"


@pytest.mark.merino_only
def test_a_file_that_was_tried_in_vain_is_locked_when_it_is_used(daemon, tmp):
    """Reopening on it failed behind its attaching: from then on it is a node like others."""
    d = daemon.start()
    for name, size in (("r", "1M"), ("s", "2M")):
        d.qmp.cmd("blockdev-add", {"driver": "file", "node-name": name, "filename": tools.create(tmp / name, size, "raw")})
    d.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "rr", "file": "r"})
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "rr", "name": "rr", "writable": True})
    assert d.qmp.error("blockdev-reopen", {"options": [{"driver": "raw", "node-name": "rr", "file": "s"}]})[1] == (
        "Node 'rr' would have another size; it is in use")
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "s", "node-name": "s", "name": "s", "writable": True})
    for name in ("r", "s"):
        other = tools.run("qemu-img", "resize", "-q", "-f", "raw", tmp / name, "4M", check=False)
        assert 'Failed to get "resize" lock' in other.stderr


@pytest.mark.merino_only
def test_a_new_backing_image_is_not_written_to_where_that_was_not_allowed(daemon, tmp):
    """Copy-on-read stores what it found below: nobody may change that, whether it was there first or came later."""
    d = daemon.start()
    for name in ("b", "q"):
        tools.create(tmp / name, "1M", "raw" if name == "b" else "qcow2")
    q = {"driver": "qcow2", "node-name": "q", "file": "f"}
    for n in [{"driver": "file", "node-name": "b", "filename": str(tmp / "b")},
              {"driver": "file", "node-name": "f", "filename": str(tmp / "q")}, q,
              {"driver": "copy-on-read", "node-name": "c", "file": "q"}]:
        d.qmp.cmd("blockdev-add", n)
    export = {"type": "nbd", "id": "e", "node-name": "b", "name": "b", "writable": True}
    d.qmp.cmd("block-export-add", export)
    assert "Conflicts with use by export 'e'" in d.qmp.error("blockdev-reopen", {"options": [{**q, "backing": "b"}]})[1]
    assert "backing_file" not in node(d, "q")
    d.qmp.cmd("block-export-del", {"id": "e"})
    reopen(d, {**q, "backing": "b"})
    assert d.qmp.error("block-export-add", export)[1] == (
        "Conflicts with use by node 'q' as 'backing', which does not allow 'write' on b")
