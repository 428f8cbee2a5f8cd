# SPDX-License-Identifier: BSD-3-Clause
"""Random operations against a model (lib/differential.py), on many kinds of image."""

import os

import pytest

from lib import differential, pattern, tools

M = 1 << 20


def base(tmp, size, **options):
    """A full lower image, and its content."""
    path, data = tools.create(tmp / "base.qcow2", size, **options), pattern.block("base", size)
    (tmp / "base.data").write_bytes(data)
    tools.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "qcow2", tmp / "base.data", path)
    return path, data


def run(daemon, path, model, seed, grain, steps, conns=2, fmt="qcow2"):
    d = daemon.serve(path, fmt)
    r = differential.Run(seed, [d.enter() for _ in range(conns)], model, grain)
    r.go(steps)
    d.stop()
    if fmt == "qcow2":
        tools.check(path)
    assert pattern.first_difference(tools.content(path, fmt), model) is None


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("cluster, size", [(512, 2 * M + 512), (4096, 4 * M), (65536, 8 * M + 1024), (2 * M, 32 * M)])
def test_single_image(daemon, tmp, cluster, size, seed):
    path = tools.create(tmp / "a.qcow2", size, cluster_size=cluster)
    run(daemon, path, bytearray(size), seed, cluster, 700)


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize("cluster, below", [(512, 65536), (4096, 512), (65536, 65536), (M, 4096)])
def test_overlay(daemon, tmp, cluster, below, seed):
    """On a base that is smaller than the overlay and has other clusters."""
    lower, data = base(tmp, 3 * M + 512, cluster_size=below)
    size = 4 * M + 1536
    path = tools.create(tmp / "a.qcow2", size, backing=lower, cluster_size=cluster)
    run(daemon, path, bytearray(data + bytes(size - len(data))), seed, cluster, 600)


@pytest.mark.parametrize("bits", [1, 8, 64])
def test_refcount_widths(daemon, tmp, bits):
    path = tools.create(tmp / "a.qcow2", 4 * M, refcount_bits=bits, cluster_size=4096)
    run(daemon, path, bytearray(4 * M), bits, 4096, 600)


def test_preallocated(daemon, tmp):
    path = tools.create(tmp / "a.qcow2", 4 * M, preallocation="metadata")
    run(daemon, path, bytearray(4 * M), 5, 65536, 600)


def test_raw(daemon, tmp):
    path = tools.create(tmp / "a.raw", 4 * M, "raw")
    run(daemon, path, bytearray(4 * M), 6, 4096, 600, fmt="raw")


def test_three_layers(daemon, tmp):
    lower, data = base(tmp, 2 * M)
    mid = tools.create(tmp / "mid.qcow2", 3 * M, backing=lower, cluster_size=4096)
    tools.qemu_io(mid, "write -P 8 1M 300k", "write -z 300k 300k", "write -P 9 2200k 100k")
    path = tools.create(tmp / "a.qcow2", 4 * M, backing=mid)
    run(daemon, path, bytearray(tools.content(path)), 7, 65536, 600)


def test_tiny_metadata_cache(daemon, tmp):
    """Tables must leave the cache and come back: 512-byte clusters need hundreds."""
    size = 8 * M
    path = tools.create(tmp / "a.qcow2", size, cluster_size=512)
    d = daemon.serve(path, blockdev="l2-cache-size=4096,refcount-cache-size=2048")
    model = bytearray(size)
    differential.Run(8, [d.enter()], model, 512, depth=32).go(900)
    d.stop()
    tools.check(path)
    assert pattern.first_difference(tools.content(path), model) is None


def test_restarts_in_between(daemon, tmp):
    """The model goes on over four lives of the daemon."""
    path, model = tools.create(tmp / "a.qcow2", 4 * M, cluster_size=4096), bytearray(4 * M)
    for life in range(4):
        run(daemon, path, model, f"life {life}", 4096, 250, conns=1)


def test_many_connections(daemon, tmp):
    path = tools.create(tmp / "a.qcow2", 8 * M)
    run(daemon, path, bytearray(8 * M), 9, 65536, 800, conns=8)


def test_trims_mostly(daemon, tmp):
    """Clusters freed and taken again all the time, many in flight (QEMU b8bfb1478d)."""
    lower, data = base(tmp, 4 * M)
    path = tools.create(tmp / "a.qcow2", None, backing=lower, cluster_size=4096)
    model = bytearray(data)
    d = daemon.serve(path)
    r = differential.Run(10, [d.enter(), d.enter()], model, 4096, depth=32,
                         weights={"write": 40, "trim": 30, "zero": 20, "read": 10})
    r.go(800)
    d.stop()
    tools.check(path)
    assert pattern.first_difference(tools.content(path), model) is None


@pytest.mark.parametrize("fmt, options", [("raw", {}), ("qcow2", {}), ("qcow2", {"cluster_size": 512})],
                         ids=["raw", "qcow2", "qcow2-512"])
def test_without_the_page_cache(daemon, tmp, fmt, options):
    """O_DIRECT: requests of any alignment, on a file that takes aligned ones only."""
    path = tools.create(tmp / "a", 4 * M, fmt, **options)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of the test directory has no O_DIRECT")
    d, model = daemon.serve(path, fmt, blockdev="cache.direct=on"), bytearray(4 * M)
    differential.Run(14, [d.enter(), d.enter()], model, 4096).go(300)
    d.stop()
    if fmt == "qcow2":
        tools.check(path)
    assert pattern.first_difference(tools.content(path, fmt), model) is None
