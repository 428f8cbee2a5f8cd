# SPDX-License-Identifier: BSD-3-Clause
"""The disk that most protocol tests use: 1 MiB of data, then 3 MiB never written."""

from lib import pattern, tools

SIZE = 4 << 20
DATA = pattern.block("disk", 1 << 20)
CONTENT = DATA + bytes(SIZE - len(DATA))


def qcow2(tmp):
    """It as a qcow2 image of 64 KiB clusters."""
    path = tools.create(tmp / "disk.qcow2", SIZE)
    (tmp / "data").write_bytes(DATA)
    tools.qemu_io(path, f"write -s {tmp}/data 0 1M")
    return path


def raw(tmp):
    """It as a raw image, the 3 MiB a hole in the file."""
    path = tmp / "disk.raw"
    with open(path, "wb") as f:
        f.write(DATA)
        f.truncate(SIZE)
    return str(path)
