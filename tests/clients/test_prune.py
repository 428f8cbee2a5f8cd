# SPDX-License-Identifier: BSD-3-Clause
"""merino prune: points go, and those that stay are what they were, for Merino and for qemu-img alone, wherever it is
killed."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from lib import pattern, repository, tools
from lib.patience import HANG, wait_until
from lib.repository import CHUNK, MIB

pytestmark = pytest.mark.merino_only


@pytest.fixture
def repo(tmp):
    return repository.sample(tmp / "repo", points=5)


def prune(merino, repo, *args, status=0):
    done = merino.run("prune", "--json", *args, repo.path, status=status)
    return json.loads(done.stdout) if status == 0 else done.stderr


def points(repo):
    return sorted(p.stem for p in repo.path.glob("*.json") if p.name != "repository.json")


def proven(merino, repo, kept):
    """Merino proves it, qemu-img alone reads what was backed up, checks it, and nothing is left over."""
    got = json.loads(merino.run("verify", "--json", repo.path).stdout)
    assert got["good"] and [p["point"] for p in got["points"]] == kept == points(repo)
    repo.check_all(kept)
    disks = {(p, d) for p, d in repo.content if p in kept}
    for point, disk in disks:
        tools.check(repo.file(disk, point))
    want = {"repository.json", ".lock", ".in-use"} | {f"{p}.json" for p in kept}
    want |= {repo.file(d, p, s).name for p, d in disks for s in ("qcow2", "sums")}
    assert {p.name for p in repo.path.iterdir()} == want


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_keep(repo, merino, n):
    kept = [f"p{i}" for i in range(6 - n, 6)]
    got = prune(merino, repo, "--keep", n)
    assert got["kept"] == kept and got["merged"] == kept[:1] and got["freed-bytes"] > 0
    assert got["removed"] == [f"p{i}" for i in range(1, 6 - n)]
    proven(merino, repo, kept)
    m = repo.manifest(kept[0])["disks"][0]
    assert m["level"] == "full" and m["merged"] == f"p{5 - n}" and "pruned" in m["reason"] and "parent" not in m
    assert "backing-filename" not in tools.info(repo.file("vda", kept[0]))


def test_root_and_the_rest_of_a_manifest_stay(repo, merino):
    before = repo.manifest("p4")
    prune(merino, repo, "--keep", 2)
    after = repo.manifest("p4")
    for name in set(before) - {"disks", "manifest-sha256"}:
        assert before[name] == after[name], name
    assert before["disks"][0]["root"] == after["disks"][0]["root"]
    proven(merino, repo, ["p4", "p5"])


def test_enough_is_there(repo, merino):
    before = {p.name: p.read_bytes() for p in repo.path.iterdir()}
    got = prune(merino, repo, "--keep", 5)
    assert got["removed"] == got["merged"] == [] and got["copied-bytes"] == 0
    assert {n: (repo.path / n).read_bytes() for n in before} == before


def test_dry_run(repo, merino):
    before = {p.name: p.read_bytes() for p in repo.path.iterdir()}
    got = prune(merino, repo, "--dry-run", "--keep", 2)
    assert got["kept"] == ["p4", "p5"] and got["merged"] == ["p4"] and got["dry-run"]
    assert {n: (repo.path / n).read_bytes() for n in before} == before
    assert "p1 would be removed" in merino.run("prune", "--dry-run", "--keep", 2, repo.path).stdout


def test_again_and_again(repo, merino):
    """One point less each time, and a new one on top: always right."""
    for n in range(6, 12):
        writes = [(n % 7 * CHUNK, pattern.block(n, CHUNK)), (23 * CHUNK + n * 512, pattern.block(n, 70000))]
        repo.add(f"p{n:02}", {"vda": (2 * MIB, writes)}, time=f"2026-12-{n:02}T02:00:00Z")
        prune(merino, repo, "--keep", 3)
    proven(merino, repo, ["p09", "p10", "p11"])


def test_schedule(tmp, merino):
    r = repository.Repository(tmp / "repo")
    times = ["2026-10-31T02", "2026-11-01T02", "2026-11-01T14", "2026-11-02T02", "2026-11-02T14", "2026-11-03T02"]
    for i, t in enumerate(times, 1):
        r.add(f"p{i}", {"d": (MIB, [(i * CHUNK, pattern.block(i, CHUNK))])}, time=f"{t}:00:00Z")
    got = prune(merino, r, "--keep-schedule", "3d,2m")
    assert got["kept"] == ["p1", "p3", "p5", "p6"] and got["merged"] == ["p3", "p5"]
    proven(merino, r, ["p1", "p3", "p5", "p6"])
    assert r.manifest("p3")["disks"][0]["parent"] == "p1"


def test_in_the_middle(tmp, merino):
    """What goes lies between two that stay: zeroes over data, data over zeroes, growth."""
    r = repository.Repository(tmp / "repo")
    day = "2026-11-{:02}T02:00:00Z".format
    r.add("p1", {"d": (10 * CHUNK + 512, [(0, pattern.block(1, 8 * CHUNK)), (10 * CHUNK, b"e" * 512)])}, time=day(1))
    r.add("p2", {"d": (12 * CHUNK + 1024, [(0, 3 * CHUNK), (9 * CHUNK, b"n" * 100), (11 * CHUNK + 600, b"w" * 512)])}, time=day(2))
    r.add("p3", {"d": (14 * CHUNK, [(CHUNK + 5, b"y" * 10), (5 * CHUNK, CHUNK), (13 * CHUNK, b"q" * 77)])}, time="2026-11-02T04:00:00Z")
    r.add("p4", {"d": (14 * CHUNK, [(6 * CHUNK + 5, b"z" * 10)])}, time=day(4))
    prune(merino, r, "--keep-schedule", "3d")
    assert points(r) == ["p1", "p3", "p4"]
    assert r.manifest("p3")["disks"][0]["parent"] == "p1"
    proven(merino, r, ["p1", "p3", "p4"])


def test_several_disks_and_branches(tmp, merino):
    """Two points rest on one that goes; a disk that came later; one that is gone."""
    r = repository.sample(tmp / "repo", points=2, disks=("vda", "vdb"))
    r.add("p3", {"vda": (2 * MIB, [(5000, b"x" * 5000)]), "new": (MIB, [(0, b"n" * 512)])}, parents={"vda": "p1"})
    r.add("p4", {"vda": (2 * MIB, [(9000, b"x" * 5000)]), "new": (MIB, [(512, b"n" * 512)])}, parents={"vda": "p2"})
    got = prune(merino, r, "--keep", 3)
    assert got["merged"] == ["p2", "p3"]
    proven(merino, r, ["p2", "p3", "p4"])


def test_refusals(repo, merino):
    for args in [], ["--keep", "0"], ["--keep", "x"], ["--keep-schedule", "7"], ["--keep-schedule", "1d,1d"]:
        assert prune(merino, repo, *args, status=1).startswith("merino prune: ")
    assert points(repo) == [f"p{i}" for i in range(1, 6)]


def test_in_use(repo, merino):
    import fcntl
    for name in ".in-use", ".lock":
        with open(repo.path / name, "w") as f:
            fcntl.flock(f, fcntl.LOCK_SH)
            assert "in use" in prune(merino, repo, "--keep", 1, status=1)
    assert points(repo) == [f"p{i}" for i in range(1, 6)]


# --- damage is not carried on


def damage(repo, point, guest):
    for e in tools.mapping(repo.file("vda", point)):
        if e["start"] <= guest < e["start"] + e["length"]:
            with open(repo.file("vda", point), "r+b") as f:
                f.seek(e["offset"] + guest - e["start"])
                f.write(b"damage")


def test_damaged_data_is_not_merged(repo, merino):
    """The wrong chunk would become part of a point that stays: refused, and nothing is removed."""
    damage(repo, "p1", 8 * CHUNK)
    text = prune(merino, repo, "--keep", 2, status=1)
    assert f"offset {8 * CHUNK}" in text and "checksum" in text
    assert points(repo) == [f"p{i}" for i in range(1, 6)]


def test_damaged_points_do_not_count(repo, merino):
    """One that verify has found damaged is no backup: it counts for nothing, and what it rests on stays with it."""
    damage(repo, "p4", 4 * CHUNK)
    merino.run("verify", repo.path, status=1)
    assert (repo.path / "p4.damaged").exists() and (repo.path / "p5.damaged").exists()
    got = prune(merino, repo, "--keep", 1)
    assert got["kept"] == [f"p{i}" for i in range(1, 6)]
    repo.add("p6", {"vda": (2 * MIB, [(0, pattern.block(6, 5000))])}, parents={"vda": None})
    got = prune(merino, repo, "--keep", 1)
    assert got["kept"] == ["p6"]
    proven(merino, repo, ["p6"])


def test_unreadable_points_are_left(repo, merino):
    repo.manifest_path("p5").write_text("{")
    got = prune(merino, repo, "--keep", 1)
    assert got["kept"] == ["p5", "p4"] and repo.file("vda", "p5").exists()


# --- killed


SYSCALLS = ["pwrite64", "fsync", "rename,renameat,renameat2", "unlink,unlinkat"]
# The search for leaks is ptrace's business, and strace has that.
NO_LEAKS = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
MORE_SYSCALLS = ["fdatasync", "openat", "close", "pread64"]


def killed(merino, repo, args, calls, nth):
    """prune, killed at its NTH call of one of CALLS; False: it came to its end before."""
    done = subprocess.run([tools.need("strace"), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}",
                           "-e", f"inject={calls}:signal=KILL:when={nth}", *merino.argv("prune", *args, repo.path)], env=NO_LEAKS,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL, 128 + signal.SIGKILL), done
    return done.returncode != 0


def still_right(merino, repo, kept):
    """Whatever it left: the points that stay are proven as they lie there, those that were to go as far as they are
    listed; qemu-img reads the same; one more run ends it."""
    listed = points(repo)
    assert set(kept) <= set(listed)
    got = json.loads(merino.run("verify", "--json", repo.path).stdout)
    assert got["good"], got
    repo.check_all(listed)
    prune(merino, repo, "--keep", len(kept))
    proven(merino, repo, kept)


def copies(tmp, source, n):
    path = tmp / f"copy{n}"
    shutil.copytree(source.path, path)
    copy = repository.Repository.__new__(repository.Repository)
    copy.__dict__.update(source.__dict__, path=path)
    return copy


def kill_everywhere(merino, tmp, source, kept, calls, step):
    nth = n = 0
    while True:
        nth += 1 + step * (nth > 3)
        r = copies(tmp, source, n)
        n += 1
        more = killed(merino, r, ["--keep", str(len(kept))], calls, nth)
        still_right(merino, r, kept)
        shutil.rmtree(r.path)
        if not more:
            return nth


@pytest.mark.parametrize("calls", SYSCALLS)
def test_killed(tmp, merino, calls):
    r = repository.Repository(tmp / "repo")
    for n in range(1, 5):
        r.add(f"p{n}", {"vda": (MIB, [(n * CHUNK, pattern.block(n, CHUNK)), (CHUNK * 9, pattern.block(n, 700))])})
    assert kill_everywhere(merino, tmp, r, ["p3", "p4"], calls, 11) > 1


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("calls", SYSCALLS + MORE_SYSCALLS)
def test_killed_at_every_call(tmp, merino, calls):
    r = repository.sample(tmp / "repo", points=5, disks=("vda", "vdb"))
    kill_everywhere(merino, tmp, r, ["p4", "p5"], calls, 0)


def fault_everywhere(merino, tmp, source, kept, calls, error, nths):
    for n, nth in enumerate(nths):
        r = copies(tmp, source, n)
        done = subprocess.run([tools.need("strace"), "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e",
                               f"inject={calls}:error={error}:when={nth}",
                               *merino.argv("prune", "--keep", str(len(kept)), r.path)], env=NO_LEAKS,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert done.returncode in (0, 1), done
        still_right(merino, r, kept)
        shutil.rmtree(r.path)


@pytest.mark.parametrize("calls, error, nths", [("pwrite64", "EIO", (2, 9)), ("pwrite64", "ENOSPC", (5,)),
                                                ("fsync", "EIO", (1, 4)), ("renameat", "EIO", (1, 2))])
def test_fault(repo, merino, tmp, calls, error, nths):
    """Storage that fails once: whatever came of it, all that is listed is right, and the next run ends it."""
    fault_everywhere(merino, tmp, repo, ["p4", "p5"], calls, error, nths)


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("calls", SYSCALLS + MORE_SYSCALLS)
def test_fault_at_every_call(repo, merino, tmp, calls):
    fault_everywhere(merino, tmp, repo, ["p4", "p5"], calls, "EIO", range(1, 120))


def test_interrupted(repo, merino):
    """^C in the middle of the copying: all is as it was, and the program dies of the signal."""
    image = repo.file("vda", "p5")
    before = os.stat(image).st_mtime_ns
    proc = subprocess.Popen(merino.argv("prune", "--keep", "1", "--limit", "16k", repo.path), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: os.stat(image).st_mtime_ns != before or proc.poll() is not None)
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(HANG) == -signal.SIGTERM
    proc.stderr.close()
    still_right(merino, repo, ["p5"])
