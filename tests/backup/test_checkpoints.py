# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints: named instants over disks, pulled over NBD, with success or without."""

import random
import threading
import time

import nbd
import pytest

from lib import tools
from lib.checkpoints import begin, changed, end, epochs, handle, pull, read, states
from lib.daemon import blockdev, disk_args
from lib.patience import wait_until
from lib.qmp import QMPError
from lib.schema import Schema

K, M = 1 << 10, 1 << 20
SIZE = 8 * M


def create(tmp, names="ab", size=SIZE):
    return [tools.create(tmp / f"{n}.qcow2", size) for n in names]


def serve(daemon, tmp, names="ab", *options, **kw):
    return daemon.start(*options, *[x for n in names for x in disk_args(tmp / f"{n}.qcow2", name=n)], **kw)


@pytest.fixture
def two(daemon, tmp):
    """Two qcow2 disks, "a" and "b", on two threads."""
    create(tmp)
    return serve(daemon, tmp, "ab", "--loops", "2")


def refused(d, command, arguments, *words):
    text = d.qmp.error(command, arguments)[1]
    assert all(w in text for w in words), text


# --- what is pulled


def test_full_then_incremental(two):
    """What was pulled at each instant, put together, is the disk at that instant."""
    a = two.libnbd("a")
    a.pwrite(b"1" * 200 * K, 100 * K)
    c = begin(two, "ab", "c1")
    a.pwrite(b"2" * 200 * K, 200 * K)
    full = pull(c, 0)
    assert full[100 * K:300 * K] == b"1" * 200 * K and not any(full[300 * K:])
    end(two, "c1")
    c = begin(two, "ab", "c2", since="c1")
    assert [d["incremental"] for d in c["disks"]] == [True, True]
    assert changed(c, 0, "c1") == [(192 * K, 256 * K)] and changed(c, 1, "c1") == []
    assert [d["changed"] for d in c["disks"]] == [256 * K, 0]
    a.pwrite(b"3" * 64 * K, 256 * K)
    assert pull(c, 0, "c1", full) == full[:200 * K] + b"2" * 200 * K + full[400 * K:]
    end(two, "c2")
    assert states(two) == {"c1": "active", "c2": "active"}


