# SPDX-License-Identifier: BSD-3-Clause
"""A script of 60 requests; merinod dies at each write and sync that it makes for them, just before, half way or after.

killer.c does that.  What was acknowledged is there afterwards, in every case; where the process dies at a change of the
image's own tables this is what the crash log is for.
"""

import os
import random
import shutil
import struct
import subprocess

import nbd
import pytest

from lib import daemon as lib_daemon
from lib import tools
from lib.patience import HANG

BLOCK, SIZE, STEPS = 4096, 4 << 20, 60


@pytest.fixture(scope="session")
def killer(tmp_path_factory):
    """The library to preload."""
    path = tmp_path_factory.mktemp("killer") / "killer.so"
    source = os.path.join(os.path.dirname(__file__), "killer.c")
    subprocess.run(["gcc", "-D_GNU_SOURCE", "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


def content(value, block):
    return struct.pack("<QQ", value, block) * (BLOCK // 16) if value else bytes(BLOCK)


def make(tmp, kind):
    """A pristine image, and what its blocks hold."""
    old = tmp / "old"
    old.write_bytes(b"".join(content(1, b) for b in range(SIZE // BLOCK)))
    path = tmp / "pristine"
    if kind == "overlay":
        tools.create(path, SIZE, "qcow2", old, "raw", cluster_size="16k")
    else:
        tools.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=16k", old, path)
        tools.run("qemu-img", "snapshot", "-c", "before", path)
    return path


def run_script(handle, may):
    """The 60 steps.  MAY: what each block may hold, changed before a request, and narrowed after its answer."""
    rng = random.Random(60)
    for step in range(STEPS):
        kind, first, n = rng.random(), rng.randrange(SIZE // BLOCK - 16), rng.choice([1, 1, 2, 4, 8, 16])
        blocks = range(first, first + n)
        if kind < 0.12:
            handle.flush()
            continue
        value = 0 if kind < 0.4 else step + 2
        for b in blocks:
            may[b].add(value)
        if kind < 0.25:
            handle.trim(n * BLOCK, first * BLOCK)       # of parts of clusters a trim is free to do nothing
            continue
        if kind < 0.4:
            handle.zero(n * BLOCK, first * BLOCK)
        else:
            handle.pwrite(b"".join(content(value, b) for b in blocks), first * BLOCK)
        for b in blocks:
            may[b] = {value}
    handle.flush()


def serve_and_die(daemon, killer, tmp, at, how):
    """Runs the script on a fresh copy of the image; what may be there then, the calls that were made, whether it died."""
    shutil.copyfile(tmp / "pristine", tmp / "image")
    count = tmp / "count"
    count.write_bytes(bytes(8))
    may, died = [{1} for _ in range(SIZE // BLOCK)], False
    env = {"LD_PRELOAD": str(killer), "KILLER_COUNT": str(count), "KILLER_AT": str(at), "KILLER_HOW": how,
           "MERINO_IO": "threads", "ASAN_OPTIONS": "verify_asan_link_order=0"}
    before = {key: os.environ.get(key) for key in env}
    os.environ.update(env)
    try:
        d = daemon.serve(tmp / "image", blockdev="l2-cache-entry-size=512")
        run_script(d.libnbd(), may)
        d.stop()
    except (nbd.Error, lib_daemon.DidNotStart, AssertionError):
        assert at, "it died by itself"
        died = True
        assert daemon.all[-1].proc.wait(HANG) in (-9, 137)
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
        for d in daemon.all:
            d.kill()
    calls = struct.unpack("<Q", count.read_bytes())[0]
    assert died or not at or calls < at, f"it did not die at call {at}"
    return may, calls, died


def die_and_verify(daemon, killer, tmp, kind, at, how):
    may, _, died = serve_and_die(daemon, killer, tmp, at, how)
    where = f"{how} call {at}"
    d = daemon.serve(tmp / "image")
    data = d.libnbd().pread(SIZE, 0)
    for b in range(SIZE // BLOCK):
        assert data[b * BLOCK:(b + 1) * BLOCK] in [content(v, b) for v in may[b]], \
            f"{where}: block {b} holds {struct.unpack_from('<QQ', data, b * BLOCK)}, not one of {may[b]}"
    d.stop()
    tools.check(tmp / "image")
    if kind == "snapshot":
        tools.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-l", "before", tmp / "image", tmp / "now")
        assert (tmp / "now").read_bytes() == (tmp / "old").read_bytes(), where
    return died


def die_everywhere(daemon, killer, tmp, kind, hows, stride):
    make(tmp, kind)
    _, calls, _ = serve_and_die(daemon, killer, tmp, 0, "")
    assert calls > 100
    for how in hows:
        places = range(1 + len(how) % stride, calls + 1, stride)
        deaths = sum(die_and_verify(daemon, killer, tmp, kind, at, how) for at in places)
        # A run on an idle machine may take some calls less than the one that counted them.
        assert deaths >= len(places) * 3 // 4


@pytest.mark.merino_only
@pytest.mark.parametrize("kind", ["overlay", "snapshot"])
def test_a_script_that_dies_now_and_then(daemon, killer, tmp, kind):
    die_everywhere(daemon, killer, tmp, kind, ["before", "half", "after"], 31)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["overlay", "snapshot"])
def test_a_script_that_dies_everywhere(daemon, killer, tmp, kind):
    die_everywhere(daemon, killer, tmp, kind, ["before", "half", "after"], 1)
