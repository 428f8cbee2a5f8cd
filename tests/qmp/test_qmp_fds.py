# SPDX-License-Identifier: BSD-3-Clause
"""Descriptors over the monitor: getfd, add-fd and the rest; /dev/fdset/N; --add-fd.  Texts are qemu-system's."""

import array
import json
import os
import socket
import subprocess
import time

import pytest

from lib import daemon as daemon_module
from lib import tools
from lib.patience import HANG, wait_until
from lib.peer import Peer
from lib.schema import Schema

pytestmark = pytest.mark.merino_only
MIB = 1 << 20


def send_fds(client, message, fds):
    data = json.dumps(message).encode() if isinstance(message, dict) else message
    client.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])


def cmd(client, name, arguments, *fds):
    """One command with descriptors; what it returns."""
    send_fds(client, {"execute": name, "arguments": arguments}, fds)
    reply = client.reply()
    return reply.get("return", reply.get("error", {}).get("desc"))


@pytest.fixture
def image(tmp):
    return tools.create(tmp / "a.raw", "1M", "raw")


def opened(path, flags=os.O_RDWR):
    return os.open(path, flags)


def test_add_fd_and_its_file(bare, image, tmp):
    fd = opened(image)
    added = cmd(bare.qmp, "add-fd", {"opaque": "rw:a"}, fd)
    os.close(fd)
    assert added["fdset-id"] == 0
    assert bare.qmp.cmd("query-fdsets") == [{"fdset-id": 0, "fds": [{"fd": added["fd"], "opaque": "rw:a"}]}]
    bare.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "n", "file": {
        "driver": "file", "filename": "/dev/fdset/0"}})
    bare.qmp.cmd("remove-fd", {"fdset-id": 0, "fd": added["fd"]})
    assert bare.qmp.cmd("query-fdsets") == []
    bare.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n", "writable": True})
    c = bare.enter("n")
    c.write(4096, b"through the descriptor")
    with open(image, "rb") as f:
        assert f.read()[4096:4118] == b"through the descriptor"


def test_the_descriptor_fits_how_the_file_is_opened(bare, image):
    fd = opened(image, os.O_RDONLY)
    cmd(bare.qmp, "add-fd", {"fdset-id": 7}, fd)
    node = {"driver": "file", "node-name": "n", "filename": "/dev/fdset/7"}
    assert bare.qmp.error("blockdev-add", node)[1] == "Could not open '/dev/fdset/7': Permission denied"
    bare.qmp.cmd("blockdev-add", {**node, "read-only": True})
    bare.qmp.cmd("blockdev-del", {"node-name": "n"})
    rw = opened(image)
    cmd(bare.qmp, "add-fd", {"fdset-id": 7}, rw)
    bare.qmp.cmd("blockdev-add", node)
    os.close(fd)
    os.close(rw)


@pytest.mark.parametrize("name, reason", [("/dev/fdset/9", "No such file or directory"),
                                          ("/dev/fdset/x", "Invalid argument"), ("/dev/fdset/", "Invalid argument"),
                                          ("/dev/fdset/-1", "Invalid argument"),
                                          ("/dev/fdset/99999999999999999999", "Invalid argument")])
def test_no_such_set(bare, name, reason):
    assert bare.qmp.error("blockdev-add", {"driver": "file", "node-name": "n", "filename": name}) == (
        "GenericError", f"Could not open '{name}': {reason}")


def test_sets_are_numbered_from_the_lowest(bare, image):
    fd = opened(image)
    assert [cmd(bare.qmp, "add-fd", {}, fd)["fdset-id"] for _ in range(3)] == [0, 1, 2]
    bare.qmp.cmd("remove-fd", {"fdset-id": 1})
    assert cmd(bare.qmp, "add-fd", {}, fd)["fdset-id"] == 1
    assert cmd(bare.qmp, "add-fd", {"fdset-id": 5}, fd)["fdset-id"] == 5
    assert [s["fdset-id"] for s in bare.qmp.cmd("query-fdsets")] == [0, 1, 2, 5]
    os.close(fd)


