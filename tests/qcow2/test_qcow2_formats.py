# SPDX-License-Identifier: BSD-3-Clause
"""Every kind of qcow2 image: made by QEMU, worked on by us, judged by QEMU."""

import itertools
import os

import pytest

from lib import differential, pattern, qcow2bytes, tools
from lib.nbdproto import CMD_WRITE

K, M = 1 << 10, 1 << 20


def work(daemon, path, model, seed, grain, steps, blockdev="", weights=None):
    d = daemon.serve(path, blockdev=blockdev)
    differential.Run(seed, [d.enter(), d.enter()], model, grain, weights=weights).go(steps)
    d.stop()
    tools.check(path)
    assert pattern.first_difference(tools.content(path), model) is None


def compressed(path, data, **options):
    """An image with DATA, all of it compressed (what can be)."""
    raw = f"{path}.raw"
    with open(raw, "wb") as f:
        f.write(data)
    o = ",".join(f"{k}={v}" for k, v in options.items())
    tools.run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *(["-o", o] if o else []), raw, path)
    os.unlink(raw)
    return str(path)


def text(size, seed=0):
    """Bytes that compress."""
    block = b"".join(b"%d line of text, %s\n" % (i, bytes([65 + (i + seed) % 26]) * (i % 40)) for i in range(4000))
    return (block * (size // len(block) + 1))[:size]


MATRIX = [(compat, cluster, bits, ext, data_file)
          for compat, cluster, bits, ext, data_file in itertools.product(
              ("0.10", "1.1"), (512, 4 * K, 64 * K, 2 * M), (1, 4, 16, 64), (False, True), (False, True))
          if not (compat == "0.10" and (bits != 16 or ext or data_file)) and not (ext and cluster < 16 * K)]


def options_of(tmp, compat, cluster, bits, ext, data_file):
    options = dict(compat=compat, cluster_size=cluster, refcount_bits=bits)
    if ext:
        options["extended_l2"] = "on"
    if data_file:
        options["data_file"] = tmp / "data.raw"
    return options


@pytest.mark.parametrize("kind", range(0, len(MATRIX), 4))
def test_some_kinds(daemon, tmp, kind):
    """A quarter of the matrix; the soak run does all of it, for longer."""
    one_kind(daemon, tmp, kind, 200)


@pytest.mark.soak
@pytest.mark.parametrize("kind", range(len(MATRIX)))
def test_all_kinds(daemon, tmp, kind):
    one_kind(daemon, tmp, kind, 1500)


def one_kind(daemon, tmp, kind, steps):
    compat, cluster, bits, ext, data_file = MATRIX[kind]
    size = max(2 * M, 6 * cluster) + 512
    path = tools.create(tmp / "a.qcow2", size, **options_of(tmp, *MATRIX[kind]))
    work(daemon, path, bytearray(size), kind, cluster // 32 if ext else cluster, steps)


@pytest.mark.parametrize("ext", [False, True])
@pytest.mark.parametrize("method", ["zlib", "zstd"])
def test_compressed_is_read_and_written_over(daemon, tmp, method, ext):
    data = text(4 * M) + pattern.block("z", M) + bytes(M)
    extra = {"extended_l2": "on"} if ext else {}
    path = compressed(tmp / "a.qcow2", data, compression_type=method, **extra)
    work(daemon, path, bytearray(data), method, 65536, 400)


def test_compressed_in_version_2(daemon, tmp):
    data = text(3 * M)
    path = compressed(tmp / "a.qcow2", data, compat="0.10", cluster_size=4096)
    work(daemon, path, bytearray(data), 2, 4096, 400)


@pytest.mark.parametrize("compat, below", [("0.10", {}), ("1.1", {"extended_l2": "on"}), ("1.1", {"cluster_size": 4096})])
@pytest.mark.parametrize("ext", [False, True])
def test_overlay(daemon, tmp, compat, below, ext):
    if ext and compat == "0.10":
        pytest.skip("version 2 has no subclusters")
    data = text(3 * M + 512)
    base = compressed(tmp / "base.qcow2", data, **below)
    extra = {"extended_l2": "on"} if ext else {}
    path = tools.create(tmp / "a.qcow2", 4 * M, backing=base, compat=compat, **extra)
    work(daemon, path, bytearray(data + bytes(4 * M - len(data))), f"{compat} {ext}", 2048 if ext else 65536, 500)


@pytest.mark.parametrize("options", [{}, {"compat": "0.10"}, {"extended_l2": "on"}, {"cluster_size": 4096}, {"refcount_bits": 8}])
def test_snapshots_stay(daemon, tmp, options):
    """The disk is written all over, zeroed and trimmed; the snapshots in the image stay what they were."""
    data = text(4 * M)
    path = compressed(tmp / "a.qcow2", data, **options)
    model, kept = bytearray(data), {}
    for life in range(2):
        work(daemon, path, model, life, 4096, 300)
        tools.run("qemu-img", "snapshot", "-c", f"s{life}", path)
        kept[f"s{life}"] = bytes(model)
    work(daemon, path, model, 3, 4096, 400)
    for name, was in kept.items():
        out = tmp / name
        tools.run("qemu-img", "convert", "-l", name, "-f", "qcow2", "-O", "raw", path, out)
        assert pattern.first_difference(out.read_bytes(), was) is None
        d = daemon.serve(path, writable=False, blockdev=f"internal-snapshot={name},read-only=on")
        c = d.enter()
        assert pattern.first_difference(c.read(0, 4 * M), was) is None
        info = d.qmp.cmd("query-named-block-nodes")
        assert sorted(s["name"] for s in next(n for n in info if n["drv"] == "qcow2")["image"]["snapshots"]) == ["s0", "s1"]
        d.stop()
    for name in kept:
        tools.run("qemu-img", "snapshot", "-d", name, path)
    tools.check(path)
    work(daemon, path, model, 4, 4096, 200)


def test_data_file_that_stays_raw(daemon, tmp):
    path = tools.create(tmp / "a.qcow2", 4 * M, data_file=tmp / "d.raw", data_file_raw="on")
    model = bytearray(4 * M)
    work(daemon, path, model, 5, 65536, 400)
    assert pattern.first_difference((tmp / "d.raw").read_bytes(), model) is None


def test_data_file_with_entries_without_the_copied_flag(daemon, tmp):
    """A write to such a cluster stays: its old place, which a discard would empty, is the new one."""
    path = tools.create(tmp / "a.qcow2", 2 * M, data_file=tmp / "d.raw")
    tools.qemu_io(path, "write -P 1 0 256k")
    for guest in range(1, 4):
        at = qcow2bytes.l2_entry_offset(path, guest * 65536)
        qcow2bytes.put64(path, at, qcow2bytes.get64(path, at) & ~(1 << 63))
    d = daemon.serve(path, blockdev="discard=unmap")
    h = d.libnbd()
    h.pwrite(b"\2" * 4096, 70000)
    h.pwrite(b"\3" * 65536, 131072)
    want = bytearray(b"\1" * 262144)
    want[70000:74096] = b"\2" * 4096
    want[131072:196608] = b"\3" * 65536
    assert h.pread(262144, 0) == want
    d.stop()
    assert tools.content(path)[:262144] == want


def test_data_file_by_option(daemon, tmp):
    (tmp / "sub").mkdir()
    path = tools.create(tmp / "a.qcow2", 2 * M, data_file=tmp / "d.raw")
    os.rename(tmp / "d.raw", tmp / "sub/moved")
    model = bytearray(2 * M)
    d = daemon.serve(path, blockdev=f"data-file.driver=file,data-file.filename={tmp}/sub/moved")
    differential.Run(6, [d.enter()], model, 65536).go(200)
    d.stop()
    os.rename(tmp / "sub/moved", tmp / "d.raw")
    tools.check(path)
    assert pattern.first_difference(tools.content(path), model) is None


@pytest.mark.merino_only                                 # CVE-2024-4467
@pytest.mark.parametrize("name", ['json:{"driver":"file","filename":"%s/secret"}', "nbd://127.0.0.1:1/x",
                                  "file:%s/secret"])
def test_data_file_name_that_is_no_plain_file(daemon, tmp, name):
    path = tools.create(tmp / "a.qcow2", M, data_file=tmp / ("d" * 60))
    (tmp / "secret").write_bytes(bytes(M))
    name = name.replace("%s", str(tmp)).encode()
    data = open(path, "rb").read(4096)
    old = str(tmp / ("d" * 60)).encode()
    at = data.index(old)
    with open(path, "r+b") as f:
        f.seek(at - 4)
        f.write(len(name).to_bytes(4, "big") + name.ljust((len(old) + 7) // 8 * 8, b"\0")[:max(len(name), len(old))])
        f.seek(at + (len(name) + 7) // 8 * 8)
        f.write(bytes(8 + len(old)))
    d = daemon.start()
    kind, why = d.qmp.error("blockdev-add", {"driver": "qcow2", "node-name": "n", "read-only": True,
                                             "file": {"driver": "file", "filename": path}})
    assert "not a plain file" in why


def test_map_of_every_kind(daemon, tmp):
    """base:allocation and depth of compressed, zeroed, partly written clusters, as qemu-nbd says."""
    base = compressed(tmp / "base.qcow2", text(2 * M))
    path = tools.create(tmp / "a.qcow2", 4 * M, backing=base, extended_l2="on")
    tools.qemu_io(path, "write -P 5 70000 3000", "write -z 200k 4k", "write -c -P 7 256k 64k", "discard 1M 64k", "write -P 3 3M 2k")
    ours, theirs = [], []
    d = daemon.serve(path, writable=False)
    for context in ("base:allocation", "qemu:allocation-depth"):
        argv = ["nbdinfo", "--json", f"--map={context}", d.uri()]
        if context == "base:allocation":
            ours.append(tools.run(*argv).stdout)
    d.stop()
    theirs.append(tools.run("nbdinfo", "--json", "--map", "--", "[", "qemu-nbd", "-r", "-f", "qcow2", path, "]").stdout)
    assert ours == theirs


@pytest.mark.merino_only                                 # QEMU's filter refuses what is not whole clusters
@pytest.mark.parametrize("options", [{"cluster_size": 4096, "refcount_bits": 4}, {"compression_type": "zstd", "extended_l2": "on"}])
def test_many_writes_are_compressed_at_once(daemon, tmp, options):
    """Clusters are packed behind one another while others in the same host clusters are written over, zeroed, trimmed."""
    grain = options.get("cluster_size", 65536)
    base = compressed(tmp / "base.qcow2", text(3 * M))
    path = tools.create(tmp / "a.qcow2", 4 * M, backing=base, **options)
    model = bytearray(text(3 * M) + bytes(M))
    for life in range(2):
        d = daemon.start("--blockdev", f"driver=file,node-name=f,filename={path},discard=unmap",
                         "--blockdev", "driver=qcow2,node-name=q,file=f,discard=unmap",
                         "--blockdev", "driver=compress,node-name=disk,file=q,discard=unmap",
                         "--export", "nbd,id=e,node-name=disk,name=disk,writable=on")
        run = Packing(f"pack {life}", [d.enter() for _ in range(3)], model, grain, depth=32,
                      weights={"write": 50, "read": 20, "zero": 10, "trim": 12, "flush": 8})
        run.go(500)
        d.stop()
        assert tools.check(path).get("compressed-clusters", 0) > 10
        assert pattern.first_difference(tools.content(path), model) is None


class Packing(differential.Run):
    """Writes whole clusters, mostly; some of it compresses, some does not."""

    def place(self):
        offset = self.rnd.randrange(len(self.model) // self.grain) * self.grain
        length = min(self.rnd.randrange(1, 6) * self.grain, len(self.model) - offset)
        return (offset, length) if self.rnd.random() < 0.9 else (offset + 512, max(1, length - 1024))

    def change(self, kind, conn, offset, length):
        if kind != "write" or self.rnd.random() < 0.2:
            return super().change(kind, conn, offset, length)
        data = text(length, self.rnd.randrange(26))
        self.model[offset:offset + length] = data
        return differential.Op(kind, offset, length, conn, conn.start(CMD_WRITE, offset, data=data))
