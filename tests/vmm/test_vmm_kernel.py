# SPDX-License-Identifier: BSD-3-Clause
"""A real guest: Debian's stock cloud kernel in merino-vmm, in an outer machine whose KVM is kvm-amd (lib/realkernel.py).

The guest's disk is an ext4 that merinod serves.  While the guest writes, the disk is backed up, and merinod is
killed and started again.  Then it powers off by ACPI, and what it left is judged by e2fsck and by its own sums.
"""

import os
import pathlib
import re
import shutil

import pytest

from lib import daemon, realkernel

pytestmark = [pytest.mark.merino_only, pytest.mark.timeout(600)]

GUEST = """#!/bin/sh
/bin/busybox mkdir -p /sbin; /bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
sh /modules/load
mount -t ext4 /dev/vda /mnt || { echo 'guest: no disk'; poweroff -f; }
cd /mnt
echo "guest: $(cat from-outside)"
n=0
until [ -e /tmp/enough ]; do
	n=$((n + 1))
	dd if=/dev/urandom of=file$((n % 8)) bs=128k count=4 conv=fsync 2> /dev/null || echo 'guest: error: write'
	md5sum file* > new-sums && sync && mv new-sums sums || echo 'guest: error: sums'
	echo "guest: round $n"
	[ $n -lt 80 ] || touch /tmp/enough
done
echo 3 > /proc/sys/vm/drop_caches
md5sum -c sums > /tmp/checked 2>&1 || { echo 'guest: error: read'; cat /tmp/checked; }
cd /
umount /mnt || echo 'guest: error: umount'
echo 'guest: end'
poweroff -f
"""

START = ("rm -f /disk/pid; "
         "merinod --blockdev driver=raw,node-name=disk,file.driver=file,file.filename=/disk/raw,discard=unmap "
         "--nbd-server addr.type=unix,addr.path=/disk/nbd "
         "--export type=nbd,id=disk,node-name=disk,name=disk,writable=on "
         "--chardev socket,id=mon0,path=/disk/qmp,server=on,wait=off --monitor chardev=mon0 "
         "--pidfile /disk/pid >> /disk/merinod.log 2>&1 < /dev/null & ")


def program(name):
    """A program beside the merinod under test."""
    path = pathlib.Path(daemon.program()).resolve().with_name(name)
    if not path.exists():
        pytest.skip(f"no {name}")
    return path


@pytest.fixture
def outer(tmp):
    """An outer machine with the programs under test and a guest's kernel and initramfs, /guest/."""
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("no qemu-system-x86_64")
    if daemon.sanitized():
        pytest.skip("emulated twice, a sanitizer's program is too slow")
    kernel = realkernel.Kernel()
    kernel.initramfs(tmp / "guest.cpio", GUEST, ["virtio", "blk", "net", "button"])
    files = realkernel.with_libraries(program("merinod"), program("merino"), program("merino-vmm"),
                                      shutil.which("mke2fs"), shutil.which("e2fsck"))
    files |= {"guest/vmlinuz": kernel.image, "guest/initrd": tmp / "guest.cpio"}
    o = realkernel.Outer(tmp, kernel, files)
    yield o
    o.end()


def start_daemon(o):
    o.sh(START)
    o.wait("[ -s /disk/pid ]", see="/disk/merinod.log")


def start_guest(o, *options):
    o.sh("(merino-vmm --kernel /guest/vmlinuz --initrd /guest/initrd --memory 256M --append 'console=ttyS0 quiet panic=-1' "
         f"--no-reboot --serial file:/disk/serial {' '.join(options)} > /disk/vmm.log 2>&1 < /dev/null; "
         "echo $? > /disk/vmm.status) &")


def wait_round(o, n):
    o.wait(f"[ $(grep -c 'guest: round' /disk/serial) -ge {n} ] || [ -e /disk/vmm.status ]", see="/disk/serial /disk/vmm.log")


def test_kernel_disk(outer):
    """It mounts, writes, is backed up meanwhile, has its server killed and powers off: no error, all sums right."""
    o = outer
    o.sh("mkdir -p /disk/files; echo hello > /disk/files/from-outside; truncate -s 64M /disk/raw; "
         "/usr/bin/mke2fs -q -t ext4 -d /disk/files /disk/raw")
    start_daemon(o)
    start_guest(o, "--disk 'nbd+unix:///disk?socket=/disk/nbd'")
    wait_round(o, 2)
    o.sh("merino backup --to /disk/backup --socket /disk/qmp --quiet")
    o.sh("! grep -q 'guest: end' /disk/serial && kill -9 $(cat /disk/pid)")
    o.sh("usleep 1500000")
    start_daemon(o)
    o.sh("! grep -q 'guest: end' /disk/serial")
    o.wait("[ -e /disk/vmm.status ]", see="/disk/serial /disk/vmm.log /disk/merinod.log")
    said, log = o.sh("cat /disk/serial"), o.sh("cat /disk/vmm.log /disk/merinod.log")
    assert o.sh("cat /disk/vmm.status").strip() == "0", said + log
    assert "guest: hello" in said and "guest: end" in said, said + log
    assert not re.search(r"error|Call Trace|Oops", said), said + log
    o.sh("kill $(cat /disk/pid); e2fsck -fn /disk/raw")
    # The backup is a disk as after a power loss: its journal is played back, and then all is well.
    o.sh("merino restore --quiet --format raw /disk/backup disk /disk/back && e2fsck -p /disk/back; [ $? -le 1 ] && "
         "e2fsck -fn /disk/back")
