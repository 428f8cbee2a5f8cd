# SPDX-License-Identifier: BSD-3-Clause
"""Sockets: unix, TCP, several at once, started and stopped while the daemon runs; the short command line."""

import contextlib
import os
import re
import signal
import subprocess
import time

import pytest

from lib import nbdraw, qmp, tools
from lib.daemon import disk_args, free_port, gone, program
from lib.patience import HANG, wait_until
from lib.smalldisk import DATA, raw


def unix(path):
    return {"type": "unix", "data": {"path": str(path)}}


def test_tcp(daemon, tmp):
    d = daemon.serve(raw(tmp), "raw", listen="inet")
    assert d.enter().read(0, 4096) == DATA[:4096]
    assert tools.run("nbdinfo", "--size", d.uri()).stdout == "4194304\n"


def test_tcp_answers_small_requests_at_once(daemon, tmp):
    """Without TCP_NODELAY each round trip takes 40 ms; a loaded machine is as slow now and then, not always."""
    c = daemon.serve(raw(tmp), "raw", listen="inet").enter()

    def a_quarter_is_quick():
        took = []
        for _ in range(200):
            start = time.monotonic()
            c.read(0, 512)
            c.write(0, b"x" * 512)
            took.append(time.monotonic() - start)
        return sorted(took)[50] < 0.03
    wait_until(a_quarter_is_quick)


def test_server_started_by_qmp(daemon, tmp):
    d = daemon.start("--blockdev", f"driver=file,node-name=n,filename={raw(tmp)}", listen=None)
    d.qmp.cmd("nbd-server-start", {"addr": unix(tmp / "s")})
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n", "name": "disk"})
    assert nbdraw.Conn(str(tmp / "s")).enter("disk").read(0, 4096) == DATA[:4096]


def test_server_stop_ends_connections_and_removes_the_socket(daemon, tmp):
    d = daemon.serve(raw(tmp), "raw")
    c = d.enter()
    d.qmp.cmd("nbd-server-stop")
    assert c.closed_by_server()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        d.connect()
    assert not os.path.exists(d.nbd_address)


def test_server_can_be_started_again(daemon, tmp):
    d = daemon.serve(raw(tmp), "raw")
    d.qmp.cmd("nbd-server-stop")
    d.qmp.cmd("nbd-server-start", {"addr": unix(d.nbd_address)})
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e2", "node-name": "disk", "name": "disk"})
    assert d.enter().read(0, 512) == DATA[:512]


@pytest.mark.merino_only                                 # QEMU leaves it behind
def test_socket_is_removed_at_the_end(daemon, tmp):
    d = daemon.serve(raw(tmp), "raw")
    d.stop()
    assert not os.path.exists(d.nbd_address)


def test_starts_over_the_socket_of_a_killed_daemon(daemon, tmp):
    d = daemon.serve(raw(tmp), "raw")
    d.kill()
    assert os.path.exists(d.nbd_address)
    daemon.start("--nbd-server", f"addr.type=unix,addr.path={d.nbd_address}", *disk_args(raw(tmp), "raw"), listen=None)
    assert d.enter().read(0, 512) == DATA[:512]


def test_export_added_and_removed_while_clients_come_and_go(daemon, tmp):
    d = daemon.serve(raw(tmp), "raw", name="first")
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "late", "node-name": "first", "name": "late"})
    assert d.enter("late").read(0, 512) == DATA[:512]
    d.close_clients()
    d.qmp.cmd("block-export-del", id="late", mode="hard")
    d.qmp.event("BLOCK_EXPORT_DELETED")
    with pytest.raises(nbdraw.OptionRefused):
        d.enter("late")
    assert d.enter("first").read(0, 512) == DATA[:512]


