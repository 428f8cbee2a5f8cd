# SPDX-License-Identifier: BSD-3-Clause
"""merino run, stop, status and console, with a guest that runs on KVM."""

import json
import os
import shutil
import signal
import stat
import subprocess

import pytest

from lib import qmp, tools, vmm
from lib.daemon import content_of, die_with_parent, wait_unlocked
from lib.patience import HANG, wait_until

pytestmark = pytest.mark.merino_only

MERINO = str(vmm.BUILD / "merino")


class Machines:
    def __init__(self, tmp):
        self.tmp, self.base = tmp, tmp / "run"

    def argv(self, verb, *args):
        return [MERINO, verb, "--run-dir", str(self.base), *map(str, args)]

    def do(self, verb, *args, **kw):
        return subprocess.run(self.argv(verb, *args), capture_output=True, text=True, timeout=HANG,
                              stdin=subprocess.DEVNULL, **kw)

    def run(self, words, *args):
        return self.do("run", "--kernel", vmm.payload(), "--append", words, "--memory", "64M", *args)

    def detach(self, words, *args):
        done = self.run(words, "--detach", "--name", "vm1", *args)
        assert done.returncode == 0, done.stderr

    def qmp(self, name="vm1", socket="qmp"):
        return qmp.QMP(str(self.base / name / socket))

    def supervisor(self, name="vm1"):
        """The pid of the process that holds the lock."""
        inode = (self.base / name / "lock").stat().st_ino
        with open("/proc/locks") as f:
            return next(int(w[4]) for w in map(str.split, f) if w[1] == "FLOCK" and int(w[5].rsplit(":")[-1]) == inode)

    def inserted(self, disk=0, name="vm1"):
        """What query-block says of a disk; nothing as long as merinod is not reached."""
        return wait_until(lambda: self.block(disk, name).get("inserted"))

    def block(self, disk=0, name="vm1"):
        with self.qmp(name) as q:
            return q.cmd("query-block")[disk]

    def gone(self, name="vm1"):
        wait_until(lambda: not (self.base / name).exists())

    def end(self):
        for name in os.listdir(self.base) if self.base.exists() else []:
            self.do("stop", "--force", name)


@pytest.fixture
def machines(tmp):
    vmm.need_kvm()
    m = Machines(tmp)
    yield m
    m.end()


def test_run_until_the_guest_is_off(machines, tmp):
    done = machines.run("count=1", tools.create(tmp / "a.qcow2", "16M"))
    assert done.returncode == 0 and "PASS" in done.stdout, done.stderr
    assert os.listdir(machines.base) == []


def test_a_machine_in_the_background(machines, tmp):
    machines.detach("button", "--cpus", "2", tools.create(tmp / "a.qcow2", "16M"))
    folder = machines.base / "vm1"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    q = machines.qmp()
    assert q.cmd("query-name") == {"name": "vm1"} and len(q.cmd("query-cpus-fast")) == 2
    assert machines.block()["qdev"] == "/machine/peripheral/vda/virtio-backend"
    assert machines.inserted()["image"]["virtual-size"] == 16 << 20
    assert machines.do("status").stdout == "vm1: running\n"
    q.cmd("stop")
    state, = json.loads(machines.do("status", "--json", "vm1").stdout)
    assert state == {"name": "vm1", "state": "paused", "directory": str(folder)}
    q.cmd("cont")
    again = machines.run("hang", "--name", "vm1")
    assert again.returncode == 1 and "the machine 'vm1' runs already" in again.stderr
    done = machines.do("stop", "vm1")
    assert done.returncode == 0, done.stderr
    assert not folder.exists()
    off = machines.do("status", "vm1")
    assert (off.returncode, off.stdout) == (1, "vm1: off\n")
    assert machines.do("status").stdout == ""


def test_a_guest_that_does_not_listen(machines):
    machines.detach("hang")
    done = machines.do("stop", "--timeout", "1", "vm1")
    assert done.returncode == 1 and "did not power off within 1 s; --force ends it" in done.stderr
    assert machines.do("status", "vm1").returncode == 0
    assert machines.do("stop", "--force", "vm1").returncode == 0
    assert machines.do("stop", "vm1").stderr == "merino stop: error: no machine 'vm1' runs\n"


def test_console(machines):
    machines.detach("echo")
    done = subprocess.run(machines.argv("console", "vm1"), input="hello q", capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0 and "hello " in done.stdout, done
    machines.gone()


def test_merinod_is_started_again(machines, tmp):
    """kill -9: the machine goes on, and a new merinod has the disk."""
    machines.detach("hang", tools.create(tmp / "a.qcow2", "16M"))
    pidfile = machines.base / "vm1/merinod.pid"
    first = int(pidfile.read_text())
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: content_of(pidfile).strip() not in ("", str(first)))
    assert machines.qmp().cmd("query-status")["running"]
    assert machines.inserted()["node-name"] == "vda"
    assert machines.do("stop", "--force", "vm1").returncode == 0


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_who_started_it(machines, tmp, signo):
    """Nothing is left running; what is left lying does not hinder the next start."""
    image = tools.create(tmp / "a.qcow2", "16M")
    machines.detach("hang", image)
    pids = [machines.supervisor(), int((machines.base / "vm1/merinod.pid").read_text())]
    os.kill(pids[0], signo)
    wait_until(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids) and machines.do("status", "vm1").returncode)
    wait_unlocked(tmp)
    assert (machines.base / "vm1").exists() == (signo == signal.SIGKILL)
    machines.detach("hang", image)


