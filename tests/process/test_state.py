# SPDX-License-Identifier: BSD-3-Clause
"""--state: stopped, killed and started again, the daemon serves what it served."""

import os
import signal
import socket
import threading
import time

import nbd
import pytest

from lib import tools
from lib.daemon import DidNotStart, disk_args, free_port
from lib.patience import HANG

pytestmark = pytest.mark.merino_only


PATIENT = "--lock-wait", "60000"                         # the kernel of a busy machine, with a dead process's images


class Kept:
    """One set of options, started again and again."""

    def __init__(self, factory, tmp):
        self.factory, self.tmp = factory, tmp
        self.nbd, self.qmp = str(tmp / "nbd"), str(tmp / "qmp")
        self.options = ["--state", tmp / "state", "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
                        "--chardev", f"socket,id=m,path={self.qmp},server=on,wait=off", "--monitor", "m"]

    def start(self, *more, **kw):
        d = self.factory.start(*self.options, *more, listen=None, monitor=False, **kw)
        d.nbd_address, d.qmp_path = self.nbd, self.qmp
        return d

    def refused(self, *more):
        with pytest.raises(DidNotStart) as failed:
            self.start(*more)
        return failed.value.stderr

    def image(self, name="a.qcow2", size="4M", **kw):
        return tools.create(self.tmp / name, size, **kw)


@pytest.fixture
def kept(daemon, tmp):
    return Kept(daemon, tmp)


def node(path, name, **kw):
    return {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "filename": path}} | kw


def export(name, **kw):
    return {"type": "nbd", "id": name, "node-name": name, "name": name, "writable": True} | kw


def make(d, path, name="v", **kw):
    d.qmp.cmd("blockdev-add", node(path, name))
    d.qmp.cmd("block-export-add", export(name, **kw))


def exports(d):
    return sorted(e["id"] for e in d.qmp.cmd("query-block-exports"))


def nodes(d):
    return sorted(n["node-name"] for n in d.qmp.cmd("query-named-block-nodes") if not n["node-name"].startswith("#"))


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_made_by_commands_is_served_again(kept, end):
    d = kept.start()
    make(d, kept.image())
    second = str(kept.tmp / "nbd2")
    d.qmp.cmd("nbd-server-start", {"addr": {"type": "unix", "data": {"path": second}}})
    h = d.libnbd("v")
    h.pwrite(b"k" * 4096, 8192)
    h.flush()
    before = nodes(d)
    getattr(d, end)()
    for _ in range(2):                                   # what was made again is kept, too
        d = kept.start()
        assert exports(d) == ["v"] and nodes(d) == before
        d.nbd_address = second
        assert d.libnbd("v").pread(4096, 8192) == b"k" * 4096
        getattr(d, end)()


def test_removed_stays_removed(kept):
    """The graph wins over options that say what they said before."""
    path = kept.image()
    more = ["--blockdev", f"qcow2,node-name=v,file.driver=file,file.filename={path}",
            "--export", "nbd,id=v,node-name=v", "--export", "nbd,id=w,node-name=v,name=w"]
    d = kept.start(*more)
    assert exports(d) == ["v", "w"]
    d.qmp.cmd("block-export-del", {"id": "v"})
    d.kill()
    d = kept.start(*more)
    assert exports(d) == ["w"]
    d.qmp.cmd("nbd-server-stop")
    d.kill()
    d = kept.start(*more)
    assert exports(d) == [] and nodes(d) and not os.path.exists(kept.nbd + "x")
    with pytest.raises(nbd.Error):
        d.libnbd("w")


def test_changed_option_is_refused(kept):
    path = kept.image()
    option = f"qcow2,node-name=v,file.driver=file,file.filename={path}"
    d = kept.start("--blockdev", option)
    d.stop()
    said = kept.refused("--blockdev", option + ",read-only=on")
    assert "--blockdev v: it was changed since the state was recorded" in said and "--state-reset" in said
    assert "--blockdev v: the configuration does not have it any more" in kept.refused()
    d = kept.start("--blockdev", option + ",read-only=on", "--state-reset")
    assert d.qmp.cmd("query-named-block-nodes")[0]["ro"]
    d.stop()
    assert (kept.tmp / "state" / "state.old").exists()
    # The same in other words is the same.
    kept.start("--blockdev", f"read-only=on,node-name=v,driver=qcow2,file.filename={path},file.driver=file").stop()


