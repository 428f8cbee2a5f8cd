# SPDX-License-Identifier: BSD-3-Clause
"""merino backup: every point is the disks at one instant, proven without Merino; whatever interrupts it."""

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest

from lib import tools
from lib.daemon import disk_args
from lib.patience import HANG, wait_until
from lib.proof import Writer, leftovers, points, prove

pytestmark = pytest.mark.merino_only

MIB = 1 << 20
SIZE = 8 * MIB


@pytest.fixture
def live(daemon, tmp):
    """Two disks of a running merinod."""
    for name in "ab":
        tools.create(tmp / f"{name}.qcow2", SIZE)
    return start(daemon, tmp)


def start(daemon, tmp):
    return daemon.start(*disk_args(tmp / "a.qcow2", name="a"), *disk_args(tmp / "b.qcow2", name="b"))


def writer(d, **kw):
    return Writer({n: d.uri(n) for n in "ab"}, SIZE, **kw)


def backup(merino, *args, **kw):
    """A good run's point."""
    return json.loads(merino.run("backup", "--json", "--to", "repo", *args, **kw).stdout)


def refused(merino, *args):
    text = merino.run("backup", "--to", "repo", *args, status=1).stderr
    assert text.startswith("merino backup: "), text
    return text


@contextlib.contextmanager
def held(merino, *args):
    """A run that has taken its instant and copies nothing yet, however slow the machine is; its process."""
    go_on = pathlib.Path(merino.cwd) / "go-on"
    hook = "touch held; while ! test -e go-on; do sleep 0.02; done"
    run = subprocess.Popen(merino.argv("backup", "--to", "repo", f"--hook-after={hook}", "--quiesce-timeout=180", *args),
                           cwd=merino.cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: (go_on.with_name("held")).exists())
        yield run
    finally:
        go_on.touch()


def repo(merino):
    return pathlib.Path(merino.cwd) / "repo"


def levels(point):
    return {d["name"]: d["level"] for d in point["disks"]}


def reasons(point):
    return {d["name"]: d.get("reason") for d in point["disks"]}


def states(merino, status=0):
    return {p["point"]: p["state"] for p in
            json.loads(merino.run("list", "--json", "repo", status=status).stdout)["points"]}


def all_good(merino):
    assert set(states(merino).values()) == {"good"} and not leftovers(repo(merino))


# --- points

def test_full_and_incrementals_under_load(live, merino):
    w = writer(live, pause=0.0005)
    w.write(300)
    made = []
    with w:
        for _ in range(7):
            made.append(backup(merino, "--socket", live.qmp_path))
            wait_until(lambda n=len(w.history): len(w.history) > n + 1)      # the first of them is written
    assert [levels(p) for p in made] == [dict(a="full", b="full")] + 6 * [dict(a="incremental", b="incremental")]
    assert [p["disks"][0].get("parent") for p in made] == [None] + [p["point"] for p in made[:-1]]
    instants = [w.instant(prove(repo(merino), p["point"])) for p in made]
    assert instants == sorted(instants) and len(set(instants)) == 7
    assert all(p["consistency"] == "crash-consistent" and p["server"].startswith("merinod ") for p in made)
    all_good(merino)
    assert {c["state"] for c in live.qmp.cmd("query-checkpoints")} == {"active"}
    assert len(live.qmp.cmd("query-checkpoints")) <= 2, "old checkpoints are left"


def test_nothing_changed(live, merino):
    backup(merino, "--socket", live.qmp_path)
    second = backup(merino, "--socket", live.qmp_path)
    assert [d["read-bytes"] for d in second["disks"]] == [0, 0]
    prove(repo(merino), second["point"])


def test_one_disk_and_its_name(live, merino):
    w = writer(live)
    w.write(50)
    one = backup(merino, "--socket", live.qmp_path, "--name", "mon.1", "a")
    w.write(10)
    backup(merino, "--socket", live.qmp_path, "--name", "tue", "b")
    w.write(10)
    assert one["point"] == "mon.1" and levels(one) == dict(a="full")
    both = backup(merino, "--socket", live.qmp_path, "a", "b")
    assert levels(both) == dict(a="incremental", b="incremental")
    assert [d["parent"] for d in both["disks"]] == ["mon.1", "tue"]
    assert w.instant(prove(repo(merino), both["point"])) == 70
    named = backup(merino, "--socket", live.qmp_path, "root ü/x=a")
    assert named["disks"][0]["file"].startswith("root%20%C3%BC%2Fx@")
    assert "has a restore point tue" in refused(merino, "--socket", live.qmp_path, "--name=tue")
    all_good(merino)


