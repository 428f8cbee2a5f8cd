# SPDX-License-Identifier: BSD-3-Clause
"""Least privilege: what the process cannot do any more, looked at from outside."""

import contextlib
import ctypes
import os
import pathlib
import re
import resource

import pytest

from lib import tools
from lib.daemon import ROOT, DidNotStart, disk_args, sanitized
from lib.patience import wait_until

pytestmark = pytest.mark.merino_only


def test_every_ring_operation_is_listed():
    """An operation that loop-ring.c does not list fails at run time only."""
    used, other_names = set(), {"cancel_fd": "async_cancel"}
    for path in (ROOT / "common").glob("*.c"):
        used |= set(re.findall(r"io_uring_prep_(\w+)\(", path.read_text()))
    listed = {w.lower() for w in re.findall(r"^\tIORING_OP_(\w+),", (ROOT / "common/loop-ring.c").read_text(), re.M)}
    assert {other_names.get(u, u) for u in used} == listed


def status(d, line):
    with open(f"/proc/{d.proc.pid}/status") as f:
        return re.search(rf"^{line}:[ \t]*(.*)$", f.read(), re.M).group(1).split()


def tasks(d):
    """{thread: its status}.

    Not of the kernel's own workers for a ring (iou-...): they run no code of ours, and each request with the rights
    of who submitted it.  Nor of a thread that goes while we look.
    """
    out = {}
    for t in pathlib.Path(f"/proc/{d.proc.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if not (t / "comm").read_text().startswith("iou-"):
                out[t.name] = (t / "status").read_text()
    return out


def threads(d, line):
    """The line of every thread's status."""
    return {re.search(rf"^{line}:\s*(.*)$", text, re.M).group(1).strip() for text in tasks(d).values()}


def image(tmp, name="a.qcow2", **kw):
    (tmp / "disks").mkdir(exist_ok=True)
    return tools.create(tmp / "disks" / name, "1M", **kw)


def test_all_threads_are_filtered(daemon, tmp):
    d = daemon.serve(image(tmp))
    assert d.libnbd().pread(512, 0) == bytes(512)
    assert threads(d, "Seccomp") == {"2"} and threads(d, "NoNewPrivs") == {"1"}


def test_no_core_file(daemon, tmp):
    """One byte is less than any core has, and keeps the kernel from piping one to a helper."""
    d = daemon.serve(image(tmp))
    assert resource.prlimit(d.proc.pid, resource.RLIMIT_CORE) == (1, 1)
    d = daemon.start("--core")
    assert resource.prlimit(d.proc.pid, resource.RLIMIT_CORE) == resource.getrlimit(resource.RLIMIT_CORE)


def test_off(daemon, tmp):
    d = daemon.serve(image(tmp), monitor=False)
    assert d.stderr() == ""
    e = daemon.start("--sandbox", "off")
    assert threads(e, "Seccomp") == {"0"} and threads(e, "NoNewPrivs") == {"0"}
    with pytest.raises(DidNotStart, match="--sandbox: must be on or off"):
        daemon.start("--sandbox", "perhaps")


@pytest.mark.parametrize("engine", ["ring", "threads"])
def test_serves_behind_the_filter(daemon, tmp, engine, monkeypatch):
    """Every kind of request, both engines, direct and buffered."""
    if engine == "threads":
        monkeypatch.setenv("MERINO_IO", "threads")
    path = image(tmp)
    d = daemon.start("--allow-dir", tmp / "disks", *disk_args(path, extra="cache.direct=on,file.cache.direct=on"),
                     listen="inet")
    h = d.libnbd(contexts=["base:allocation"])
    h.pwrite(b"a" * 65536, 65536)
    h.zero(65536, 131072)
    h.trim(65536, 0)
    h.flush()
    assert h.pread(65536, 65536) == b"a" * 65536
    h.block_status(1 << 20, 0, lambda *a: 0)
    h.shutdown()
    d.stop()
    tools.check(path)


# --- Landlock


needs_landlock = pytest.mark.skipif(ctypes.CDLL(None).syscall(444, None, 0, 1) < 1, reason="this kernel has no Landlock")


@needs_landlock
def test_only_below_the_directory(daemon, tmp):
    inside, outside = image(tmp), tools.create(tmp / "outside.qcow2", "1M")
    d = daemon.start("--allow-dir", tmp / "disks")
    add = {"driver": "qcow2", "node-name": "n", "file": {"driver": "file", "filename": outside}}
    assert d.qmp.error("blockdev-add", add)[1] == f"Could not open '{outside}': Permission denied"
    add["file"]["filename"] = inside
    d.qmp.cmd("blockdev-add", add)


@needs_landlock
def test_backing_file_elsewhere_is_refused_by_the_kernel(daemon, tmp):
    base = tools.create(tmp / "base.qcow2", "1M")
    path = image(tmp, backing=base)
    with pytest.raises(DidNotStart) as failed:
        daemon.start("--allow-dir", tmp / "disks", *disk_args(path))
    assert f"Could not open '{base}': Permission denied" in failed.value.stderr
    daemon.serve(path).libnbd()


@needs_landlock
def test_crash_log_is_made_and_removed(daemon, tmp):
    """What makes kill -9 harmless lies beside the image, and works behind Landlock, too."""
    d = daemon.start("--allow-dir", tmp / "disks", *disk_args(image(tmp)))
    assert d.stderr() == "" and len(list((tmp / "disks").iterdir())) == 2
    d.stop()
    assert len(list((tmp / "disks").iterdir())) == 1


@needs_landlock
def test_a_link_does_not_lead_out(daemon, tmp):
    outside = tools.create(tmp / "outside.qcow2", "1M")
    (tmp / "disks").mkdir()
    (tmp / "disks" / "link").symlink_to(outside)
    with pytest.raises(DidNotStart, match="Permission denied"):
        daemon.start("--allow-dir", tmp / "disks", *disk_args(tmp / "disks" / "link"))


@needs_landlock
def test_one_file_may_be_allowed(daemon, tmp):
    """A block device lies among all others in /dev."""
    path, other = tmp / "a.raw", tmp / "b.raw"
    for p in path, other:
        tools.create(p, "1M", "raw")
    d = daemon.start("--allow-dir", path, *disk_args(path, "raw"))
    d.libnbd().pwrite(b"x" * 512, 0)
    assert "Permission denied" in d.qmp.error("blockdev-add", {"driver": "file", "node-name": "n", "filename": str(other)})[1]


@needs_landlock
def test_sockets_and_pid_file_go_at_the_end(daemon, tmp):
    d = daemon.start("--allow-dir", tmp / "disks", *disk_args(image(tmp)))
    d.stop()
    assert {p.name for p in d.dir.iterdir()} == {"stderr"}


@needs_landlock
@pytest.mark.parametrize("engine", ["ring", "threads"])
def test_without_a_monitor_it_shuts_itself_in(daemon, tmp, engine, monkeypatch):
    """When all is open: every thread restricts itself, nothing that is needed later is refused."""
    if engine == "threads":
        monkeypatch.setenv("MERINO_IO", "threads")
    calls = tmp / "calls"
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")  # leaks cannot be looked for under a tracer
    monkeypatch.setenv("MERINOD_WRAPPER", f"{tools.need('strace')} -D -f -qq -o {calls} "
                                          "-e trace=landlock_restrict_self,openat,unlink,unlinkat")
    path = image(tmp, backing=tools.create(tmp / "base.qcow2", "1M"))
    d = daemon.start("--loops", "2", "--object", "iothread,id=t", *disk_args(path), monitor=False)
    shut_in = re.findall(r"^(\d+) +(?:<\.\.\. )?landlock_restrict_self(?:\(| resumed>).*= 0$", calls.read_text(), re.M)
    assert len(shut_in) == 4 and set(shut_in) <= set(tasks(d))
    # A sanitizer may have a thread of its own; one that has ended is there until the tracer has heard of it.
    wait_until(lambda: set(tasks(d)) == set(shut_in) or sanitized())
    h = d.libnbd()
    h.pwrite(b"z" * 65536, 0)
    h.zero(65536, 65536)
    h.flush()
    assert h.pread(65536, 0) == b"z" * 65536
    h.shutdown()
    d.stop()
    assert not [c for c in calls.read_text().splitlines() if "EACCES" in c]
    assert [p.name for p in (tmp / "disks").iterdir()] == ["a.qcow2"] and not os.path.exists(d.nbd_address)
    tools.check(path)


def test_what_lacks_is_said(daemon, tmp):
    with pytest.raises(DidNotStart, match="--allow-dir /nonexistent: No such file or directory"):
        daemon.start("--allow-dir", "/nonexistent")
    d = daemon.start()
    wait_until(lambda: "no --allow-dir is given" in d.stderr())
    assert d.stderr().count("\n") == 1


# --- another user


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


@needs_root
def test_another_user(daemon, tmp):
    """What is open stays open; what comes later is judged by the new user's rights."""
    path = image(tmp)
    os.chmod(path, 0o600)
    d = daemon.start(*disk_args(path), "--user", "65534:65533")
    assert threads(d, "Uid") == {"\t".join(["65534"] * 4)} and threads(d, "Gid") == {"\t".join(["65533"] * 4)}
    assert status(d, "Groups") == []
    for caps in "CapInh", "CapPrm", "CapEff", "CapAmb":
        assert threads(d, caps) == {"0" * 16}
    d.libnbd().pwrite(b"x" * 512, 0)
    private = tools.create(tmp / "b.raw", "1M", "raw")
    os.chmod(private, 0o600)
    assert "Permission denied" in d.qmp.error("blockdev-add", {"driver": "file", "node-name": "n", "filename": private})[1]


@needs_root
@pytest.mark.parametrize("user, what", [
    ("no-such-user", "there is no user 'no-such-user'"),
    ("nobody:no-such-group", "there is no group 'no-such-group'"),
    ("0", "must not be root's"),
    ("65534:0", "must not be root's"),
])
def test_wrong_user(daemon, user, what):
    with pytest.raises(DidNotStart, match=what):
        daemon.start("--user", user)