def test_new_option_and_one_that_clashes(kept):
    a, b = kept.image(), kept.image("b.qcow2")
    d = kept.start()
    make(d, a)
    d.kill()
    new = ["--blockdev", f"qcow2,node-name=w,file.driver=file,file.filename={b}", "--export", "nbd,id=w,node-name=w"]
    d = kept.start(*new)
    assert exports(d) == ["v", "w"]
    d.kill()
    assert "made by a command" in kept.refused(*new, "--export", "nbd,id=v,node-name=v")


def test_withdrawn_option_whose_thing_is_gone(kept):
    more = ["--blockdev", f"qcow2,node-name=v,file.driver=file,file.filename={kept.image()}"]
    d = kept.start(*more)
    d.qmp.cmd("blockdev-del", {"node-name": "v"})
    d.stop()
    kept.start().stop()
    d = kept.start(*more)                                # forgotten, so it is new again
    assert "v" in nodes(d)


def test_order_is_found(kept):
    """A child that was named, made before and behind others."""
    base, top = kept.image(), kept.image("top.qcow2", backing=kept.tmp / "a.qcow2")
    d = kept.start()
    d.qmp.cmd("blockdev-add", node(base, "zbase"))
    d.qmp.cmd("blockdev-add", node(top, "atop", backing="zbase"))
    d.qmp.cmd("block-export-add", export("atop"))
    d.kill()
    d = kept.start()
    assert exports(d) == ["atop"]


def test_reopened_on_a_younger_node(kept):
    """What a node refers to is made first, whatever the order of the commands; the rest of the options is kept, too."""
    base, top = kept.image(), kept.image("top.qcow2")
    tools.qemu_io(base, "write -P 66 0 4k")
    d = kept.start()
    d.qmp.cmd("blockdev-add", node(top, "atop"))
    file = d.qmp.cmd("query-named-block-nodes")[0]["children"][0]["node-name"]
    d.qmp.cmd("block-export-add", export("atop", writable=False))
    d.qmp.cmd("blockdev-add", node(base, "zbase", **{"read-only": True}))
    assert file.startswith("#")
    d.qmp.cmd("blockdev-reopen", {"options": [{"driver": "qcow2", "node-name": "atop", "file": file, "backing": "zbase",
                                               "read-only": True}]})
    for _ in range(2):
        assert d.libnbd("atop").pread(4096, 0) == b"B" * 4096
        assert {n["node-name"]: n["ro"] for n in d.qmp.cmd("query-named-block-nodes")}["atop"]
        d.kill()
        d = kept.start()


def test_export_that_was_given_another_node(kept):
    """qom-set, as programs do it that write for a whole QEMU; its name stays."""
    a, b = kept.image(), kept.image("b.qcow2")
    tools.qemu_io(b, "write -P 66 0 4k")
    d = kept.start()
    make(d, a)
    d.qmp.cmd("blockdev-add", node(b, "w"))
    d.qmp.cmd("qom-set", {"path": "/machine/peripheral/v/virtio-backend", "property": "drive", "value": "w"})
    for _ in range(2):
        assert d.libnbd("v").pread(4096, 0) == b"B" * 4096
        d.kill()
        d = kept.start()


def test_what_is_inactive_lets_others_write_when_it_is_made_again(kept):
    """A filter that asks to be alone above a disk that is written to: it asks for nothing while it is inactive."""
    d = kept.start()
    d.qmp.cmd("blockdev-add", node(kept.image(), "v"))
    d.qmp.cmd("blockdev-add", {"driver": "copy-on-read", "node-name": "c", "file": "v"})
    d.qmp.cmd("blockdev-set-active", {"node-name": "c", "active": False})
    d.qmp.cmd("block-export-add", export("v"))
    for _ in range(2):
        active = {n["node-name"]: n["active"] for n in d.qmp.cmd("query-named-block-nodes")}
        assert (active["v"], active["c"]) == (True, False)
        d.libnbd("v").pwrite(b"x" * 512, 0)
        d.kill()
        d = kept.start()