class Disk:
    """A live disk and what it must hold, under writes from one place."""

    def __init__(self, d, name, size=SIZE):
        self.h, self.name, self.model = d.libnbd(name), name, bytearray(size)

    def change(self, rng):
        at = rng.randrange(0, len(self.model) // 512) * 512
        n = min(rng.choice([512, 4 * K, 64 * K, 300 * K]), len(self.model) - at)
        if rng.random() < 0.7:
            data = rng.randbytes(8) * (n // 8)
            self.h.pwrite(data, at)
        else:
            data = bytes(n)
            self.h.zero(n, at)
        self.model[at:at + n] = data


def writer(disks, lock, stop, seed):
    rng = random.Random(seed)
    while not stop.is_set():
        with lock:
            rng.choice(disks).change(rng)
        time.sleep(0.0002)                               # the lock is for whoever waits, too


def test_a_chain_under_load(daemon, tmp):
    """A full and five incrementals of two qcow2 disks and a raw one: each is the disks at its instant."""
    create(tmp)
    raw = tools.create(tmp / "r.raw", SIZE, "raw")
    d = daemon.start("--loops", "2", *disk_args(tmp / "a.qcow2", name="a"), *disk_args(tmp / "b.qcow2", name="b"),
                     *disk_args(raw, "raw", "r"))
    disks, lock, stop = [Disk(d, n) for n in "abr"], threading.Lock(), threading.Event()
    t = threading.Thread(target=writer, args=(disks, lock, stop, 1))
    t.start()
    try:
        copies, since = [b"", b"", b""], None
        for i in range(6):
            with lock:
                models = [bytes(x.model) for x in disks]
                c = begin(d, "abr", f"c{i}", since)
            assert [x["incremental"] for x in c["disks"]] == [i > 0] * 3
            copies = [pull(c, k, since, copies[k], 128 * K) for k in range(3)]
            assert [x == y for x, y in zip(copies, models)] == [True] * 3, f"c{i}"
            end(d, f"c{i}")
            since = f"c{i}"
            time.sleep(0.05)
    finally:
        stop.set()
        t.join()
    d.stop()
    tools.check(tmp / "a.qcow2")


def test_one_instant(two):
    """Who writes a number to the one disk, then to the other, finds them so in every checkpoint."""
    a, b, stop, written = two.libnbd("a"), two.libnbd("b"), threading.Event(), 0

    def count():
        nonlocal written
        i = 0
        while not stop.is_set():
            i += 1
            for h in a, b:
                h.pwrite(i.to_bytes(8, "big") * 512, 0)
            written = i

    t = threading.Thread(target=count)
    t.start()
    seen = set()
    try:
        for i in range(20):
            wait_until(lambda before=written: written > before)
            c = begin(two, "ab", f"c{i}")
            x, y = (int.from_bytes(read(c, k, 0, 8), "big") for k in (0, 1))
            assert x - y in (0, 1), (x, y)
            seen.add(x)
            end(two, f"c{i}", success=False)
    finally:
        stop.set()
        t.join()
    assert len(seen) > 2


def test_tools_of_others(two, tmp):
    """nbdcopy pulls the full one, merino pull what changed, qemu-img compares."""
    a = two.libnbd("a")
    a.pwrite(b"1" * M, M)
    c = begin(two, [{"export": "a", "name": "monday"}], "c1")
    tools.run("nbdcopy", c["disks"][0]["uris"][0], tmp / "copy.raw")
    end(two, "c1")
    a.pwrite(b"2" * 64 * K, 3 * M)
    a.zero(64 * K, M)
    c = begin(two, "a", "c2", since="c1")
    tools.run(two.argv[0].removesuffix("d"), "pull", "--bitmap", "c1", "--onto", "-f", "raw",
              c["disks"][0]["uris"][0], tmp / "copy.raw")
    end(two, "c2")
    a.flush()
    two.stop()
    tools.compare(tmp / "a.qcow2", tmp / "copy.raw")


def test_outside_of_what_changed(two):
    """… nothing is kept, so nothing can be read."""
    end(two, begin(two, "a", "c1")["id"])
    two.libnbd("a").pwrite(b"1", 0)
    c = begin(two, "a", "c2", since="c1")
    h = handle(c, 0)
    assert h.pread(K, 0)[:1] == b"1"
    with pytest.raises(nbd.Error):
        h.pread(K, M)
    with pytest.raises(nbd.Error):
        h.pwrite(b"1", 0)


# --- success or not


def test_without_success_nothing_is_left(two):
    a = two.libnbd("a")
    end(two, begin(two, "ab", "c1")["id"])
    a.pwrite(b"1" * K, 0)
    c = begin(two, "ab", "c2", since="c1")
    h = handle(c, 0)
    a.pwrite(b"2" * K, M)
    end(two, "c2", success=False)
    with pytest.raises(nbd.Error):                       # clients are cut
        h.pread(K, 0)
    assert states(two) == {"c1": "active"} and epochs(two) == {"a": ["active c1"], "b": ["active c1"]}
    assert [n["drv"] for n in two.qmp.cmd("query-named-block-nodes")].count("checkpoint-view") == 0
    assert len(two.qmp.cmd("query-block-exports")) == 2
    c = begin(two, "ab", "c3", since="c1")
    assert changed(c, 0, "c1") == [(0, 64 * K), (M, 64 * K)]
    assert read(c, 0, M, K) == b"2" * K


def test_since_of_each_disk(two):
    """Disks that were last backed up at different checkpoints go together."""
    for name, disk in ("one", "a"), ("two", "b"):
        end(two, begin(two, [disk], name)["id"])
    two.libnbd("a").pwrite(b"x" * 64 * K, M)
    two.libnbd("b").pwrite(b"x" * 64 * K, 3 * M)
    c = begin(two, [{"node": "a", "since": "one"}, {"node": "b", "since": "two"}], "three")
    assert [d["incremental"] for d in c["disks"]] == [True, True]
    assert changed(c, 0, "one") == [(M, 64 * K)] and changed(c, 1, "two") == [(3 * M, 64 * K)]
    end(two, "three")
    c = begin(two, ["a", {"node": "b", "since": "three"}], "four")
    assert [d["incremental"] for d in c["disks"]] == [False, True]
    end(two, "four", False)


def test_end_may_be_repeated(two):
    begin(two, "ab", "c1")
    end(two, "c1")
    end(two, "c1")
    refused(two, "checkpoint-end", {"id": "c1", "success": False}, "not pending")
    refused(two, "checkpoint-end", {"id": "c2", "success": True}, "not pending")


def test_events(two):
    for i, success in enumerate([True, False]):
        end(two, begin(two, "ab", f"c{i}")["id"], success)
        e = two.qmp.event("CHECKPOINT_ENDED")["data"]
        assert e == {"id": f"c{i}", "success": success, "reason": "command"}


def test_lease_runs_out(two):
    """A client that is gone leaves nothing behind."""
    a = two.libnbd("a")
    end(two, begin(two, "ab", "c1")["id"])
    two.qmp.event("CHECKPOINT_ENDED")
    a.pwrite(b"1", 0)
    c = begin(two, "ab", "c2", since="c1")
    h = handle(c, 0)
    h.pread(K, 0)
    h.shutdown()
    two.qmp.cmd("checkpoint-renew", {"id": "c2", "lease": 1})
    e = two.qmp.event("CHECKPOINT_ENDED")["data"]
    assert e == {"id": "c2", "success": False, "reason": "lease"}
    assert states(two) == {"c1": "active"} and len(two.qmp.cmd("query-block-exports")) == 2
    refused(two, "checkpoint-end", {"id": "c2", "success": True}, "not pending")
    assert changed(begin(two, "ab", "c3", since="c1"), 0, "c1") == [(0, 64 * K)]


def test_lease_is_renewed(two):
    """By requests of any kind, or by command; not by a client that only stays connected."""
    c = begin(two, "ab", "c1", lease=100)
    h = handle(c, 1)

    def left():
        return two.qmp.cmd("query-checkpoints")[0]["lease-left"]

    for renew in lambda: h.pread(K, 0), lambda: two.qmp.cmd("checkpoint-renew", id="c1"):
        wait_until(lambda: left() <= 97)
        # It looks for requests every few seconds; and whoever looks in after a while may find that low again.
        wait_until(lambda: (renew(), left())[1] > 97)
    two.qmp.cmd("checkpoint-renew", {"id": "c1", "lease": 1})
    two.qmp.event("CHECKPOINT_ENDED")
    assert states(two) == {}


def test_lease_is_long_by_default(two):
    assert begin(two, "ab", "c1")["lease"] == 300
    c, = two.qmp.cmd("query-checkpoints")
    assert 200 <= c["lease-left"] <= 300
    two.qmp.cmd("checkpoint-renew", {"id": "c1", "lease": 4000})
    c, = two.qmp.cmd("query-checkpoints")
    assert 3900 <= c["lease-left"] <= c["lease"] == 4000


# --- who cannot keep up


def test_broken(daemon, tmp):
    """A guest that overwrites more than may be kept is not held up; the backup is no backup."""
    create(tmp, "a", 128 * M)
    d = serve(daemon, tmp, "a")
    a = d.libnbd("a")
    end(d, begin(d, "a", "c1")["id"])
    for i in range(0, 128, 8):
        a.pwrite(b"1" * 8 * M, i * M)
    c = begin(d, "a", "c2", since="c1", view={"max-size": M, "max-wait": 1})
    for i in range(0, 128, 8):
        a.pwrite(b"2" * 8 * M, i * M)
    assert states(d) == {"c1": "active", "c2": "broken"}
    with pytest.raises(nbd.Error):
        pull(c, 0, "c1")
    refused(d, "checkpoint-end", {"id": "c2", "success": True}, "c2", "broken")
    end(d, "c2", success=False)
    c = begin(d, "a", "c3", since="c1")
    assert changed(c, 0, "c1") == [(0, 128 * M)] and read(c, 0, 127 * M, K) == b"2" * K


def test_broken_is_told(daemon, tmp):
    create(tmp, "a", 128 * M)
    d = serve(daemon, tmp, "a")
    a = d.libnbd("a")
    for i in range(0, 128, 8):
        a.pwrite(b"1" * 8 * M, i * M)
    begin(d, "a", "c1", view={"max-size": M, "max-wait": 1})
    for i in range(0, 128, 8):
        a.pwrite(b"2" * 8 * M, i * M)
    d.qmp.cmd("checkpoint-renew", {"id": "c1", "lease": 1})
    assert d.qmp.event("CHECKPOINT_BROKEN")["data"]["id"] == "c1"
    assert d.qmp.event("CHECKPOINT_ENDED")["data"]["reason"] == "lease"


# --- disks that come, grow and move


def test_disk_added_later(two, tmp):
    """It is pulled in full, and why is said; the others are incremental."""
    end(two, begin(two, "ab", "c1")["id"])
    create(tmp, "n")
    two.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "n", "file": {"driver": "file",
                                 "filename": str(tmp / "n.qcow2")}})
    c = begin(two, "anb", "c2", since="c1")
    assert [d["incremental"] for d in c["disks"]] == [True, False, True]
    assert "no checkpoint 'c1'" in c["disks"][1]["reason"] and not c["disks"][0].get("reason")
    assert c["disks"][1]["contexts"] == ["base:allocation"]
    end(two, "c2")
    c = begin(two, "nab", "c3", since="c2")
    assert [d["incremental"] for d in c["disks"]] == [True] * 3


