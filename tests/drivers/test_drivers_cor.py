# SPDX-License-Identifier: BSD-3-Clause
"""copy-on-read: what was read is in the image afterwards, and every byte is right all the time."""

import random

import nbd
import pytest

from lib import pattern, tools
from lib.daemon import DidNotStart

SIZE = 4 << 20


def chain(tmp, *layers):
    """Images over one another; each LAYER is a list of qemu-io commands.  Returns their paths, the base first."""
    paths = []
    for i, commands in enumerate(layers):
        path = tools.create(tmp / f"{i}.qcow2", SIZE, **(dict(backing=paths[-1]) if paths else {}))
        if commands:
            tools.qemu_io(path, *commands)
        paths.append(path)
    return paths


def node(paths, extra=""):
    text = f"driver=copy-on-read,node-name=disk{extra}"
    prefix = "file"
    for i, path in enumerate(reversed(paths)):
        text += f",{prefix}.driver=qcow2,{prefix}.node-name=n{len(paths) - 1 - i}"
        text += f",{prefix}.file.driver=file,{prefix}.file.filename={path}"
        prefix += ".backing"
    return text


def serve(daemon, paths, extra="", writable=True):
    return daemon.start("--blockdev", node(paths, extra), "--export",
                        f"type=nbd,id=disk,node-name=disk,writable={'on' if writable else 'off'}")


def allocated(path):
    """What the image itself has, in bytes."""
    found = []
    for e in tools.mapping(path):
        if e["depth"] or not e["data"]:
            continue
        if found and sum(found[-1]) == e["start"]:
            found[-1] = (found[-1][0], found[-1][1] + e["length"])
        else:
            found.append((e["start"], e["length"]))
    return found


def test_copies(daemon, tmp):
    paths = chain(tmp, ["write -P 1 0 1M"], ["write -P 2 256k 64k"])
    d = serve(daemon, paths)
    assert d.libnbd().pread(65536, 131072 + 100) == b"\1" * 65536
    d.stop()
    tools.check(paths[1])
    assert allocated(paths[1]) == [(131072, 131072 + 65536)]


def test_zeroes_and_nothing(daemon, tmp):
    paths = chain(tmp, ["write -z 0 1M", "write -P 1 1M 64k"], [])
    d = serve(daemon, paths)
    assert d.libnbd().pread(SIZE, 0) == bytes(1 << 20) + b"\1" * 65536 + bytes(SIZE - (1 << 20) - 65536)
    d.stop()
    tools.check(paths[1])
    assert allocated(paths[1]) == [(1 << 20, 65536)]


def test_bottom(daemon, tmp):
    """What is below the bottom stays there."""
    paths = chain(tmp, ["write -P 1 0 1M"], ["write -P 2 64k 64k"], [])
    d = serve(daemon, paths, ",bottom=n1")
    want = b"\1" * 65536 + b"\2" * 65536 + b"\1" * 65536
    assert d.libnbd().pread(3 << 16, 0) == want
    d.stop()
    tools.check(paths[2])
    assert allocated(paths[2]) == [(65536, 65536)]


def test_bottom_must_be_there(daemon, tmp):
    paths = chain(tmp, [], [])
    with pytest.raises(DidNotStart) as e:
        serve(daemon, paths, ",bottom=nope")
    assert "Bottom node 'nope' not found" in e.value.stderr


def test_the_rest_of_the_chain_is_not_written(daemon, tmp):
    paths = chain(tmp, ["write -P 1 0 1M"], [])
    before = open(paths[0], "rb").read()
    d = serve(daemon, paths)
    d.libnbd().pread(SIZE, 0)
    d.stop()
    assert open(paths[0], "rb").read() == before


def test_against_writes(daemon, tmp):
    """Reads that copy and writes to the same clusters, many at a time: no write is undone."""
    paths = chain(tmp, [f"write -P 1 0 {SIZE}"], [])
    d = serve(daemon, paths)
    h, rnd, model = d.libnbd(), random.Random("cor"), bytearray(b"\1" * SIZE)
    for _ in range(20):
        at = rnd.randrange(SIZE // 65536) * 65536
        for i in range(32):
            if i % 2:
                h.aio_pread(nbd.Buffer(8192), rnd.randrange(SIZE - 8192))
            else:
                data = rnd.randbytes(1024)
                h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), at + i * 2048)
                model[at + i * 2048:at + i * 2048 + 1024] = data
        while h.aio_in_flight():
            h.poll(-1)
    assert pattern.first_difference(h.pread(SIZE, 0), model) is None
    d.stop()
    tools.check(paths[1])
    assert tools.content(paths[1]) == model


@pytest.mark.merino_only
def test_depth_does_not_count_the_filter(daemon, tmp):
    """Allocation depth over NBD is that of the images; QEMU counts filters, too."""
    paths = chain(tmp, ["write 0 64k"], ["write 64k 64k"])
    depths = []
    for option in (node(paths), node(paths).replace("driver=copy-on-read,node-name=disk,", "", 1)
                   .replace("file.", "", 2).replace("node-name=n1", "node-name=disk").replace("file.file.", "file.")
                   .replace("file.backing", "backing")):
        d = daemon.start("--blockdev", option, "--export",
                         "type=nbd,id=disk,node-name=disk,allocation-depth=on")
        h = d.libnbd(contexts=["qemu:allocation-depth"])
        got = []
        h.block_status(SIZE, 0, lambda context, offset, e, err: got.extend(zip(e[::2], e[1::2])) or 0)
        depths.append(got)
        d.stop()
    assert depths[0] == depths[1] == [(65536, 2), (65536, 1), (SIZE - 131072, 0)]


def test_a_bitmap_below_a_filter_is_found(daemon, tmp):
    """An export of the filter offers the image's bitmap by its name alone."""
    path = tools.create(tmp / "a.qcow2", SIZE)
    tools.run("qemu-img", "bitmap", "--add", "-g", "65536", path, "b")
    d = daemon.start("--blockdev", "driver=copy-on-read,node-name=disk,file.driver=qcow2,file.file.driver=file,"
                     f"file.file.filename={path}",
                     "--export", "type=nbd,id=disk,node-name=disk,writable=on,bitmaps.0=b")
    c = d.enter(contexts=["qemu:dirty-bitmap:b"])
    c.write(70000, b"x" * 10)
    assert [(n, flags) for _, n, flags in c.status_all()] == [(65536, 0), (65536, 1), (SIZE - 131072, 0)]


@pytest.mark.merino_only
def test_no_other_writer_beside_it(daemon, tmp):
    """A write past the filter, between its reading and its storing, would be lost."""
    d = serve(daemon, chain(tmp, ["write -P 1 0 1M"], []))
    assert d.qmp.error("block-export-add", {"type": "nbd", "id": "e", "node-name": "n1", "writable": True})[1] == (
        "Conflicts with use by node 'disk' as 'file', which does not allow 'write' on n1")
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n1", "writable": False})