def test_full_when_asked(live, merino):
    backup(merino, "--socket", live.qmp_path)
    assert reasons(backup(merino, "--full", "--socket", live.qmp_path)) == dict(a="asked for", b="asked for")


def test_daemon_that_restarts(daemon, live, merino, tmp):
    w = writer(live)
    w.write(100)
    backup(merino, "--socket", live.qmp_path)
    w.write(20)
    live.kill()
    again = start(daemon, tmp)
    w.handles = writer(again).handles
    w.write(20)
    p = backup(merino, "--socket", again.qmp_path)
    assert levels(p) == dict(a="incremental", b="incremental")
    assert w.instant(prove(repo(merino), p["point"])) == 140


def test_disk_that_was_rolled_back(daemon, live, merino, tmp):
    """The daemon knows an older point's checkpoint only: the increment rests on that one, not on the last."""
    w = writer(live)
    w.write(60)
    first = backup(merino, "--socket", live.qmp_path)
    live.stop()
    for n in "ab":
        (tmp / f"{n}.old").write_bytes((tmp / f"{n}.qcow2").read_bytes())
    again = start(daemon, tmp)
    w.handles = writer(again).handles
    w.write(60)
    second = backup(merino, "--socket", again.qmp_path)
    again.stop()
    for n in "ab":
        (tmp / f"{n}.old").rename(tmp / f"{n}.qcow2")
    third = start(daemon, tmp)
    del w.history[60:]
    w.handles = writer(third).handles
    w.write(5)
    p = backup(merino, "--socket", third.qmp_path)
    assert [d["parent"] for d in p["disks"]] == 2 * [first["point"]] != 2 * [second["point"]]
    assert w.instant(prove(repo(merino), p["point"])) == 65


@pytest.mark.parametrize("how", ["zlib", "zstd"])
def test_compressed(live, merino, how):
    w = writer(live)
    w.write(200)
    p = backup(merino, f"--compress={how}", "--socket", live.qmp_path)
    assert os.stat(repo(merino) / p["disks"][0]["file"]).st_size < SIZE / 8
    assert w.instant(prove(repo(merino), p["point"])) == 200


def test_image_that_nothing_has_open(merino, tmp):
    tools.create(tmp / "vm.disk.qcow2", SIZE)
    tools.qemu_io(tmp / "vm.disk.qcow2", f"write -P 1 0 {MIB}")
    full = backup(merino, tmp / "vm.disk.qcow2")
    assert levels(full) == {"vm.disk": "full"}
    tools.qemu_io(tmp / "vm.disk.qcow2", "write -P 2 512 1024", f"write -z {MIB // 2} 4096")
    p = backup(merino, tmp / "vm.disk.qcow2")
    assert levels(p) == {"vm.disk": "incremental"} and p["disks"][0]["data-bytes"] <= 128 << 10
    assert prove(repo(merino), p["point"])["vm.disk"] == tools.content(tmp / "vm.disk.qcow2")
    tools.check(tmp / "vm.disk.qcow2")


def test_image_that_somebody_has_open(live, merino, tmp):
    text = refused(merino, tmp / "a.qcow2")
    assert 'Failed to get "write" lock' in text
    assert "No such file" in refused(merino, tmp / "nope.qcow2")
    assert not leftovers(repo(merino))


# --- chains that cannot be trusted

def test_checkpoint_that_is_gone(live, merino):
    backup(merino, "--socket", live.qmp_path)
    for c in live.qmp.cmd("query-checkpoints"):
        live.qmp.cmd("checkpoint-delete", {"id": c["id"]})
    p = backup(merino, "--socket", live.qmp_path)
    assert levels(p) == dict(a="full", b="full")
    assert "no longer has the checkpoint" in reasons(p)["a"]