def seen(d):
    """Nodes that have names, and what can be told of them."""
    return {n["node-name"]: (n["drv"], n["ro"], n["cache"]["direct"], n["detect_zeroes"],
                             sorted(c["node-name"] for c in n["children"] if c["node-name"][0] != "#"))
            for n in d.qmp.cmd("query-named-block-nodes") if n["node-name"][0] != "#"}


def named_inside(path, name, file):
    return {"driver": "qcow2", "node-name": name, "file": {"driver": "file", "node-name": file, "filename": path}}


def reopen(d, **options):
    d.qmp.cmd("blockdev-reopen", {"options": [{k.replace("_", "-"): v for k, v in options.items()}]})


def test_reopened_where_it_is_described(kept):
    """A node that another one's description has inside, with a name: its options are kept there."""
    path = kept.image()
    d = kept.start()
    d.qmp.cmd("blockdev-add", {**named_inside(path, "v", "f"), "cache": {"direct": True}})
    reopen(d, driver="qcow2", node_name="v", file="f", detect_zeroes="on", cache={"direct": True})
    assert seen(d)["f"][2]
    reopen(d, driver="file", node_name="f", filename=path)
    assert not seen(d)["f"][2]
    before = seen(d)
    for _ in range(2):
        d.kill()
        d = kept.start()
        assert seen(d) == before


@pytest.mark.parametrize("file", ["f", None])
def test_what_is_inside_does_not_inherit_later_options(kept, file):
    """Reopening a node does not change its children: they are made again as they were."""
    d = kept.start()
    d.qmp.cmd("blockdev-add", named_inside(kept.image(), "v", file) if file else node(kept.image(), "v"))
    name, = [n["node-name"] for n in d.qmp.cmd("query-named-block-nodes") if n["drv"] == "file"]
    reopen(d, driver="qcow2", node_name="v", file=name, read_only=True, cache={"direct": True})

    def both():
        return sorted((n["drv"], n["ro"], n["cache"]["direct"]) for n in d.qmp.cmd("query-named-block-nodes"))
    assert both() == [("file", False, False), ("qcow2", True, True)]
    for _ in range(2):
        d.kill()
        d = kept.start()
        assert both() == [("file", False, False), ("qcow2", True, True)]


def test_refers_to_what_is_described_inside_a_younger_one(kept):
    d = kept.start()
    d.qmp.cmd("blockdev-add", {"driver": "file", "node-name": "g", "filename": kept.image("g", "1M", fmt="raw")})
    d.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "r", "file": "g"})
    d.qmp.cmd("blockdev-add", named_inside(kept.image(), "v", "f"))
    reopen(d, driver="raw", node_name="r", file="f")
    before = seen(d)
    assert before["r"][4] == ["f"]
    for _ in range(2):
        d.kill()
        d = kept.start()
        assert seen(d) == before


@pytest.mark.parametrize("user", ["node", "export"])
def test_outlives_what_it_was_described_in(kept, user):
    d = kept.start()
    d.qmp.cmd("blockdev-add", {**named_inside(kept.image(), "v", "f"), "read-only": True})
    if user == "node":
        d.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "r", "file": "f", "read-only": True})
    else:
        d.qmp.cmd("block-export-add", {"type": "nbd", "id": "r", "node-name": "f", "name": "f"})
    d.qmp.cmd("blockdev-del", {"node-name": "v"})
    before = seen(d)
    assert before.keys() == ({"r", "f"} if user == "node" else {"f"}) and before["f"][1]
    for _ in range(2):
        d.kill()
        d = kept.start()
        assert seen(d) == before
    d.kill()


def test_outlives_it_until_nobody_uses_it(kept):
    d = kept.start()
    d.qmp.cmd("blockdev-add", named_inside(kept.image(), "v", "f"))
    d.qmp.cmd("blockdev-add", {"driver": "raw", "node-name": "r", "file": "f"})
    for name, left in (("v", ["f", "r"]), ("r", [])):
        d.qmp.cmd("blockdev-del", {"node-name": name})
        assert nodes(d) == left
    d.kill()
    assert nodes(kept.start()) == []


