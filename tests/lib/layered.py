# SPDX-License-Identifier: BSD-3-Clause
"""A disk of two layers, whose every byte and whose metadata are known.

    base     data [0, 1 MiB)
    overlay  data [512 KiB, 1.5 MiB), a zero cluster at 3 MiB, never written elsewhere; 4 MiB; bitmap b0, clean
"""

from lib import pattern, tools

SIZE = 4 << 20
K, M = 1 << 10, 1 << 20
_BASE, _TOP = pattern.block("base", M), pattern.block("top", M)
CONTENT = _BASE[:512 * K] + _TOP + bytes(SIZE - 1536 * K)

# What the contexts say: (offset, length, flags).
ALLOCATION = [(0, 1536 * K, 0), (1536 * K, SIZE - 1536 * K, 3)]
DEPTH = [(0, 512 * K, 2), (512 * K, M, 1), (1536 * K, 1536 * K, 0), (3 * M, 64 * K, 1), (3 * M + 64 * K, 960 * K, 0)]


def make(tmp):
    """Make it in TMP; the path of the overlay."""
    (tmp / "base.data").write_bytes(_BASE)
    (tmp / "top.data").write_bytes(_TOP)
    base = tools.create(tmp / "base.qcow2", SIZE)
    tools.qemu_io(base, f"write -s {tmp}/base.data 0 1M")
    top = tools.create(tmp / "top.qcow2", None, backing=base)
    tools.qemu_io(top, f"write -s {tmp}/top.data 512k 1M", "write -z 3M 64k")
    tools.run("qemu-img", "bitmap", "--add", top, "b0")
    return top


def make_empty(tmp):
    return tools.create(tmp / "empty.qcow2", SIZE)
