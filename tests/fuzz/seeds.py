#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes the seeds of the fuzz targets, tests/fuzz/corpus/TARGET/NAME; run it again after a change here.

What a fuzzer found and is worth keeping lies beside them, under a name that begins with "found-".
"""

import hashlib
import json
import pathlib
import struct
import subprocess
import tempfile

CORPUS = pathlib.Path(__file__).resolve().parent / "corpus"


def put(target, name, data):
    path = CORPUS / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def keyval():
    texts = {
        "driver": (0, "qcow2,node-name=disk0,file.driver=file,file.filename=/a/b,,c.qcow2,read-only=on"),
        "array": (0, "driver=x,list.0=a,list.1.key=b,list.2=,"),
        "json": (0, '{"driver":"raw","file":{"driver":"file","filename":"x"},"size":1048576,"a":[true,null,-1]}'),
        "chardev": (1, "socket,id=mon,path=/run/x,server=on,nowait"),
        "size-suffix": (2, "1.5G"), "size-hex": (2, "0x7fffffffffffffff"), "size-big": (2, "16777215.9T"),
        "uri-unix": (3, "nbd+unix:///disk%20name?socket=/run/m.sock"),
        "uri-tcp": (3, "nbds://user@[::1]:10809/export?tls-type=psk&tls-psk-file=/etc/k&tls-verify-peer=false"),
        "uri-abstract": (3, "nbd+unix:///?socket=%00name"),
    }
    for name, (kind, text) in texts.items():
        put("keyval", name, bytes([kind]) + text.encode())


# What a guest writes into its memory: 0x80 | length - 1, where, bytes.

def write(at, data):
    return bytes([0x80 | len(data) - 1]) + struct.pack(">H", at) + data


def desc(at, addr, length, flags=0, following=0):
    return write(at, struct.pack("<QIHH", addr, length, flags, following))


def avail(*heads, at=256):
    return write(at, struct.pack(f"<{2 + len(heads)}H", 0, len(heads), *heads))


def vmm_queue():
    """Such writes, pops (0) and pushes (1)."""
    chain = desc(0, 1024, 16, 1, 1) + desc(16, 2048, 512, 3, 2) + desc(32, 4096, 1, 2)
    table = desc(0, 6000, 32, 4) + desc(6000, 1024, 16, 1, 1) + desc(6016, 2048, 8, 2)
    put("vmm-queue", "chain", b"\0" + chain + avail(0) + b"\0\1")
    put("vmm-queue", "indirect", b"\3" + table + avail(0) + b"\0\1\2")
    put("vmm-queue", "loop", b"\0" + desc(0, 1024, 16, 1, 0) + avail(0) + b"\0")
    put("vmm-queue", "nested", b"\2" + desc(0, 6000, 16, 4) + desc(6000, 6000, 16, 4) + avail(0) + b"\0")
    put("vmm-queue", "twice", b"\1" + chain + avail(0, 0) + b"\0\0\1")
    put("vmm-queue", "high", b"\4\0\4" + desc(0, 1 << 32, 1024) + avail(0) + b"\0\1")
    put("vmm-queue", "addresses", b"\x3d" + struct.pack(">HQQQ", 16, 4096, 2, 4) + desc(4096, 0, 8) + b"\0\1")


def vmm_net():
    """Such writes, frames of the guest's (1), frames to it (0, length)."""
    frame = desc(1024, 4096, 12, 1, 1) + desc(1040, 8192, 60) + avail(0, at=1280)
    room = desc(0, 4096, 12, 3, 1) + desc(16, 8192, 1514, 2) + avail(0)
    put("vmm-net", "sends", b"\0\0\0" + frame + b"\1")
    put("vmm-net", "asks-for-gso", b"\0\0\0" + write(4096, b"\1\1") + frame + b"\1")
    put("vmm-net", "receives", b"\1\0\1" + room + b"\0" + struct.pack(">H", 60))
    put("vmm-net", "receives-more", b"\0\0\0" + room + b"\0" + struct.pack(">H", 9000))
    put("vmm-net", "both", b"\0\0\0" + room + frame + b"\1\0" + struct.pack(">H", 60))
    put("vmm-net", "shared", b"\2\1\2" + room + frame + b"\1\0" + struct.pack(">H", 60))