@pytest.mark.parametrize("harm", ["image", "sums", "manifest", "sums rot", "backing"])
def test_chain_that_is_damaged(live, merino, harm):
    w = writer(live)
    w.write(50)
    one = backup(merino, "--socket", live.qmp_path, "--name=one")
    backup(merino, "--socket", live.qmp_path, "--name=two")
    image, sums = repo(merino) / one["disks"][0]["file"], repo(merino) / one["disks"][0]["sums"]
    if harm == "image":
        image.unlink()
    elif harm == "sums":
        sums.unlink()
    elif harm == "manifest":
        text = (repo(merino) / "one.json").read_text()
        (repo(merino) / "one.json").write_text(text.replace('"sequence": 1', '"sequence": 0'))
    elif harm == "sums rot":
        data = bytearray(sums.read_bytes())
        data[-1] ^= 1
        sums.write_bytes(data)
    else:
        tools.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "/etc/passwd",
                  repo(merino) / "a@two.qcow2")
    w.write(10)
    p = backup(merino, "--socket", live.qmp_path)
    assert levels(p)["a"] == "full" and reasons(p)["a"], p
    assert w.instant(prove(repo(merino), p["point"])) == 60
    assert states(merino, 2 if harm in ("image", "sums", "manifest") else 0)[p["point"]] == "good"


def test_disk_added_later(daemon, merino, tmp):
    for name in "ab":
        tools.create(tmp / f"{name}.qcow2", SIZE)
    d = daemon.start(*disk_args(tmp / "a.qcow2", name="a"))
    backup(merino, "--socket", d.qmp_path)
    d.stop()
    d = start(daemon, tmp)
    p = backup(merino, "--socket", d.qmp_path)
    assert levels(p) == dict(a="incremental", b="full")
    assert reasons(p)["b"] == "the first restore point of this disk"


def test_disk_that_grew(live, merino, tmp):
    h = live.libnbd("a")
    h.pwrite(b"1" * MIB, SIZE - MIB)
    backup(merino, "--socket", live.qmp_path, "a")
    live.qmp.cmd("block_resize", {"node-name": "a", "size": SIZE + 2 * MIB + 512})
    g = live.libnbd("a")
    g.pwrite(b"2" * MIB, SIZE + MIB)
    p = backup(merino, "--socket", live.qmp_path, "a")
    content = prove(repo(merino), p["point"])["a"]
    assert len(content) == SIZE + 2 * MIB + 512
    assert content == bytes(SIZE - MIB) + b"1" * MIB + bytes(MIB) + b"2" * MIB + bytes(512)


@pytest.mark.parametrize("how", ["shrunk and grown", "grown", "grown, end written"])
@pytest.mark.parametrize("points_before", [1, 2])
def test_resized_by_qemu_img(merino, tmp, how, points_before):
    """QEMU keeps our bitmaps, but not what a new size does to them: no point may rest on that."""
    image = tmp / "a.qcow2"
    tools.create(image, SIZE)
    tools.qemu_io(image, "write -P 7 1M 6M")
    for _ in range(points_before):
        backup(merino, image)
    if how == "shrunk and grown":
        tools.run("qemu-img", "resize", "-q", "--shrink", image, 2 * MIB)
    size = SIZE if how == "shrunk and grown" else SIZE + MIB
    tools.run("qemu-img", "resize", "-q", image, size)
    if how == "grown, end written":
        tools.qemu_io(image, f"write -P 9 {size - 512} 512")
    p = backup(merino, image)
    assert levels(p) == dict(a="full") and prove(repo(merino), p["point"])["a"] == tools.content(image)
    assert levels(backup(merino, image)) == dict(a="incremental")


def test_numbers_are_used_once(merino, tmp):
    """A manifest that cannot be read now may come back: it has a number that nobody else gets."""
    tools.create(tmp / "a.qcow2", SIZE)
    ids = [backup(merino, tmp / "a.qcow2")["point"] for _ in range(2)]
    newest = repo(merino) / f"{ids[1]}.json"
    text = newest.read_text()
    newest.write_text(text[:100])
    ids.append(backup(merino, tmp / "a.qcow2")["point"])
    newest.write_text(text)
    numbers = [p["sequence"] for p in points(repo(merino)).values()]
    assert len(set(numbers)) == 3 and set(states(merino).values()) == {"good"}
    for i in ids:
        prove(repo(merino), i)


def test_name_of_no_disk(merino, tmp):
    tools.create(tmp / "a.qcow2", SIZE)
    point = backup(merino, tmp / "a.qcow2")["point"]
    text = merino.run("restore", "repo", "a.qcow2", "out.raw", status=1).stderr
    assert "no good point with a disk 'a.qcow2'; there are 'a'" in text
    text = merino.run("restore", f"repo@{point}", "a.qcow2", "out.raw", status=1).stderr
    assert f"point {point} has no disk 'a.qcow2'; it has 'a'" in text


# --- whatever interrupts it

