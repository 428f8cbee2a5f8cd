# SPDX-License-Identifier: BSD-3-Clause
"""A remote export as a node, seen through the daemon: what other servers have and lack."""

import random

import nbd
import pytest

from lib import pattern, tools
from lib.daemon import DidNotStart, blockdev, differs, is_qsd
from lib.nbdserver import Server

SIZE = 8 << 20


def node(sock, extra="", export="exp"):
    return (f"driver=nbd,node-name=disk,discard=unmap,server.type=unix,server.path={sock}"
            f"{export and ',export=' + export}{extra and ',' + extra}")


def serve(daemon, blockdev_option, writable=True, **kw):
    return daemon.start("--blockdev", blockdev_option, "--export",
                        f"type=nbd,id=disk,node-name=disk,writable={'on' if writable else 'off'}", **kw)


def exercise(h, model, seed, rounds=120, align=1):
    """Random requests; MODEL follows."""
    rnd, size = random.Random(seed), len(model)
    for _ in range(rounds):
        at = rnd.randrange(size // align) * align
        n = min(rnd.choice([align, 512, 4096, 65536, 100000, 1 << 20, 3 << 20]) // align * align or align, size - at)
        what = rnd.randrange(6)
        if what == 0:
            h.zero(n, at, rnd.choice([0, 1, 2]))
            model[at:at + n] = bytes(n)
        elif what == 1:
            assert pattern.first_difference(h.pread(n, at), model[at:at + n]) is None
        elif what == 2:
            h.flush()
        else:
            data = rnd.randbytes(n)
            h.pwrite(data, at, rnd.choice([0, 1]))
            model[at:at + n] = data
    assert pattern.first_difference(h.pread(size, 0), model) is None


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_proxy_of_qemu_nbd(daemon, servers, tmp, fmt):
    path = tools.create(tmp / "a", SIZE, fmt)
    p = servers.qemu_nbd(tmp / "s", path, fmt)
    d = serve(daemon, node(tmp / "s"))
    model = bytearray(SIZE)
    exercise(d.libnbd(), model, f"proxy {fmt}")
    d.stop()
    p.terminate()
    p.wait()
    assert tools.content(path, fmt) == model


@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_map_is_the_servers(daemon, servers, tmp, fmt):
    path = tools.create(tmp / "a", SIZE, fmt)
    tools.qemu_io(path, "write 64k 64k", "write -z 1M 1M", "write 3M 100k", "write 7M 1M", fmt=fmt)
    servers.qemu_nbd(tmp / "s", path, fmt)
    d = serve(daemon, node(tmp / "s"))
    ours = d.enter(contexts=["base:allocation"]).status_all()
    direct = nbd.NBD()
    direct.add_meta_context("base:allocation")
    direct.connect_uri(f"nbd+unix:///exp?socket={tmp}/s")
    theirs = []
    direct.block_status(SIZE, 0, lambda context, offset, e, err: theirs.extend(zip(e[::2], e[1::2])) or 0)
    assert [(n, flags) for _, n, flags in ours] == theirs


def test_trim_reaches_the_server(daemon, servers, tmp):
    path = tools.create(tmp / "a.qcow2", SIZE)
    tools.qemu_io(path, "write 0 4M")
    p = servers.qemu_nbd(tmp / "s", path, "qcow2")
    d = serve(daemon, node(tmp / "s"))
    d.libnbd().trim(2 << 20, 1 << 20)
    d.stop()
    p.terminate()
    p.wait()
    assert [(e["start"], e["length"]) for e in tools.mapping(path) if e["data"]] == [(0, 1 << 20), (3 << 20, 1 << 20)]


KITS = {
    "all": [],
    "nozero": ["--filter=nozero"],
    "zero-emulated": ["--filter=nozero", "zeromode=emulate"],
    "no-extents": ["--filter=noextents"],
    "no-structured": ["--no-sr"],
    "small-requests": ["--filter=blocksize-policy", "blocksize-maximum=65536", "blocksize-error-policy=error"],
    "slow": ["--filter=delay", "delay-read=2ms", "delay-write=2ms"],
}


@pytest.mark.parametrize("kind", KITS)
def test_nbdkit(daemon, servers, tmp, kind):
    """Servers that lack something."""
    options = KITS[kind]
    flags = [o for o in options if o.startswith("--")]
    servers.nbdkit(tmp / "s", *flags, "memory", SIZE, *[o for o in options if not o.startswith("--")])
    exercise(serve(daemon, node(tmp / "s", export="")).libnbd(), bytearray(SIZE), kind, 60)


@pytest.mark.parametrize("minimum", [512, 4096])
def test_block_size_minimum(daemon, servers, tmp, minimum):
    """Requests at odd places, to a server that refuses them."""
    servers.nbdkit(tmp / "s", "--filter=blocksize-policy", "memory", SIZE, f"blocksize-minimum={minimum}",
                   f"blocksize-preferred={max(4096, minimum)}", "blocksize-maximum=1M", "blocksize-error-policy=error")
    h = serve(daemon, node(tmp / "s", export="")).libnbd()
    h.set_strict_mode(0)
    exercise(h, bytearray(SIZE), f"minimum {minimum}", 60, differs(1, minimum))


@pytest.mark.merino_only
def test_small_writes_into_one_block(daemon, servers, tmp):
    """Read-modify-writes at a time: none undoes another."""
    servers.nbdkit(tmp / "s", "--filter=blocksize-policy", "--filter=delay", "memory", SIZE, "blocksize-minimum=4096",
                   "blocksize-preferred=4096", "blocksize-maximum=1M", "blocksize-error-policy=error", "rdelay=1ms")
    h = serve(daemon, node(tmp / "s", export="")).libnbd()
    for i in range(64):
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i + 1]) * 64), i * 64)
    while h.aio_in_flight():
        h.poll(-1)
    assert h.pread(4096, 0) == b"".join(bytes([i + 1]) * 64 for i in range(64))


