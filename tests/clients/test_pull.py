# SPDX-License-Identifier: BSD-3-Clause
"""merino pull: full and incremental copies; qemu-img is the judge of what comes out."""

import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import time

import pytest

from lib import pattern, tools
from lib.daemon import die_with_parent
from lib.nbdserver import Server
from lib.patience import HANG, listening

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
def disk(tmp, daemon):
    """A served qcow2 disk with data, holes and zeroes, and the enabled bitmap b."""
    path = tmp / "disk.qcow2"
    tools.create(path, SIZE)
    tools.qemu_io(path, "write -P 1 0 3M", "write -P 2 10000k 100k", "write -z 20M 2M", "write -P 3 63M 1M")
    tools.run("qemu-img", "bitmap", "--add", path, "b")
    return daemon.serve(path, bitmaps=["b"])


@pytest.fixture
def nbdkit(tmp):
    """Starts nbdkit with arguments; its URI."""
    running = []

    def start(*args):
        socket, pid = tmp / f"k{len(running)}", tmp / f"kpid{len(running)}"
        running.append(subprocess.Popen([tools.need("nbdkit"), "-f", "-P", pid, "-U", socket, *map(str, args)]))
        while not pid.exists():
            assert running[-1].poll() is None
            time.sleep(0.01)
        return f"nbd+unix:///?socket={socket}"
    yield start
    for p in running:
        p.terminate()
        p.wait()


def change(d):
    """Writes of every kind, over NBD."""
    h = d.libnbd()
    h.pwrite(pattern.block("new", 3000 * 512), 512 * 3)
    h.pwrite(bytes(128 << 10), 10 * MIB)                        # data that is zero
    h.zero(MIB, 2 * MIB)                                       # zeroes over data
    h.trim(64 << 10, 0x9c4000 + (64 << 10))
    h.pwrite(pattern.block("tail", 512), SIZE - 512)
    h.pwrite(pattern.block("hole", 4096), 40 * MIB + 4096)
    h.flush()
    h.shutdown()


def now(d, where):
    """The disk as nbdcopy reads it."""
    tools.run("nbdcopy", d.uri(), where)
    return where


def out(merino, name):
    return pathlib.Path(merino.cwd) / name


def summary(done):
    return json.loads(done.stdout)


# --- full copies

@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_full(disk, merino, tmp, fmt):
    got = summary(merino.pull("--json", "-f", fmt, disk.uri(), "full"))
    assert got["virtual-size"] == SIZE and got["read-bytes"] < 5 * MIB
    tools.compare(out(merino, "full"), now(disk, tmp / "now"), fmt)
    assert os.stat(out(merino, "full")).st_blocks * 512 < 6 * MIB, "holes were stored"
    assert os.listdir(merino.cwd) == ["full"]
    if fmt == "qcow2":
        tools.check(out(merino, "full"))


def test_qcow2_is_the_default(disk, merino):
    merino.pull(disk.uri(), "full")
    assert tools.info(out(merino, "full"))["format"] == "qcow2"


def test_zeroes_are_found(nbdkit, merino):
    """Data that is zero takes no space, where the server calls it data."""
    uri = nbdkit("--filter=noextents", "memory", "32M")
    for fmt in "raw", "qcow2":
        got = summary(merino.pull("--json", "-f", fmt, uri, fmt))
        assert got["read-bytes"] == 32 * MIB and got["written-bytes"] == 0
        assert os.stat(out(merino, fmt)).st_blocks * 512 < MIB


@pytest.mark.parametrize("size", [1, 511, 513, 65537, 3 * MIB + 1])
def test_odd_sizes(nbdkit, merino, tmp, size):
    content = pattern.block(size, size)
    (tmp / "odd").write_bytes(content)
    uri = nbdkit("file", tmp / "odd")
    merino.pull("-f", "raw", uri, "odd.raw")
    assert out(merino, "odd.raw").read_bytes() == content
    merino.pull(uri, "odd.qcow2")
    padded = size + -size % 512
    assert tools.content(out(merino, "odd.qcow2")) == content.ljust(padded, b"\0")


