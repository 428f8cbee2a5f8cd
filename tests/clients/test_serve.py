# SPDX-License-Identifier: BSD-3-Clause
"""merino serve: every NBD client reads a restore point at once, as it was; a machine may write over it."""

import json
import os
import pathlib
import shutil
import signal
import subprocess

import nbd
import pytest

from lib import pattern, repository, tools
from lib.daemon import free_port
from lib.patience import HANG, wait_until
from lib.repository import CHUNK, MIB

pytestmark = pytest.mark.merino_only


@pytest.fixture
def repo(tmp):
    return repository.sample(tmp / "repo")


def environment(tmp):
    """Where it makes its private directories."""
    for name in "run", "vartmp":
        (tmp / name).mkdir(exist_ok=True)
    return {**os.environ, "XDG_RUNTIME_DIR": str(tmp / "run"), "TMPDIR": str(tmp / "vartmp")}


@pytest.fixture
def serve(merino, tmp):
    """Starts it; the process and what --json says.  Every one has to end well and leave nothing."""
    running = []

    def start(*args):
        proc = subprocess.Popen(merino.argv("serve", "--json", *args), cwd=merino.cwd, env=environment(tmp),
                                stdout=subprocess.PIPE, text=True)
        running.append(proc)
        text = ""
        while not text.endswith("}\n") or text.count("{") != text.count("}"):
            line = proc.stdout.readline()
            assert line, "it ended"
            text += line
        return proc, json.loads(text)
    yield start
    for proc in running:
        if proc.poll() is None:
            proc.send_signal(signal.SIGINT)
        assert proc.wait(HANG) == 0
        proc.stdout.close()
    for name in "run", "vartmp":
        assert os.listdir(tmp / name) == []


def raw(repo, point, disk="vda"):
    path = repo.path.parent / f"{point}-{disk}.raw"
    path.write_bytes(repo.content[point, disk])
    return path


@pytest.mark.parametrize("when, point", [("", "p4"), ("@p1", "p1"), ("@2026-11-02", "p2")])
def test_point(repo, serve, tmp, when, point):
    """For nbdcopy, nbdinfo and qemu-img."""
    _, got = serve(f"{repo.path}{when}")
    disk, = got["disks"]
    assert got["point"] == point and disk["disk"] == "vda" and disk["virtual-size"] == 2 * MIB
    tools.run("nbdcopy", disk["uri"], tmp / "copy")
    assert (tmp / "copy").read_bytes() == repo.content[point, "vda"]
    info = json.loads(tools.run("nbdinfo", "--json", disk["uri"]).stdout)["exports"][0]
    assert info["is_read_only"] and info["export-size"] == 2 * MIB and info["export-name"] == "vda"
    tools.run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk["uri"], raw(repo, point))


def test_it_is_quick(tmp, serve):
    """However large the disk is: what reads it all takes weeks."""
    r = repository.Repository(tmp / "repo")
    r.add("p1", {"d": (MIB, [(0, b"x" * 512)])})
    m = r.manifest("p1")
    m["disks"][0]["size"] = 1 << 50
    r.write_manifest(m)
    r.file("d", "p1").unlink()
    tools.create(r.file("d", "p1"), 1 << 50, cluster_size="2M")
    _, got = serve(r.path)
    assert got["disks"][0]["virtual-size"] == 1 << 50


def test_several_disks(tmp, serve, merino):
    r = repository.sample(tmp / "repo", points=2, disks=("vda", "a/b ä"))
    _, got = serve(r.path)
    for d in got["disks"]:
        tools.run("nbdcopy", d["uri"], tmp / "copy")
        assert (tmp / "copy").read_bytes() == r.content["p2", d["disk"]]
    _, got = serve(r.path, "a/b ä")
    assert [d["disk"] for d in got["disks"]] == ["a/b ä"]
    assert len(tools.run("nbdinfo", "--list", got["disks"][0]["uri"]).stdout.split("export=")) == 2


@pytest.mark.parametrize("writable", [[], ["--writable"]])
def test_size_that_is_no_sector(tmp, serve, writable):
    r = repository.Repository(tmp / "repo")
    r.add("p1", {"d": (CHUNK + 100, [(CHUNK, b"e" * 100)])})
    _, got = serve(*writable, r.path)
    tools.run("nbdcopy", got["disks"][0]["uri"], tmp / "copy")
    assert (tmp / "copy").read_bytes() == r.content["p1", "d"]


def test_text(repo, merino, tmp):
    """One URI on a line, ready to be pasted."""
    proc = subprocess.Popen(merino.argv("serve", repo.path), env=environment(tmp), stdout=subprocess.PIPE, text=True)
    uri = proc.stdout.readline().strip()
    tools.run("nbdinfo", "--size", uri)
    proc.send_signal(signal.SIGTERM)
    assert proc.wait(HANG) == 0 and proc.stdout.read() == ""
    proc.stdout.close()


def test_socket(repo, serve, tmp):
    proc, got = serve("--socket", tmp / "sock", repo.path)
    uri = f"nbd+unix:///vda?socket={tmp}/sock"
    assert got["disks"][0]["uri"] == uri
    tools.run("nbdinfo", "--size", uri)
    proc.send_signal(signal.SIGINT)
    assert proc.wait(HANG) == 0
    assert not (tmp / "sock").exists()


