# SPDX-License-Identifier: BSD-3-Clause
"""qcow2 images that nobody's program writes: what test_qcow2_hostile.py opens.

A case is a name, an image to begin with, and what is done to its bytes.  REFUSED and OPENED are promises; EITHER is
for what may rightly go both ways (an image that QEMU opens and we do not, or a feature that came later): all other
promises hold for it too.
"""

import struct
import zlib

from lib import tools
from lib.qcow2bytes import (COPIED, EXT_BACKING_FORMAT, EXT_BITMAPS, EXT_END, EXT_FEATURES, FIELDS, OFFSET_MASK)

REFUSED, OPENED, EITHER = "refused", "opened", "either"
EXT_DATA_FILE, EXT_CRYPTO = 0x44415441, 0x0537BE77
COMPRESSED = 1 << 62
K, M = 1 << 10, 1 << 20
MAX32, MAX64 = (1 << 32) - 1, (1 << 64) - 1


class Image:
    """The bytes of an image, and where its tables are."""

    def __init__(self, data):
        self.data = bytearray(data)
        self.tail = 0                       # bytes of zeroes behind the end: a hole in the file

    def get(self, field):
        offset, fmt = FIELDS[field]
        return struct.unpack_from(">" + fmt, self.data, offset)[0]

    def put(self, **fields):
        for name, value in fields.items():
            offset, fmt = FIELDS[name]
            struct.pack_into(">" + fmt, self.data, offset, value)

    def u64(self, at):
        return struct.unpack_from(">Q", self.data, at)[0]

    def put64(self, at, value):
        self.grow(at + 8)
        struct.pack_into(">Q", self.data, at, value)

    def write(self, at, data):
        self.grow(at + len(data))
        self.data[at:at + len(data)] = data

    def grow(self, size):
        if size > len(self.data):
            self.data += bytes(size - len(self.data))

    @property
    def cluster(self):
        return 1 << self.get("cluster_bits")

    @property
    def l1(self):
        return self.get("l1_offset")

    @property
    def l2(self):
        """The first L2 table."""
        return self.u64(self.l1) & OFFSET_MASK

    @property
    def reftable(self):
        return self.get("reftable_offset")

    @property
    def refblock(self):
        return self.u64(self.reftable) & OFFSET_MASK

    @property
    def end(self):
        """The first cluster behind the file."""
        return -(-len(self.data) // self.cluster) * self.cluster

    def extensions(self):
        at, out = self.get("header_length"), []
        while True:
            kind, length = struct.unpack_from(">II", self.data, at)
            if kind == EXT_END:
                return out
            out.append((kind, at + 8, length))
            at += 8 + -(-length // 8) * 8

    def extension(self, kind):
        """Where its data is."""
        return next(at for k, at, _ in self.extensions() if k == kind)

    def put_extensions(self, *new, end=True):
        raw = b"".join(struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in new)
        self.write(self.get("header_length"), raw + bytes(8 if end else 0))

    def backing(self, name, fmt=b"raw", length=None, offset=None):
        """The header names a backing file; FMT None: its format is not recorded."""
        self.put_extensions(*([(EXT_BACKING_FORMAT, fmt)] if fmt is not None else []))
        where = self.get("header_length") + 1024 if offset is None else offset
        if offset is None:
            self.write(where, name)
        self.put(backing_offset=where, backing_length=len(name) if length is None else length)

    def data_file(self, name):
        self.put_extensions(*([(EXT_DATA_FILE, name)] if name is not None else []))
        self.put(incompatible=self.get("incompatible") | 4)

    def bytes(self):
        return bytes(self.data)


def templates(tmp):
    """{name: bytes}, made by qemu-img."""
    out = {}

    def make(name, size, *io, **options):
        path = tools.create(tmp / f"t-{name}", size, **options)
        if io:
            tools.qemu_io(path, *io)
        return path

    def keep(name, path):
        with open(path, "rb") as f:
            out[name] = f.read()

    fill = ("write -P 1 0 128k", "write -P 2 2M 64k")
    keep("plain", make("plain", "4M", *fill))
    keep("small", make("small", "4M", "write -P 1 0 8k", "write -P 2 1M 4k", "write -z 2M 4k", cluster_size=512))
    keep("v2", make("v2", "4M", *fill, compat="0.10"))
    keep("compressed", make("compressed", "4M", "write -c -P 1 0 64k", "write -c -P 2 64k 64k"))
    keep("zstd", make("zstd", "4M", "write -c -P 1 0 64k", "write -c -P 2 64k 64k", compression_type="zstd"))
    keep("subclusters", make("subclusters", "4M", *fill, extended_l2="on"))
    for bits in 1, 64:
        keep(f"refcount-{bits}", make(f"refcount-{bits}", "4M", *fill, refcount_bits=bits))
    path = make("snapshot", "4M", *fill)
    tools.run("qemu-img", "snapshot", "-c", "one", path)
    keep("snapshot", path)
    path = make("bitmap", "4M")
    tools.run("qemu-img", "bitmap", "--add", "-g", "64k", path, "b0")
    tools.qemu_io(path, *fill)
    keep("bitmap", path)
    out["nothing"] = b""
    return out


class Case:
    def __init__(self, group, name, expect, base, change):
        self.group, self.name, self.expect, self.base, self.change = group, f"{group}-{name}", expect, base, change

    def build(self, images, directory):
        """The bytes, and how many zeroes follow them."""
        image = Image(images[self.base])
        if self.change.__code__.co_argcount - len(self.change.__defaults__ or ()) == 2:
            self.change(image, directory)
        else:
            self.change(image)
        return image.bytes(), image.tail


CASES = []


def case(group, name, expect, change, base="plain"):
    CASES.append(Case(group, name, expect, base, change))


# --- the header's fields, at their edges

def field(name, value, expect=REFUSED, base="plain", what="header", **more):
    label = f"{name}-{value:#x}" + ("" if base == "plain" else f"-{base}")
    case(what, label, expect, lambda i: i.put(**{name: value}, **more), base)


for base in "plain", "v2":
    for value in 0, 0x51464900, 0x514649FC, MAX32:
        field("magic", value, base=base)
for value in 0, 1, 4, 1 << 31, MAX32:
    field("version", value)
for value in 0, 8, 22, 31, 32, 63, MAX32:
    field("cluster_bits", value)
field("cluster_bits", 8, base="v2")
for value in 1 << 63, MAX64, MAX64 - 511, 1 << 50, 1 << 56, (1 << 63) - 512, (512 << 20) + 1:
    field("size", value)
field("size", 0, OPENED)
field("size", 4 * M - 1, EITHER)
field("size", 513, EITHER)
for value in 1, 2, 3, MAX32:
    field("crypt", value)
for value in 0, 4194305, 0x20000000, 0x7FFFFFFF, MAX32:
    field("l1_size", value)
field("l1_size", 8192, OPENED)
for value in 1, 0x30200, 1 << 40, 1 << 56, 1 << 63, MAX64 - 65535:
    field("l1_offset", value)
field("l1_offset", 0)
for value in 0, 1, 0x10200, 1 << 40, 1 << 56, 1 << 63, MAX64 - 65535:
    field("reftable_offset", value)
for value in 0, 129, 0x10000, 0x7FFFFFFF, MAX32:
    field("reftable_clusters", value)
field("reftable_clusters", 128, EITHER)
for value in 65537, 0x7FFFFFFF, MAX32:
    field("snapshots", value, base="snapshot")
for value in 1, 0x200, 1 << 56, 1 << 62, MAX64 - 65535:
    field("snapshots_offset", value, EITHER, "snapshot")
for value in 2, 1 << 5, 1 << 40, 1 << 63, MAX64:
    field("incompatible", value)
field("incompatible", 4)                                 # a data file that is not named
field("incompatible", 8)                                 # a compression type, but there is no such field
field("incompatible", 16, base="small")                  # subclusters of less than 512 bytes
field("compatible", MAX64, EITHER)
field("autoclear", MAX64 & ~3, OPENED)
for value in 7, 31, 32, 64, MAX32:
    field("refcount_order", value)
for value in 0, 8, 72, 96, 103, 105, 113, 65544, 1 << 20, MAX32:
    field("header_length", value)
field("header_length", 65536, EITHER)
for value in 1, 2, 255:
    case("header", f"compression-type-{value}", REFUSED, lambda i, v=value: i.write(104, bytes([v])))
case("header", "compression-type-2-announced", REFUSED,
     lambda i: (i.write(104, bytes([2])), i.put(incompatible=8)))
case("header", "all-ones", REFUSED, lambda i: i.write(4, b"\xff" * 508))
case("header", "all-zeroes", REFUSED, lambda i: i.write(4, bytes(508)))

# --- header extensions

FILL = struct.pack(">II", 0x11111111, 0)


def ext(name, expect, *new, end=True, base="plain"):
    case("extension", name, expect, lambda i: i.put_extensions(*new, end=end), base)


for value in MAX32, 0x7FFFFFFF, 65536, 65536 - 112 - 8 + 1:
    case("extension", f"length-{value:#x}", REFUSED,
         lambda i, v=value: i.write(i.get("header_length"), struct.pack(">II", 0x11111111, v)))
case("extension", "no-end", EITHER, lambda i: i.write(112, struct.pack(">II", 0x11111111, 65536 - 112 - 8)))
case("extension", "eight-thousand", REFUSED, lambda i: i.write(112, FILL * 8000))
case("extension", "end-with-a-length", EITHER, lambda i: i.write(112, struct.pack(">II", 0, MAX32)))
ext("unknown", OPENED, (0x12345678, b"whatever it is"))
ext("backing-format-without-a-name", OPENED, (EXT_BACKING_FORMAT, b"nbd"))
ext("feature-table-odd", OPENED, (EXT_FEATURES, b"\0" * 47))
ext("feature-table-huge", OPENED, (EXT_FEATURES, b"\xff" * 60000))
ext("crypto-header-without-encryption", EITHER, (EXT_CRYPTO, struct.pack(">QQ", 1 << 62, MAX64)))
ext("data-file-without-the-bit", EITHER, (EXT_DATA_FILE, b"FOREIGN/victim"))
for length in 0, 8, 23, 25, 4096:
    ext(f"bitmaps-of-{length}-bytes", EITHER, (EXT_BITMAPS, b"\xff" * length))
ext("twice", EITHER, (EXT_BITMAPS, bytes(24)), (EXT_BITMAPS, b"\xff" * 24))

# --- the backing file's name

def named(name, expect, text, fmt=b"raw", **kw):
    def change(i, directory):
        i.backing(text.replace(b"FOREIGN", bytes(directory / "foreign")).replace(b"HERE", bytes(directory)), fmt, **kw)
    case("backing", name, expect, change)


for name, text in {
        "json-file": b'json:{"driver":"file","filename":"FOREIGN/victim"}',
        "json-raw": b'json:{"driver":"raw","file":{"driver":"file","filename":"FOREIGN/victim"}}',
        "json-nbd": b'json:{"driver":"nbd","server":{"type":"unix","path":"FOREIGN/socket"}}',
        "json-broken": b"json:{", "nbd-tcp": b"nbd://127.0.0.1:1/x", "nbd-unix": b"nbd+unix:///x?socket=FOREIGN/socket",
        "nbd-old": b"nbd:unix:FOREIGN/socket:exportname=x", "file-protocol": b"file:FOREIGN/victim",
        "fat": b"fat:FOREIGN", "http": b"http://127.0.0.1:1/x", "host-device": b"host_device:/dev/vda",
        "ssh-option": b"ssh://-oProxyCommand=touch FOREIGN/x/y", "fdset": b"fdset:1", "unknown-protocol": b"x:y",
        }.items():
    named(name, REFUSED, text)
    named(name + "-no-format", REFUSED, text, fmt=None)
for fmt in b"nbd", b"vmdk", b"luks", b"vvfat", b"json:{}", b"\xff\xfe", b"r" * 1000:
    named("format-" + fmt[:9].hex(), REFUSED, b"HERE/base", fmt)
named("format-with-a-nul", EITHER, b"HERE/base", b"raw\0qcow2")
named("missing", REFUSED, b"HERE/nothing-is-here")
named("directory", REFUSED, b"HERE")
named("null-device", REFUSED, b"/dev/null")
named("terminal", REFUSED, b"/dev/tty")
named("fifo", REFUSED, b"HERE/fifo")
named("socket", REFUSED, b"HERE/unix")
named("nul-inside", REFUSED, b"HERE/base\0HERE/base")
named("qcow2-format-not-recorded", REFUSED, b"HERE/base.qcow2", fmt=None)
named("not-what-is-recorded", REFUSED, b"HERE/base", fmt=b"qcow2")
named("a-hostile-one", REFUSED, b"HERE/hostile.qcow2", fmt=b"qcow2")
named("shadow-in-a-guest", OPENED, b"HERE/guest.raw", fmt=b"raw")
named("shorter", OPENED, b"HERE/base")
named("two-levels", OPENED, b"HERE/base.qcow2", fmt=b"qcow2")
named("bytes-that-are-no-text", REFUSED, b"HERE/\xff\xfe\n\x1b[2J")
named("dots", REFUSED, b"HERE/../../../../../../../../../../no/such/place")
named("1023-bytes", REFUSED, b"HERE/" + b"n" * 900)
named("1024-bytes", REFUSED, b"n" * 1024)
for length in 65535, 1 << 20, MAX32:
    named(f"length-{length}", REFUSED, b"", length=length, offset=512)
for offset in 65535, 65536, 1 << 40, 1 << 63, MAX64:
    named(f"offset-{offset:#x}", REFUSED, b"", length=8, offset=offset)
named("offset-in-the-header", REFUSED, b"", length=64, offset=8)
named("length-0", OPENED, b"", length=0, offset=512)
case("backing", "itself", REFUSED, lambda i, d: i.backing(bytes(d / "image"), b"qcow2"))
case("backing", "itself-as-raw", EITHER, lambda i, d: i.backing(bytes(d / "image"), b"raw"))
named("loop-of-two", REFUSED, b"HERE/loop.qcow2", fmt=b"qcow2")
named("chain-of-150", REFUSED, b"HERE/chain/149", fmt=b"qcow2")

# --- the data file's name

def external(name, expect, text):
    def change(i, directory):
        i.data_file(text and text.replace(b"FOREIGN", bytes(directory / "foreign")).replace(b"HERE", bytes(directory)))
    case("data-file", name, expect, change)


external("not-named", REFUSED, None)
external("empty", REFUSED, b"")
for name, text in {
        "json": b'json:{"driver":"file","filename":"FOREIGN/victim"}', "nbd": b"nbd://127.0.0.1:1/x",
        "file-protocol": b"file:FOREIGN/victim", "nbd-unix": b"nbd+unix:///x?socket=FOREIGN/socket",
        "fifo": b"HERE/fifo", "directory": b"HERE", "missing": b"HERE/nothing", "null": b"/dev/null", "nul": b"a\0b",
        "long": b"n" * 5000}.items():
    external(name, REFUSED, text)
case("data-file", "itself", EITHER, lambda i, d: i.data_file(bytes(d / "image")))

# --- L1, L2 and the clusters they lead to; an image opens before these are looked at

def entry(name, table, value, expect=EITHER, base="plain", index=0):
    """The INDEX-th entry of the table; VALUE is a number or made from the image."""
    case("table", name, expect,
         lambda i: i.put64(getattr(i, table) + 8 * index, value(i) if callable(value) else value & MAX64), base)


for table in "l1", "l2":
    entry(f"{table}-past-the-end", table, COPIED | 1 << 40)
    entry(f"{table}-at-the-end", table, lambda i: COPIED | i.end)
    entry(f"{table}-2^55", table, COPIED | 1 << 55)
    entry(f"{table}-unaligned", table, lambda i: COPIED | i.refblock + 0x200)
    entry(f"{table}-all-ones", table, MAX64)
    entry(f"{table}-reserved-bits", table, lambda i, t=table: i.u64(getattr(i, t)) | 0x3F00000000000000 & ~COMPRESSED)
    entry(f"{table}-header", table, COPIED)
    entry(f"{table}-to-l1", table, lambda i: COPIED | i.l1)
    entry(f"{table}-to-l2", table, lambda i: COPIED | i.l2)
    entry(f"{table}-to-reftable", table, lambda i: COPIED | i.reftable)
    entry(f"{table}-to-refblock", table, lambda i: COPIED | i.refblock)
    entry(f"{table}-not-copied", table, lambda i, t=table: i.u64(getattr(i, t)) & ~COPIED)
entry("l1-shared", "l1", lambda i: i.u64(i.l1), base="small", index=1)
entry("l2-shared", "l2", lambda i: i.u64(i.l2), index=1)
entry("l2-zero-and-offset", "l2", lambda i: i.u64(i.l2) | 1)
entry("l2-zero-not-copied", "l2", 1)
entry("l2-zero-past-the-end", "l2", COPIED | 1 << 40 | 1)
case("table", "l2-nothing-but-ones", EITHER, lambda i: i.write(i.l2, b"\xff" * i.cluster))
case("table", "l2-all-one-cluster", EITHER, lambda i: i.write(i.l2, struct.pack(">Q", i.u64(i.l2)) * (i.cluster // 8)))
case("table", "l1-is-l2-is-l1", EITHER, lambda i: i.put64(i.l1, COPIED | i.l1), "small")
case("table", "l1-in-the-reftable", REFUSED, lambda i: i.put(l1_offset=i.reftable))
case("table", "l1-in-a-refblock", REFUSED, lambda i: i.put(l1_offset=i.refblock))
case("table", "reftable-in-l1", EITHER, lambda i: i.put(reftable_offset=i.l1))

# --- refcounts

entry("reftable-past-the-end", "reftable", 1 << 40)
entry("reftable-unaligned", "reftable", lambda i: i.refblock + 0x200)
entry("reftable-all-ones", "reftable", MAX64)
entry("reftable-nothing", "reftable", 0)
entry("reftable-to-header", "reftable", 0x1FF)
entry("reftable-to-itself", "reftable", lambda i: i.reftable)
entry("reftable-to-l1", "reftable", lambda i: i.l1)
entry("reftable-to-l2", "reftable", lambda i: i.l2)
entry("reftable-twice", "reftable", lambda i: i.refblock, index=1)
case("refcount", "all-zero", EITHER, lambda i: i.write(i.refblock, bytes(i.cluster)))
case("refcount", "all-zero-small", EITHER, lambda i: i.write(i.refblock, bytes(i.cluster)), "small")
case("refcount", "all-ones", EITHER, lambda i: i.write(i.refblock, b"\xff" * i.cluster))
case("refcount", "1-bit-all-ones", EITHER, lambda i: i.write(i.refblock, b"\xff" * i.cluster), "refcount-1")
case("refcount", "1-bit-all-zero", EITHER, lambda i: i.write(i.refblock, bytes(i.cluster)), "refcount-1")
case("refcount", "64-bit-all-ones", EITHER, lambda i: i.write(i.refblock, b"\xff" * i.cluster), "refcount-64")
case("refcount", "header-is-free", EITHER, lambda i: i.write(i.refblock, b"\0\0"))
case("refcount", "of-two", EITHER, lambda i: i.write(i.refblock, b"\0\2" * 64))

# --- compressed clusters

def descriptor(offset, sectors, cluster_bits=16):
    return COMPRESSED | sectors << (62 - (cluster_bits - 8)) | offset


for base in "compressed", "zstd", "v2", "subclusters":
    entry(f"compressed-past-the-end-{base}", "l2", descriptor(1 << 40, 3), base=base)
    entry(f"compressed-of-the-header-{base}", "l2", descriptor(0, 1), base=base)
    entry(f"compressed-longest-{base}", "l2", descriptor(0x10000, 255), base=base)
    entry(f"compressed-and-copied-{base}", "l2", descriptor(0x50000, 3) | COPIED, base=base)
    entry(f"compressed-all-ones-{base}", "l2", MAX64 & ~COPIED, base=base)


def compressed(name, data, base="compressed"):
    def change(i):
        at = i.end
        i.write(at, data + bytes(-len(data) % 512))
        i.put64(i.l2, descriptor(at, (len(data) - 1) // 512))
    case("compressed", name, EITHER, change, base)


def deflate(data):
    c = zlib.compressobj(9, zlib.DEFLATED, -12)
    return c.compress(data) + c.flush()


compressed("garbage", bytes(range(256)) * 8)
compressed("zeroes", bytes(4096))
compressed("too-much", deflate(bytes(16 * M)))
compressed("too-little", deflate(bytes(100)))
compressed("cut", deflate(bytes(range(256)) * 256)[:-7])
compressed("zstd-garbage", bytes(range(256)) * 8, "zstd")
compressed("zstd-window-of-2-GiB", bytes.fromhex("28b52ffd00a8") + bytes(512), "zstd")
compressed("zstd-claims-an-exabyte", bytes.fromhex("28b52ffde0") + b"\xff" * 7 + b"\x0f" + bytes(512), "zstd")

# --- subclusters

def subcluster(name, offset, bitmap):
    def change(i):
        i.put64(i.l2, (i.u64(i.l2) if offset is None else offset) & MAX64)
        i.put64(i.l2 + 8, bitmap)
    case("subclusters", name, EITHER, change, "subclusters")


subcluster("allocated-and-zero", None, MAX64)
subcluster("allocated-nowhere", 0, MAX32)
subcluster("zero-nowhere", 0, MAX32 << 32)
subcluster("past-the-end", COPIED | 1 << 40, MAX32)
subcluster("compressed-with-a-bitmap", descriptor(0x50000, 1), MAX64)
subcluster("old-zero-flag", COPIED | 1, 0)
field("incompatible", 0, EITHER, "subclusters", what="subclusters")      # the tables read as plain ones
field("incompatible", 16, EITHER, what="subclusters")                    # plain ones read as extended

# --- internal snapshots

SNAP = {"l1_offset": (0, "Q"), "l1_size": (8, "I"), "id_size": (12, "H"), "name_size": (14, "H"),
        "state_size": (32, "I"), "extra": (36, "I")}


def snapshot(name, expect=EITHER, **fields):
    def change(i):
        for key, value in fields.items():
            offset, fmt = SNAP[key]
            struct.pack_into(">" + fmt, i.data, i.get("snapshots_offset") + offset, value)
    case("snapshot", name, expect, change, "snapshot")


for value in 1, 0x200, 1 << 40, 1 << 63, MAX64 - 65535:
    snapshot(f"l1-offset-{value:#x}", l1_offset=value)
for value in 0, 2, 4194305, 0x7FFFFFFF, MAX32:
    snapshot(f"l1-size-{value}", l1_size=value)
snapshot("id-65535", id_size=65535)
snapshot("name-65535", name_size=65535)
for value in 0, 15, 1025, 65536, MAX32:
    snapshot(f"extra-{value}", extra=value)
field("snapshots", 2, EITHER, "snapshot", what="snapshot")
field("snapshots", 65536, EITHER, "snapshot", what="snapshot")
field("snapshots", 1, EITHER, what="snapshot")
case("snapshot", "table-in-l1", EITHER, lambda i: i.put(snapshots_offset=i.l1), "snapshot")
case("snapshot", "table-in-the-header", EITHER, lambda i: i.put(snapshots_offset=0), "snapshot")
case("snapshot", "its-l1-is-ours", EITHER, lambda i: i.put64(i.get("snapshots_offset"), i.l1), "snapshot")

# --- bitmaps: damage costs them, never the disk

BITMAPS = {"count": (0, "I"), "reserved": (4, "I"), "size": (8, "Q"), "offset": (16, "Q")}
ENTRY = {"table": (0, "Q"), "entries": (8, "I"), "flags": (12, "I"), "type": (16, "B"), "granularity": (17, "B"),
         "name_size": (18, "H"), "extra": (20, "I")}


def bitmaps(name, expect=OPENED, **fields):
    def change(i):
        for key, value in fields.items():
            offset, fmt = BITMAPS[key]
            struct.pack_into(">" + fmt, i.data, i.extension(EXT_BITMAPS) + offset, value)
    case("bitmap", name, expect, change, "bitmap")


def directory(i):
    return i.u64(i.extension(EXT_BITMAPS) + 16)


def bitmap(name, expect=OPENED, **fields):
    def change(i):
        for key, value in fields.items():
            offset, fmt = ENTRY[key]
            struct.pack_into(">" + fmt, i.data, directory(i) + offset, value(i) if callable(value) else value)
    case("bitmap", name, expect, change, "bitmap")


for value in 0, 2, 65536, MAX32:
    bitmaps(f"count-{value}", count=value)
for value in 0, 8, 25, 1 << 30, 1 << 63, MAX64:
    bitmaps(f"directory-size-{value:#x}", size=value)
for value in 0, 1, 0x200, 1 << 40, 1 << 63, MAX64 - 65535:
    bitmaps(f"directory-offset-{value:#x}", offset=value)
case("bitmap", "directory-in-l1", OPENED, lambda i: i.put64(i.extension(EXT_BITMAPS) + 16, i.l1), "bitmap")
bitmaps("reserved", reserved=MAX32)
for value in 0, 1, 0x200, 1 << 40, 1 << 63:
    bitmap(f"table-{value:#x}", table=value)
bitmap("table-in-l1", table=lambda i: i.l1)
bitmap("table-in-its-directory", table=directory)
for value in 0, 2, 0x8000001, MAX32:
    bitmap(f"entries-{value:#x}", entries=value)
for value in 1, 4, 8, MAX32:
    bitmap(f"flags-{value:#x}", flags=value)
for value in 0, 2, 255:
    bitmap(f"type-{value}", type=value)
for value in 0, 8, 32, 63, 64, 255:
    bitmap(f"granularity-{value}", granularity=value)
for value in 0, 1024, 65535:
    bitmap(f"name-{value}", name_size=value)
for value in 1, 8, MAX32:
    bitmap(f"extra-{value:#x}", extra=value)
for value in 1, 2, 0x200, 1 << 40, MAX64, 1 << 63:
    case("bitmap", f"bits-{value:#x}", OPENED,
         lambda i, v=value: i.put64(i.u64(directory(i)) & OFFSET_MASK, v), "bitmap")
case("bitmap", "bits-in-l1", OPENED, lambda i: i.put64(i.u64(directory(i)) & OFFSET_MASK, i.l1), "bitmap")
case("bitmap", "name-is-no-text", OPENED, lambda i: i.write(directory(i) + 24, b"\xff\xfe"), "bitmap")

# --- files that end early, are of one byte, or huge

for size in 0, 1, 3, 4, 71, 72, 103, 104, 111, 511, 512, 65535:
    case("cut", f"at-{size}", EITHER if size > 104 else REFUSED, lambda i, n=size: i.data.__delitem__(slice(n, None)))
for cluster in range(1, 8):
    case("cut", f"after-cluster-{cluster}", EITHER, lambda i, n=cluster: i.data.__delitem__(slice(n * 65536, None)))
case("cut", "inside-l2", EITHER, lambda i: i.data.__delitem__(slice(i.l2 + 100, None)))
case("cut", "zeroes", REFUSED, lambda i: i.write(0, bytes(M)), "nothing")
case("cut", "ones", REFUSED, lambda i: i.write(0, b"\xff" * M), "nothing")


def huge_l1(i, fill):
    """The largest L1 table there may be: 2 EiB in clusters of 2 MiB, the table behind the rest."""
    i.put(cluster_bits=21, size=1 << 61, l1_size=4 << 20)
    i.data = i.data[:4096]
    i.grow(6 << 20)
    i.put(reftable_offset=2 << 20, reftable_clusters=1, l1_offset=6 << 20)
    i.put64(2 << 20, 4 << 20)
    i.write(4 << 20, b"\0\1" * 64)
    i.write(6 << 20, fill * (4 << 20))


case("huge", "l1-of-holes", OPENED, lambda i: huge_l1(i, bytes(8)))
case("huge", "l1-of-one-table", REFUSED, lambda i: huge_l1(i, struct.pack(">Q", COPIED | 4 << 20)))
case("huge", "l1-of-nonsense", EITHER, lambda i: huge_l1(i, b"\x7f" * 8))
case("huge", "file-of-an-exabyte", EITHER, lambda i: setattr(i, "tail", 1 << 43))
case("huge", "8-EiB", REFUSED, lambda i: (i.put(cluster_bits=21, size=(1 << 63) - (2 << 20), l1_size=4 << 20)))