REFUSED = [("add-fd", {}), ("add-fd", {"fdset-id": 5}), ("getfd", {"fdname": "x"}), ("closefd", {"fdname": "x"}),
           ("closefd", {"fdname": "x" * 50000}), ("remove-fd", {"fdset-id": 3}), ("remove-fd", {"fdset-id": 3, "fd": 5}),
           ("remove-fd", {"fdset-id": -1}), ("getfd", None), ("add-fd", {"fdset-id": "1"}), ("getfd", {"fdname": 1}),
           ("remove-fd", {}), ("query-fdsets", {"a": 1})]


def test_refusals_are_qemus(bare, tmp):
    with Peer(tmp, "qemu-system-x86_64") as peer:
        want = [peer.qmp.error(*r) for r in REFUSED]
        with open("/dev/null") as f:
            send_fds(peer.qmp, {"execute": "getfd", "arguments": {"fdname": "1x"}}, [f.fileno()])
            digit = peer.qmp.reply()["error"]["desc"]
            send_fds(peer.qmp, {"execute": "add-fd", "arguments": {"fdset-id": -2}}, [f.fileno()])
            negative = peer.qmp.reply()["error"]["desc"]
            assert cmd(bare.qmp, "getfd", {"fdname": "1x"}, f.fileno()) == digit
            assert cmd(bare.qmp, "add-fd", {"fdset-id": -2}, f.fileno()) == negative
    got = [bare.qmp.error(*r) for r in REFUSED]
    assert [g for g in got if len(g[1]) < 1000] == [w for w in want if len(w[1]) < 1000] and len(got) == len(want)


def test_nothing_leaks(bare, image):
    """Refused, replaced, surplus and unwanted descriptors are all closed."""
    bare.qmp.cmd("query-version")
    fd = opened(image)
    before = bare.descriptors()
    for _ in range(50):
        cmd(bare.qmp, "getfd", {"fdname": "1x"}, fd)
        cmd(bare.qmp, "getfd", {"fdname": "x"}, fd, fd, fd)
        cmd(bare.qmp, "query-version", {}, *[fd] * 16)
        cmd(bare.qmp, "add-fd", {"fdset-id": -5}, fd)
        bare.qmp.error("nbd-server-start", {"addr": {"type": "fd", "data": {"str": "x"}}})   # it takes x, and does not listen
        cmd(bare.qmp, "getfd", {"fdname": "x"}, fd)
    bare.qmp.cmd("closefd", {"fdname": "x"})
    assert cmd(bare.qmp, "add-fd", {}, fd)["fdset-id"] == 0
    bare.qmp.cmd("remove-fd", {"fdset-id": 0})
    wait_until(lambda: bare.descriptors() <= before, why="descriptors are left")
    os.close(fd)


def test_descriptors_in_sets_are_limited(bare, image):
    fd = opened(image)
    results = [cmd(bare.qmp, "add-fd", {"fdset-id": i % 3}, fd) for i in range(1030)]
    assert [isinstance(r, dict) for r in results] == [True] * 1024 + [False] * 6
    assert results[-1] == "There are 1024 file descriptors in sets already"
    for i in range(3):
        bare.qmp.cmd("remove-fd", {"fdset-id": i})
    os.close(fd)


def test_names_are_limited(bare):
    with open("/dev/null") as f:
        results = [cmd(bare.qmp, "getfd", {"fdname": f"n{i}"}, f.fileno()) for i in range(258)]
    assert results == [{}] * 256 + ["There are 256 named file descriptors already"] * 2


def test_what_no_client_is_left_to_use_is_closed(bare, image):
    fd = opened(image)
    client = bare.connect_qmp()
    cmd(client, "add-fd", {}, fd)
    client.close()

    def is_gone():
        with bare.connect_qmp() as again:
            return again.cmd("query-fdsets") == []
    wait_until(is_gone, why="the set is still there")
    os.close(fd)


