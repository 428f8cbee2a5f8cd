# SPDX-License-Identifier: BSD-3-Clause
"""Nodes that go to another thread: what hangs together, what is in use, and that nothing is lost on the way."""

import random
import threading

import pytest

from lib import pattern, tools
from lib.nbdserver import Server

pytestmark = pytest.mark.merino_only
SIZE = 4 << 20


def add(d, **o):
    d.qmp.cmd("blockdev-add", {k.replace("_", "-"): v for k, v in o.items()})


def file(path):
    return {"driver": "file", "filename": str(path)}


def export(d, node, **o):
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": node, "node-name": node, "writable": True,
                                   **{k.replace("_", "-"): v for k, v in o.items()}})


def threads_of(d):
    return {t["id"]: t["thread-id"] for t in d.qmp.cmd("query-iothreads")}


def exercise(h, model, seed, rounds=40):
    rnd = random.Random(seed)
    for _ in range(rounds):
        n = rnd.choice([512, 5000, 65536, 200000])
        at = rnd.randrange(len(model) - n)
        data = rnd.randbytes(n)
        h.pwrite(data, at)
        model[at:at + n] = data
    h.flush()
    assert pattern.first_difference(h.pread(len(model), 0), model) is None


def test_join_across_loops(daemon, tmp):
    """Base and overlay were opened on two threads; the overlay's parent brings them together."""
    base = tools.create(tmp / "base.qcow2", SIZE)
    tools.qemu_io(base, "write -P 0x11 0 1M")
    top = tools.create(tmp / "top.qcow2", SIZE, backing=base)
    d = daemon.start("--loops", "4")
    add(d, driver="file", node_name="bf", filename=base, read_only=True)
    add(d, driver="file", node_name="tf", filename=top)
    add(d, driver="qcow2", node_name="b", file="bf", read_only=True)
    add(d, driver="qcow2", node_name="t", file="tf", backing="b")
    export(d, "t")
    model = bytearray(b"\x11" * (1 << 20) + bytes(SIZE - (1 << 20)))
    exercise(d.libnbd("t"), model, "join")
    d.stop()
    tools.check(top)
    assert tools.content(top) == model


def test_what_is_in_use_stays(daemon, tmp):
    """A base that is exported does not move: what refers to it goes there; two such do not meet."""
    paths = [tools.create(tmp / f"{i}.qcow2", SIZE) for i in range(2)]
    top = tools.create(tmp / "top.raw", SIZE, "raw")
    d = daemon.start("--loops", "2")
    for i, path in enumerate(paths):
        add(d, driver="qcow2", node_name=f"b{i}", file=file(path), read_only=True)
        d.qmp.cmd("block-export-add", {"type": "nbd", "id": f"b{i}", "node-name": f"b{i}"})
    add(d, driver="file", node_name="tf", filename=top)
    tools.create(tmp / "t.qcow2", SIZE, backing=paths[1])
    add(d, driver="file", node_name="t2f", filename=str(tmp / "t.qcow2"))
    add(d, driver="qcow2", node_name="t2", file="t2f", backing="b1")
    error = d.qmp.error("blockdev-add", {"driver": "copy-on-read", "node-name": "c", "file": "t2", "bottom": "b0"})
    assert "is not in the backing chain" in error[1]
    # A throttle group on one loop, a disk in use on the other.
    for i in range(2):
        d.qmp.cmd("object-add", {"qom-type": "throttle-group", "id": f"g{i}", "limits": {"iops-total": 1000}})
        add(d, driver="throttle", node_name=f"th{i}", throttle_group=f"g{i}", file=f"b{i}", read_only=True)
    error = d.qmp.error("blockdev-add", {"driver": "throttle", "node-name": "x", "throttle-group": "g0", "file": "b1",
                                         "read-only": True})
    assert "cannot go to another thread" in error[1] and "export 'b1'" in error[1]