def test_join_a_merinod(machines, daemon, tmp):
    image = tools.create(tmp / "a.qcow2", "8M")
    d = daemon.serve(image, "qcow2")
    machines.detach("hang", "--socket", d.qmp_path, f"{d.uri()},id=root")
    assert machines.block()["qdev"] == "/machine/peripheral/root/virtio-backend" and machines.inserted()
    assert not (machines.base / "vm1/merinod.pid").exists()
    refused = machines.run("hang", "--socket", d.qmp_path, image)
    assert refused.returncode == 1 and "with --socket all disks are NBD URIs" in refused.stderr
    assert machines.do("stop", "--force", "vm1").returncode == 0
    assert d.alive()


def test_a_format_is_never_guessed(machines, tmp):
    image = tools.create(tmp / "a.img", "1M")
    done = machines.run("hang", image)
    assert done.returncode == 1 and "looks like qcow2: say format=qcow2, or format=raw" in done.stderr
    machines.detach("hang", f"{image},format=raw,read-only=on")
    assert machines.block().get("inserted", {}).get("drv", "raw") == "raw"
    node, = [n for n in machines.qmp().cmd("query-named-block-nodes") if n["node-name"] == "vda"]
    assert node["drv"] == "raw" and node["ro"]


@pytest.mark.parametrize("args, text", [
    ((), "nothing to run"),
    (("/nonexistent",), "/nonexistent: No such file or directory"),
    (("--name", "../x", "--kernel", "k"), "'../x': a machine's name has letters"),
    (("--name", "-", "--kernel", "k"), "'-': a machine's name has letters"),
    (("--kernel", "k", "nbd://h/x,id=1"), "Invalid ID '1'"),
    (("--kernel", "k", "nbd://h/x,id=a", "nbd://h/y,id=a"), "Duplicate ID 'a' for device"),
    (("--kernel", "k", "nbd://h/x,format=raw"), "a disk has no option 'format=raw'"),
    (("--kernel", "k", "/dev/null", "/dev/null"), "/dev/null: named twice: a file is one disk"),
    (("--kernel", "k", "/dev/null,read-only=on", "/dev/null"), "/dev/null: named twice: a file is one disk"),
])
def test_what_is_refused(tmp, args, text):
    done = Machines(tmp).do("run", *args)
    assert done.returncode == 1 and text in done.stderr and not (tmp / "run").exists()


def test_an_error_of_the_start(machines, tmp):
    """Said to who waits, in the background too; nothing is left."""
    for more in [], ["--detach"]:
        done = machines.run("hang", *more, "--cpus", "1000", "--name", "vm1")
        assert done.returncode == 1 and "merino-vmm: --cpus: must be a number" in done.stderr
        (tmp / "bad.qcow2").write_bytes(b"no image")
        done = machines.run("hang", *more, tmp / "bad.qcow2")
        assert done.returncode == 1 and "Image is not in qcow2 format" in done.stderr
        assert os.listdir(machines.base) == []


def test_two_machines_do_not_share_a_disk(machines, tmp):
    image = tmp / "a.raw"
    image.write_bytes(bytes(1 << 20))
    machines.detach("hang", image)
    for more in "", ",read-only=on":
        done = machines.run("hang", "--name", "vm2", f"{image}{more}")
        assert done.returncode == 1 and f"{image}: another machine runs with this disk" in done.stderr
    assert os.listdir(machines.base) == ["vm1"]
    assert machines.do("stop", "--force", "vm1").returncode == 0
    machines.detach("hang", f"{image},read-only=on")
    assert "PASS" in machines.run("count=1", "--name", "vm2", f"{image},read-only=on").stdout
    done = machines.run("hang", "--name", "vm2", image)
    assert done.returncode == 1 and "another machine runs" in done.stderr


def test_more_memory_than_the_host_has(machines):
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    done = machines.run("count=1", "--memory", str((host >> 20) + 1024) + "M")
    assert done.returncode == 0 and "PASS" in done.stdout, done
    assert "warning: the guest's memory is " in done.stderr and ", and this host's " in done.stderr


def test_somebody_elses_directory(machines, tmp):
    machines.base.mkdir(mode=0o755)
    machines.base.chmod(0o755)
    done = machines.run("hang")
    assert done.returncode == 1 and "not a directory of this user's alone (mode 0700)" in done.stderr


def test_without_kvm(tmp):
    """It says what is missing (in a mount namespace of its own, where /dev has no kvm)."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("takes root")
    m = Machines(tmp)
    script = 'mount -t tmpfs none /dev && exec "$@"'
    done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", *m.argv("run", "--kernel", "k")],
                          capture_output=True, text=True, timeout=HANG, stdin=subprocess.DEVNULL,
                          preexec_fn=die_with_parent)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 1
    assert "no virtual machine can run here: it takes KVM" in done.stderr
    assert "/dev/kvm: No such file or directory" in done.stderr
