# SPDX-License-Identifier: BSD-3-Clause
"""merino restore: every point comes back as it was, wherever to; what is not proven is not restored."""

import json
import os
import pathlib
import signal
import subprocess

import pytest

from lib import pattern, repository, tools
from lib.patience import HANG, wait_until
from lib.repository import CHUNK, MIB, flip, host_offset

pytestmark = pytest.mark.merino_only


@pytest.fixture
def repo(tmp):
    return repository.sample(tmp / "repo")


def out(merino, name):
    return pathlib.Path(merino.cwd) / name


def raw(repo, point, disk="vda"):
    """The disk's content in a file, for qemu-img."""
    path = repo.path.parent / f"{point}-{disk}.raw"
    path.write_bytes(repo.content[point, disk])
    return path


def refused(merino, *args):
    before = sorted(os.listdir(merino.cwd))
    text = merino.run("restore", *args, status=1).stderr
    assert text.startswith("merino restore: "), text
    assert sorted(os.listdir(merino.cwd)) == before
    return text


@pytest.mark.parametrize("point", ["p1", "p2", "p4"])
@pytest.mark.parametrize("name", ["disk.raw", "disk.qcow2"])
def test_point(repo, merino, point, name):
    merino.run("restore", f"{repo.path}@{point}", name)
    fmt = name.split(".")[1]
    tools.compare(out(merino, name), raw(repo, point), fmt)
    if fmt == "qcow2":
        tools.check(out(merino, name))
    assert os.listdir(merino.cwd) == [name]
    assert os.stat(out(merino, name)).st_blocks * 512 < MIB + 512 * 1024, "holes were stored"


def test_repository_is_left_as_it_was(repo, merino):
    before = {p.name: p.read_bytes() for p in repo.path.iterdir()}
    merino.run("restore", repo.path, "disk.raw")
    assert {p.name: p.read_bytes() for p in repo.path.iterdir() if p.name in before} == before


@pytest.mark.parametrize("when, point", [("", "p4"), ("@latest", "p4"), ("@2026-11-02", "p2"), ("@2026-11", "p4"),
                                         ("@2026-11-03T02:00:00Z", "p3"), ("@p1", "p1")])
def test_when(repo, merino, when, point):
    got = json.loads(merino.run("restore", "--json", f"{repo.path}{when}", "disk").stdout)
    assert got["point"] == point
    disk, = got["disks"]
    assert disk["root"] == repo.manifest(point)["disks"][0]["root"] and disk["virtual-size"] == 2 * MIB
    assert disk["data-bytes"] + disk["zero-bytes"] == 2 * MIB and disk["format"] == "raw"
    assert out(merino, "disk").read_bytes() == repo.content[point, "vda"]


@pytest.mark.parametrize("size", [1, 511, 513, CHUNK + 1, 3 * CHUNK - 1, 5 * CHUNK + 100])
def test_odd_sizes(tmp, merino, size):
    r = repository.Repository(tmp / "repo")
    r.add("a", {"d": (size, [(0, pattern.block(1, min(size, 1000)))])})
    r.add("b", {"d": (size + 70000, [(size, pattern.block(2, 512))])})
    merino.run("restore", f"{r.path}@a", "a.raw")
    assert out(merino, "a.raw").read_bytes() == r.content["a", "d"]
    merino.run("restore", f"{r.path}@b", "b.raw")
    assert out(merino, "b.raw").read_bytes() == r.content["b", "d"]
    merino.run("restore", f"{r.path}@b", "b.qcow2")
    want = r.content["b", "d"]
    assert tools.content(out(merino, "b.qcow2")) == want + bytes(-len(want) % 512)