def run_and_kill(merino, d, rng, signo):
    """A run that gets SIGNO at some time; whether it came to its end."""
    args = merino.argv("backup", "--quiet", "--to", "repo", "--socket", d.qmp_path)
    run = subprocess.Popen(args, cwd=merino.cwd, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(rng.random() * rng.choice([0.02, 0.1, 0.3]))
    run.send_signal(signo)
    return run.wait(HANG) == 0


def test_signal_while_its_merinod_starts(merino, tmp):
    """One that came between fork() and exec() was lost once, and both waited for ever."""
    tools.create(tmp / "a.qcow2", SIZE)
    backup(merino, tmp / "a.qcow2")
    rng = random.Random(3)
    for _ in range(25):
        run = subprocess.Popen(merino.argv("backup", "--quiet", "--to", "repo", tmp / "a.qcow2"), cwd=merino.cwd,
                               stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.random() * 0.02)
        run.send_signal(signal.SIGINT)
        assert run.wait(HANG) in (0, -signal.SIGINT)
    all_good(merino)
    assert levels(backup(merino, tmp / "a.qcow2")) == dict(a="incremental")


def test_what_a_killed_run_leaves(merino, tmp):
    """Its directory for sockets goes with the next run; one that is young, in use, or no such thing stays."""
    place = tmp / "runtime"
    place.mkdir(mode=0o700)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(place)}
    writer = tools.create(tmp / "a.qcow2", SIZE)
    tools.qemu_io(writer, "write -P 7 0 8M")
    run = subprocess.Popen(merino.argv("backup", "--quiet", "--to", "repo", "--limit=64k", writer), cwd=merino.cwd, env=env,
                           stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(repo(merino).glob(".*.qcow2.partial")))
    used, = place.iterdir()
    (place / "merino-serve-abcdef").mkdir(mode=0o700)
    (place / "merino-abcdef").mkdir(mode=0o755)
    (place / "merino-ghijkl").mkdir(mode=0o700)
    (place / "merino-mnopqr").symlink_to(tmp)
    others = {p for p in place.iterdir() if p != used}
    for p in used, *others:
        os.utime(p, (0, 0)) if p.name != "merino-ghijkl" else None
    tools.create(tmp / "b.qcow2", MIB)

    def another(to):
        merino.run("backup", "--to", to, tmp / "b.qcow2", env=env)
        return set(place.iterdir())
    assert another("repo1") == others | {used}
    run.kill()
    run.wait()
    wait_until(lambda: not any(p.is_socket() for p in used.iterdir()))      # merinod is gone, too
    os.utime(used, (0, 0))
    assert another("repo2") == others
    assert (tmp / "a.qcow2").exists()


def test_copy_of_the_repository(live, merino):
    """It has the same id; a run into it must not end the checkpoint of one that is at work in the other."""
    live.libnbd("a").pwrite(os.urandom(4 * MIB), 0)
    backup(merino, "--socket", live.qmp_path)
    shutil.copytree(repo(merino), repo(merino).with_name("copy"))
    live.libnbd("a").pwrite(os.urandom(4 * MIB), 0)
    with held(merino, "--json", "--socket", live.qmp_path) as run:
        assert "pending" in {c["state"] for c in live.qmp.cmd("query-checkpoints")}
        text = merino.run("backup", "--to", "copy", "--socket", live.qmp_path, status=1).stderr
    assert "has a pending checkpoint" in text
    out, _ = run.communicate(timeout=HANG)
    assert run.returncode == 0 and levels(json.loads(out)) == dict(a="incremental", b="incremental")
    merino.run("backup", "--to", "copy", "--socket", live.qmp_path)


def interrupted(live, merino, rounds, seed):
    rng = random.Random(seed)
    w = writer(live, seed=seed, pause=0.001)
    w.write(100)
    with w:
        for _ in range(rounds):
            run_and_kill(merino, live, rng, signal.SIGKILL)
            if rng.random() < 0.3:
                backup(merino, "--socket", live.qmp_path)
        backup(merino, "--socket", live.qmp_path)
    all_good(merino)
    why = {d["reason"] for m in points(repo(merino)).values() for d in m["disks"] if d["level"] == "full"}
    assert all(x.startswith("the first") or "lie over one another" in x for x in why), why
    instants = [w.instant(prove(repo(merino), p)) for p in points(repo(merino))]
    assert instants == sorted(instants)
    assert {c["state"] for c in live.qmp.cmd("query-checkpoints")} == {"active"}


def test_killed_at_any_moment(live, merino):
    interrupted(live, merino, 20, 1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10))