def test_a_name_that_we_made_is_not_kept(kept):
    """The next process may give it to another image."""
    d = kept.start()
    make(d, kept.image())
    file, = [n["node-name"] for n in d.qmp.cmd("query-named-block-nodes") if n["drv"] == "file"]
    assert file[0] == "#"
    why = "is made of a node that has no name, which --state cannot keep; give it a node-name"
    for command, arguments, what in [
            ("block-export-add", {"type": "nbd", "id": "w", "node-name": file}, f"export 'w' {why}"),
            ("blockdev-add", {"driver": "raw", "node-name": "r", "file": file}, f"blockdev 'r' {why}"),
            ("qom-set", {"path": "/machine/peripheral/v/virtio-backend", "property": "drive", "value": file},
             f"export 'v' {why}")]:
        assert d.qmp.error(command, arguments)[1] == what
    assert exports(d) == ["v"]


def test_secrets_and_passed_descriptors(kept):
    """They are for the options, which give them at every start."""
    secret = ["--object", "secret,id=s0,data=xyzzy"]
    d = kept.start(*secret)
    said = d.qmp.error("object-add", {"qom-type": "secret", "id": "s1", "data": "hidden"})[1]
    assert said == "object 's1' is made of a secret, which --state cannot keep; give it in the configuration"
    said = d.qmp.error("blockdev-add", node("/dev/fdset/1", "n"))[1]
    assert said == "blockdev 'n' is made of a passed descriptor, which --state cannot keep; give it in the configuration"
    assert nodes(d) == []
    d.kill()
    kept.start(*secret).stop()
    kept.start("--object", "secret,id=s0,data=changed").stop()
    for name in os.listdir(kept.tmp / "state"):
        text = (kept.tmp / "state" / name).read_text()
        assert "xyzzy" not in text and "hidden" not in text


def test_descriptors_that_options_pass(kept, monkeypatch):
    """They are there before the nodes that they are for, at the first start and at later ones."""
    monkeypatch.setenv("MERINOD_WRAPPER", f"""sh -c 'exec 9<>{kept.image()}; exec "$0" "$@"' """)
    for _ in range(2):
        d = kept.start("--add-fd", "fd=9,set=5",
                       "--blockdev", "qcow2,node-name=v,file.driver=file,file.filename=/dev/fdset/5",
                       "--export", "nbd,id=v,node-name=v,writable=on")
        assert exports(d) == ["v"] and d.libnbd("v").get_size() == 4 << 20
        d.kill()


def test_one_daemon_at_a_time(kept, daemon):
    d = kept.start()
    with pytest.raises(DidNotStart, match=f"another merinod uses it .process {d.proc.pid}."):
        daemon.start("--state", kept.tmp / "state")
    d.kill()
    kept.start()


def damage_bytes(text, at):
    return text[:at] + bytes([text[at] ^ 1]) + text[at + 1:]


