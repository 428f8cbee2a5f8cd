# SPDX-License-Identifier: BSD-3-Clause
"""blkdebug: the errors that were asked for reach the client, and no others; then the disk goes on."""

import errno

import nbd
import pytest

from lib import tools
from lib.daemon import DidNotStart

# With DF: after an error in a sparse read QEMU ends the connection.
CALLS = {
    "read": lambda h, at: h.pread_structured(4096, at, lambda *a: 0, nbd.CMD_FLAG_DF),
    "write": lambda h, at: h.pwrite(b"w" * 4096, at),
    "write-zeroes": lambda h, at: h.zero(4096, at),
    "discard": lambda h, at: h.trim(4096, at),
    "flush": lambda h, at: h.flush(),
}


def serve(daemon, tmp, *rules, extra=""):
    path = tmp / "disk.raw"
    path.write_bytes(b"d" * (1 << 20))
    options = "".join(f",inject-error.{i}.event=none,{','.join(f'inject-error.{i}.{r}' for r in rule.split(','))}"
                      for i, rule in enumerate(rules))
    return daemon.start("--blockdev", "driver=blkdebug,node-name=disk,discard=unmap,image.driver=file,"
                        f"image.filename={path}{options}{extra}",
                        "--export", "type=nbd,id=disk,node-name=disk,writable=on").libnbd()


def failure(h, call, at=0):
    """Its errno, or None."""
    try:
        CALLS[call](h, at)
    except nbd.Error as e:
        return e.errnum
    return None


@pytest.mark.parametrize("kind", CALLS)
def test_iotype(daemon, tmp, kind):
    h = serve(daemon, tmp, f"iotype={kind},errno=28,once=off")
    for call in CALLS:
        assert failure(h, call) == (errno.ENOSPC if call == kind else None), call
    assert failure(h, kind) == errno.ENOSPC


def test_all_kinds_by_default(daemon, tmp):
    h = serve(daemon, tmp, "immediately=on")
    assert {failure(h, call) for call in CALLS} == {errno.EIO}


def test_once(daemon, tmp):
    h = serve(daemon, tmp, "iotype=read,once=on")
    assert [failure(h, "read") for _ in range(3)] == [errno.EIO, None, None]


def test_sector(daemon, tmp):
    h = serve(daemon, tmp, "iotype=write,sector=16,errno=12")
    assert [failure(h, "write", at) for at in (0, 4096, 8192, 12288)] == [None, None, errno.ENOMEM, None]


def test_two_rules(daemon, tmp):
    h = serve(daemon, tmp, "iotype=read,sector=0,once=on", "iotype=read,sector=8,errno=28,once=on")
    assert [failure(h, "read", at) for at in (4096, 0, 4096, 0)] == [errno.ENOSPC, errno.EIO, None, None]


def test_block_status(daemon, tmp):
    path = tmp / "disk.raw"
    path.write_bytes(bytes(1 << 20))
    c = daemon.start("--blockdev", "driver=blkdebug,node-name=disk,inject-error.0.event=none,image.driver=file,"
                     f"inject-error.0.iotype=block-status,inject-error.0.once=on,image.filename={path}",
                     "--export", "type=nbd,id=disk,node-name=disk").libnbd(contexts=["base:allocation"])
    with pytest.raises(nbd.Error):
        c.block_status(4096, 0, lambda *a: 0)
    c.block_status(4096, 0, lambda *a: 0)


def test_max_transfer(daemon, tmp):
    """A long write in pieces: the first ones are there when a later one fails."""
    h = serve(daemon, tmp, "iotype=write,sector=64,errno=28", extra=",max-transfer=4096")
    with pytest.raises(nbd.Error):
        h.pwrite(b"n" * 65536, 0)
    assert h.pread(1 << 20, 0) == b"n" * 32768 + b"d" * ((1 << 20) - 32768)


def test_qcow2_on_it(daemon, tmp):
    """The file below an image fails once: the image is whole afterwards."""
    path = tools.create(tmp / "a.qcow2", 1 << 20)
    d = daemon.start("--blockdev", f"driver=qcow2,node-name=disk,file.driver=blkdebug,file.image.driver=file,"
                     f"file.image.filename={path},file.inject-error.0.event=none,file.inject-error.0.iotype=write,"
                     "file.inject-error.0.once=on,file.inject-error.0.errno=28,file.inject-error.0.sector=700",
                     "--export", "type=nbd,id=disk,node-name=disk,writable=on")
    h = d.libnbd()
    results = []
    for i in range(4):
        results.append(failure(h, "write", i << 16))
    assert results[-1] is None and set(results) <= {None, errno.ENOSPC, errno.EIO}
    d.stop()
    tools.check(path)
    assert tools.content(path)[3 << 16:][:4096] == b"w" * 4096


@pytest.mark.parametrize("option", ["inject-error.0.event=nope", "inject-error.0.event=none,inject-error.0.iotype=fly",
                                    "inject-error.0.iotype=read", "what=ever"])
def test_refused(daemon, tmp, option):
    with pytest.raises(DidNotStart):
        serve(daemon, tmp, extra="," + option)


@pytest.mark.merino_only
@pytest.mark.parametrize("option", ["align=4096", "config=/x", "set-state.0.event=none", "opt-discard=4096"])
def test_refused_by_name(daemon, tmp, option):
    with pytest.raises(DidNotStart) as e:
        serve(daemon, tmp, extra="," + option)
    assert f"'{option.split('=')[0].split('.')[0]}' is not supported" in e.value.stderr