def test_far_beyond_4_gib(nbdkit, merino):
    uri = nbdkit("data", "data=@0x300000000 1 2 3", "size=1T")
    got = summary(merino.pull("--json", uri, "big.qcow2"))
    assert got["read-bytes"] <= MIB
    assert "01 02 03" in tools.qemu_io(out(merino, "big.qcow2"), "read -v 0x300000000 512")
    tools.check(out(merino, "big.qcow2"))


def test_request_options(disk, merino, tmp):
    merino.pull("-f", "raw", "-C", 1, "-R", 1, "--request-size=4096", "--no-flush", disk.uri(), "one")
    merino.pull("-f", "raw", "-C", 8, "-R", 3, "--request-size=1M", disk.uri(), "two")
    tools.run("cmp", out(merino, "one"), now(disk, tmp / "now"))
    tools.run("cmp", out(merino, "two"), tmp / "now")


# --- what the bitmap names

@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_incremental_with_backing(disk, merino, tmp, fmt):
    merino.pull("-f", fmt, disk.uri(), "full")
    change(disk)
    got = summary(merino.pull("--json", "--bitmap=b", "-B", "full", "-F", fmt, disk.uri(), "inc"))
    assert got["skipped-bytes"] > 55 * MIB and got["read-bytes"] < 3 * MIB
    tools.check(out(merino, "inc"))
    tools.compare(out(merino, "inc"), now(disk, tmp / "now"))
    assert tools.info(out(merino, "inc"))["backing-filename"] == "full"
    assert os.stat(out(merino, "inc")).st_size < 4 * MIB


def test_chain(disk, merino, tmp):
    """Three steps, each on the one before, each right at its time."""
    merino.pull(disk.uri(), "full")
    change(disk)
    merino.pull("--bitmap=b", "-B", "full", disk.uri(), "one")
    now(disk, tmp / "then")
    disk.libnbd().pwrite(pattern.block("later", 65536), 7 * MIB + 512)
    merino.pull("--bitmap=qemu:dirty-bitmap:b", "-B", "one", disk.uri(), "two")
    tools.compare(out(merino, "one"), tmp / "then")
    tools.compare(out(merino, "two"), now(disk, tmp / "now"))


@pytest.mark.parametrize("fmt", ["qcow2", "raw"])
def test_incremental_onto(disk, merino, tmp, fmt):
    merino.pull("-f", fmt, disk.uri(), "copy")
    change(disk)
    merino.pull("--bitmap=b", "--onto", "-f", fmt, disk.uri(), "copy")
    tools.compare(out(merino, "copy"), now(disk, tmp / "now"), fmt)
    if fmt == "qcow2":
        tools.check(out(merino, "copy"))


def test_full_onto_garbage(disk, merino, tmp):
    """Without a bitmap, everything is brought up to date: zeroes too."""
    out(merino, "copy").write_bytes(pattern.block("garbage", SIZE))
    merino.pull("--onto", "-f", "raw", disk.uri(), "copy")
    tools.run("cmp", out(merino, "copy"), now(disk, tmp / "now"))


def test_full_over_backing(disk, merino, tmp):
    """A full copy on top of something else shows nothing of it."""
    out(merino, "old").write_bytes(pattern.block("old", SIZE + MIB))
    merino.pull("-B", "old", "-F", "raw", disk.uri(), "new")
    tools.compare(out(merino, "new"), now(disk, tmp / "now"))


def test_backing_elsewhere(disk, merino, tmp):
    """The name in the header works from where the image is, whatever the name."""
    (tmp / "a:b").mkdir()
    merino.pull(disk.uri(), tmp / "a:b" / "full:1")
    change(disk)
    merino.pull("--bitmap=b", "-B", "../a:b/full:1", disk.uri(), tmp / "a:b" / "inc")
    merino.pull("--bitmap=b", "-B", "../a:b/full:1", disk.uri(), "inc")
    for image in tmp / "a:b" / "inc", out(merino, "inc"):
        tools.compare(image, now(disk, tmp / "now"))
    assert tools.info(tmp / "a:b" / "inc")["backing-filename"] == "./full:1"