@pytest.mark.parametrize("change, what", [
    (lambda t: b"", "damaged"),
    (lambda t: t[:-20], "damaged: its checksum is wrong"),
    (lambda t: t + b"x", "damaged: its checksum is wrong"),
    (lambda t: damage_bytes(t, 0), "damaged: it does not begin as one"),
    (lambda t: damage_bytes(t, len(t) // 2), "damaged: its checksum is wrong"),
    (lambda t: t.replace(b"merinod-state 1", b"merinod-state 2"), "of another version of merinod"),
])
def test_wrong_state_starts_nothing(kept, change, what):
    d = kept.start()
    make(d, kept.image())
    d.stop()
    state = kept.tmp / "state" / "state"
    state.write_bytes(change(state.read_bytes()))
    before = state.read_bytes()
    said = kept.refused()
    assert f"the state is {what}" in said and "--state-reset" in said
    assert state.read_bytes() == before and not os.path.exists(kept.nbd)
    d = kept.start("--state-reset")
    assert exports(d) == []


def test_image_that_is_gone(kept):
    a, b = kept.image(), kept.image("b.qcow2")
    d = kept.start()
    make(d, a, "v")
    make(d, b, "w")
    d.stop()
    os.rename(a, a + ".away")
    said = kept.refused()
    assert "blockdev 'v' of the state cannot be made again: Could not open" in said and "--state-skip" in said
    d = kept.start("--state-skip")
    assert exports(d) == ["w"]
    d.stop()
    os.rename(a + ".away", a)                            # it was kept
    d = kept.start("--state-skip")
    assert exports(d) == ["v", "w"]
    d.stop()
    os.rename(a, a + ".away")
    d = kept.start("--state-skip")
    d.qmp.cmd("block-export-del", {"id": "v"})           # what is missing can be forgotten
    d.qmp.cmd("blockdev-del", {"node-name": "v"})
    d.stop()
    assert exports(kept.start()) == ["w"]


def test_bitmaps_after_a_kill(kept):
    """The export that named one has it again, and it says what was written."""
    d = kept.start()
    make(d, kept.image(), bitmaps=[])
    d.qmp.cmd("block-export-del", {"id": "v"})
    d.qmp.cmd("block-dirty-bitmap-add", {"node": "v", "name": "b", "persistent": True})
    d.qmp.cmd("block-export-add", export("v", bitmaps=["b"]))
    d.libnbd("v").pwrite(b"x" * 512, 65536)
    d.kill()
    runs = []
    h = kept.start().libnbd("v", ["qemu:dirty-bitmap:b"])
    h.block_status(h.get_size(), 0, lambda name, at, entries, error: runs.extend(entries))
    assert runs[:4] == [65536, 0, 65536, 1]


def test_bitmap_that_cannot_be_used(kept):
    """An export comes back without it rather than not at all."""
    path = kept.image()
    tools.run("qemu-img", "bitmap", "--add", path, "b0")
    d = kept.start()
    make(d, path, bitmaps=["b0"])
    d.libnbd("v", ["qemu:dirty-bitmap:b0"]).pwrite(b"x" * 512, 0)
    d.stop()
    d = kept.start()
    assert d.libnbd("v", ["qemu:dirty-bitmap:b0"]).can_meta_context("qemu:dirty-bitmap:b0")
    d.stop()
    tools.run("qemu-img", "bitmap", "--remove", path, "b0")
    d = kept.start()
    assert "export 'v' is without a bitmap: " in d.stderr()
    h = d.libnbd("v", ["qemu:dirty-bitmap:b0"])
    assert not h.can_meta_context("qemu:dirty-bitmap:b0") and h.pread(512, 0) == b"x" * 512


def test_no_room_for_the_state(kept):
    """A command that could not be kept does nothing."""
    path = kept.image()
    d = kept.start()
    (kept.tmp / "state" / "state.new").mkdir()
    assert "cannot write the state" in d.qmp.error("blockdev-add", node(path, "v"))[1]
    assert nodes(d) == []
    (kept.tmp / "state" / "state.new").rmdir()
    make(d, path)
    d.kill()
    assert exports(kept.start()) == ["v"]


def test_failed_command_leaves_no_trace(kept):
    d = kept.start()
    d.qmp.error("blockdev-add", node("/nonexistent", "v"))
    assert sorted(os.listdir(kept.tmp / "state")) == ["lock", "state"]
    d.kill()
    assert nodes(kept.start()) == []


@pytest.mark.parametrize("call", ["openat", "write", "fsync", "renameat"])
def test_killed_while_the_state_is_written(kept, call):
    """At each of the calls that make a new state: the old one is there, or the new one."""
    path = kept.image()
    paths = [kept.tmp / "state" / n for n in ("state", "state.new")] + [kept.tmp / "state"]
    for nth in 1, 2:
        d = kept.start("--state-reset")
        tracer = tools.trace(d.proc.pid, f"inject={call}:signal=SIGKILL:when={nth}", *paths)
        try:
            d.qmp.cmd("blockdev-add", node(path, "v"))
            done = True
        except (OSError, EOFError, AssertionError):
            done = False
        d.kill()
        tracer.wait(HANG)
        d = kept.start()
        assert not (done and nth == 1)                   # or nothing was injected
        assert nodes(d) == ["v"] or (nodes(d) == [] and not done)
        d.stop()


def test_not_with_disks(daemon, tmp):
    with pytest.raises(DidNotStart, match="--state: goes with --blockdev"):
        daemon.start("--state", tmp / "s", tools.create(tmp / "a.raw", "1M", "raw"), listen=None, monitor=False)
    with pytest.raises(DidNotStart, match="there is no --state"):
        daemon.start("--state-skip")


def test_socket_of_the_living_is_not_taken(daemon, kept):
    d = kept.start()
    make(d, kept.image())
    with pytest.raises(DidNotStart, match=f"Failed to bind socket to {kept.nbd}: Address already in use"):
        daemon.start("--nbd-server", f"addr.type=unix,addr.path={kept.nbd}", listen=None)
    assert d.libnbd("v").get_size() == 4 << 20
    left = socket.socket(socket.AF_UNIX)                 # bound, and nobody listens
    left.bind(str(kept.tmp / "left"))
    left.close()
    daemon.start("--nbd-server", f"addr.type=unix,addr.path={kept.tmp}/left", listen=None)


def test_port_of_the_dead_is_taken_again(daemon, tmp):
    """The kernel closes a killed process's ring, and what that listened on, a little later."""
    image, port = tools.create(tmp / "a.qcow2", "1M"), free_port()
    for _ in range(5):
        d = daemon.start(*PATIENT, "--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}",
                         *disk_args(image), listen=None)
        d.nbd_address = ("127.0.0.1", port)
        assert d.libnbd().get_size() == 1 << 20
        d.close_clients()
        d.proc.kill()
        d.proc.wait()
        d.ended = True
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(DidNotStart, match="Address already in use"):
            daemon.start("--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={other.getsockname()[1]}", listen=None)


# --- a client that reconnects


class Client(threading.Thread):
    """Writes and reads back, over and over; connects again when the server has gone."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self.path, self.stop, self.rounds, self.longest, self.failure = path, False, 0, 0.0, None

    def connect(self):
        since = time.monotonic()
        while not self.stop:
            try:
                h = nbd.NBD()
                h.set_export_name("v")
                h.connect_unix(self.path)
                self.longest = max(self.longest, time.monotonic() - since)
                return h
            except nbd.Error:
                time.sleep(0.001)

    def run(self):
        try:
            while not self.stop:
                h = self.connect()
                try:
                    while not self.stop:
                        block = bytes([self.rounds % 251]) * 4096
                        h.pwrite(block, 65536)
                        h.flush()
                        assert h.pread(4096, 65536) == block
                        self.rounds += 1
                except nbd.Error:
                    pass
        except BaseException as e:                       # told by the test
            self.failure = e


def kill_and_start(kept, cycles):
    d = kept.start(*PATIENT)
    make(d, kept.image())
    client = Client(kept.nbd)
    client.start()
    took = []
    for _ in range(cycles):
        seen = client.rounds
        end = time.monotonic() + HANG
        while client.rounds < seen + 5 and time.monotonic() < end:
            time.sleep(0.005)
        assert client.rounds >= seen + 5 and not client.failure, client.failure
        d.close_clients()
        os.kill(d.proc.pid, signal.SIGKILL)
        d.proc.wait()
        d.ended = True
        since = time.monotonic()
        d = kept.start(*PATIENT)
        took.append(time.monotonic() - since)
        assert exports(d) == ["v"]
    client.stop = True
    client.join(HANG)
    assert not client.failure, client.failure
    took.sort()
    print(f"{cycles} restarts: median {took[len(took) // 2] * 1000:.0f} ms, longest {took[-1] * 1000:.0f} ms; "
          f"a client was without a server for {client.longest * 1000:.0f} ms at most; {client.rounds} rounds")
    return took


def test_killed_under_a_client(kept):
    kill_and_start(kept, 8)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_killed_under_a_client_often(kept):
    assert kill_and_start(kept, 200)[100] < 10           # a tenth of a second, on a machine that has nothing else to do


@pytest.mark.parametrize("which", ["v", None])
def test_an_inactive_node_stays_inactive(kept, which):
    """It was handed to another process: a restart must not take it back."""
    d = kept.start()
    path = kept.image()
    d.qmp.cmd("blockdev-add", {"driver": "file", "node-name": "f", "filename": path})
    d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "v", "file": "f"})
    d.qmp.cmd("block-export-add", export("v", **{"allow-inactive": True}))
    d.qmp.cmd("blockdev-set-active", {"active": False} | ({"node-name": which} if which else {}))
    d.kill()
    d = kept.start()
    assert {n["node-name"]: n["active"] for n in d.qmp.cmd("query-named-block-nodes")} == {"v": False, "f": False}
    tools.qemu_io(path, "write -P 7 0 64k")              # no lock is in the way
    d.qmp.cmd("blockdev-set-active", {"node-name": "v", "active": True})
    assert d.libnbd("v").pread(2, 0) == b"\x07\x07"
    d.stop()
    d = kept.start()
    assert {n["node-name"]: n["active"] for n in d.qmp.cmd("query-named-block-nodes")} == {"v": True, "f": True}
    d.libnbd("v").pwrite(b"w" * 512, 0)


def test_what_something_active_uses_stays_active(kept):
    """Two overlays on one base: it goes with the last of them, or with an export that needs its node."""
    d = kept.start()
    base = kept.image("base.qcow2")
    d.qmp.cmd("blockdev-add", node(base, "base", **{"read-only": True}))
    for name in ("a", "b"):
        d.qmp.cmd("blockdev-add", node(kept.image(f"{name}.qcow2", None, backing=base), name, backing="base"))

    def active():
        return {n["node-name"] for n in d.qmp.cmd("query-named-block-nodes")
                if n["active"] and not n["node-name"].startswith("#")}

    d.qmp.cmd("blockdev-set-active", {"node-name": "a", "active": False})
    d.kill()
    d = kept.start()
    assert active() == {"b", "base"}
    d.qmp.cmd("blockdev-set-active", {"node-name": "b", "active": False})
    assert active() == set()
    d.kill()
    d = kept.start()
    assert active() == set()
    d.qmp.cmd("block-export-add", export("a"))           # makes its node active
    d.kill()
    d = kept.start()
    assert active() == {"a", "base"}
    d.qmp.cmd("block-export-del", {"id": "a"})
    d.kill()
    d = kept.start()
    assert active() == {"a", "base"}


def test_a_passed_connection_is_not_kept(kept):
    d = kept.start()
    refused = d.qmp.error("blockdev-add", {"driver": "nbd", "node-name": "n", "server": {"type": "fd", "str": "0"}})
    assert "a passed descriptor" in refused[1]


def test_an_iothread_that_went_before_its_export(kept):
    d = kept.start()
    d.qmp.cmd("object-add", {"qom-type": "iothread", "id": "t"})
    make(d, kept.image(), iothread="t", **{"fixed-iothread": True})
    d.qmp.cmd("object-del", {"id": "t"})
    d.kill()
    d = kept.start()
    assert exports(d) == ["v"] and d.qmp.cmd("query-iothreads") == []
    d.libnbd("v").pwrite(b"w" * 512, 0)


def test_activity_is_kept_as_the_nodes_have_it(kept):
    """What a refused command has made active; what an option's export has; one inside that is active alone."""
    d = kept.start()

    def active():
        return {n["node-name"]: n["active"] for n in d.qmp.cmd("query-named-block-nodes")}

    path = kept.image()
    d.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "v", "active": False, "file": {
        "driver": "file", "node-name": "f", "filename": path}})
    d.qmp.cmd("blockdev-set-active", {"node-name": "f", "active": True})
    assert active() == {"v": False, "f": True}
    d.kill()
    d = kept.start()
    assert active() == {"v": False, "f": True}
    assert "Bitmap 'none' is not found" in d.qmp.error("block-export-add", export("v", bitmaps=["none"]))[1]
    before = active()
    d.kill()
    d = kept.start()
    assert active() == before