def test_disk_that_grows(two):
    a = two.libnbd("a")
    a.pwrite(b"1" * M, 0)
    base = pull(begin(two, "a", "c1"), 0)
    two.qmp.cmd("block_resize", {"node-name": "a", "size": SIZE + 3 * M})       # the view keeps its size
    refused(two, "block_resize", {"node-name": "a", "size": SIZE}, "is used by")
    assert read(two.qmp.cmd("query-checkpoints")[0], 0, SIZE - K, K) == bytes(K)
    end(two, "c1")
    two.close_clients()
    a = two.libnbd("a")
    a.pwrite(b"2" * K, SIZE + M)
    c = begin(two, "a", "c2", since="c1")
    assert c["disks"][0]["size"] == SIZE + 3 * M and c["disks"][0]["incremental"]
    assert pull(c, 0, "c1", base) == base + bytes(M) + b"2" * K + bytes(2 * M - K)


def test_goes_with_the_image(daemon, tmp):
    """After a clean end another process, elsewhere, goes on; QEMU writes to it in between, and it counts."""
    create(tmp)
    d = serve(daemon, tmp)
    d.libnbd("a").pwrite(b"1" * M, 0)
    base = pull(begin(d, "ab", "c1"), 0)
    end(d, "c1")
    d.libnbd("a").pwrite(b"2" * K, M)
    d.stop()
    assert [b.partition(":")[2].split(":")[0] for b in tools.bitmaps(tmp / "a.qcow2")] == ["active"]
    (tmp / "a.qcow2").rename(tmp / "n.qcow2")
    tools.qemu_io(tmp / "n.qcow2", "write -P 3 2M 1k")
    d = serve(daemon, tmp, "n")
    d.libnbd("n").pwrite(b"4" * K, 3 * M)
    c = begin(d, "n", "c2", since="c1")
    # The last one: the mark of the end that a closed image has.
    assert changed(c, 0, "c1") == [(M, 64 * K), (2 * M, 64 * K), (3 * M, 64 * K), (SIZE - 64 * K, 64 * K)]
    copy = pull(c, 0, "c1", base)
    assert copy[:M] == b"1" * M and [copy[i * M] for i in (1, 2, 3)] == [ord("2"), 3, ord("4")]


