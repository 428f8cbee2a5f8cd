# SPDX-License-Identifier: BSD-3-Clause
"""A disk as cloud images are: GPT, a BIOS boot partition with GRUB, and a root file system with kernel and grub.cfg.

GRUB is Debian's: grub-mkimage packs it; what grub-install does besides, telling each part where the next one lies,
is done here, because grub-install wants a block device.
"""

import pathlib
import shutil
import struct
import subprocess
import uuid
import zlib

import pytest

GRUB = pathlib.Path("/usr/lib/grub/i386-pc")
SECTOR = 512
BOOT_AT, ROOT_AT = 2048, 8192           # sectors
TYPES = {"bios": "21686148-6449-6e6f-744e-656564454649", "linux": "0fc63daf-8483-4772-8e79-3d69d8477de4"}
MODULES = "biosdisk part_gpt ext2 normal linux echo serial terminal".split()


def need():
    """Skips the test where there is no GRUB."""
    for path in GRUB / "boot.img", shutil.which("grub-mkimage"):
        if not path or not pathlib.Path(path).exists():
            pytest.skip("no GRUB for BIOSes: it is in Debian's packages grub-pc-bin and grub-common")


def _gpt(size, parts):
    """Protective MBR, header and entries for the front; entries and header for the end (UEFI 2.10, 5.3)."""
    last = size // SECTOR - 1
    entries = bytearray(128 * 128)
    for number, (kind, first, end) in parts.items():
        name = kind.encode("utf-16le")
        struct.pack_into("<16s16sQQQ72s", entries, 128 * (number - 1), uuid.UUID(TYPES[kind]).bytes_le,
                         uuid.uuid5(uuid.NAMESPACE_DNS, kind).bytes_le, first, end, 0, name)

    def header(here, other, at):
        h = struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, here, other, 34, last - 33,
                        uuid.uuid5(uuid.NAMESPACE_DNS, "disk").bytes_le, at, 128, 128, zlib.crc32(entries))
        return (h[:16] + struct.pack("<I", zlib.crc32(h)) + h[20:]).ljust(SECTOR, b"\0")

    mbr = bytearray(SECTOR)
    struct.pack_into("<B3sB3sII", mbr, 446, 0, b"\0\2\0", 0xee, b"\xff\xff\xff", 1, last)
    mbr[510:] = b"\x55\xaa"
    return bytes(mbr) + header(1, last, 2) + entries, bytes(entries) + header(last, 1, last - 32)


def _grub(directory, config_in, modules):
    """boot.img for the first sector, and the core image for the BIOS boot partition."""
    core = directory / "core.img"
    subprocess.run(["grub-mkimage", "-O", "i386-pc", "-o", core, "-p", config_in, *MODULES, *modules], check=True)
    boot, core = bytearray((GRUB / "boot.img").read_bytes()), bytearray(core.read_bytes())
    struct.pack_into("<Q", boot, 0x5c, BOOT_AT)                 # where boot.img finds the first sector of the core
    core += bytes(-len(core) % SECTOR)
    struct.pack_into("<QH", core, SECTOR - 12, BOOT_AT + 1, len(core) // SECTOR - 1)     # ... and that the others
    assert len(core) <= (ROOT_AT - BOOT_AT) * SECTOR
    return boot, core


def make(path, files, config, megabytes, modules=()):
    """FILES: {name in the root file system: path or bytes}; CONFIG: what grub.cfg says; MODULES: GRUB's, and more."""
    tree = path.with_name(path.name + ".tree")
    for name, what in {**files, "boot/grub/grub.cfg": config.encode()}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(what if isinstance(what, bytes) else pathlib.Path(what).read_bytes())
    size = megabytes << 20
    end = size // SECTOR - 2048
    front, back = _gpt(size, {1: ("linux", ROOT_AT, end - 1), 14: ("bios", BOOT_AT, ROOT_AT - 1)})
    boot, core = _grub(path.parent, "(hd0,gpt1)/boot/grub", modules)
    with open(path, "wb") as f:
        f.truncate(size)
        f.write(boot[:440] + front[440:])
        f.seek(BOOT_AT * SECTOR)
        f.write(core)
        f.seek(size - len(back))
        f.write(back)
    subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, "-E", f"offset={ROOT_AT * SECTOR}", path,
                    f"{(end - ROOT_AT) // 2}k"], check=True)
    shutil.rmtree(tree)
    return path
