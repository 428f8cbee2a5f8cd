# SPDX-License-Identifier: BSD-3-Clause
"""merino verify: one wrong bit anywhere is found, and the points that show it are named."""

import json
import os
import random
import shutil

import pytest

from lib import pattern, repository, tools
from lib.repository import CHUNK, MIB, flip, host_offset

pytestmark = pytest.mark.merino_only


@pytest.fixture
def repo(tmp):
    return repository.sample(tmp / "repo")


def verify(merino, repo, *args, status=0, when=""):
    return json.loads(merino.run("verify", "--json", *args, f"{repo.path}{when}", status=status).stdout)


def damaged(report):
    return {p["point"] for p in report["points"] if p["state"] == "damaged"}


def marks(repo):
    return {p.name[:-8] for p in repo.path.glob("*.damaged")}


# --- what is good


@pytest.mark.parametrize("args", [[], ["--quick"]])
def test_good(repo, merino, args):
    got = verify(merino, repo, *args)
    assert got["good"] and got["damage"] == [] and got["strays"] == [] and len(got["points"]) == 4
    assert got["read-bytes"] == (0 if args else (9 + 3 + 3 * 2) * CHUNK), "each image's data is read once"
    assert not marks(repo)


def test_one_point(repo, merino):
    got = verify(merino, repo, when="@p3")
    assert [p["point"] for p in got["points"]] == ["p3"] and got["good"]
    assert got["read-bytes"] == (9 + 1 + 1) * CHUNK, "all that the point shows"


def test_many_disks_and_branches(tmp, merino):
    r = repository.sample(tmp / "repo", points=3, disks=("vda", "vdb"))
    r.add("other", {"vda": (2 * MIB, [(5000, b"x" * 5000)]), "new": (MIB, [(0, b"n" * 512)])}, parents={"vda": "p1"})
    assert verify(merino, r)["good"]


def test_empty_repository(tmp, merino):
    assert verify(merino, repository.Repository(tmp / "empty"))["points"] == []


def test_text(repo, merino):
    assert "4 points, 0 damaged" in merino.run("verify", repo.path).stdout
    assert merino.run("verify", "-q", repo.path).stdout == ""


# --- what is damaged


def test_wrong_data(repo, merino):
    """The point that brought it, the offset, and all that show it: p3 has overwritten chunk 3."""
    flip(repo.file("vda", "p1"), host_offset(repo, "p1", 3 * CHUNK + 77))
    got = verify(merino, repo, status=1)
    assert not got["good"] and damaged(got) == {"p1", "p2"} == marks(repo)
    d, = got["damage"]
    assert (d["point"], d["disk"], d["offset"], d["length"]) == ("p1", "vda", 3 * CHUNK, CHUNK)
    assert d["affected"] == ["p1", "p2"]
    text = merino.run("verify", repo.path, status=1).stdout
    assert f"point p1, disk 'vda', offset {3 * CHUNK}, length {CHUNK}" in text and "affected: p1, p2" in text
    assert verify(merino, repo, when="@p4")["good"]
    verify(merino, repo, when="@p2", status=1)
    # Brought back, the marks go.
    flip(repo.file("vda", "p1"), host_offset(repo, "p1", 3 * CHUNK + 77))
    assert verify(merino, repo)["good"] and not marks(repo)


def test_runs_are_one_damage(repo, merino):
    """Chunks behind one another are told as one; what some points have overwritten is not theirs."""
    with open(repo.file("vda", "p1"), "r+b") as f:
        f.seek(host_offset(repo, "p1", 4 * CHUNK))
        f.write(bytes(3 * CHUNK))
    d, = verify(merino, repo, status=1)["damage"]
    assert (d["offset"], d["length"], d["affected"]) == (4 * CHUNK, 3 * CHUNK, ["p1", "p2", "p3", "p4"])


def test_zeroes_that_are_not(repo, merino):
    """A chunk that the checksums call zero has data."""
    shutil.copy(repo.file("vda", "p2"), repo.path.parent / "x.qcow2")
    tools.qemu_io(repo.file("vda", "p2"), f"write -P 5 {22 * CHUNK} 4k")
    got = verify(merino, repo, status=1)
    assert got["damage"][0]["offset"] == 22 * CHUNK and damaged(got) == {"p2", "p3", "p4"}


def test_data_that_is_nobodys(repo, merino):
    """An image that has something where its point brought nothing: what shows is not the parent's any more."""
    tools.qemu_io(repo.file("vda", "p3"), f"write -P 5 {8 * CHUNK} 512", f"write -P 6 {31 * CHUNK} 512")
    got = verify(merino, repo, status=1)
    assert [(d["point"], d["offset"]) for d in got["damage"]] == [("p3", 8 * CHUNK), ("p3", 31 * CHUNK)]
    assert damaged(got) == {"p3", "p4"}
    assert all(d["affected"] == ["p3", "p4"] for d in got["damage"])