def test_quit_while_pending(daemon, tmp):
    create(tmp)
    d = serve(daemon, tmp)
    end(d, begin(d, "ab", "c1")["id"])
    d.libnbd("a").pwrite(b"1", 0)
    begin(d, "ab", "c2", since="c1")
    d.libnbd("a").pwrite(b"1", M)
    d.stop()
    assert len(tools.bitmaps(tmp / "a.qcow2")) == 1
    d = serve(daemon, tmp)
    assert states(d) == {"c1": "active"}
    assert changed(begin(d, "ab", "c3", since="c1"), 0, "c1") == [(0, 64 * K), (M, 64 * K), (SIZE - 64 * K, 64 * K)]


def test_state(daemon, tmp):
    """--state brings back disks and exports, not those of checkpoints."""
    create(tmp)
    options = ["--state", tmp / "state", "--nbd-server", f"addr.type=unix,addr.path={tmp}/nbd"]
    d = serve(daemon, tmp, "ab", *options, listen=None)
    end(d, begin(d, "ab", "c1")["id"])
    begin(d, "ab", "c2", since="c1")
    d.stop()
    d = serve(daemon, tmp, "ab", *options, listen=None)
    assert sorted(e["id"] for e in d.qmp.cmd("query-block-exports")) == ["a", "b"]
    assert [x["incremental"] for x in begin(d, "ab", "c2", since="c1")["disks"]] == [True, True]


