# SPDX-License-Identifier: BSD-3-Clause
"""A disk as cloud images are boots from its own boot loader: SeaBIOS, GRUB, and (long form) Debian's stock kernel.

In an outer machine whose KVM is kvm-amd (lib/realkernel.py): there real mode is not slower than the rest.
"""

import os
import re
import shutil

import pytest

from lib import daemon, grubdisk, realkernel, vmm

pytestmark = [pytest.mark.merino_only, pytest.mark.timeout(1800)]
BIOS = "/usr/share/seabios/bios-256k.bin"

TERMINAL = """
serial --unit=0 --speed=115200
terminal_input serial
terminal_output {output}
"""

INIT = """#!/bin/sh
/bin/busybox mkdir -p /sbin; /bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
sh /modules/load
mount -t ext4 /dev/vda1 /mnt || { echo 'guest: error: no disk'; poweroff -f; }
echo "guest: $(cat /mnt/from-outside): $(cat /proc/cmdline)"
echo back > /mnt/from-inside
umount /mnt || echo 'guest: error: umount'
echo 'guest: end'
poweroff -f
"""


@pytest.fixture
def world(tmp):
    """Boots disks: boot(disk) is what is on the serial line when the machine has powered off."""
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("no qemu-system-x86_64")
    if daemon.sanitized():
        pytest.skip("emulated twice, a sanitizer's program is too slow")
    if not os.path.exists(BIOS):
        pytest.skip(f"no {BIOS}: it is in Debian's package seabios")
    grubdisk.need()
    kernel, machines = realkernel.Kernel(), []

    def boot(disk, timeout=realkernel.BOUND, after="true"):
        files = realkernel.with_libraries(*(vmm.BUILD / p for p in ("merinod", "merino", "merino-vmm")),
                                          shutil.which("e2fsck"), shutil.which("debugfs"))
        o = realkernel.Outer(tmp, kernel, {**files, BIOS.lstrip("/"): BIOS, "disk.raw": disk})
        machines.append(o)
        o.sh("(merino run --run-dir /tmp/run --memory 256M /disk.raw > /tmp/serial 2> /tmp/log < /dev/null; "
             "echo $? > /tmp/status) &")
        o.wait("[ -s /tmp/status ]", timeout, see="/tmp/serial /tmp/log")
        said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", o.sh("cat /tmp/serial").replace("\r", ""))
        assert o.sh("cat /tmp/status").strip() == "0", said + o.sh("cat /tmp/log")
        return said, o.sh(after)

    yield kernel, boot
    for o in machines:
        o.end()


def test_grub(world, tmp):
    """GRUB finds its partition, reads files from ext4, and halts by the ACPI tables that the firmware placed."""
    _, boot = world
    config = TERMINAL.format(output="serial") + "cat /from-outside\necho grub: halts\nhalt\n"
    disk = grubdisk.make(tmp / "disk", {"from-outside": b"hello from a file\n"}, config, 16, ["cat", "halt"])
    said, _ = boot(disk)
    assert "hello from a file\n" in said and "grub: halts" in said, said


@pytest.mark.soak
def test_debian(world, tmp):
    """GRUB, on the BIOS's own console, loads Debian's kernel, which mounts the disk, writes to it and powers off."""
    kernel, boot = world
    kernel.initramfs(tmp / "initrd", INIT, ["virtio", "blk"])
    config = TERMINAL.format(output="console") + ("linux /boot/vmlinuz root=/dev/vda1 console=ttyS0 quiet panic=-1\n"
                                                  "initrd /boot/initrd\nboot\n")
    disk = grubdisk.make(tmp / "disk", {"boot/vmlinuz": kernel.image, "boot/initrd": tmp / "initrd",
                                        "from-outside": b"hello"}, config, 64)
    said, after = boot(disk, 1500, "dd if=/disk.raw of=/root1 bs=1M skip=4 2> /dev/null; e2fsck -fn /root1 && "
                                  "debugfs -R 'cat /from-inside' /root1")
    assert "guest: hello: BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1" in said and "guest: end" in said, said
    assert not re.search(r"guest: error|Oops|Call Trace", said), said
    assert after.endswith("back\n"), after