def test_nbd_server_on_a_socket_that_was_passed(daemon, tmp, image):
    """As incus does: getfd, then an address of type fd with its name."""
    d = daemon.start("--blockdev", f"file,node-name=n,filename={image}", listen=None)
    s = socket.socket(socket.AF_UNIX)
    s.bind(str(tmp / "passed"))
    s.listen()
    assert cmd(d.qmp, "getfd", {"fdname": "listener"}, s.fileno()) == {}
    d.qmp.cmd("nbd-server-start", {"addr": {"type": "fd", "data": {"str": "listener"}}})
    assert d.qmp.error("nbd-server-start", {"addr": {"type": "fd", "data": {"str": "listener"}}})[1] == (
        "File descriptor named 'listener' not found")
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n"})
    d.nbd_address = str(tmp / "passed")
    assert d.enter("n").size == MIB
    s.close()


def test_add_fd_on_the_command_line(daemon, tmp, image):
    fd = opened(image)
    argv = [daemon_module.program(), "--add-fd", f"fd={fd},set=3,opaque=x", "--blockdev",
            "file,node-name=n,filename=/dev/fdset/3", "--chardev",
            f"socket,id=m,path={tmp}/q,server=on,wait=off", "--monitor", "m", "--pidfile", str(tmp / "pid")]
    proc = subprocess.Popen(argv, pass_fds=[fd], preexec_fn=daemon_module.die_with_parent)
    try:
        while not daemon_module.content_of(tmp / "pid").strip():
            assert proc.poll() is None
            time.sleep(0.01)
        with daemon_module.qmp.QMP(str(tmp / "q")) as q:
            assert [n["node-name"] for n in q.cmd("query-named-block-nodes")] == ["n"]
            sets = q.cmd("query-fdsets")
            assert [(s["fdset-id"], s["fds"][0]["opaque"]) for s in sets] == [(3, "x")]
            q.cmd("quit")
        assert proc.wait(HANG) == 0
    finally:
        if proc.poll() is None:
            proc.kill()
            proc.wait()
        os.close(fd)


@pytest.mark.parametrize("value, text", [
    ("fd=99,set=1", "fd is not valid or already in use: Bad file descriptor"), ("set=1", "Parameter 'fd' is missing"),
    ("fd=99", "Parameter 'set' is missing"), ("fd=1,set=1", "fd cannot be a standard I/O stream"),
    ("fd=9,set=1,bogus=1", "Parameter 'bogus' is unexpected"), ("fd=99999999999,set=1", "fd and set must be below 2^31")])
def test_add_fd_refused(daemon, value, text):
    with pytest.raises(daemon_module.DidNotStart) as e:
        daemon.start("--add-fd", value)
    assert text in e.value.stderr and e.value.status == 1


def test_results_are_as_the_schema_says(bare, image):
    schema = Schema(bare.qmp.cmd("query-qmp-schema"))
    fd = opened(image)
    result = cmd(bare.qmp, "add-fd", {"opaque": "x"}, fd)
    assert schema.faults(result, schema.commands["add-fd"]["ret-type"]) == []
    assert schema.faults(bare.qmp.cmd("query-fdsets"), schema.commands["query-fdsets"]["ret-type"]) == []
    os.close(fd)


def test_bitmap_of_an_export_by_its_old_name(daemon, tmp):
    path = tools.create(tmp / "a.qcow2", "4M")
    tools.run("qemu-img", "bitmap", "--add", path, "b0")
    d = daemon.serve(path, export="bitmap=b0")
    assert d.enter("disk", contexts=["qemu:dirty-bitmap:b0"]).contexts


@pytest.mark.soak
def test_a_client_that_sends_no_more_and_does_not_read_is_dropped(bare):
    """64 of them would keep all places of a monitor."""
    stuck = bare.connect_qmp()
    request = json.dumps({"execute": "query-qmp-schema"}).encode()
    stuck.sock.settimeout(1)
    try:
        for _ in range(60):
            stuck.sock.sendall(request)
    except TimeoutError:
        pass
    stuck.sock.shutdown(socket.SHUT_WR)
    before = bare.descriptors()
    wait_until(lambda: bare.descriptors() == before - 1, why="it has its place still")