def test_same_data_elsewhere_is_no_damage(repo, merino):
    """A cluster copied up from the parent shows the same (prune works like that)."""
    data = repo.content["p2", "vda"][8 * CHUNK:9 * CHUNK]
    (repo.path.parent / "same").write_bytes(data)
    tools.qemu_io(repo.file("vda", "p3"), f"write -s {repo.path.parent}/same {8 * CHUNK} {CHUNK}")
    assert verify(merino, repo)["good"]


@pytest.mark.parametrize("kind", ["qcow2", "sums"])
def test_missing(repo, merino, kind):
    repo.file("vda", "p2", kind).unlink()
    for args in [], ["--quick"]:
        assert damaged(verify(merino, repo, *args, status=1)) == {"p2", "p3", "p4"}


@pytest.mark.parametrize("kind", ["qcow2", "sums"])
@pytest.mark.parametrize("keep", [0.0, 0.4, 0.8])
def test_truncated(repo, merino, kind, keep):
    path = repo.file("vda", "p2", kind)
    os.truncate(path, int(path.stat().st_size * keep))
    assert "p2" in damaged(verify(merino, repo, status=1))
    if kind == "qcow2" and keep < 0.8 or kind == "sums":
        assert "p2" in damaged(verify(merino, repo, "--quick", status=1))


@pytest.mark.parametrize("kind", ["qcow2", "sums", "json"])
def test_swapped(repo, merino, kind):
    """Two points' files in each other's place."""
    a, b = (repo.manifest_path(p) if kind == "json" else repo.file("vda", p, kind) for p in ("p3", "p4"))
    a.rename(repo.path / "x")
    b.rename(a)
    (repo.path / "x").rename(b)
    assert damaged(verify(merino, repo, status=1)) >= {"p3"}


def test_lost_manifest(repo, merino):
    repo.manifest_path("p4").unlink()
    got = verify(merino, repo, status=1)
    assert got["strays"] == ["vda@p4.qcow2"] and not damaged(got)
    assert "vda@p4.qcow2: the manifest of its point is missing" in merino.run("verify", repo.path, status=1).stdout


def test_backing_name(repo, merino):
    tools.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "vda@p1.qcow2", repo.file("vda", "p3"))
    assert damaged(verify(merino, repo, "--quick", status=1)) == {"p3", "p4"}


def test_tables(repo, merino):
    """A cluster whose refcount is gone: the data is still right, but the image is damaged."""
    with open(repo.file("vda", "p2"), "r+b") as f:
        f.seek(48)
        table = int.from_bytes(f.read(8), "big")
        f.seek(table)
        block = int.from_bytes(f.read(8), "big")
        f.seek(block + 2 * 5)
        f.write(bytes(2))
    got = verify(merino, repo, "--quick", status=1)
    assert damaged(got) == {"p2"} and "tables" in got["damage"][0]["what"]
    assert tools.run("qemu-img", "check", repo.file("vda", "p2"), check=False).returncode == 2


def test_every_byte_of_a_point(tmp, merino):
    """Bits flipped at random in every file of a point: whatever makes a difference to what the guest sees, to qemu-img or
    to the proof is found.  What is left are bytes that nobody looks at: free clusters, names of feature bits."""
    r = repository.Repository(tmp / "repo")
    content = pattern.block(1, 3 * CHUNK + 512)
    r.add("p1", {"d": (4 * CHUNK, [(0, content)])})
    r.add("p2", {"d": (4 * CHUNK, [(CHUNK, pattern.block(2, 2 * CHUNK)), (3 * CHUNK, CHUNK)])})
    rng = random.Random(5)
    raws = {}
    for point in "p1", "p2":
        raws[point] = tmp / f"{point}.raw"
        raws[point].write_bytes(r.content[point, "d"])
    missed = 0
    for point in "p1", "p2":
        for path in r.file("d", point), r.file("d", point, "sums"), r.manifest_path(point):
            right = path.read_bytes()
            for _ in range(10):
                flip(path, rng.randrange(len(right)), 1 << rng.randrange(8))
                wrong = path.read_bytes()
                status = tools.run(*merino.argv("verify", "-q", r.path), check=False).returncode
                assert path.read_bytes() == wrong, "verify changes no file"
                if status == 0:
                    missed += 1
                    assert path.suffix == ".qcow2"
                    for p in raws:
                        tools.compare(r.file("d", p), raws[p])
                else:
                    assert status == 1 and (point in marks(r) or path.suffix == ".json")
                path.write_bytes(right)
                verify(merino, r)
                assert not marks(r)
    assert missed < 20