def test_groups_of_a_throttle_are_together(daemon, tmp):
    """Disks of one group, opened on as many threads: all end up on the group's."""
    d = daemon.start("--loops", "4", "--object", "throttle-group,id=g,limits.iops-total=100000")
    models = []
    for i in range(4):
        path = tools.create(tmp / f"{i}.qcow2", SIZE)
        add(d, driver="qcow2", node_name=f"q{i}", file=file(path))
    for i in range(4):
        add(d, driver="throttle", node_name=f"d{i}", throttle_group="g", file=f"q{i}")
        export(d, f"d{i}")
        models.append(bytearray(SIZE))
    handles = [d.libnbd(f"d{i}") for i in range(4)]
    workers = [threading.Thread(target=exercise, args=(h, m, f"g{i}", 20))
               for i, (h, m) in enumerate(zip(handles, models))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    d.stop()
    for i, model in enumerate(models):
        tools.check(tmp / f"{i}.qcow2")
        assert tools.content(tmp / f"{i}.qcow2") == model


def test_iothread(daemon, tmp):
    """An export's thread; its disk works there, with a bitmap, and again on another thread after it."""
    path = tools.create(tmp / "a.qcow2", SIZE)
    d = daemon.start("--object", "iothread,id=io0")
    d.qmp.cmd("object-add", {"qom-type": "iothread", "id": "io1"})
    tids = threads_of(d)
    assert set(tids) == {"io0", "io1"} and len(set(tids.values())) == 2 and all(tids.values())
    add(d, driver="qcow2", node_name="q", file=file(path))
    d.qmp.cmd("block-dirty-bitmap-add", {"node": "q", "name": "b", "persistent": True, "granularity": 65536})
    model = bytearray(SIZE)
    for i in range(4):
        export(d, "q", iothread=f"io{i % 2}", fixed_iothread=True)
        exercise(d.libnbd("q"), model, f"io{i}")
        d.qmp.cmd("block-export-del", {"id": "q", "mode": "hard"})
    d.qmp.cmd("object-del", {"id": "io0"})
    assert set(threads_of(d)) == {"io1"}
    export(d, "q")
    exercise(d.libnbd("q"), model, "after")
    d.stop()
    tools.check(path)
    assert tools.content(path) == model
    assert "b" in tools.bitmaps(path)


def test_iothread_on_the_command_line(daemon, tmp):
    path = tools.create(tmp / "a.qcow2", SIZE)
    d = daemon.start("--object", "iothread,id=io0",
                     "--blockdev", f"driver=qcow2,node-name=q,file.driver=file,file.filename={path}",
                     "--export", "type=nbd,id=q,node-name=q,writable=on,iothread=io0,fixed-iothread=on")
    exercise(d.libnbd("q"), bytearray(SIZE), "line")


def test_no_such_iothread(daemon, tmp):
    d = daemon.start()
    add(d, driver="null-co", node_name="n")
    error = d.qmp.error("block-export-add", {"type": "nbd", "id": "n", "node-name": "n", "iothread": "nope"})
    assert error[1] == 'iothread "nope" not found'


def test_a_disk_that_cannot_move(daemon, tmp):
    """Exported twice: the second export's wish is an error only when it is fixed."""
    d = daemon.start("--object", "iothread,id=io0")
    add(d, driver="null-co", node_name="n")
    export(d, "n")
    wish = {"type": "nbd", "id": "m", "name": "m", "node-name": "n", "iothread": "io0"}
    assert "used by export 'n'" in d.qmp.error("block-export-add", {**wish, "fixed-iothread": True})[1]
    d.qmp.cmd("block-export-add", wish)


def test_nbd_moves(daemon, tmp):
    """A connection goes along."""
    with Server(tmp / "s", SIZE) as s:
        d = daemon.start("--object", "iothread,id=io0")
        add(d, driver="nbd", node_name="n", server={"type": "unix", "path": s.path}, read_only=True)
        for where in {"iothread": "io0"}, {}:
            d.qmp.cmd("block-export-add", {"type": "nbd", "id": "n", "node-name": "n", **where})
            assert d.libnbd("n").pread(SIZE, 0) == bytes(SIZE)
            d.qmp.cmd("block-export-del", {"id": "n", "mode": "hard"})
        assert s.connections == 1


def test_back_and_forth_under_load(daemon, tmp):
    """A busy disk beside one that moves all the time."""
    d = daemon.start("--loops", "2", "--object", "iothread,id=io0", "--object", "iothread,id=io1")
    for i in range(2):
        add(d, driver="qcow2", node_name=f"q{i}", file=file(tools.create(tmp / f"{i}.qcow2", SIZE)))
    export(d, "q0")
    busy = threading.Thread(target=exercise, args=(d.libnbd("q0"), bytearray(SIZE), "busy", 300))
    busy.start()
    model = bytearray(SIZE)
    for i in range(8):
        export(d, "q1", iothread=f"io{i % 2}", fixed_iothread=True)
        exercise(d.libnbd("q1"), model, f"moves{i}", 5)
        d.qmp.cmd("block-export-del", {"id": "q1", "mode": "hard"})
    busy.join()
    d.stop()
    for i in range(2):
        tools.check(tmp / f"{i}.qcow2")
    assert tools.content(tmp / "1.qcow2") == model


def test_reopen_brings_the_new_child(daemon, tmp):
    """An exported filter gets another child, which was opened on another thread."""
    d = daemon.start("--loops", "2")
    for i in range(2):
        path = tmp / f"{i}.raw"
        path.write_bytes(bytes([i + 1]) * SIZE)
        add(d, driver="file", node_name=f"f{i}", filename=str(path))
    add(d, driver="copy-on-read", node_name="c", file="f0")
    export(d, "c")
    h = d.libnbd("c")
    assert h.pread(4096, 0) == b"\1" * 4096
    d.qmp.cmd("blockdev-reopen", {"options": [{"driver": "copy-on-read", "node-name": "c", "file": "f1"}]})
    assert h.pread(4096, 0) == b"\2" * 4096


def test_create_with_data_on_another_thread(daemon, tmp):
    d = daemon.start("--loops", "2")
    for name in "fd":
        (tmp / name).write_bytes(b"")
        add(d, driver="file", node_name=name, filename=str(tmp / name))
    d.qmp.cmd("blockdev-create", {"job-id": "j", "options": {
        "driver": "qcow2", "file": "f", "data-file": "d", "size": SIZE}})
    while True:
        job = d.qmp.cmd("query-jobs")[0]
        if job["status"] == "concluded":
            break
    assert "error" not in job
    d.stop()
    assert tools.info(tmp / "f")["virtual-size"] == SIZE
