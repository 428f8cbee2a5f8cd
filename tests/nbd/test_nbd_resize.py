# SPDX-License-Identifier: BSD-3-Clause
"""A disk that gets another size while clients use it: who asks again sees it, nobody is harmed."""

import os

import pytest

from lib import nbdraw, pattern, tools
from lib.nbdproto import *                               # noqa: F403
from lib.qmp import QMPError

pytestmark = pytest.mark.merino_only                     # QEMU resizes no node that is exported

MIB = 1 << 20


def resize(d, size):
    for _ in range(50):
        try:
            return d.qmp.cmd("block_resize", {"node-name": "disk", "size": size})
        except QMPError as e:
            if "busy all the time" not in str(e):        # on a machine that is
                raise
    raise AssertionError("never quiet")


def image(tmp, fmt, size=8 * MIB):
    data = pattern.block("resize", size)
    (tmp / "raw").write_bytes(data)
    if fmt == "raw":
        return str(tmp / "raw"), data
    tools.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp / "raw", tmp / "a.qcow2")
    return str(tmp / "a.qcow2"), data


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_clients_that_ask_again_see_it(daemon, tmp, fmt):
    path, data = image(tmp, fmt)
    d = daemon.serve(path, fmt)
    old = d.enter()
    sizes = (16 * MIB, 3 * MIB, 5 * MIB) if fmt == "raw" else (16 * MIB, 17 * MIB)     # qcow2 only grows
    for size in sizes:
        resize(d, size)
        assert d.enter().size == size
        assert d.libnbd().get_size() == size
    assert old.read(0, 512) == data[:512]
    d.stop()
    assert tools.info(path, fmt)["virtual-size"] == sizes[-1]


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_an_old_connection_follows(daemon, tmp, fmt):
    """It may use what is new, and is told where the end is by now."""
    path, data = image(tmp, fmt)
    c = daemon.serve(path, fmt)
    d, c = c, c.enter(contexts=["base:allocation"])
    resize(d, 16 * MIB)
    assert c.read(8 * MIB, MIB) == bytes(MIB)
    c.write(16 * MIB - 512, b"z" * 512)
    assert c.call(CMD_WRITE, 16 * MIB - 256, None, 0, b"z" * 512).error == ENOSPC
    assert sum(n for n, _ in c.status(0, 16 * MIB)) > 8 * MIB
    if fmt == "qcow2":
        return
    resize(d, 4 * MIB)
    assert c.read(0, 4 * MIB) == data[:4 * MIB]
    assert c.call(CMD_READ, 4 * MIB - 512, 1024).error == EINVAL
    assert c.call(CMD_READ, 4 * MIB, 512).error == EINVAL
    assert c.call(CMD_WRITE, 4 * MIB, None, 0, b"z" * 512).error == ENOSPC
    assert c.call(CMD_WRITE_ZEROES, 0, 8 * MIB).error == ENOSPC
    assert c.call(CMD_BLOCK_STATUS, 4 * MIB, 512).error == EINVAL
    resize(d, 8 * MIB)
    assert c.read(4 * MIB, 4 * MIB) == bytes(4 * MIB)


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
@pytest.mark.parametrize("extended", [False, True])
def test_resize_under_requests(daemon, tmp, fmt, extended):
    """64 in flight of every kind while the disk shrinks and grows: each is answered, by data or by an error."""
    path, data = image(tmp, fmt)
    d = daemon.serve(path, fmt)
    c = d.enter(contexts=["base:allocation"], extended=extended)
    for turn in range(12):
        cookies = []
        for i in range(64):
            at = (i * 131072) % (8 * MIB)
            kind = (CMD_READ, CMD_WRITE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS, CMD_CACHE, CMD_TRIM, CMD_FLUSH)[i % 7]
            if kind == CMD_WRITE:
                cookies.append(c.start(kind, at, None, 0, b"w" * 65536))
            elif kind == CMD_FLUSH:
                cookies.append(c.start(kind))
            else:
                cookies.append(c.start(kind, at, 131072))
        resize(d, (9 + turn) * MIB if fmt == "qcow2" else (2 * MIB, 8 * MIB)[turn % 2])
        for cookie in cookies:
            assert c.answer(cookie).error in (0, EINVAL, ENOSPC)
    assert d.alive()
    assert len(c.read(0, 8 * MIB)) == 8 * MIB
    d.close_clients()
    d.stop()
    if fmt == "qcow2":
        tools.check(path)


def test_a_reply_from_a_file_that_shrank(daemon, tmp):
    """What was promised cannot be sent any more: that connection ends, the others go on."""
    path, data = image(tmp, "raw", 32 * MIB)
    d = daemon.serve(path, "raw")
    stuck, other = d.enter(structured=False), d.enter()
    cookies = [stuck.start(CMD_READ, 0, 32 * MIB) for _ in range(3)]
    resize(d, MIB)
    try:
        for cookie in cookies:
            stuck.answer(cookie)
    except (nbdraw.Closed, ConnectionError):
        pass
    assert other.read(0, MIB) == data[:MIB]


def test_replies_whose_pages_went_away(daemon, tmp):
    """They were in the page cache when they were promised; the client took its time."""
    path, data = image(tmp, "raw", 32 * MIB)
    d = daemon.serve(path, "raw")
    c, other = d.enter(structured=False), d.enter()
    cookies = [c.start(CMD_READ, at * MIB, 4 * MIB) for at in range(0, 32, 4)]
    with open(path, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert other.read(0, MIB) == data[:MIB]
    for i, cookie in enumerate(cookies):
        assert c.answer(cookie).chunks[0].data == data[i * 4 * MIB:(i + 1) * 4 * MIB]
