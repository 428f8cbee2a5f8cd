# SPDX-License-Identifier: BSD-3-Clause
"""A real guest: Debian's stock cloud kernel in merino-vmm, in an outer machine whose KVM is kvm-amd (lib/realkernel.py).

The guest's disk is an ext4 that merinod serves, with qemu-ga on it.  While the guest works on it, the disk is backed up
at rest; the guest is frozen and thawed; merinod is killed, and started again with a larger disk; the power button
is pressed.  What the guest left, and the backup, are judged by e2fsck and by the guest's own sums.
"""

import json
import pathlib
import re
import shutil

import pytest

from lib import daemon, realkernel

pytestmark = [pytest.mark.merino_only, pytest.mark.timeout(1800)]

GUEST = """#!/bin/sh
/bin/busybox mkdir -p /sbin; /bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
echo 0 > /proc/sys/kernel/hung_task_timeout_secs
sh /modules/load
mount -t ext4 /dev/vda /mnt || { echo 'guest: no disk'; poweroff -f; }
cd /mnt
for d in dev proc sys; do mkdir -p $d; mount -o bind /$d $d; done
mkdir -p tmp; mount -t tmpfs tmp tmp
for p in /sys/class/virtio-ports/*; do
	[ "$(cat $p/name)" != org.qemu.guest_agent.0 ] ||
		chroot . /usr/bin/qemu-ga -d -m virtio-serial -p /dev/${p##*/} -t /tmp -f /tmp/agent.pid
done
for e in /sys/class/input/event*; do
	[ "$(cat $e/device/name)" != 'Power Button' ] ||
		{ dd if=/dev/input/${e##*/} of=/tmp/pressed bs=24 count=1 2> /dev/null; touch /tmp/enough; } &
done
echo "guest: $(cat from-outside)"
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0
wget -q -O - http://10.0.2.2:8080/word || echo 'guest: error: network'
echo 'guest: unpacks'
dpkg-deb -e package.deb control && dpkg-deb -x package.deb root && sync && (cd root && md5sum -c ../control/md5sums) > tmp/package 2>&1 ||
	{ echo 'guest: error: package'; cat tmp/package; }
n=0
size=$(cat /sys/block/vda/size)
until [ -e /tmp/enough ]; do
	n=$((n + 1))
	dd if=/dev/urandom of=file$((n % 8)) bs=128k count=4 conv=fsync 2> /dev/null || echo 'guest: error: write'
	md5sum file* > new-sums && sync && mv new-sums sums || echo 'guest: error: sums'
	echo "guest: round $n"
	now=$(cat /sys/block/vda/size)
	[ $now = $size ] || echo "guest: size $now"
	size=$now
done
kill $(cat tmp/agent.pid); while kill -0 $(cat tmp/agent.pid) 2> /dev/null; do usleep 10000; done
echo 3 > /proc/sys/vm/drop_caches
md5sum -c sums > /tmp/checked 2>&1 || { echo 'guest: error: read'; cat /tmp/checked; }
umount tmp dev proc sys
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
RUN = ("(merino run --run-dir /disk/run --name vm1 --socket /disk/qmp --net user --memory 256M --kernel /guest/vmlinuz "
       "--initrd /guest/initrd --append 'console=ttyS0 quiet panic=-1 nowatchdog rcupdate.rcu_cpu_stall_suppress=1' 'nbd+unix:///disk?socket=/disk/nbd' "
       "> /disk/serial 2> /disk/vmm.log < /dev/null; echo $? > /disk/vmm.status) &")


def program(name):
    """A program beside the merinod under test."""
    path = pathlib.Path(daemon.program()).resolve().with_name(name)
    if not path.exists():
        pytest.skip(f"no {name}")
    return path


class Host(realkernel.Outer):
    """The outer machine, with the programs under test, a guest's kernel and initramfs, and the files of its disk."""

    def __init__(self, tmp):
        kernel = realkernel.Kernel()
        kernel.initramfs(tmp / "guest.cpio", GUEST, ["virtio", "blk", "net", "console", "button"])
        agent = realkernel.with_libraries(realkernel.Package("qemu-guest-agent").root / "usr/sbin/qemu-ga")
        files = realkernel.with_libraries(program("merinod"), program("merino"), program("merino-vmm"),
                                          shutil.which("mke2fs"), shutil.which("e2fsck"))
        files |= {"guest/vmlinuz": kernel.image, "guest/initrd": tmp / "guest.cpio",
                  "guest/files/from-outside": b"hello\n", "guest/files/package.deb": kernel.package.file,
                  "guest/www/word": b"guest: by the network\n"}
        super().__init__(tmp, kernel, files | {"guest/files/" + name: path for name, path in agent.items()})

    def start_daemon(self):
        self.sh(START)
        self.wait("[ -s /disk/pid ]", see="/disk/merinod.log")

    def start_guest(self):
        self.sh("mkdir -p /disk; truncate -s 64M /disk/raw; /usr/bin/mke2fs -q -t ext4 -d /guest/files /disk/raw; "
                "httpd -p 127.0.0.1:8080 -h /guest/www")
        self.start_daemon()
        self.sh(RUN)

    def says(self, text):
        """The guest's next words are these, unless it has ended."""
        self.wait(f"grep -q 'guest: {text}' /disk/serial || [ -s /disk/vmm.status ]", see="/disk/serial /disk/vmm.log")
        self.sh(f"grep -q 'guest: {text}' /disk/serial || {{ cat /disk/serial /disk/vmm.log; false; }}")

    def rounds(self):
        return int(self.sh("grep -c 'guest: round' /disk/serial; true"))

    def goes_on(self):
        self.says(f"round {self.rounds() + 1}")

    def merino(self, verb, *words):
        return self.sh(f"merino {verb} --run-dir /disk/run {' '.join(words)} vm1")