def vmm_blk():
    """Steps: a header (0), a chain (3), the doorbell (7), registers (9, 10), configuration space (11, 12)."""
    def header(kind, sector, where=0):
        return struct.pack(">BBHH", 0, kind, sector, where)

    def chain(head, *pieces, indirect=False):
        return bytes([3, len(pieces) - 1 | (8 if indirect else 0), head]) + b"".join(
            struct.pack(">BH", kind, where) for kind, where in pieces)
    read = header(0, 3) + chain(0, (1, 0), (4 | 64, 256), (2 | 64, 4))
    write = header(1, 3) + chain(4, (1, 0), (4, 256), (2 | 64, 4))
    put("vmm-blk", "read", read + b"\7")
    put("vmm-blk", "write", write + b"\7")
    put("vmm-blk", "both", read + write + b"\7\7" + read + b"\7")
    put("vmm-blk", "indirect", header(1, 9) + chain(0, (1, 0), (4, 99), (4, 256), (2 | 64, 4), indirect=True) + b"\7")
    put("vmm-blk", "flush", header(4, 0) + chain(2, (1, 0), (2 | 64, 4)) + b"\7")
    put("vmm-blk", "id", header(8, 0) + chain(2, (1, 0), (4 | 64, 64), (2 | 64, 4)) + b"\7")
    put("vmm-blk", "zeroes", header(13, 0) + chain(2, (1, 0), (1, 8), (2 | 64, 4)) + b"\7")
    put("vmm-blk", "no-status", header(0, 3) + chain(0, (1, 0)) + b"\7")
    put("vmm-blk", "registers", b"".join(bytes([9 | 16 * size, 0, at]) + bytes(1 << size) for at in range(0, 56, 2)
                                         for size in (0, 1, 2)) + read + b"\7\16" + read + b"\7")
    put("vmm-blk", "restart", read + b"\7\x1f" + read + b"\7\x0f")
    put("vmm-blk", "bar", b"\x2b\x10\xff\xff\xff\xff\x2c\x10\x2b\x10\xc1\0\0\0" + read + b"\7")


def vmm_boot():
    head = b"\0\0\0\0"
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen", 0x200000)
    elf = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0x200010, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 5, 256, 0x200000, 0x200000, 64, 8192, 4096)
    elf += struct.pack("<IIQQQQQQ", 4, 4, 64 + 2 * 56, 0, 0, len(note), len(note), 4) + note
    elf = elf.ljust(320, b"\x90")
    put("vmm-boot", "elf-pvh", head + elf)
    put("vmm-boot", "elf-initrd", b"\2\0\x10\0" + elf)
    put("vmm-boot", "elf-initrd-huge", b"\3" + struct.pack(">Q", 1 << 62) + elf)
    bz = bytearray(2048)
    for at, what in ((0x1f1, b"\1"), (0x1fe, b"\x55\xaa\xeb\x66HdrS\x0f\2"), (0x211, b"\1"),
                     (0x22c, struct.pack("<I", 0x7fffffff)), (0x234, b"\1\0\1\0"), (0x238, struct.pack("<I", 2047)),
                     (0x258, struct.pack("<QI", 0x100000, 0x10000))):
        bz[at:at + len(what)] = what
    put("vmm-boot", "bzimage", head + bytes(bz))
    put("vmm-boot", "bzimage-initrd", b"\2\0\x10\0" + bytes(bz))


def vmm_console():
    put("vmm-console", "greeting", b"\x03\0\0\1\x03\0\3\1\x03\1\3\1\x03\1\6\1" + b"\0\2\0\x41\2" * 3 + b"\5\1\5\x21")
    put("vmm-console", "rest", b"\0\1\0\x01\2" + b"\5\0" + b"\x0b\0" + b"\x0b\1\0\4\1" + b"\x0b\2\0\1\7\0\3\2")


def vmm_control():
    put("vmm-control", "queries", b"".join(b'{"execute":"%s","id":%d}\n' % (name.encode(), i) for i, name in enumerate((
        "query-status", "query-block", "query-cpus-fast", "query-name", "query-commands", "query-version", "stop", "cont",
        "system_reset", "system_powerdown", "quit", "blockdev-add"))))
    put("vmm-control", "arguments", b'{"execute":"qom-set","arguments":{"path":"/machine/disk0","property":"drive","value":"x"}}\n')
    put("vmm-control", "not-negotiated", b'!{"execute":"query-status"}\n{"execute":"qmp_capabilities"}\n[1,2\n')


