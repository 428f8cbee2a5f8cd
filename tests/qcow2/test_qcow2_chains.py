# SPDX-License-Identifier: BSD-3-Clause
"""Backing chains: what is read through them, what is copied up, and that the lower images never change."""

import hashlib

import pytest

from lib import pattern, tools
from lib.daemon import disk_args

K, M = 1 << 10, 1 << 20
SIZE = 5 * M + 3 * 512


def digest(path):
    with open(path, "rb") as f:
        return hashlib.sha256(f.read()).hexdigest()


def layer(tmp, name, size, backing=None, fill=(), fmt="qcow2", backing_fmt="qcow2", **options):
    """An image with [(offset, length)] of its own data; returns its path."""
    path = tools.create(tmp / name, size, fmt, backing, backing_fmt, **options)
    commands = []
    for at, n in fill:
        data = tmp / f"{name}.{at}"
        data.write_bytes(pattern.block((name, at), n))
        commands.append(f"write -s {data} {at} {n}")
    if commands:
        tools.qemu_io(path, *commands, fmt=fmt)
    return path


def put(model, name, fill):
    for at, n in fill:
        n = min(n, len(model) - at)
        model[at:at + n] = pattern.block((name, at), n)


BASE = [(0, 2 * M), (3 * M - 100 * K, 200 * K)]
MID = [(M, M), (2 * M + 300 * K, 5 * K)]
TOP = [(1536 * K, 64 * K), (4 * M, 12345)]

CHAINS = {
    "same clusters": (dict(), dict(), dict()),
    "small to large": (dict(cluster_size="512"), dict(cluster_size="4k"), dict(cluster_size="1M")),
    "large to small": (dict(cluster_size="2M"), dict(cluster_size="64k"), dict(cluster_size="512")),
    "raw base": (dict(fmt="raw"), dict(backing_fmt="raw"), dict()),
}


@pytest.fixture(params=list(CHAINS))
def chain(request, tmp):
    """Three layers, the base the smallest; (top, [lower ones], content)."""
    a, b, c = CHAINS[request.param]
    base = layer(tmp, "base", 3 * M + 100 * K, fill=BASE, **a)
    mid = layer(tmp, "mid", 4 * M, base, fill=MID, **b)
    top = layer(tmp, "top", SIZE, mid, fill=TOP, **c)
    model = bytearray(SIZE)
    for name, fill in (("base", BASE), ("mid", MID), ("top", TOP)):
        put(model, name, fill)
    assert pattern.first_difference(tools.content(top), model) is None
    return top, [base, mid], model


def test_reads(daemon, chain):
    top, _, model = chain
    assert pattern.first_difference(daemon.serve(top).enter().read(0, SIZE), model) is None


def test_reads_in_small_pieces(daemon, chain):
    """Borders of clusters and layers fall inside and between requests."""
    top, _, model = chain
    c = daemon.serve(top).enter()
    asked = {c.start(0, at, min(33333, SIZE - at)): at for at in range(0, SIZE, 33333)}
    for cookie, at in asked.items():
        n = min(33333, SIZE - at)
        assert c.answer(cookie).assemble(at, n) == model[at:at + n]


def test_writes_copy_up_and_leave_the_lower_images_alone(daemon, tmp, chain):
    top, lower, model = chain
    before = [digest(p) for p in lower]
    d = daemon.serve(top)
    c = d.enter()
    for at, n in ((10, 10), (M - 5, 10), (1400 * K, 300 * K), (3 * M + 100 * K - 3, 6), (4 * M - 7, 14), (SIZE - 2, 2)):
        model[at:at + n] = pattern.block(("w", at), n)
        c.write(at, model[at:at + n])
    for at, n in ((100 * K, 10), (200 * K, 200 * K), (3 * M + 90 * K, 30 * K), (4 * M - 20 * K, 40 * K)):
        model[at:at + n] = bytes(n)
        c.zero(at, n)
    assert pattern.first_difference(c.read(0, SIZE), model) is None
    d.stop()
    tools.check(top)
    assert pattern.first_difference(tools.content(top), model) is None
    assert [digest(p) for p in lower] == before


def test_trim_never_shows_the_lower_images(daemon, chain):
    """Where the overlay's own cluster is given up, what lies below must not come to light."""
    top, _, model = chain
    d = daemon.serve(top)
    c = d.enter()
    c.write(0, pattern.block("mine", M))
    c.trim(0, M)
    got = c.read(0, M)
    mine = pattern.block("mine", M)
    assert all(g in (0, m) for g, m in zip(got, mine))
    d.stop()
    tools.check(top)
    assert tools.content(top)[:M] == got