def test_several_disks(tmp, merino):
    r = repository.sample(tmp / "repo", points=2, disks=("vda", "vdb", "a/b ä"))
    assert "say which one (vda, vdb" in refused(merino, r.path, "x")
    merino.run("restore", r.path, "vdb", "x")
    assert out(merino, "x").read_bytes() == r.content["p2", "vdb"]
    merino.run("restore", "--all", "back", f"{r.path}@p1")
    names = {"vda": "vda.raw", "vdb": "vdb.raw", "a/b ä": "a%2Fb%20%C3%A4.raw"}
    for disk, name in names.items():
        assert (out(merino, "back") / name).read_bytes() == r.content["p1", disk]
    # Nothing is begun when one of them is in the way.
    (out(merino, "back") / "vda.raw").unlink()
    text = merino.run("restore", "--all", "back", f"{r.path}@p1", status=1).stderr
    assert "--force" in text and not (out(merino, "back") / "vda.raw").exists()
    merino.run("restore", "--force", "--format", "qcow2", "--all", "back", f"{r.path}@p2")
    tools.compare(out(merino, "back") / "vda.qcow2", raw(r, "p2"))


def test_existing_output(repo, merino):
    out(merino, "disk").write_text("precious")
    assert "--force" in refused(merino, repo.path, "disk")
    assert out(merino, "disk").read_text() == "precious"
    merino.run("restore", "--force", repo.path, "disk")
    assert out(merino, "disk").read_bytes() == repo.content["p4", "vda"]


def test_refusals(repo, merino):
    for args in [], [repo.path], [repo.path, "a", "b", "c"], ["--all", "x", repo.path, "y"], ["-f", "vmdk", repo.path, "x"]:
        refused(merino, *args)
    assert "no point" in refused(merino, f"{repo.path}@2027", "x")
    assert "no disk" in refused(merino, f"{repo.path}@p1", "nope", "x")
    refused(merino, repo.path.parent / "nothing", "x")
    refused(merino, f"{repo.path}@", "x")
    refused(merino, repo.path, "/dev/null")


def test_to_nbd(repo, merino, tmp, daemon):
    """An export: what was there before is gone."""
    tools.create(tmp / "target.qcow2", 3 * MIB)
    tools.qemu_io(tmp / "target.qcow2", "write -P 0x55 0 3M")
    d = daemon.serve(tmp / "target.qcow2")
    merino.run("restore", f"{repo.path}@p3", d.uri())
    h = d.libnbd()
    got = h.pread(2 * MIB, 0)
    assert pattern.first_difference(got, repo.content["p3", "vda"]) is None
    assert h.pread(MIB, 2 * MIB) == b"\x55" * MIB, "what is behind the disk is not ours"
    h.shutdown()
    assert "qcow2" in refused(merino, "-f", "qcow2", repo.path, d.uri())


@pytest.mark.parametrize("filter_", [["--filter=nozero"], ["--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-error-policy=error"]])
def test_to_nbdkit(repo, merino, tmp, filter_):
    socket, pid = tmp / "k", tmp / "kpid"
    proc = subprocess.Popen([tools.need("nbdkit"), "-f", "-P", pid, "-U", socket, *filter_[:1], "memory", "2M", *filter_[1:]])
    try:
        wait_until(lambda: pid.exists() or proc.poll() is not None)
        uri = f"nbd+unix:///?socket={socket}"
        merino.run("restore", repo.path, uri)
        tools.run("nbdcopy", uri, tmp / "got")
        assert (tmp / "got").read_bytes() == repo.content["p4", "vda"]
    finally:
        proc.terminate()
        proc.wait()


def test_nbd_too_small(repo, merino, tmp, daemon):
    tools.create(tmp / "target.qcow2", MIB)
    d = daemon.serve(tmp / "target.qcow2")
    assert "the disk" in refused(merino, repo.path, d.uri())


def test_nbd_that_fails(repo, merino, tmp, daemon):
    """A target that fails on the way says so, and is no disk: its first bytes are zero."""
    tools.create(tmp / "target.qcow2", 2 * MIB)
    tools.qemu_io(tmp / "target.qcow2", "write -P 0x55 0 2M")
    d = daemon.serve(tmp / "target.qcow2")
    image = repo.file("vda", "p1")
    with open(image, "r+b") as f:
        data = f.read().replace(repo.content["p1", "vda"][20 * CHUNK + 5:20 * CHUNK + 100], b"\1" * 95)
        f.seek(0)
        f.write(data)
    text = refused(merino, f"{repo.path}@p1", d.uri())
    assert f"offset {20 * CHUNK}: the backup is damaged" in text and "holds a part" in text
    h = d.libnbd()
    assert h.pread(CHUNK, 0) == bytes(CHUNK)
    h.shutdown()


