# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit's nbd plugin in front of us: our export served on by another server."""

import json

from lib import layered, pattern, tools


def through(d, command, *options):
    """Run a shell command with nbdkit between it and the daemon; $uri is nbdkit's."""
    return tools.run("nbdkit", "-U", "-", *options, "nbd", f"uri={d.uri()}", "--run", command).stdout


def test_reads(disk, tmp):
    through(disk, f'nbdcopy "$uri" {tmp}/out')
    assert pattern.first_difference((tmp / "out").read_bytes(), layered.CONTENT) is None


def test_writes(disk, tmp):
    (tmp / "in").write_bytes(pattern.block("kit", layered.SIZE))
    through(disk, f'nbdcopy {tmp}/in "$uri"')
    assert pattern.first_difference(disk.enter().read(0, layered.SIZE), (tmp / "in").read_bytes()) is None


def test_capabilities_come_through(disk):
    told, = json.loads(through(disk, 'nbdinfo --json "$uri"'))["exports"]
    assert all(told[k] for k in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn", "can_fast_zero"))


def test_extents_come_through(disk):
    told = json.loads(through(disk, 'nbdinfo --map --json "$uri"'))
    assert [(e["offset"], e["length"], e["type"]) for e in told] == layered.ALLOCATION


def test_shared_connection(disk, tmp):
    through(disk, f'nbdcopy --connections=4 "$uri" {tmp}/out')
    through(disk, f'nbdinfo "$uri" && nbdcopy "$uri" {tmp}/out2')
    assert (tmp / "out").read_bytes() == (tmp / "out2").read_bytes() == layered.CONTENT


def test_filters_on_top(disk, tmp):
    """A part of our disk, cached and with a block size, as a user would stack it."""
    tools.run("nbdkit", "-U", "-", "--filter=offset", "--filter=blocksize", "nbd", f"uri={disk.uri()}", "offset=512k",
              "range=1M", "minblock=4k", "--run", f'nbdcopy "$uri" {tmp}/out')
    assert (tmp / "out").read_bytes() == layered.CONTENT[512 << 10:1536 << 10]