@pytest.fixture
def host(tmp):
    if not shutil.which("qemu-system-x86_64"):
        pytest.skip("no qemu-system-x86_64")
    if daemon.sanitized():
        pytest.skip("emulated twice, a sanitizer's program is too slow")
    h = Host(tmp)
    yield h
    h.end()


def test_kernel(host):
    """It works, is backed up at rest, frozen, left without its server, given a larger disk, and powered off: all is right."""
    host.start_guest()
    host.says("unpacks")
    made = json.loads(host.sh("merino backup --to /disk/backup --socket /disk/run/vm1/qmp --quiesce --quiesce-timeout 180 "
                              "--json 2> /disk/backup.log || cat /disk/backup.log"))
    assert made["quiesced"] and made["consistency"] == "filesystem-consistent", host.sh("cat /disk/backup.log")
    host.goes_on()
    host.merino("freeze", "--limit 1000", "--timeout 300")
    before = host.rounds()
    host.sh("usleep 1000000")
    assert host.rounds() <= before + 1          # nothing is written; it may have been about to say so
    host.merino("thaw", "--timeout 300")
    host.goes_on()
    # The kernel lets go of a killed process's images some time after its end.
    host.sh("kill -9 $(cat /disk/pid); while grep -q OFDLCK /proc/locks; do usleep 10000; done; truncate -s 96M /disk/raw")
    host.start_daemon()
    host.says(f"size {(96 << 20) // 512}")
    host.goes_on()
    host.merino("stop", "--timeout 1000")
    host.wait("[ -s /disk/vmm.status ]", see="/disk/serial /disk/vmm.log /disk/merinod.log")
    said, log = host.sh("cat /disk/serial"), host.sh("cat /disk/vmm.log /disk/merinod.log")
    assert host.sh("cat /disk/vmm.status").strip() == "0", said + log
    assert all(f"guest: {t}" in said for t in ("hello", "by the network", "end")), said + log
    assert not re.search(r"error|Call Trace|Oops", said), said + log
    host.sh("kill $(cat /disk/pid); e2fsck -fn /disk/raw")
    # The guest was at rest: no journal needs to be played back.
    host.sh("merino restore --quiet --format raw /disk/backup /disk/back && e2fsck -fn /disk/back")