# --- what is not proven


@pytest.mark.parametrize("name", ["out.raw", "out.qcow2"])
def test_wrong_byte(repo, merino, name):
    """One bit: the restore fails, and leaves nothing; points that do not have that chunk are not concerned."""
    flip(repo.file("vda", "p1"), host_offset(repo, "p1", 3 * CHUNK + 77))
    for point in "p1", "p2":
        text = refused(merino, f"{repo.path}@{point}", name)
        assert f"point {point}, disk 'vda', offset {3 * CHUNK}" in text
    merino.run("restore", f"{repo.path}@p3", name)
    tools.compare(out(merino, name), raw(repo, "p3"), name.split(".")[1])


def test_wrong_sums(repo, merino):
    flip(repo.file("vda", "p2", "sums"), 60)
    refused(merino, f"{repo.path}@p2", "x")
    refused(merino, f"{repo.path}@p4", "x")
    merino.run("restore", f"{repo.path}@p1", "x")


def test_wrong_root(repo, merino):
    """Checksums that were exchanged together with the manifest's hash of them do not come to the root."""
    m = repo.manifest("p2")
    text = repository.sums(bytes(2 * MIB), range(32))
    repo.file("vda", "p2", "sums").write_bytes(text)
    m["disks"][0].update({"sums-bytes": len(text), "sums-sha256": repository.sha(text).hexdigest()})
    repo.write_manifest(m)
    assert "root" in refused(merino, f"{repo.path}@p2", "x")


@pytest.mark.parametrize("suffix", ["qcow2", "sums"])
def test_missing_file(repo, merino, suffix):
    repo.file("vda", "p2", suffix).unlink()
    refused(merino, f"{repo.path}@p3", "x")
    merino.run("restore", f"{repo.path}@p1", "x")


def test_missing_point(repo, merino):
    repo.manifest_path("p2").unlink()
    assert "p2" in refused(merino, f"{repo.path}@p3", "x")


# --- hostile repositories


def secret(tmp):
    path = tmp / "secret"
    path.write_bytes(pattern.block("secret", 2 * MIB))
    return path


@pytest.mark.parametrize("name", ["secret", "/etc/passwd", "nbd://127.0.0.1:1/x", "json:{\"driver\":\"null-co\"}", "p1.json"])
def test_backing_name_that_the_manifest_has_not(repo, merino, tmp, name):
    tools.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b",
              str(secret(tmp)) if name == "secret" else name, repo.file("vda", "p2"))
    assert "backing file" in refused(merino, f"{repo.path}@p2", "x")
    assert "backing file" in refused(merino, f"{repo.path}@p3", "x")


def test_data_file(tmp, merino):
    """An image that keeps its data elsewhere: not opened, so nothing is read there."""
    r = repository.sample(tmp / "repo", points=1)
    image = r.file("vda", "p1")
    image.unlink()
    tools.create(image, 2 * MIB, data_file=secret(tmp), data_file_raw="on")
    assert "data file" in refused(merino, r.path, "x")


@pytest.mark.parametrize("what", ["link", "fifo", "directory"])
@pytest.mark.parametrize("suffix", ["qcow2", "sums"])
def test_no_regular_file(tmp, merino, what, suffix):
    r = repository.sample(tmp / "repo", points=1)
    path = r.file("vda", "p1", suffix)
    other = tmp / "other"
    path.rename(other)
    if what == "link":
        path.symlink_to(other)
    elif what == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    refused(merino, r.path, "x")


@pytest.mark.parametrize("change", [
    {"parent": "../p1"}, {"parent": "p3"}, {"parent": "p2"}, {"parent": ""}, {"name": "../x"}, {"name": ""},
    {"file": "/etc/passwd"}, {"file": "vda@p1.qcow2"}, {"sums": "../x"}, {"size": -1}, {"size": 1 << 62}, {"size": 512},
    {"level": "other"}, {"format": "raw"}, {"root": "00"}, {"sums-sha256": None}, {"name": "x" * 65},
], ids=str)
def test_manifest_that_lies(repo, merino, change):
    """A manifest that is sealed, and wrong: an error with a text, whatever it says."""
    m = repo.manifest("p2")
    m["disks"][0].update(change)
    repo.write_manifest(m)
    refused(merino, f"{repo.path}@p2", "x")
    merino.run("restore", f"{repo.path}@p1", "x")


