# SPDX-License-Identifier: BSD-3-Clause
"""Bytes that are the same in every run, and differ everywhere within one.

A seed is anything that prints (a number, a name); equal seeds give equal bytes.
"""

import random


def block(seed, length):
    """LENGTH bytes without structure; no two seeds share a run of eight bytes in practice."""
    return random.Random(repr(seed)).randbytes(length)


def sectors(seed, offset, length):
    """Every 512 bytes name their own seed and offset, so that data in the wrong place can be read off a failure."""
    assert offset % 512 == 0 and length % 512 == 0
    out = bytearray()
    for at in range(offset, offset + length, 512):
        out += (f"[{seed}@{at:#x}]".encode() * 128)[:512]
    return bytes(out)


def first_difference(a, b):
    """Where A and B part, as text for an assertion; None when they are equal."""
    if a == b:
        return None
    if len(a) != len(b):
        return f"lengths {len(a)} and {len(b)}"
    step = 65536
    for base in range(0, len(a), step):
        if a[base:base + step] != b[base:base + step]:
            for i in range(base, min(base + step, len(a))):
                if a[i] != b[i]:
                    return f"at {i:#x}: {bytes(a[i:i + 16]).hex()} != {bytes(b[i:i + 16]).hex()}"
    return None