def test_disk_grew(merino, tmp):
    """Behind the end of the previous backup everything counts as dirty."""
    context = "qemu:dirty-bitmap:b"

    class Clean(Server):
        def status(self, c, offset, length):
            return [(length, 0)]
    old, new = pattern.block("a", MIB), pattern.block("b", MIB)
    with Server(tmp / "s1", old) as s:
        merino.pull(s.uri, "full")
        merino.pull("-f", "raw", s.uri, "copy")
    with Clean(tmp / "s2", old + new, contexts=["base:allocation", context]) as s:
        merino.pull("--bitmap=b", "-B", "full", s.uri, "inc")
        merino.pull("--bitmap=b", "--onto", "-f", "raw", s.uri, "copy")
    assert tools.content(out(merino, "inc")) == old + new
    assert out(merino, "copy").read_bytes() == old + new


def test_zeroed_ranges_are_not_read(merino, tmp):
    """merino:changes is taken where the server has it; what it says is zero is zeroed in the copy, not read."""
    old, new = pattern.block("a", 4 * MIB), bytearray(pattern.block("a", 4 * MIB))
    new[:MIB], new[MIB:3 * MIB] = pattern.block("b", MIB), bytes(2 * MIB)

    class Changes(Server):
        def status(self, c, offset, length):
            assert c != "qemu:dirty-bitmap:b"
            flags = [1, 3, 7, 0] if c.startswith("merino:") else [0, 0, 0, 0]
            runs, at = [], offset
            while at < offset + length:
                end = min(offset + length, at // MIB * MIB + MIB)
                runs.append((end - at, flags[at // MIB]))
                at = end
            return runs
    contexts = ["base:allocation", "qemu:dirty-bitmap:b", "merino:changes:b"]
    for i, name in enumerate(("b", "qemu:dirty-bitmap:b", "merino:changes:b")):
        with Server(tmp / f"s1{i}", old) as s:
            merino.pull(s.uri, f"full{i}")
            merino.pull("-f", "raw", s.uri, f"copy{i}")
        with Changes(tmp / f"s2{i}", bytes(new), contexts=contexts) as s:
            merino.pull(f"--bitmap={name}", "-B", f"full{i}", s.uri, f"inc{i}")
            merino.pull(f"--bitmap={name}", "--onto", "-f", "raw", s.uri, f"copy{i}")
            assert all(offset + length <= MIB for command, offset, length in s.requests if command == 0)
        assert tools.content(out(merino, f"inc{i}")) == new
        assert out(merino, f"copy{i}").read_bytes() == new


def test_disk_shrank(merino, tmp):
    with Server(tmp / "s1", MIB) as s:
        out(merino, "copy").write_bytes(bytes(2 * MIB))
        assert "not the same disk" in merino.refused("--onto", "-f", "raw", s.uri, "copy")
        assert out(merino, "copy").stat().st_size == 2 * MIB
    with Server(tmp / "s2", MIB, contexts=["base:allocation", "qemu:dirty-bitmap:b"]) as s:
        args = ("-F", "raw", "-B", "copy", s.uri, "inc")
        assert "not the same disk" in merino.refused("--bitmap=b", *args)
        merino.pull(*args)              # a full copy asks nothing of what is below it


def test_no_such_bitmap(disk, merino):
    out(merino, "full").write_bytes(bytes(MIB))
    text = merino.refused("--bitmap=nope", "-B", "full", "-F", "raw", disk.uri(), "inc")
    assert "qemu:dirty-bitmap:nope" in text and "base:allocation" in text and "qemu:dirty-bitmap:b" in text


def test_server_that_serves_one_client(merino, tmp):
    """The list of contexts does not need a second connection."""
    tools.create(tmp / "d", MIB)
    tools.run("qemu-img", "bitmap", "--add", tmp / "d", "b")
    pid = tmp / "pid"
    tools.run("qemu-nbd", "--fork", "--pid-file", pid, "-r", "-k", tmp / "s", "-B", "b", tmp / "d")
    out(merino, "full").write_bytes(bytes(MIB))
    text = merino.refused("--bitmap=c", "-B", "full", "-F", "raw", f"nbd+unix:///?socket={tmp}/s", "inc")
    assert "qemu:dirty-bitmap:b" in text


# --- what is there already

def test_existing_output(disk, merino, tmp):
    out(merino, "full").write_text("precious")
    assert "exists" in merino.refused(disk.uri(), "full")
    assert out(merino, "full").read_text() == "precious"
    merino.pull("--force", disk.uri(), "full")
    tools.compare(out(merino, "full"), now(disk, tmp / "now"))


def test_force_spares_the_chain(disk, merino):
    merino.pull(disk.uri(), "full")
    merino.pull("--bitmap=b", "-B", "full", disk.uri(), "inc")
    before = out(merino, "full").read_bytes()
    for args in ("-B", "full", "--force", "--bitmap=b", disk.uri(), "full"), \
                ("-B", "inc", "--force", "--bitmap=b", disk.uri(), "full"):
        assert "backing chain" in merino.refused(*args)
    assert out(merino, "full").read_bytes() == before


def test_output_is_no_file(disk, merino):
    out(merino, "dir").mkdir()
    assert "no regular file" in merino.refused("--force", disk.uri(), "dir")
    out(merino, "link").symlink_to("elsewhere")
    assert "no regular file" in merino.refused("--force", disk.uri(), "link")
    assert "No such file" in merino.refused(disk.uri(), "nowhere/full")
    assert "No such file" in merino.refused("--onto", "-f", "raw", disk.uri(), "missing")


def test_onto_a_file_in_use(disk, merino, tmp):
    merino.pull(disk.uri(), "copy")
    other = subprocess.Popen([tools.need("qemu-nbd"), "-t", "-k", tmp / "s", "-f", "qcow2", out(merino, "copy")],
                             preexec_fn=die_with_parent)
    listening(tmp / "s", other)
    assert "lock" in merino.refused("--onto", "-f", "qcow2", disk.uri(), "copy")
    other.terminate()
    other.wait(HANG)


def test_force_spares_a_file_in_use(daemon, merino):
    """Here: the very disk that is read.  Its daemon would go on with a file that has no name."""
    live = tools.create(out(merino, "live"), MIB)
    d = daemon.serve(live)
    inode = os.stat(live).st_ino
    assert "lock" in merino.refused("--force", d.uri(), "live")
    assert os.stat(live).st_ino == inode
    d.stop()


def test_no_server(merino, tmp):
    assert "No such file" in merino.refused(f"nbd+unix:///?socket={tmp}/none", "full")


def test_no_such_export(disk, merino):
    merino.refused(disk.uri("other"), "full")


# --- the end comes early

def test_too_large(disk, merino):
    """A write that fails: no file is left.  (A full disk looks the same.)"""
    done = subprocess.run(merino.argv("pull", "-f", "qcow2", disk.uri(), "full"), cwd=merino.cwd, text=True,
                          stderr=subprocess.PIPE,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB)))
    assert done.returncode == 1 and "File too large" in done.stderr, done.stderr
    assert os.listdir(merino.cwd) == []


class Slow(Server):
    def read(self, offset, length):
        time.sleep(0.05 if len(self.requests) < 4 else 0.5)
        return Server.read(self, offset, length)


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_signals(merino, tmp, signo):
    with Slow(tmp / "s", 64 * MIB) as s:
        p = subprocess.Popen(merino.argv("pull", "-q", s.uri, "full"), cwd=merino.cwd, stderr=subprocess.PIPE)
        while len(s.requests) < 4:
            time.sleep(0.01)
        p.send_signal(signo)
        p.communicate(timeout=HANG)
        assert p.returncode == -signo
    left = os.listdir(merino.cwd)
    if signo == signal.SIGKILL:
        assert len(left) == 1 and left[0].startswith(".full.") and left[0].endswith(".partial")
    else:
        assert left == []


def test_sync_fails(disk, merino, tmp):
    """The copy is not done before it is durable."""
    strace = ["strace", "-f", "-qq", "-o", tmp / "trace", "-e", "trace=fdatasync,fsync",
              "-e", "inject=fdatasync,fsync:error=EIO"]
    tools.need("strace")
    done = subprocess.run([*strace, *merino.argv("pull", disk.uri(), "full")], cwd=merino.cwd, text=True,
                          stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 1 and "Input/output error" in done.stderr, done.stderr
    assert os.listdir(merino.cwd) == []


@pytest.mark.parametrize("end", range(6))
def test_storing_fails(disk, merino, tmp, end):
    """A write that fails, one of the last included (the tables): no image and no success."""
    tools.need("strace")

    def traced(*inject):
        """One request at a time: the same writes each time."""
        return subprocess.run(["strace", "-f", "-qq", "-o", tmp / "trace", "-e", "trace=pwrite64,pwritev2", *inject,
                               *merino.argv("pull", "-C1", "-R1", disk.uri(), "full")], cwd=merino.cwd, text=True,
                              stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    done = traced()
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    writes = sum("resumed>" not in line for line in (tmp / "trace").read_text().splitlines())
    out(merino, "full").unlink()
    done = traced("-e", f"inject=pwrite64,pwritev2:error=EIO:when={writes - end}+")
    assert done.returncode == 1 and "Input/output error" in done.stderr, done.stderr
    assert os.listdir(merino.cwd) == []


# --- the program

def test_progress(disk, merino):
    r, w = os.pipe()
    merino.pull("-q", f"--progress={w}", disk.uri(), "full", pass_fds=[w])
    os.close(w)
    with os.fdopen(r) as f:
        lines = f.read().splitlines()
    assert lines[-1] == "100/100"
    numbers = [int(line.removesuffix("/100")) for line in lines]
    assert numbers == sorted(set(numbers))


def test_bar(disk, merino):
    done = merino.pull("-p", disk.uri(), "full")
    assert "] 100% " in done.stderr.splitlines()[-1]


def test_words(disk, merino):
    done = merino.pull(disk.uri(), "full")
    assert done.stdout.startswith("full: ") and done.stdout.count("\n") == 1 and not done.stderr
    assert not merino.pull("-q", "--force", disk.uri(), "full").stdout


@pytest.mark.parametrize("args", [
    [], ["nbd://x"], ["nbd://x", "a", "b"], ["--nope", "nbd://x", "o"], ["nbd://x", ""],
    ["-f", "vmdk", "nbd://x", "o"], ["-F", "vmdk", "nbd://x", "o"], ["--onto", "nbd://x", "o"],
    ["--onto", "-f", "raw", "-B", "x", "nbd://x", "o"], ["--onto", "-f", "raw", "--force", "nbd://x", "o"],
    ["-f", "raw", "-B", "x", "nbd://x", "o"], ["--bitmap=b", "nbd://x", "o"], ["--bitmap=", "-B", "x", "nbd://x", "o"],
    ["--bitmap=b", "-f", "raw", "nbd://x", "o"], ["-C", "0", "nbd://x", "o"], ["-C", "65", "nbd://x", "o"],
    ["-R", "x", "nbd://x", "o"], ["--request-size=5000", "nbd://x", "o"], ["--request-size=64M", "nbd://x", "o"],
    ["-R", "1024", "--request-size=32M", "nbd://x", "o"], ["--progress=x", "nbd://x", "o"], ["disk.raw", "o"],
    ["--bitmap=" + "x" * 1024, "-B", "/dev/null", "nbd://x", "o"], ["http://x", "o"],
], ids=lambda a: " ".join(a)[:40])
def test_usage(merino, args):
    merino.refused(*args)


def test_help_and_version(merino):
    assert merino.run("--version").stdout.startswith("merino 0.")
    assert merino.run("pull", "-V").stdout.startswith("merino 0.")
    assert "pull" in merino.run("--help").stdout
    assert "--bitmap=NAME" in merino.pull("--help").stdout
    assert "no verb 'nope'" in merino.run("nope", status=1).stderr
    merino.run(status=1)


def test_man_page_has_every_option(merino):
    page = (pathlib.Path(__file__).resolve().parents[2] / "doc" / "merino.1.pod").read_text()
    items = [line for line in page.splitlines() if line.startswith("=item B<-")]
    help_lines = [line for line in merino.pull("--help").stdout.splitlines() if line.startswith("  -") or "   --" in line]
    options = re.compile(r"--?[A-Za-z][a-z-]*(?:=[A-Z]+|\[=FD\])?")
    assert sorted(options.findall(" ".join(items))) == \
        sorted(w for line in help_lines for w in options.findall(line[:32]))
