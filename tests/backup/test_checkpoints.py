# SPDX-License-Identifier: BSD-3-Clause
"""Checkpoints: named instants over disks, pulled over NBD, with success or without."""

import pytest

from lib import tools
from lib.checkpoints import begin, changed, end, pull, read, states
from lib.daemon import disk_args

K, M = 1 << 10, 1 << 20
SIZE = 8 * M


@pytest.fixture
def two(daemon, tmp):
    """Two qcow2 disks, "a" and "b"."""
    for name in "ab":
        tools.create(tmp / f"{name}.qcow2", SIZE)
    return daemon.start(*[x for n in "ab" for x in disk_args(tmp / f"{n}.qcow2", name=n)])


def test_full_then_incremental(two, tmp):
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
    a.pwrite(b"3" * 64 * K, 256 * K)
    assert pull(c, 0, "c1", full) == full[:200 * K] + b"2" * 200 * K + full[400 * K:]
    end(two, "c2")
    assert states(two) == {"c1": "active", "c2": "active"}


def test_without_success_nothing_is_left(two):
    a = two.libnbd("a")
    end(two, begin(two, "ab", "c1")["id"])
    a.pwrite(b"1" * K, 0)
    begin(two, "ab", "c2", since="c1")
    a.pwrite(b"2" * K, M)
    end(two, "c2", success=False)
    assert states(two) == {"c1": "active"}
    c = begin(two, "ab", "c3", since="c1")
    assert changed(c, 0, "c1") == [(0, 64 * K), (M, 64 * K)]
    nodes = two.qmp.cmd("query-named-block-nodes")
    assert len([b for n in nodes for b in n.get("dirty-bitmaps", []) if "c2" in b["name"]]) == 0
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