# --- deletion, and what others do to the bitmaps


@pytest.mark.parametrize("which", [0, 1, 2, 3])
def test_delete(two, which):
    """Whichever goes, nobody else loses anything."""
    a = two.libnbd("a")
    for i in range(4):
        end(two, begin(two, "ab", f"c{i}")["id"])
        a.pwrite(b"1", i * M)
    two.qmp.cmd("checkpoint-delete", id=f"c{which}")
    assert set(states(two)) == {f"c{i}" for i in range(4)} - {f"c{which}"}
    a.pwrite(b"1", 4 * M)
    for i in range(4):
        c = begin(two, "ab", "x", since=f"c{i}")
        if i == which:
            assert not c["disks"][0]["incremental"]
        else:
            assert changed(c, 0, f"c{i}") == [(k * M, 64 * K) for k in range(i, 5)]
        end(two, "x", success=False)


def test_delete_while_pending(two):
    for i in range(3):
        end(two, begin(two, "ab", f"c{i}")["id"])
    begin(two, "ab", "c3", since="c2")
    refused(two, "checkpoint-delete", {"id": "c3"}, "pending")
    refused(two, "checkpoint-delete", {"id": "c2"}, "needed")
    two.qmp.cmd("checkpoint-delete", id="c0")
    end(two, "c3")
    two.qmp.cmd("checkpoint-delete", id="c2")
    assert epochs(two)["a"] == ["active c1", "active c3"]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_bitmap_removed_by_hand(daemon, tmp, lost):
    """qemu-img removes one: older checkpoints are not trusted any more, and are gone after the next success."""
    image, = create(tmp, "a")
    d = serve(daemon, tmp, "a")
    for i in range(3):
        end(d, begin(d, "a", f"c{i}")["id"])
        d.libnbd("a").pwrite(b"1", i * M)
    d.stop()
    name, = [b for b in tools.bitmaps(image) if b.endswith(f":c{lost}")]
    tools.run("qemu-img", "bitmap", "--remove", image, name)
    d = serve(daemon, tmp, "a")
    for i in range(3):
        c = begin(d, "a", "x", since=f"c{i}")
        assert c["disks"][0]["incremental"] == (i > lost)
        assert ("reason" in c["disks"][0]) == (i <= lost)
        end(d, "x", success=False)
    end(d, begin(d, "a", "c3")["id"])
    assert list(states(d)) == [f"c{i}" for i in range(lost + 1, 4)]


def test_bitmap_disabled_by_hand(daemon, tmp):
    """What was written meanwhile is nowhere: the next one is full."""
    image, = create(tmp, "a")
    d = serve(daemon, tmp, "a")
    end(d, begin(d, "a", "c1")["id"])
    d.stop()
    name, = tools.bitmaps(image)
    tools.run("qemu-img", "bitmap", "--disable", image, name)
    tools.qemu_io(image, "write 1M 1k")
    d = serve(daemon, tmp, "a")
    c = begin(d, "a", "c2", since="c1")
    assert not c["disks"][0]["incremental"] and "record" in c["disks"][0]["reason"]
    end(d, "c2")
    assert states(d) == {"c2": "active"}
    assert begin(d, "a", "c3", since="c2")["disks"][0]["incremental"]


def test_results_are_as_the_schema_says(two):
    schema = Schema(two.qmp.cmd("query-qmp-schema"))
    c = begin(two, "ab", "c1")
    assert schema.faults(c, schema.commands["checkpoint-begin"]["ret-type"]) == []
    end(two, "c1")
    c = begin(two, "a", "c2", since="c1")
    assert schema.faults(c, schema.commands["checkpoint-begin"]["ret-type"]) == []
    now = two.qmp.cmd("query-checkpoints")
    assert schema.faults(now, schema.commands["query-checkpoints"]["ret-type"]) == []
    e = two.qmp.event("CHECKPOINT_ENDED")["data"]
    assert schema.faults(e, schema.events["CHECKPOINT_ENDED"]["arg-type"]) == []


# --- refusals


