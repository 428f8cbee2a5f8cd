# SPDX-License-Identifier: BSD-3-Clause
"""Images as qemu-img makes them, with each of its options: read right, written right, left clean."""

import pytest

from lib import pattern, tools
from lib.qcow2bytes import get

SIZE = 6 << 20
K = 1 << 10

OPTIONS = [dict(cluster_size=c) for c in ("512", "1k", "4k", "64k", "256k", "2M")] + [
    dict(refcount_bits=b) for b in (1, 2, 8, 16, 32, 64)] + [
    dict(preallocation=p) for p in ("metadata", "falloc", "full")] + [
    dict(cluster_size="512", refcount_bits=64), dict(cluster_size="512", refcount_bits=1),
    dict(cluster_size="2M", refcount_bits=1), dict(cluster_size="4k", preallocation="metadata")]


def name(options):
    return "-".join(f"{k}={v}" for k, v in options.items())


def prepared(tmp, options, size=SIZE):
    """An image with something of everything in it, and its content."""
    path = tools.create(tmp / "a.qcow2", size, **options)
    data, model = pattern.block("prepared", 3 << 20), bytearray(size)
    (tmp / "data").write_bytes(data)
    tools.qemu_io(path, f"write -s {tmp}/data 1000k 3M", "write -z 1200k 300k", "write -z -u 1700k 300k",
                  "discard 2304k 256k", "write -P 0x5a 5000k 1")
    model[1000 * K:4072 * K] = data
    for at, n in ((1200, 300), (1700, 300)):
        model[at * K:(at + n) * K] = bytes(n * K)
    model[5000 * K] = 0x5A
    # What a discard leaves depends on the cluster size; QEMU's view is the truth.
    seen = tools.content(path)
    model[2304 * K:2560 * K] = seen[2304 * K:2560 * K]
    assert pattern.first_difference(seen, model) is None
    return path, model


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_reads(daemon, tmp, options):
    path, model = prepared(tmp, options)
    c = daemon.serve(path, writable=False).enter()
    assert pattern.first_difference(c.read(0, SIZE), model) is None


@pytest.mark.parametrize("options", OPTIONS, ids=name)
def test_writes(daemon, tmp, options):
    """Into data, into zero clusters, into nothing, over borders; QEMU must then see the same."""
    path, model = prepared(tmp, options)
    d = daemon.serve(path)
    c = d.enter()
    for at, n in ((0, 100), (999 * K, 2 * K), (1300 * K, 50 * K), (1750 * K + 3, 7), (2400 * K, 70 * K),
                  (4072 * K - 1, 300 * K), (SIZE - 1, 1)):
        model[at:at + n] = pattern.block(at, n)
        c.write(at, model[at:at + n])
    for at, n in ((3000 * K, 200 * K), (3500 * K + 1, 5), (5100 * K, 700 * K)):
        model[at:at + n] = bytes(n)
        c.zero(at, n)
    assert pattern.first_difference(c.read(0, SIZE), model) is None
    d.stop()
    tools.check(path)
    assert pattern.first_difference(tools.content(path), model) is None


@pytest.mark.parametrize("options", [dict(), dict(cluster_size="512"), dict(cluster_size="2M")], ids=name)
def test_fills_whole(daemon, tmp, options):
    """Every byte once, in order; nothing leaks and nothing is allocated twice."""
    path = tools.create(tmp / "a.qcow2", SIZE, **options)
    d, want = daemon.serve(path), pattern.block("whole", SIZE)
    c = d.enter()
    for at in range(0, SIZE, 100000):
        c.start(1, at, data=want[at:at + 100000])
    for cookie in list(c.waiting):
        assert c.answer(cookie).error == 0
    d.stop()
    report = tools.check(path)
    assert report["allocated-clusters"] == report["total-clusters"]
    assert tools.content(path) == want


def test_refcount_table_grows(daemon, tmp):
    """512-byte clusters: one cluster of the table covers 8 MiB of file only."""
    size = 20 << 20
    path = tools.create(tmp / "a.qcow2", size, cluster_size=512)
    clusters = get(path, "reftable_clusters")
    d, want = daemon.serve(path), pattern.block("grow", size)
    c = d.enter()
    for at in range(0, size, 1 << 20):
        c.write(at, want[at:at + (1 << 20)])
    d.stop()
    assert get(path, "reftable_clusters") > clusters
    tools.check(path)
    assert tools.content(path) == want


@pytest.mark.parametrize("size", [512, 65536 + 512, (1 << 20) - 512, (2 << 20) + 1536])
def test_sizes_that_are_no_whole_cluster(daemon, tmp, size):
    path, model = tools.create(tmp / "a.qcow2", size), bytearray(size)
    d = daemon.serve(path)
    c = d.enter()
    assert c.size == size
    model[-300:] = pattern.block(size, 300)
    c.write(size - 300, model[-300:])
    c.zero(size - 100, 100)
    model[-100:] = bytes(100)
    assert c.read(0, size) == model
    d.stop()
    tools.check(path)
    assert tools.content(path) == model


def test_freed_clusters_are_used_again(daemon, tmp):
    """Trim and write in turn must not make the file grow for ever."""
    path = tools.create(tmp / "a.qcow2", "16M")
    d = daemon.serve(path)
    c = d.enter()
    for i in range(20):
        c.write(i % 2 * (8 << 20), pattern.block(i, 4 << 20))
        c.flush()
        c.trim(i % 2 * (8 << 20), 4 << 20)
        c.flush()
    d.stop()
    report = tools.check(path)
    assert report["image-end-offset"] < 24 << 20


def test_huge_virtual_size(daemon, tmp):
    """4 TiB: far corners, and an L1 table of 64 KiB."""
    path = tools.create(tmp / "a.qcow2", "4T")
    d = daemon.serve(path)
    c = d.enter()
    places = (0, 1 << 32, (1 << 40) + 511, (4 << 40) - 5000)
    for at in places:
        c.write(at, pattern.block(at, 5000))
    for at in places:
        assert c.read(at, 5000) == pattern.block(at, 5000)
    d.stop()
    tools.check(path)
    for at in places:
        (tmp / "want").write_bytes(pattern.block(at, 5000))
    tools.qemu_io(path, f"read -P 0 {2 << 40} 1M")


def test_an_image_that_qemu_wrote_while_we_were_away(daemon, tmp):
    """Turns: we write, QEMU writes, we read and write again."""
    path, model = prepared(tmp, dict(cluster_size="4k"))
    for turn in range(3):
        d = daemon.serve(path)
        c = d.enter()
        assert pattern.first_difference(c.read(0, SIZE), model) is None
        at = 123456 * (turn + 1)
        model[at:at + 9000] = pattern.block(turn, 9000)
        c.write(at, model[at:at + 9000])
        d.stop()
        tools.check(path)
        at = 300 * K * (turn + 2)
        tools.qemu_io(path, f"write -P {turn + 1} {at} 50k", f"discard {at + 100 * K} 20k")
        model[:] = tools.content(path)
        assert model[at:at + 50 * K] == bytes([turn + 1]) * 50 * K