def test_read_only_chain(daemon, chain):
    top, lower, model = chain
    before = [digest(p) for p in (top, *lower)]
    d = daemon.serve(top, writable=False)
    assert pattern.first_difference(d.enter().read(0, SIZE), model) is None
    d.stop()
    assert [digest(p) for p in (top, *lower)] == before


def test_relative_backing_name(daemon, tmp):
    """Relative to the overlay's folder, not to ours."""
    (tmp / "sub").mkdir()
    tools.qemu_io(layer(tmp, "sub/base", M), "write -P 9 0 64k")
    tools.run("env", "-C", tmp / "sub", "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "over")
    assert daemon.serve(tmp / "sub/over").enter().read(0, 65536) == b"\x09" * 65536


def test_backing_format_is_believed(daemon, tmp):
    """A raw base whose bytes look like a qcow2 image stays raw (CVE-2008-2004)."""
    inner = tools.create(tmp / "secret-holder.qcow2", M)
    tools.qemu_io(inner, "write -P 1 0 64k")
    top = tools.create(tmp / "top.qcow2", None, backing=inner, backing_fmt="raw")
    c = daemon.serve(top).enter()
    with open(inner, "rb") as f:
        assert c.read(0, 65536) == f.read(65536)


def test_missing_backing_file_is_named(daemon, tmp):
    base = tools.create(tmp / "base.qcow2", M)
    top = tools.create(tmp / "top.qcow2", None, backing=base)
    (tmp / "base.qcow2").unlink()
    kind, text = daemon.start().qmp.error("blockdev-add", {
        "driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": top}})
    assert kind == "GenericError" and str(base) in text and "No such file or directory" in text


def test_backing_node_given_by_name(daemon, tmp):
    """blockdev-add with "backing": the name in the image is not looked at."""
    other = tools.create(tmp / "other.qcow2", M)
    tools.qemu_io(other, "write -P 3 0 64k")
    top = tools.create(tmp / "top.qcow2", None, backing=tools.create(tmp / "base.qcow2", M))
    (tmp / "base.qcow2").unlink()
    d = daemon.start("--blockdev", f"driver=qcow2,node-name=below,read-only=on,file.driver=file,file.filename={other}",
                     "--blockdev", f"driver=qcow2,node-name=disk,backing=below,file.driver=file,file.filename={top}",
                     "--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on")
    assert d.enter().read(0, 65536) == b"\3" * 65536


def test_backing_null_cuts_the_chain(daemon, tmp):
    base = layer(tmp, "base", M, fill=[(0, 65536)])
    top = layer(tmp, "top", M, base)
    d = daemon.start()
    d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "n", "backing": None,
                               "file": {"driver": "file", "filename": top}})
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n", "name": "disk"})
    assert d.enter().read(0, 65536) == bytes(65536)


def test_what_is_zeroed_while_the_chain_is_cut_stays_zero(daemon, tmp):
    """By a client, and by growing inside a cluster: the image that the header names shows through nowhere."""
    top, size = tmp / "top.qcow2", M + 4096
    tools.create(top, size, backing=layer(tmp, "base", 2 * M, fill=[(0, 2 * M)]))
    d = daemon.start()
    d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "n", "backing": None,
                               "file": {"driver": "file", "filename": str(top)}})
    d.qmp.cmd("block_resize", {"node-name": "n", "size": size + 32768})
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n", "name": "disk", "writable": True})
    d.libnbd().zero(8192, 4096)
    d.stop()
    got = tools.content(top)
    assert got[4096:12288] == bytes(8192) and got[size:] == bytes(32768)
    tools.check(top)


def test_one_base_under_two_overlays(daemon, tmp):
    """Both written at once; each keeps its own."""
    from lib.daemon import disk_args
    base = layer(tmp, "base", M, fill=[(0, M)])
    a, b = layer(tmp, "a", None, base), layer(tmp, "b", None, base)
    d = daemon.start(*disk_args(a, name="a"), *disk_args(b, name="b"))
    ca, cb = d.enter("a"), d.enter("b")
    want = pattern.block(("base", 0), M)
    for i in range(32):
        ca.start(1, i * 30000, data=b"A" * 1000)
        cb.start(1, i * 30000 + 500, data=b"B" * 1000)
    for c in (ca, cb):
        for cookie in list(c.waiting):
            assert c.answer(cookie).error == 0
    for c, letter, shift in ((ca, b"A", 0), (cb, b"B", 500)):
        model = bytearray(want)
        for i in range(32):
            model[i * 30000 + shift:i * 30000 + shift + 1000] = letter * 1000
        assert pattern.first_difference(c.read(0, M), model) is None