def test_refusals(two):
    for arguments, words in [
            ({"disks": []}, ["1 to 256"]),
            ({"disks": [{"node": "a"}] * 257}, ["1 to 256"]),
            ({"disks": [{}]}, ["either"]),
            ({"disks": [{"node": "a", "export": "a"}]}, ["either"]),
            ({"disks": [{"node": "nope"}]}, ["'nope' not found"]),
            ({"disks": [{"export": "nope"}]}, ["'nope' is not found"]),
            ({"disks": [{"node": "a"}, {"export": "a"}]}, ["the same"]),
            ({"disks": [{"node": "a"}], "id": ""}, ["empty"]),
            ({"disks": [{"node": "a"}], "id": "x" * 256}, ["255"]),
            ({"disks": [{"node": "a"}], "id": "a\nb"}, ["control"]),
            ({"disks": [{"node": "a"}], "lease": 0}, ["lease"]),
            ({"disks": [{"node": "a"}], "lease": 1 << 40}, ["lease"]),
            ({"disks": [{"node": "a"}], "view": {"granularity": 5000}}, ["power of two"]),
            ({"disks": [{"node": "a"}], "view": {"granularity": 512}}, ["granularity"]),
            ({"disks": [{"node": "a", "name": "b"}]}, ["already has export named 'b'"]),
            ({"disks": [{"node": "a", "name": "x" * 5000}]}, ["too long"])]:
        refused(two, "checkpoint-begin", arguments, *words)
    assert epochs(two) == {} and len(two.qmp.cmd("query-block-exports")) == 2
    assert two.qmp.cmd("query-checkpoints") == []


def test_one_at_a_time(two):
    """… on a disk; and none takes part where one is refused."""
    begin(two, "a", "c1")
    refused(two, "checkpoint-begin", {"disks": [{"node": "b"}, {"node": "a"}]}, "pending", "c1")
    refused(two, "checkpoint-begin", {"disks": [{"node": "b"}], "id": "c1"}, "c1")
    begin(two, "b", "c2")
    end(two, "c1")
    end(two, "c2")
    refused(two, "checkpoint-begin", {"disks": [{"node": "b"}, {"node": "a"}], "id": "c1"}, "c1", "already")
    assert epochs(two) == {"a": ["active c1"], "b": ["active c2"]}


def test_without_listener(daemon, tmp):
    image, = create(tmp, "a")
    d = daemon.start("--blockdev", blockdev(image, "qcow2", "a"), listen=None)
    refused(d, "checkpoint-begin", {"disks": [{"node": "a"}]}, "NBD server not running")


def test_in_use_while_pending(two):
    """Neither the disk nor what records can be taken away."""
    two.close_clients()
    begin(two, "a", "c1")
    two.qmp.cmd("block-export-del", {"id": "a", "mode": "hard"})
    with pytest.raises(QMPError, match="in use"):
        two.qmp.cmd("blockdev-del", {"node-name": "a"})
    name, = [b["name"] for n in two.qmp.cmd("query-named-block-nodes") if n["node-name"] == "a"
             for b in n["dirty-bitmaps"]]
    with pytest.raises(QMPError, match="in use"):
        two.qmp.cmd("block-dirty-bitmap-remove", {"node": "a", "name": name})
    end(two, "c1")


def test_bitmaps_are_ours(two):
    """Nobody forgets what changed by accident."""
    end(two, begin(two, "a", "c1")["id"])
    name, = [b["name"] for n in two.qmp.cmd("query-named-block-nodes") for b in n.get("dirty-bitmaps", [])]
    for verb in "clear", "disable", "enable":
        refused(two, f"block-dirty-bitmap-{verb}", {"node": "a", "name": name}, "belongs to checkpoint 'c1'")
    refused(two, "block-dirty-bitmap-add", {"node": "b", "name": name}, "belongs to checkpoint 'c1'")


def test_export_removed_by_hand(two):
    """Its checkpoint is still pending, and can be ended."""
    begin(two, "a", "c1")
    for e in two.qmp.cmd("query-block-exports"):
        if e["id"].startswith("checkpoint"):
            two.qmp.cmd("block-export-del", {"id": e["id"]})
    assert two.qmp.cmd("query-checkpoints")[0]["disks"][0]["uris"] == []
    end(two, "c1")


def test_names_are_made_up(two):
    c = begin(two, "ab")
    end(two, c["id"])
    assert c["id"].startswith("20") and c["id"].endswith("Z") and c["time"] >= c["id"]
    assert c["disks"][0]["export"] == f"a@{c['id']}"