def test_killed_often(live, merino, seed):
    interrupted(live, merino, 100, seed)


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal(live, merino, signo):
    writer(live).write(400)
    args = merino.argv("backup", "--to", "repo", "--socket", live.qmp_path, "--limit=64k")
    run = subprocess.Popen(args, cwd=merino.cwd, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(repo(merino).glob(".*.qcow2.partial")))
    assert set(states(merino).values()) == {"unfinished"}
    run.send_signal(signo)
    assert run.wait(HANG) == -signo and "stopped by a signal" in run.stderr.read()
    run.stderr.close()
    assert not leftovers(repo(merino)) and not points(repo(merino))
    assert live.qmp.cmd("query-checkpoints") == []


def test_daemon_that_dies(live, merino):
    writer(live).write(400)
    args = merino.argv("backup", "--to", "repo", "--socket", live.qmp_path, "--limit=64k", "--timeout=2")
    run = subprocess.Popen(args, cwd=merino.cwd, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(repo(merino).glob(".*.qcow2.partial")))
    live.kill()
    assert run.wait(HANG) == 1
    run.stderr.close()
    assert not leftovers(repo(merino)) and not points(repo(merino))


@pytest.mark.parametrize("size", ["300k", "2M", "9M"])
def test_no_space(live, merino, size):
    """The target is full at different places: an error, nothing left, and the next run elsewhere is right."""
    w = writer(live)
    w.write(400)
    repo(merino).mkdir()
    script = f'mount -t tmpfs -o size={size} none repo && ! "$@" && ls -A repo'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh",
                           *merino.argv("backup", "--to", "repo", "--socket", live.qmp_path)], cwd=merino.cwd,
                          capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0 and "No space left" in done.stderr, done.stderr
    assert set(done.stdout.split()) <= {".lock", "repository.json"}
    assert live.qmp.cmd("query-checkpoints") == []
    p = backup(merino, "--socket", live.qmp_path)
    assert w.instant(prove(repo(merino), p["point"])) == 400


def test_two_writers(live, merino):
    writer(live).write(400)
    with held(merino, "--quiet", "--socket", live.qmp_path) as run:
        assert "is in use" in refused(merino, "--socket", live.qmp_path)
    assert run.communicate(timeout=HANG)[0] == "" and run.returncode == 0
    all_good(merino)


# --- the command line

def test_json_and_text(live, merino):
    p = backup(merino, "--socket", live.qmp_path)
    manifest = points(repo(merino))[p["point"]]
    assert {k: v for k, v in p.items() if k in manifest} == \
        {k: v for k, v in manifest.items() if k not in ("merino-point", "repository", "manifest-sha256")}
    assert p["directory"] == "repo" and p["seconds"] >= 0
    text = merino.run("backup", "--to", "repo", "--socket", live.qmp_path).stdout
    assert f"incremental since {p['point']}" in text
    assert merino.run("backup", "-q", "--to", "repo", "--socket", live.qmp_path).stdout == ""


def test_progress(live, merino):
    writer(live).write(400)
    read, write = os.pipe()
    merino.run("backup", "-q", "--to", "repo", "--socket", live.qmp_path, f"--progress={write}", pass_fds=[write])
    os.close(write)
    lines = os.fdopen(read).read().split()
    assert lines[-1] == "100/100" and all(line.endswith("/100") for line in lines)


@pytest.mark.parametrize("args, text", [
    ((), "--to DIR is missing"),
    (("--to=r",), "give --socket, URIs or images"),
    (("--to=r", "--socket=s", "nbd://h/x"), "URIs do not go with --socket"),
    (("--to=r", "nbd://h/x", "y.qcow2"), "URIs or images, not both"),
    (("--to=r", "--socket=s", "--bitmap=b"), "--bitmap goes with URIs"),
    (("--to=r", "--socket=s", "--name=../x"), "--name takes"),
    (("--to=r", "--socket=s", "--name=repository"), "--name takes"),
    (("--to=r", "--socket=s", "--compress=lzo"), "--compress takes"),
    (("--to=r", "--socket=s", "--limit=0"), "--limit=0"),
])
def test_words_that_do_not_go(merino, args, text):
    assert text in merino.run("backup", *args, status=1).stderr
    assert os.listdir(merino.cwd) == []


def test_directory_that_is_none(live, merino):
    repo(merino).mkdir()
    (repo(merino) / "precious").write_text("x")
    assert "is not empty" in refused(merino, "--socket", live.qmp_path)
    assert "no backup repository" in merino.run("list", "repo", status=1).stderr
