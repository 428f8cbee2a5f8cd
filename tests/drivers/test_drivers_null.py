# SPDX-License-Identifier: BSD-3-Clause
"""null-co: what QEMU's says of itself, and what it costs."""

import time

import pytest



def serve(daemon, extra="", node="driver=null-co,node-name=disk"):
    return daemon.start("--blockdev", node + extra, "--export", "type=nbd,id=disk,node-name=disk,writable=on")


@pytest.mark.parametrize("extra, size", [("", 1 << 30), (",size=1099511627776", 1 << 40), (",size=512", 512)])
def test_size(daemon, extra, size):
    h = serve(daemon, extra).libnbd()
    assert h.get_size() == size


@pytest.mark.parametrize("extra, flags", [(",read-zeroes=on", 3), (",read-zeroes=off", 1)])
def test_map(daemon, extra, flags):
    c = serve(daemon, extra).enter(contexts=["base:allocation"])
    assert c.status(0, 1 << 20) == [(1 << 20, flags)]


def test_forgets(daemon):
    """What was written is not read back, nor is what a buffer held before."""
    h = serve(daemon, ",read-zeroes=on").libnbd()
    h.pwrite(b"x" * 65536, 0)
    h.zero(65536, 65536)
    h.trim(65536, 0)
    h.flush()
    assert h.pread(65536, 0) == bytes(65536)


def test_latency(daemon):
    h = serve(daemon, ",latency-ns=200000000").libnbd()
    start = time.monotonic()
    h.pread(512, 0)
    assert time.monotonic() - start >= 0.2
