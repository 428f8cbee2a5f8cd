# SPDX-License-Identifier: BSD-3-Clause
"""The bytes of a qcow2 image, for tests that damage or extend them (QEMU's docs/interop/qcow2.txt)."""

import struct

# Offsets in the header: (offset, struct format).
FIELDS = {"magic": (0, "I"), "version": (4, "I"), "backing_offset": (8, "Q"), "backing_length": (16, "I"),
          "cluster_bits": (20, "I"), "size": (24, "Q"), "crypt": (32, "I"), "l1_size": (36, "I"),
          "l1_offset": (40, "Q"), "reftable_offset": (48, "Q"), "reftable_clusters": (56, "I"),
          "snapshots": (60, "I"), "snapshots_offset": (64, "Q"), "incompatible": (72, "Q"), "compatible": (80, "Q"),
          "autoclear": (88, "Q"), "refcount_order": (96, "I"), "header_length": (100, "I")}

EXT_END, EXT_FEATURES, EXT_BITMAPS, EXT_BACKING_FORMAT = 0, 0x6803F857, 0x23852875, 0xE2792ACA

COPIED = 1 << 63
OFFSET_MASK = 0x00FFFFFFFFFFFE00


def get(path, field):
    offset, fmt = FIELDS[field]
    with open(path, "rb") as f:
        f.seek(offset)
        return struct.unpack(">" + fmt, f.read(struct.calcsize(fmt)))[0]


def put(path, **fields):
    """Overwrite header fields."""
    with open(path, "r+b") as f:
        for name, value in fields.items():
            offset, fmt = FIELDS[name]
            f.seek(offset)
            f.write(struct.pack(">" + fmt, value))


def get64(path, offset):
    with open(path, "rb") as f:
        f.seek(offset)
        return struct.unpack(">Q", f.read(8))[0]


def put64(path, offset, value):
    with open(path, "r+b") as f:
        f.seek(offset)
        f.write(struct.pack(">Q", value))


def extensions(path):
    """The header extensions: [(type, data)], without the end mark."""
    out = []
    with open(path, "rb") as f:
        f.seek(get(path, "header_length"))
        while True:
            kind, length = struct.unpack(">II", f.read(8))
            if kind == EXT_END:
                return out
            out.append((kind, f.read(length)))
            f.read(-length % 8)


def put_extensions(path, new):
    """Replace all header extensions (images without a backing file name behind them only)."""
    assert get(path, "backing_offset") == 0
    raw = b"".join(struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8) for kind, data in new)
    with open(path, "r+b") as f:
        f.seek(get(path, "header_length"))
        f.write(raw + bytes(8))


def l2_entry_offset(path, guest):
    """Where in the file the L2 entry of a guest offset lies (its table must be there)."""
    bits = get(path, "cluster_bits")
    l1_index = guest >> (2 * bits - 3)
    l1_entry = get64(path, get(path, "l1_offset") + 8 * l1_index)
    assert l1_entry & OFFSET_MASK, "no L2 table"
    return (l1_entry & OFFSET_MASK) + 8 * ((guest >> bits) & ((1 << (bits - 3)) - 1))