def sh(*argv):
    subprocess.run([str(a) for a in argv], check=True, stdout=subprocess.DEVNULL)


def script(*steps):
    """(what, where, how much) of tests/fuzz/disk.h."""
    return b"".join(struct.pack(">BIH", what, where, much)[:1] + struct.pack(">I", where)[1:]
                    + struct.pack(">H", much) for what, where, much in steps)


READ, WRITE, ZERO, DISCARD, FLUSH, MAP, GROW, FAIL, DESCRIBE, BITMAP = 0, 1, 2, 3, 4, 5, 6, 7, 14, 15
USE = ((READ, 0, 60000), (WRITE, 3, 700), (MAP, 0, 0), (WRITE | 0x40, 40, 4000), (ZERO | 8, 2, 2048),
       (DISCARD, 0, 1024), (FLUSH, 0, 0), (READ | 0x10, 77, 9000), (WRITE, 3, 512))


def image(name, create, *after, size="128k", flags=5, steps=USE, base=False):
    """An image by qemu-img, of small clusters where it lets us, with data in it."""
    with tempfile.TemporaryDirectory() as tmp:
        path = pathlib.Path(tmp) / "i.qcow2"
        if base:
            (pathlib.Path(tmp) / "base").write_bytes(bytes([0xba]) * 65536)
        sh("qemu-img", "create", "-q", "-f", "qcow2", *create, path, size)
        for what in after:
            sh(*[str(path) if word == "IMAGE" else word for word in what])
        data = path.read_bytes()
    data = data.rstrip(b"\0")
    steps = script(*steps)
    put("qcow2", name, bytes([flags, len(steps) // 6]) + struct.pack(">H", 64) + steps + data)


def io(*commands):
    return ("qemu-io", *[w for c in commands for w in ("-c", c)], "IMAGE")


def qcow2():
    small = ("-o", "cluster_size=512")
    fill = io("write -P 1 0 3k", "write -P 2 20k 2k", "write -z 30k 4k")
    image("empty", small)
    image("data", small, fill)
    image("read-only", small, fill, flags=4)
    image("small-cache", small, fill, flags=13)
    image("large", small, fill, size="4M", steps=USE + ((WRITE | 0x80, 0xffffff, 512), (DISCARD | 0x40, 0, 0)))
    image("cluster-4k", ("-o", "cluster_size=4k"), fill)
    image("cluster-64k", ())
    image("v2", ("-o", "compat=0.10,cluster_size=512"), fill)
    for bits in 1, 8, 64:
        image(f"refcount-{bits}", ("-o", f"cluster_size=512,refcount_bits={bits}"), fill)
    image("lazy", ("-o", "cluster_size=512,lazy_refcounts=on"), fill)
    image("metadata", ("-o", "cluster_size=512,preallocation=metadata"), size="16k")
    image("backing", ("-u", "-b", "base", "-F", "raw", "-o", "cluster_size=512"), size="128k")
    image("compressed", small, io("write -c -P 3 0 512", "write -c -P 4 512 512", "write 1k 1k"))
    image("zstd", ("-o", "cluster_size=4k,compression_type=zstd"), io("write -c -P 3 0 4k", "write -c -P 4 8k 4k"))
    image("subclusters", ("-o", "cluster_size=16k,extended_l2=on"), io("write -P 1 0 2k", "write -z 30k 4k"))
    image("snapshot", small, fill, ("qemu-img", "snapshot", "-c", "one", "IMAGE"), io("write -P 9 0 1k"))
    image("bitmap", ("-o", "cluster_size=512"), ("qemu-img", "bitmap", "--add", "-g", "512", "IMAGE", "b0"),
          fill, ("qemu-img", "bitmap", "--add", "IMAGE", "b1"),
          steps=USE + ((BITMAP, 64, 0), (BITMAP, 1, 0), (BITMAP, 3, 9000), (DESCRIBE, 0, 0)))
    image("grow", small, fill, steps=((GROW, 1024, 0), (WRITE | 0x80, 512, 512), (FAIL, 0, 5), *USE))


def entry(table, entries, name, flags=2, granularity=9, extra=b"", kind=1):
    """One of a bitmap directory; TABLE counts clusters (tests/fuzz/fuzz-bitmaps.c)."""
    raw = struct.pack(">QIIBBHI", table, entries, flags, kind, granularity, len(name), len(extra)) + extra + name
    return raw + bytes(-len(raw) % 8)


def bitmaps():
    use = script((WRITE, 3, 700), (BITMAP, 3, 9000), (BITMAP, 2, 0), (BITMAP, 64, 0), (DESCRIBE, 0, 0), (BITMAP, 1, 0),
                 (FLUSH, 0, 0), (GROW, 64, 0))
    bits = bytes(512 * 8) + bytes(range(256)) * 8
    tables = struct.pack(">64Q", 8, *[0, 1, 9] * 21) + struct.pack(">64Q", *range(8, 72))
    cases = {
        "one": [entry(24, 1, b"b0")],
        "two": [entry(24, 1, b"b0"), entry(25, 2, b"other", granularity=16)],
        "in-use": [entry(24, 1, b"b0", flags=3)],
        "disabled": [entry(24, 1, b"b0", flags=0)],
        "extra": [entry(24, 1, b"b0", flags=6, extra=b"more"), entry(25, 1, b"no", flags=2, extra=b"12345678")],
        "kind": [entry(24, 1, b"b0", kind=2), entry(25, 1, b"b1")],
        "same-name": [entry(24, 1, b"b0"), entry(25, 1, b"b0")],
        "same-table": [entry(24, 1, b"b0"), entry(24, 1, b"b1")],
        "long-name": [entry(24, 1, b"n" * 1023)],
        "past-the-end": [struct.pack(">QIIBBHI", 2, 1, 2, 1, 9, 65535, 0xffffffff)],
        "raw-pointer": [entry(1 << 63 | 512, 1, b"b0")],
    }
    for name, entries in cases.items():
        raw = b"".join(entries)
        head = bytes([0x85, len(use) // 6, len(entries)]) + struct.pack(">H", len(raw))
        put("bitmaps", name, head + use + raw + tables + bits)


def option(number, payload=b""):
    return b"IHAVEOPT" + struct.pack(">II", number, len(payload)) + payload


def string(s):
    return struct.pack(">I", len(s)) + s


def meta(number, export, *queries):
    return option(number, string(export) + struct.pack(">I", len(queries)) + b"".join(map(string, queries)))


def request(kind, offset=0, length=0, flags=0, payload=b"", cookie=7):
    return struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length) + payload


def extended(kind, offset=0, length=0, flags=0, payload=b"", cookie=9):
    return struct.pack(">IHHQQQ", 0x21e41c71, flags, kind, cookie, offset, length) + payload


def crashlog():
    """Records of tests/fuzz/fuzz-crashlog.c, in the byte order of the machine."""
    def record(where, entry, count=1, kind=1, step=9, bits=0):
        return struct.pack("=QQQIHH", where, entry, bits, count, kind, step)

    copied = 1 << 63
    seeds = {
        "as-it-was": b"",
        "one": record(5, copied | 40 << 8),
        "run": record(5, copied | 40 << 8, 20),
        "zeroes": record(5, 1, 20, step=0),
        "compressed": record(5, 1 << 62 | 3 << 8, step=0),
        "table": record(2, copied | 50 << 8, kind=2, step=0) + record(2 * 64, copied | 51 << 8),
        "far": record(1 << 40, copied | 1 << 57, 0xffffffff),
        "header": record(0, copied, 4),
        "no-kind": record(0, 0, 0, 7),
    }
    for name, records in seeds.items():
        for flags in 5, 4:
            put("crashlog", f"{name}-{flags}", bytes([flags, len(USE), len(records) // 32, 60]) + script(*USE) + records)


def live():
    """Changes to the two files of tests/fuzz/fuzz-live.c: where (u32), what (u32), in the byte order of the machine."""
    table, entry = 4096, 4096 + 64
    def change(*pairs):
        return b"".join(struct.pack("=II", at, value) for at, value in pairs)

    seeds = {
        "as-it-was": b"",
        "magic": change((0, 0)),
        "table-bytes": change((20, 1 << 31)),
        "sequence": change((table, 99)),
        "length": change((table + 8, 0xffffffff)),
        "entries": change((table + 16, 4096)),
        "far": change((entry + 4, 1 << 30)),
        "size": change((entry + 16, 0xffffffff), (entry + 20, 0x7fffffff)),
        "granularity": change((entry + 28, 63)),
        "name": change((entry + 28, 9 | 1 << 8 | 0xffff << 16)),
        "flags": change((entry + 24, 3)),
        "closed": change((table + 20, 1), (table + 4096 + 20, 1)),
        "other-mark": change((table + 20, 1), (table + 40, 7)),
        "kind": change((72, 3)),
    }
    for name, changes in seeds.items():
        for flags in 5, 4, 0x45, 0xc5, 0xe5, 0x15, 0x14, 0x55, 0xd5, 0xf5:
            put("live", f"{name}-{flags:x}", bytes([flags, len(USE), len(changes) // 8, 0]) + script(*USE) + changes)


def nbd():
    def go(name=b"", number=7):
        return option(number, string(name) + struct.pack(">HHH", 2, 3, 0))

    structured, listing, starttls, headers = option(8), option(3), option(5), option(11)
    contexts = meta(10, b"q", b"base:allocation", b"qemu:allocation-depth", b"qemu:dirty-bitmap:b0")
    write = request(1, 4096, 512, 1, b"w" * 512)
    work = (request(0, 0, 4096) + write + request(6, 0, 8192) + request(6, 8192, 4096, 2) + request(4, 0, 65536)
            + request(3) + request(5, 0, 4096) + request(7, 0, 262144) + request(7, 0, 4096, 8) + request(0, 8192, 100, 4)
            + request(0, 262143, 2) + request(9) + request(1, 1 << 63, 4, 0, b"past") + request(2))
    seeds = {
        "export-name": b"\0\0\0\1" + option(1, b"") + work,
        "export-name-zeroes": b"\0\0\0\3" + option(1, b"q") + work,
        "oldstyle": b"\0\0\0\0" + option(1, b"q") + request(0, 0, 512) + request(2),
        "options": b"\0\0\0\3" + listing + go(b"q", 6) + option(99) + starttls + option(2),
        "simple": b"\0\0\0\3" + go() + work,
        "structured": b"\0\0\0\3" + structured + go() + work,
        "contexts": b"\0\0\0\3" + structured + meta(9, b"q") + contexts + go(b"q") + work,
        "read-only": b"\0\0\0\3" + structured + meta(10, b"o", b"base:") + go(b"o") + work,
        "extended": b"\0\0\0\3" + headers + contexts + go(b"q") + extended(0, 0, 4096) + extended(7, 0, 1 << 40)
        + extended(1, 0, 8, 0, b"8 bytes!") + extended(6, 0, 1 << 33, 2) + extended(7, 0, 65536, 32, b"") + extended(2),
        "no-such": b"\0\0\0\3" + go(b"nowhere") + option(7, b"\xff\xff\xff\xff\0\0") + option(2),
        "bad-magic": b"\0\0\0\3" + structured + go() + request(0, 0, 4096) + b"garbage that is no request at all...",
        "huge-option": b"\0\0\0\3" + b"IHAVEOPT" + struct.pack(">II", 7, 1 << 24) + bytes(4096),
        "many-reads": b"\0\0\0\3" + structured + go(b"q") + request(0, 0, 262144) * 24 + request(2),
    }
    for name, data in seeds.items():
        put("nbd", name, data)


def qmp():
    def command(name, /, **arguments):
        arguments = {k.replace("_", "-"): v for k, v in arguments.items()}
        return json.dumps({"execute": name, "arguments": arguments, "id": 1}) + "\n"

    def add(node, driver, filename, **more):
        return command("blockdev-add", node_name=node, driver=driver, file={"driver": "file", "filename": filename}, **more)

    export = command("block-export-add", type="nbd", id="e0", node_name="n0", writable=True, bitmaps=["b0"])
    bitmap = command("block-dirty-bitmap-add", node="n0", name="b0", granularity=65536, persistent=True)
    server = command("nbd-server-start", addr={"type": "unix", "data": {"path": "nbd"}})
    queries = "".join(command(q) for q in (
        "query-block-exports", "query-named-block-nodes", "query-block", "query-jobs", "query-version",
        "query-commands", "query-status", "query-qmp-schema", "query-blockstats", "query-name"))
    seeds = {
        "node": add("n0", "qcow2", "qcow2", read_only=True) + command("blockdev-del", node_name="n0"),
        "chain": add("n0", "raw", "raw") + add("n1", "qcow2", "qcow2", backing="n0") + queries,
        "export": add("n0", "qcow2", "qcow2") + server + bitmap + export + queries
        + command("block-export-del", id="e0", mode="hard") + command("nbd-server-stop"),
        "bitmaps": add("n0", "qcow2", "qcow2") + bitmap
        + command("block-dirty-bitmap-add", node="n0", name="b1", disabled=True)
        + command("block-dirty-bitmap-merge", node="n0", target="b1", bitmaps=["b0", {"node": "n0", "name": "b0"}])
        + command("block-dirty-bitmap-disable", node="n0", name="b0") + command("block-dirty-bitmap-clear", node="n0", name="b0")
        + command("block-dirty-bitmap-remove", node="n0", name="b0"),
        "transaction": add("n0", "qcow2", "qcow2") + command("transaction", actions=[
            {"type": "block-dirty-bitmap-add", "data": {"node": "n0", "name": "b0"}},
            {"type": "block-dirty-bitmap-clear", "data": {"node": "n0", "name": "nope"}}], properties={}),
        "resize": add("n0", "raw", "raw") + command("block_resize", node_name="n0", size=2097152),
        "create": command("blockdev-create", job_id="j0", options={"driver": "file", "filename": "new", "size": 65536})
        + command("query-jobs") + command("job-dismiss", id="j0"),
        "object": command("object-add", qom_type="secret", id="o0", data="geheim") + command("object-del", id="o0"),
        "bare": "!" + command("query-version"),
        "broken": '{"execute":}\n[1,2,\n{"execute":"query-status","id":{"a":[null,1e400]}}\n"x" 17 \x01 nul\n',
        "quotes": "{'execute':'query-status','id':'\xc3\xa4'}{'execute':'quit'}",
        "deep": '{"execute":"query-status","id":' + "[" * 80 + "]" * 80 + "}\n",
    }
    for name, text in seeds.items():
        put("qmp", name, text.encode("latin-1"))


def repo():
    """Manifests (what the repository is called there: "r"), and files of checksums without their headers."""
    disk = {"name": "vda", "size": 65543, "format": "qcow2", "file": "vda@p1.qcow2", "level": "full", "reason": "first",
            "checkpoint": "c", "source": "/x", "read-bytes": 1, "data-bytes": 2, "zero-bytes": 3, "sums": "vda@p1.sums",
            "sums-bytes": 32, "sums-sha256": "ab" * 32, "root": "cd" * 32}
    second = {**disk, "name": "b", "file": "b@p1.qcow2", "sums": "b@p1.sums", "level": "incremental", "parent": "p0",
              "merged": "p00"}
    del second["reason"]
    for name, disks in ("full", [disk]), ("two", [disk, second]):
        root = hashlib.sha256(b"merino point\n" + b"".join(d["name"].encode() + b"\0" + bytes.fromhex(d["root"])
                                                           for d in sorted(disks, key=lambda d: d["name"])))
        manifest = {"merino-point": 1, "repository": "r", "point": "p1", "sequence": 1, "time": "2026-11-21T02:00:00Z",
                    "finished": "2026-11-21T02:00:01Z", "consistency": "unknown", "tool": "t", "server": "s",
                    "arguments": ["backup", "x"], "chunk-size": 65536, "disks": disks, "root": root.hexdigest(),
                    "manifest-sha256": "0" * 64}
        put("repo", f"manifest-{name}", b"\1" + json.dumps(manifest).encode())

    def run(first, count, kind):
        return struct.pack(">QII", first, count, kind) + (b"h" * 32 * count if kind == 1 else b"")
    put("repo", "sums", b"\0" + run(0, 2, 1) + run(5, 100, 2) + run(1, 3, 1) + run(999, 1, 2))
    put("repo", "sums-wrong", b"\0" + run(3, 2, 1) + run(1, 1, 2) + run(1, 3, 3) + run(1000, 9, 2))


if __name__ == "__main__":
    for make in keyval, qcow2, bitmaps, crashlog, live, nbd, qmp, repo, vmm_queue, vmm_blk, vmm_net, vmm_boot, vmm_console, vmm_control:
        make()