def test_errors_pass(daemon, servers, tmp):
    servers.nbdkit(tmp / "s", "--filter=error", "memory", SIZE, "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    h = serve(daemon, node(tmp / "s", export="")).libnbd()
    with pytest.raises(nbd.Error) as e:
        h.pwrite(b"x" * 4096, 0)
    assert e.value.errnum == 28
    assert h.pread(4096, 0) == bytes(4096)


def test_read_only_server(daemon, servers, tmp):
    servers.nbdkit(tmp / "s", "-r", "memory", SIZE)
    with pytest.raises(DidNotStart) as e:
        serve(daemon, node(tmp / "s", export=""))
    assert "read-only" in e.value.stderr or "read only" in e.value.stderr or is_qsd()
    for extra in "read-only=on", "auto-read-only=on":
        h = serve(daemon, node(tmp / "s", extra, ""), writable=False).libnbd()
        assert h.is_read_only() and h.pread(512, 0) == bytes(512)


def test_nothing_there(daemon, tmp):
    with pytest.raises(DidNotStart) as e:
        serve(daemon, node(tmp / "s"))
    assert "Failed to connect to" in e.value.stderr and "No such file" in e.value.stderr


def test_no_such_export(daemon, servers, tmp):
    servers.qemu_nbd(tmp / "s", tools.create(tmp / "a", SIZE, "raw"))
    with pytest.raises(DidNotStart) as e:
        serve(daemon, node(tmp / "s", export="other"))
    assert "Requested export not available" in e.value.stderr


def test_inet(daemon, servers, tmp):
    """By name, over TCP; the server is a merinod."""
    path = tools.create(tmp / "a.qcow2", SIZE)
    server = daemon.serve(path, listen="inet")
    port = server.nbd_address[1]
    d = serve(daemon, f"driver=nbd,node-name=disk,server.type=inet,server.host=localhost,server.port={port},export=disk")
    exercise(d.libnbd(), bytearray(SIZE), "inet", 40)
    d.stop()


@pytest.mark.parametrize("base", [False, True])
def test_qcow2_on_it(daemon, servers, tmp, base):
    """An image whose file is remote; with BASE, only what is below it is."""
    base_path = tools.create(tmp / "base.qcow2", SIZE)
    tools.qemu_io(base_path, "write -P 0x11 1M 2M")
    path = tools.create(tmp / "a.qcow2", SIZE, **(dict(backing=base_path) if base else {}))
    remote = base_path if base else path
    # Where the file is remote it cannot grow: the server's has room.
    if not base:
        with open(path, "r+b") as f:
            f.truncate(SIZE * 2)
    p = servers.qemu_nbd(tmp / "s", remote, "qcow2" if base else "raw", *(["-r"] if base else []))
    option = (f"driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename={path},backing.driver=nbd,"
              f"backing.server.type=unix,backing.server.path={tmp}/s,backing.export=exp,backing.read-only=on" if base else
              f"driver=qcow2,node-name=disk,discard=unmap,file.driver=nbd,file.server.type=unix,"
              f"file.server.path={tmp}/s,file.export=exp")
    d = serve(daemon, option)
    model = bytearray(SIZE)
    if base:
        model[1 << 20:3 << 20] = b"\x11" * (2 << 20)
    exercise(d.libnbd(), model, f"on it {base}", 80)
    d.stop()
    p.terminate()
    p.wait()
    if base:
        tools.check(path)
    else:
        # The end of the file was given; what counts is that no cluster is lost or shared.
        tools.run("qemu-img", "check", "-q", "-f", "qcow2", path)
    assert tools.content(path) == model


@pytest.mark.merino_only
@pytest.mark.parametrize("fault", ["outside", "before", "missing", "twice", "huge"])
def test_reads_that_lie(daemon, tmp, fault):
    """No byte of an answer lands where it does not belong, and none is left as memory had it (QEMU leaves them)."""
    class Liar(Server):
        def read(self, offset, length):
            data = b"y" * length
            return {"outside": [(offset + 512, data)], "before": [(offset - 512, data)] if offset else [(0, data)],
                    "missing": [(offset, data[:length // 2])],
                    "twice": [(offset + length // 2, data[:length // 2]), (offset + length // 2, data[:length // 2])],
                    "huge": [(2**64 - 256, data)]}[fault]

    with Liar(tmp / "s", SIZE) as s:
        h = serve(daemon, node(s.path, export="", extra="read-only=on"), writable=False).libnbd()
        try:
            got = h.pread(4096, 8192)
        except nbd.Error:
            got = None
        assert got is None or (fault == "twice" and got in (bytes(2048) + b"y" * 2048, b"y" * 4096))


@pytest.mark.parametrize("extents", [[(0, 0)], [], [(512, 1)] * 5000, [(2**32 - 1, 0)], 5, None])
def test_status_that_lies(daemon, tmp, extents):
    class Liar(Server):
        def status(self, context, offset, length):
            return extents

    with Liar(tmp / "s", SIZE) as s:
        d = serve(daemon, node(s.path, export="", extra="read-only=on"), writable=False)
        h = d.libnbd(contexts=["base:allocation"])
        got = []
        try:
            h.block_status(SIZE, 0, lambda context, offset, e, err: got.extend(zip(e[::2], e[1::2])) or 0)
        except nbd.Error:
            got = None
        assert got is None or sum(n for n, _ in got) <= SIZE
        assert d.alive()


@pytest.mark.merino_only
def test_backing_file_that_names_a_server(daemon, tmp):
    """Whoever made an image does not make us connect anywhere."""
    with Server(tmp / "s", SIZE) as s:
        path = tools.create(tmp / "a.qcow2", SIZE)
        tools.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", s.uri, "-F", "raw", path)
        with pytest.raises(DidNotStart):
            daemon.start("--blockdev", blockdev(path, "qcow2", "disk", False), listen=None)
        assert s.connections == 0


@pytest.mark.merino_only
@pytest.mark.parametrize("fmt", [None, "qcow2"])
def test_disk_by_uri(daemon, servers, tmp, fmt):
    """merinod nbd+unix://…: an export as a disk of the command line."""
    path = tools.create(tmp / "a", SIZE, fmt or "raw")
    servers.qemu_nbd(tmp / "s", path)
    d = daemon.start(*(["-f", fmt] if fmt else []), f"nbd+unix:///exp?socket={tmp}/s")
    h = d.libnbd("")
    assert h.get_size() == SIZE and h.pread(4096, 0) == bytes(4096)


@pytest.mark.merino_only
def test_disk_by_uri_with_tls(daemon):
    with pytest.raises(DidNotStart) as e:
        daemon.start("nbds://localhost/exp")
    assert "tls-creds" in e.value.stderr
