# SPDX-License-Identifier: BSD-3-Clause
"""merino list: what there is, told without trusting a byte of it."""

import json
import os

import pytest

from lib import repository
from lib.repository import MIB

pytestmark = pytest.mark.merino_only


@pytest.fixture
def repo(tmp):
    return repository.sample(tmp / "repo", points=3)


def listed(merino, repo, status=0):
    found = json.loads(merino.run("list", "--json", repo.path, status=status).stdout)
    return {p["point"]: p for p in found["points"]}


def test_points(merino, repo):
    found = listed(merino, repo)
    assert list(found) == ["p1", "p2", "p3"]
    for p in found.values():
        manifest = repo.manifest(p["point"])
        assert p["state"] == "good" and p["time"] == manifest["time"] and p["root"] == manifest["root"]
        d = p["disks"][0]
        assert d["size"] == 2 * MIB and d["root"] == manifest["disks"][0]["root"]
        assert d["stored-bytes"] == os.stat(repo.path / d["file"]).st_blocks * 512
    assert [p["disks"][0]["chain-length"] for p in found.values()] == [1, 2, 3]
    text = merino.run("list", repo.path).stdout
    assert "incremental on p2, 3 images" in text and "3 restore points" in text


def test_directory_is_not_touched(merino, repo):
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in repo.path.iterdir()}
    listed(merino, repo)
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in repo.path.iterdir()} == before


def test_unfinished(merino, repo):
    (repo.path / ".p9.unfinished").touch()
    (repo.path / ".vda@p9.qcow2.partial").touch()
    assert listed(merino, repo)["p9"]["state"] == "unfinished"


def change(*path, to):
    """Sets (or, TO None, removes) a member of the manifest."""
    def apply(manifest):
        at = manifest
        for key in path[:-1]:
            at = at[key]
        if to is None:
            del at[path[-1]]
        else:
            at[path[-1]] = to
    return apply


DISK = ("disks", 0)
HOSTILE = {
    "file above": change(*DISK, "file", to="../vda@p2.qcow2"),
    "file elsewhere": change(*DISK, "file", to="/etc/passwd"),
    "file of another": change(*DISK, "file", to="vda@p1.qcow2"),
    "sums elsewhere": change(*DISK, "sums", to="/dev/zero"),
    "name of a path": change(*DISK, "name", to="../../x"),
    "name too long": change(*DISK, "name", to="x" * 65),
    "name with controls": change(*DISK, "name", to="a\nb"),
    "no name": change(*DISK, "name", to=None),
    "parent above": change(*DISK, "parent", to="../p1"),
    "parent of itself": change(*DISK, "parent", to="p2"),
    "parent that is later": change(*DISK, "parent", to="p3"),
    "no parent": change(*DISK, "parent", to=None),
    "level": change(*DISK, "level", to="differential"),
    "size negative": change(*DISK, "size", to=-1),
    "size huge": change(*DISK, "size", to=(1 << 60) + 1),
    "size beyond all": change(*DISK, "size", to=(1 << 64) - 1),
    "size text": change(*DISK, "size", to="1"),
    "sums-bytes": change(*DISK, "sums-bytes", to=1 << 62),
    "root": change(*DISK, "root", to="f" * 64),
    "root of the point": change("root", to="0" * 64),
    "root short": change(*DISK, "root", to="ab"),
    "root upper case": change(*DISK, "root", to="A" * 64),
    "format": change(*DISK, "format", to="raw"),
    "no disks": change("disks", to=[]),
    "disks are no list": change("disks", to={}),
    "a disk is no object": change("disks", to=[5]),
    "sequence": change("sequence", to=0),
    "version": change("merino-point", to=2),
    "another point": change("point", to="p1"),
    "another repository": change("repository", to="x"),
    "time": change("time", to="yesterday"),
    "chunk-size": change("chunk-size", to=4096),
    "arguments": change("arguments", to=[1]),
    "reason with an escape": change("consistency", to="\x1b[2J"),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_manifest(merino, repo, how):
    """It is damaged, and so is what rests on it; the others are as good as before."""
    manifest = repo.manifest("p2")
    del manifest["manifest-sha256"]
    HOSTILE[how](manifest)
    (repo.path / "p2.json").write_text(repository.sealed(manifest))
    found = listed(merino, repo, status=2)
    assert {p: x["state"] for p, x in found.items()} == {"p1": "good", "p2": "damaged", "p3": "damaged"}
    assert "\x1b" not in merino.run("list", repo.path, status=2).stdout


NO_MANIFESTS = {
    "empty": "", "{}": "{}", "[]": "[]", "words": "nonsense", "deep": "{" * 100000, "zeroes": "\0" * 100,
    "cut": '{"manifest-sha256": "' + "0" * 64, "wrong": '{"manifest-sha256": "' + "0" * 64 + '"}', "huge": "x" * (5 << 20),
}


@pytest.mark.parametrize("how", NO_MANIFESTS)
def test_manifest_that_is_none(merino, repo, how):
    (repo.path / "p2.json").write_text(NO_MANIFESTS[how])
    assert {p: x["state"] for p, x in listed(merino, repo, 2).items()} == \
        {"p1": "good", "p2": "damaged", "p3": "damaged"}


def test_every_byte_of_a_manifest_counts(merino, repo):
    data = repo.manifest_path("p2").read_bytes()
    for at in range(0, len(data), 37):
        repo.manifest_path("p2").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
        assert listed(merino, repo, 2)["p2"]["state"] == "damaged", at


def test_links_are_not_followed(merino, repo, tmp):
    repo.manifest_path("p2").rename(tmp / "p2.json")
    repo.manifest_path("p2").symlink_to(tmp / "p2.json")
    assert listed(merino, repo, 2)["p2"]["state"] == "damaged"
    os.mkfifo(repo.path / "p4.json")
    assert listed(merino, repo, 2)["p4"]["state"] == "damaged"


def test_missing_files(merino, repo):
    repo.file("vda", "p1").unlink()
    found = listed(merino, repo, 2)
    assert "vda@p1.qcow2 is missing" in found["p1"]["why"] and "rests on p1" in found["p2"]["why"]


@pytest.mark.parametrize("text, why", [("", "JSON"), ("{}", "makes no repository"), ("[1]", "makes no repository"),
                                       ('{"merino-repository": 2, "id": "x"}', "version 2"),
                                       ('{"merino-repository": 1, "id": "x"}', "'id'"),
                                       ('{"merino-repository": 1}', "'id'")])
def test_no_repository(merino, repo, text, why):
    (repo.path / "repository.json").write_text(text)
    assert why in merino.run("list", repo.path, status=1).stderr