@pytest.mark.merino_only                                 # QEMU has one NBD server per process
def test_several_listeners_on_the_command_line(daemon, tmp):
    port = free_port()
    d = daemon.start("--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}",
                     "--nbd-server", f"addr.type=unix,addr.path={tmp}/second", *disk_args(raw(tmp), "raw"))
    for address in (d.nbd_address, ("127.0.0.1", port), f"{tmp}/second"):
        c = nbdraw.Conn(address).enter("disk")
        assert c.read(0, 4096) == DATA[:4096]
        c.close()


@pytest.mark.merino_only
def test_several_listeners_by_qmp(daemon, tmp):
    d = daemon.serve(raw(tmp), "raw")
    d.qmp.cmd("nbd-server-start", {"addr": unix(tmp / "b")})
    assert nbdraw.Conn(str(tmp / "b")).enter("disk").read(0, 512) == DATA[:512]
    with pytest.raises(qmp.QMPError, match="NBD server already running"):
        d.qmp.cmd("nbd-server-start", {"addr": unix(tmp / "b")})
    d.qmp.cmd("nbd-server-stop")
    for address in (d.nbd_address, str(tmp / "b")):
        with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
            nbdraw.Conn(address)


@contextlib.contextmanager
def short(tmp, path, **env):
    """merinod disk.qcow2: what people type.  Gives the process and its URI."""
    with open(tmp / "err", "ab") as err:
        proc = subprocess.Popen([program(), path], cwd=tmp, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=err, text=True, env={**os.environ, **env})
    try:
        yield proc, re.search(r"nbd(\+unix)?://\S+", proc.stdout.readline()).group()
    finally:
        proc.terminate()
        status = proc.wait(HANG)
        proc.stdout.close()
    assert status in (0, -signal.SIGKILL), (tmp / "err").read_text()


@pytest.mark.merino_only
def test_short_command_line_prints_a_uri_that_works(tmp):
    path = tools.create(tmp / "disk.qcow2", "4M")
    with short(tmp, path) as (_, uri):
        assert tools.run("nbdinfo", "--size", uri).stdout == "4194304\n"
        tools.qemu_io(uri, "write -P 1 0 64k", "read -P 1 0 64k", fmt="raw")
    tools.check(path)


@pytest.mark.merino_only
def test_the_directory_of_a_killed_one_goes_with_the_next(tmp):
    """It stays while its merinod lives, and as long as it is young."""
    place = tmp / "run"
    place.mkdir(mode=0o700)
    disks = [tools.create(tmp / f"{name}.qcow2", "1M") for name in "ab"]

    def others():
        """What there is besides the next one's own."""
        with short(tmp, disks[1], XDG_RUNTIME_DIR=str(place)) as (_, uri):
            mine, = {p for p in place.iterdir() if f"{p}/nbd" in uri}
            seen = set(place.iterdir()) - {mine}
        assert not mine.exists()
        return seen
    with short(tmp, disks[0], XDG_RUNTIME_DIR=str(place)) as (first, _):
        used, = place.iterdir()
        os.utime(used, (0, 0))
        assert others() == {used} and (used / "nbd").is_socket()
        first.kill()
        first.wait(HANG)
    os.utime(used)
    assert others() == {used}
    os.utime(used, (0, 0))
    wait_until(lambda: others() == set())


def test_missing_image_is_named(tmp):
    done = subprocess.run([program(), "--blockdev", f"driver=file,node-name=n,filename={tmp}/nope.raw"],
                          capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 1 and f"{tmp}/nope.raw" in done.stderr and "No such file" in done.stderr


def test_daemonize_returns_when_serving(tmp):
    """The parent ends with 0 once the socket is there; the child's pid is in the file."""
    path = raw(tmp)
    tools.run(program(), "--nbd-server", f"addr.type=unix,addr.path={tmp}/s", *disk_args(path, "raw"), "--daemonize",
              "--pidfile", tmp / "pid")
    pid = int((tmp / "pid").read_text())
    try:
        assert nbdraw.Conn(f"{tmp}/s").enter("disk").read(0, 512) == DATA[:512]
    finally:
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: gone(pid))
    assert not (tmp / "pid").exists()
