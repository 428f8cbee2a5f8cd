# SPDX-License-Identifier: BSD-3-Clause
"""The fixtures themselves: a daemon starts, serves, answers and ends."""

import pytest

from lib import pattern, tools
from lib.daemon import DidNotStart


def test_serves_and_ends(daemon, tmp):
    d = daemon.serve(tools.create(tmp / "a.qcow2", "4M"))
    c = d.enter()
    assert c.size == 4 << 20
    data = pattern.block(1, 65536)
    c.write(12345, data)
    assert c.read(12345, 65536) == data
    d.stop()
    tools.check(tmp / "a.qcow2")
    assert tools.content(tmp / "a.qcow2")[12345:12345 + 65536] == data


def test_monitor_quit_ends_with_status_zero(daemon, tmp):
    d = daemon.serve(tools.create(tmp / "a.qcow2", "4M"))
    assert d.qmp.cmd("quit") == {}
    d.wait_end()


def test_bad_option_does_not_start(daemon):
    with pytest.raises(DidNotStart) as e:
        daemon.start("--export", "type=nbd,id=x,node-name=nothing")
    assert e.value.status == 1 and "nothing" in e.value.stderr


@pytest.mark.merino_only                                 # QEMU waits for ever
def test_ends_while_a_client_does_not_read(daemon, tmp):
    """Replies that nobody takes must not hold up the end."""
    d = daemon.serve(tools.create(tmp / "a.raw", "64M", "raw"), "raw")
    c = d.enter(structured=False)
    for i in range(4):
        c.send(c.pack(0, i << 24, 16 << 20))
    c.chunk()                                            # the server is replying by now
    d.stop()
