# SPDX-License-Identifier: BSD-3-Clause
"""A guest writes a qcow2 header into its raw disk, to be shown a file of the host's: it gains nothing, whatever command
it writes with and however the disk is opened afterwards."""

import pytest

from lib import nbdraw, tools
from lib.daemon import DidNotStart, blockdev
from lib.hostile import Image
from lib.nbdproto import *                               # noqa: F403

M = 1 << 20
SECRET = b"the host's secret" * 4096


def header(tmp, kind):
    """The bytes that the guest would like its disk to begin with."""
    image = Image(open(tools.create(tmp / "made", "4M"), "rb").read())
    victim = bytes(tmp / "victim")
    if kind == "backing":
        image.backing(victim)
    elif kind == "backing-unrecorded":
        image.backing(victim, fmt=None)
    else:
        image.data_file(victim)
    return image.bytes()


def by_writes(c, data):
    c.write(0, data)


def by_bytes(c, data):
    """The magic byte by byte and last, and the rest around it."""
    c.write(4, data[4:])
    for i in 3, 1, 0, 2:
        c.write(i, data[i:i + 1])


def by_zeroes(c, data):
    """Ones first, then zeroes where zeroes have to be; the guest's disk has data behind that."""
    c.write(0, b"\xff" * len(data))
    at = 0
    while at < len(data):
        end = at
        while end < len(data) and data[end] == 0:
            end += 1
        if end > at:
            c.zero(at, end - at, 2)
        start = end
        while end < len(data) and data[end]:
            end += 1
        if end > start:
            c.write(start, data[start:end])
        at = end


def by_trim(c, data):
    c.trim(0, M)
    c.write(0, data[:512], 1)
    c.write(512, data[512:].rstrip(b"\0"))


@pytest.fixture
def victim(tmp):
    path = tmp / "victim"
    path.write_bytes(SECRET)
    yield path
    assert path.read_bytes() == SECRET, "the host's file was written to"


@pytest.fixture
def disk(tmp):
    path = tmp / "disk.raw"
    with open(path, "wb") as f:
        f.truncate(8 * M)
    return path


WAYS = {f.__name__: f for f in (by_writes, by_bytes, by_zeroes, by_trim)}


def everything(c):
    return b"".join(c.read(at, M) for at in range(0, c.size, M))


@pytest.mark.merino_only                                 # QEMU has no quick mode
@pytest.mark.parametrize("kind", ["backing", "backing-unrecorded", "data-file"])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_gained(daemon, tmp, victim, disk, way, kind):
    data = header(tmp, kind)
    d = daemon.start("-f", "raw", "--nbd-server", f"addr.type=unix,addr.path={tmp}/s", disk, listen=None)
    c = nbdraw.Conn(f"{tmp}/s").enter("")
    WAYS[way](c, data)
    seen = everything(c)
    assert seen[:len(data)] == data and c.size == 8 * M
    c.close()

    # Added again while the daemon runs, as raw ...
    d.qmp.cmd("block-export-del", {"id": "disk0", "mode": "hard"})
    d.qmp.cmd("blockdev-del", {"node-name": "disk0"})
    d.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "n", "file": {"driver": "file", "filename": str(disk)}})
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n", "name": "", "writable": True})
    c = nbdraw.Conn(f"{tmp}/s").enter("")
    assert everything(c) == seen
    c.close()
    # ... or as the base of an overlay that records no format.
    d.qmp.cmd("block-export-del", {"id": "e", "mode": "hard"})
    d.qmp.cmd("blockdev-del", {"node-name": "n"})
    over = Image(open(tools.create(tmp / "over.qcow2", "8M"), "rb").read())
    over.backing(bytes(disk), fmt=None)
    (tmp / "over.qcow2").write_bytes(over.bytes())
    assert "records" in d.qmp.error("blockdev-add", {
        "driver": "qcow2", "node-name": "o",
        "file": {"driver": "file", "filename": str(tmp / "over.qcow2")}})[1].replace("record ", "records ")
    d.stop()

    # After a restart with the same options it is what it was,
    d = daemon.start("-f", "raw", "--nbd-server", f"addr.type=unix,addr.path={tmp}/s", disk, listen=None)
    assert everything(nbdraw.Conn(f"{tmp}/s").enter("")) == seen
    d.stop()
    d = daemon.start("--blockdev", blockdev(disk, "raw", "n"), "--export", "nbd,id=e,node-name=n,name=,writable=on")
    assert everything(d.enter("")) == seen
    d.stop()
    # and nobody guesses that it is something else.
    with pytest.raises(DidNotStart) as e:
        daemon.start("--nbd-server", f"addr.type=unix,addr.path={tmp}/s", disk, listen=None)
    assert "format not given" in e.value.stderr


@pytest.mark.merino_only
def test_a_disk_of_unknown_format_cannot_become_qcow2(daemon, tmp, victim, disk):
    daemon.start("--nbd-server", f"addr.type=unix,addr.path={tmp}/s", disk, listen=None)
    c = nbdraw.Conn(f"{tmp}/s").enter("")
    data = header(tmp, "backing")[:4096]
    for cmd, payload in ((CMD_WRITE, data), (CMD_WRITE_ZEROES, b""), (CMD_TRIM, b"")):
        assert c.call(cmd, 0, 4096, data=payload).error == EPERM
    assert c.read(0, 4096) == bytes(4096)