def test_chain_in_a_circle(repo, merino):
    m = repo.manifest("p1")
    m["disks"][0].update(level="incremental", parent="p2")
    repo.write_manifest(m)
    refused(merino, f"{repo.path}@p2", "x")


# --- interruption


def test_interrupted(repo, merino):
    """^C: nothing is left, and the program dies of the signal."""
    proc = subprocess.Popen(merino.argv("restore", "--limit", "16k", repo.path, "x"), cwd=merino.cwd,
                            stderr=subprocess.PIPE, text=True)
    wait_until(lambda: os.listdir(merino.cwd))
    assert os.listdir(merino.cwd) != ["x"], "it has another name until it is complete"
    proc.send_signal(signal.SIGINT)
    assert proc.wait(HANG) == -signal.SIGINT
    proc.stderr.close()
    assert os.listdir(merino.cwd) == []


def test_progress(repo, merino):
    r, w = os.pipe()
    subprocess.run(merino.argv("restore", f"--progress={w}", "-q", repo.path, "x"), cwd=merino.cwd, pass_fds=[w], check=True)
    os.close(w)
    with os.fdopen(r) as f:
        lines = f.read().splitlines()
    assert lines[-1] == "100/100" and lines == sorted(lines, key=lambda l: int(l.split("/")[0]))


def test_not_while_prune_works(repo, merino):
    """Locks: readers share the repository with each other, not with who removes images."""
    import fcntl
    with open(repo.path / ".in-use", "w") as f:
        fcntl.flock(f, fcntl.LOCK_SH)
        merino.run("restore", repo.path, "x")
        fcntl.flock(f, fcntl.LOCK_EX)
        assert "in use" in refused(merino, repo.path, "y")


# --- storage that fails


# The search for leaks is ptrace's business, and strace has that.
NO_LEAKS = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}


def with_fault(merino, calls, error, nth, *args):
    """restore, whose NTH call of one of CALLS fails."""
    return subprocess.run([tools.need("strace"), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e",
                           f"inject={calls}:error={error}:when={nth}", *merino.argv("restore", *args)], cwd=merino.cwd, env=NO_LEAKS,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["x.raw", "x.qcow2"])
@pytest.mark.parametrize("calls, error, nths", [("pwrite64", "EIO", (1, 2, 5)), ("pwrite64", "ENOSPC", (3,)),
                                                ("fsync,fdatasync", "EIO", (1, 2)), ("renameat2", "EIO", (1,)),
                                                ("pread64", "EIO", (3, 8, 12))])
def test_fault(repo, merino, calls, error, nths, name):
    """One error anywhere: it is said, and there is no file; or it did no harm, and the file is right."""
    for nth in nths:
        done = with_fault(merino, calls, error, nth, repo.path, name)
        if done.returncode == 0:
            tools.compare(out(merino, name), raw(repo, "p4"), name.split(".")[1])
            out(merino, name).unlink()
        else:
            assert done.returncode == 1 and "merino restore: error" in done.stderr
        assert os.listdir(merino.cwd) == []


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("calls", ["pwrite64", "pread64", "fsync,fdatasync", "openat", "ftruncate,fallocate"])
@pytest.mark.parametrize("name", ["x.raw", "x.qcow2"])
def test_fault_at_every_call(repo, merino, calls, name):
    done, nth = None, 0
    while nth < 400:
        nth += 1
        done = with_fault(merino, calls, "EIO", nth, repo.path, name)
        if out(merino, name).exists():
            assert done.returncode == 0
            tools.compare(out(merino, name), raw(repo, "p4"), name.split(".")[1])
            out(merino, name).unlink()
        assert os.listdir(merino.cwd) == []
