# SPDX-License-Identifier: BSD-3-Clause
"""fio's nbd engine, with verification of every block that it wrote."""

import json

import pytest

from lib import tools


def fio(tmp, uri, **options):
    argv = ["fio", "--name=t", "--ioengine=nbd", f"--uri={uri}", "--output-format=json", "--randseed=7"]
    argv += [f"--{k}={v}" for k, v in options.items()]
    done = tools.run("env", "-C", tmp, *argv)            # fio leaves its state in the current folder
    job, = json.loads(done.stdout[done.stdout.index("{"):])["jobs"]
    assert job["error"] == 0 and "verify:" not in done.stderr, done.stderr
    return job


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
@pytest.mark.parametrize("how", [
    {"rw": "randwrite", "bs": "4k", "iodepth": 32}, {"rw": "write", "bs": "1M", "iodepth": 4},
    {"rw": "randwrite", "bsrange": "512-128k", "bs_unaligned": 1, "iodepth": 16}],
    ids=["random-4k", "sequential-1M", "odd-sizes"])
def test_writes_and_verifies(daemon, tmp, fmt, how):
    path = tools.create(tmp / "a", "32M", fmt)
    d = daemon.serve(path, fmt)
    fio(tmp, d.uri(), size="32M", verify="crc32c", do_verify=1, verify_fatal=1, **how)
    d.stop()
    if fmt == "qcow2":
        tools.check(path)


def test_mixed_with_flushes(daemon, tmp):
    path = tools.create(tmp / "a", "32M")
    d = daemon.serve(path)
    job = fio(tmp, d.uri(), size="32M", rw="randrw", bs="4k", iodepth=16, fsync=32, io_size="16M")
    assert job["read"]["total_ios"] and job["write"]["total_ios"]
    d.stop()
    tools.check(path)


def test_trims(daemon, tmp):
    path = tools.create(tmp / "a", "32M")
    d = daemon.serve(path)
    fio(tmp, d.uri(), size="32M", rw="randtrimwrite", bs="64k", iodepth=8)
    d.stop()
    tools.check(path)