def test_port(repo, serve, tmp):
    port = free_port()
    _, got = serve("--port", port, repo.path)
    assert got["disks"][0]["uri"] == f"nbd://127.0.0.1:{port}/vda"
    tools.run("nbdcopy", got["disks"][0]["uri"], tmp / "copy")
    assert (tmp / "copy").read_bytes() == repo.content["p4", "vda"]


def test_writable(repo, serve, tmp):
    """A machine boots from it: what it writes it reads again, and the repository has none of it."""
    before = {p.name: p.read_bytes() for p in repo.path.iterdir()}
    _, got = serve("--writable", f"{repo.path}@p3")
    h = nbd.NBD()
    h.connect_uri(got["disks"][0]["uri"])
    data = pattern.block("new", 100000)
    h.pwrite(data, 3 * CHUNK + 512)
    h.trim(CHUNK, CHUNK)
    h.zero(CHUNK, 4 * CHUNK)
    h.flush()
    want = bytearray(repo.content["p3", "vda"])
    want[3 * CHUNK + 512:3 * CHUNK + 512 + len(data)] = data
    want[4 * CHUNK:5 * CHUNK] = bytes(CHUNK)
    got = h.pread(2 * MIB, 0)
    assert got[CHUNK:2 * CHUNK] in (bytes(CHUNK), bytes(want[CHUNK:2 * CHUNK]))
    want[CHUNK:2 * CHUNK] = got[CHUNK:2 * CHUNK]
    assert pattern.first_difference(got, bytes(want)) is None
    h.shutdown()
    assert {n: (repo.path / n).read_bytes() for n in before} == before


def test_read_only(repo, serve):
    _, got = serve(repo.path)
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.connect_uri(got["disks"][0]["uri"])
    with pytest.raises(nbd.Error):
        h.pwrite(b"x" * 512, 0)
    h.shutdown()


def test_run(repo, merino, tmp):
    env = environment(tmp)
    out = merino.run("serve", "--run", 'nbdinfo --size "$uri"; echo $disk@$point; test -S "$unixsocket"', repo.path, env=env)
    assert out.stdout.split() == [str(2 * MIB), "vda@p4"]
    merino.run("serve", "--run", "exit 7", repo.path, env=env, status=7)
    assert os.listdir(tmp / "run") == []


def test_qemu_overlay_on_top(repo, serve, tmp):
    """As people try a restore: an overlay of their own over the URI."""
    _, got = serve(f"{repo.path}@p2")
    tools.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", got["disks"][0]["uri"], tmp / "try.qcow2")
    tools.qemu_io(tmp / "try.qcow2", "write -P 9 1M 64k", "read -P 9 1M 64k")
    tools.run("qemu-img", "convert", "-O", "raw", tmp / "try.qcow2", tmp / "try.raw")
    want = bytearray(repo.content["p2", "vda"])
    want[MIB:MIB + CHUNK] = b"\x09" * CHUNK
    assert (tmp / "try.raw").read_bytes() == bytes(want)


def test_nobody_is_left(repo, serve, tmp):
    """kill -9: its merinod goes, too."""
    proc, got = serve(repo.path)
    socket = pathlib.Path(got["disks"][0]["uri"].split("socket=")[1])
    h = nbd.NBD()
    h.connect_uri(got["disks"][0]["uri"])
    proc.kill()
    proc.wait()
    proc.returncode = 0

    def gone():
        try:
            h.pread(512, 0)
        except nbd.Error:
            return not socket.exists()
    wait_until(gone)

    def removed():
        shutil.rmtree(socket.parent, ignore_errors=True)
        return not socket.parent.exists()
    wait_until(removed)


def test_prune_waits_outside(repo, serve, merino):
    serve(repo.path)
    assert "in use" in merino.run("prune", "--keep", 1, repo.path, status=1).stderr


@pytest.mark.parametrize("name", ["/etc/passwd", "nbd://127.0.0.1:1/x", "json:{\"driver\":\"null-co\"}"])
def test_hostile_backing_name(repo, merino, tmp, name):
    tools.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", name, repo.file("vda", "p2"))
    assert "backing file" in merino.run("serve", repo.path, env=environment(tmp), status=1).stderr


def test_refusals(repo, merino, tmp):
    env = environment(tmp)
    for args in [], ["a", "b", "c"], ["--port", "0", repo.path], ["--bind", "::1", repo.path], [repo.path, "nope"], \
            ["--socket", "/x", "--port", "1", repo.path], ["--socket", "/nonexistent/x", repo.path]:
        assert merino.run("serve", *args, env=env, status=1).stderr
        assert os.listdir(tmp / "run") == []


def test_damaged(repo, serve, merino, capfd):
    repo.file("vda", "p3", "sums").write_bytes(b"")
    merino.run("verify", repo.path, status=1)
    _, got = serve(repo.path)
    assert got["point"] == "p2" and "p4 is damaged" in capfd.readouterr().err
    _, got = serve(f"{repo.path}@p4")
    assert got["point"] == "p4" and "not all that is served" in capfd.readouterr().err
