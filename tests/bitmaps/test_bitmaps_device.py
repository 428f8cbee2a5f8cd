# SPDX-License-Identifier: BSD-3-Clause
"""Bitmaps of block devices: in a directory, believed after a clean close; after a crash only who says so believes them."""

import os
import subprocess

import pytest

from lib.dirty import add, ranges, states

pytestmark = [pytest.mark.merino_only,
              pytest.mark.skipif(os.geteuid() or not os.path.exists("/dev/loop-control"), reason="needs loop devices")]

SIZE, G = 16 << 20, 65536


@pytest.fixture
def device(tmp):
    """A loop device of 16 MiB."""
    (tmp / "storage").write_bytes(bytes(SIZE))
    done = subprocess.run(["losetup", "-f", "--show", tmp / "storage"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(done.stderr)
    yield done.stdout.strip()
    subprocess.run(["losetup", "-d", done.stdout.strip()], check=True)


def start(daemon, tmp, device, extra="", driver="raw"):
    (tmp / "side").mkdir(exist_ok=True)
    node = f"driver=host_device,filename={device}"
    node = f"{node},node-name=disk" if driver != "raw" else \
        "driver=raw,node-name=disk," + ",".join("file." + o for o in node.split(","))
    return daemon.start("--blockdev", f"{node},discard=unmap,sidecar-dir={tmp}/side{extra}",
                        "--export", "type=nbd,id=disk,node-name=disk,writable=on")


@pytest.mark.parametrize("driver", ["raw", "host_device"])
def test_clean_and_killed(daemon, tmp, device, driver):
    d = start(daemon, tmp, device, driver=driver)
    add(d, "b", persistent=True, granularity=G)
    d.enter().write(0, b"x")
    d.enter().write(SIZE - 1, b"x")
    d.stop()
    want = [(0, G), (SIZE - G, G)]
    d = start(daemon, tmp, device, driver=driver)
    assert ranges(d, "b") == want
    d.enter().write(4 * G, b"x")
    d.kill()
    d = start(daemon, tmp, device, ",trust-sidecar=on", driver)
    assert ranges(d, "b") == [want[0], (4 * G, G), want[1]]
    d.kill()
    for end in ("stop", "kill", "stop"):                 # once in doubt, always in doubt
        d = start(daemon, tmp, device, driver=driver)
        assert states(d)["b"]["inconsistent"]
        getattr(d, end)()


@pytest.mark.parametrize("at", [1024, SIZE - 512])
def test_a_writer_at_its_ends_is_seen(daemon, tmp, device, at):
    """Who mounts it, or partitions it; or another device of that number."""
    d = start(daemon, tmp, device)
    add(d, "b", persistent=True, granularity=G)
    d.stop()
    with open(device, "r+b") as f:
        f.seek(at)
        f.write(b"foreign")
    d = start(daemon, tmp, device)
    assert states(d)["b"]["inconsistent"] and "somebody else" in d.stderr()


def test_without_a_directory(daemon, tmp, device):
    d = daemon.start("--blockdev", f"driver=raw,node-name=disk,file.driver=host_device,file.filename={device}")
    assert "sidecar-dir" in d.qmp.error("block-dirty-bitmap-add", node="disk", name="b", persistent=True)[1]


def test_a_discard_says_nothing_of_zeroes(daemon, tmp, device):
    """merino:changes: 2 and 4 only where the node says that it reads as zeroes."""
    d = start(daemon, tmp, device)
    add(d, "b", granularity=G)
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "x", "node-name": "disk", "name": "x", "writable": True, "bitmaps": ["b"]})
    c = d.enter("x", ["merino:changes:b"])
    c.trim(G, G)
    c.zero(4 * G, G)
    assert [(at // G, n // G, f & 3) for at, n, f in c.status_all() if f] == [(1, 1, 1), (4, 1, 3)]
