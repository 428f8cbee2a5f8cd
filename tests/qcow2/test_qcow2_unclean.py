# SPDX-License-Identifier: BSD-3-Clause
"""Images that were not closed: what the crash log keeps, who else may have written, and what the next open repairs."""

import os
import struct

import pytest

from lib import daemon as lib_daemon
from lib import qcow2bytes, tools

M = 1 << 20
OPEN = 1 << 61

pytestmark = pytest.mark.merino_only


def die_with_unflushed_data(daemon, image, blockdev="", writes=4):
    """Returns what was acknowledged, and not flushed."""
    d = daemon.serve(image, blockdev=blockdev)
    h = d.libnbd()
    data = [bytes([65 + i]) * 65536 for i in range(writes)]
    for i, one in enumerate(data):
        h.pwrite(one, 3 * i * M // 4)
    d.kill()
    return data


def read_back(daemon, image, data, blockdev="", writable=True):
    d = daemon.serve(image, writable=writable, blockdev=blockdev)
    h = d.libnbd()
    same = [h.pread(65536, 3 * i * M // 4) == one for i, one in enumerate(data)]
    text = d.stderr()
    d.stop()
    return same, text


def log_of(image):
    return image.parent / f".{image.name}.crash-log"


@pytest.fixture
def image(tmp):
    tools.create(tmp / "image", 16 * M)
    return tmp / "image"


def test_the_log_is_there_while_it_is_open_and_only_then(daemon, image):
    before = tools.info(image)
    d = daemon.serve(image)
    assert log_of(image).stat().st_mode & 0o777 == 0o600
    assert qcow2bytes.get(image, "autoclear") == OPEN
    d.stop()
    assert not log_of(image).exists()
    assert qcow2bytes.get(image, "autoclear") == 0
    assert tools.info(image) == before


def test_it_is_replayed_once(daemon, image):
    data = die_with_unflushed_data(daemon, image)
    same, text = read_back(daemon, image, data)
    assert all(same) and "crash log replayed" in text and "was repaired" in text
    tools.check(image)
    same, text = read_back(daemon, image, data)
    assert all(same) and "replayed" not in text and "repaired" not in text


def test_a_reader_sees_it_and_changes_nothing(daemon, image):
    data = die_with_unflushed_data(daemon, image)
    before, log = image.read_bytes(), log_of(image).read_bytes()
    same, text = read_back(daemon, image, data, writable=False)
    assert all(same) and "replayed in memory" in text
    assert image.read_bytes() == before and log_of(image).read_bytes() == log
    assert all(read_back(daemon, image, data)[0])


def test_another_directory(daemon, image, tmp):
    where = tmp / "logs"
    where.mkdir()
    option = f"crash-log-dir={where}"
    data = die_with_unflushed_data(daemon, image, option)
    assert not log_of(image).exists()
    assert [p.name for p in where.iterdir()] == [f"crash-log-{image.stat().st_dev:x}-{image.stat().st_ino:x}"]
    same, _ = read_back(daemon, image, data, option)
    assert all(same) and not list(where.iterdir())


def test_after_another_writer_it_is_not_replayed(daemon, image):
    """QEMU clears the bit when it writes; its mappings must not be overwritten."""
    data = die_with_unflushed_data(daemon, image)
    tools.qemu_io(image, "write -P 7 0 64k")
    assert qcow2bytes.get(image, "autoclear") == 0
    same, text = read_back(daemon, image, data)
    assert not any(same) and "replayed" not in text
    tools.qemu_io(image, "read -P 7 0 64k")


@pytest.mark.parametrize("field, at", [("magic", 0), ("boot id", 24), ("device", 40), ("inode", 48), ("nonce", 56)])
def test_a_log_that_does_not_match_is_not_replayed(daemon, image, field, at):
    data = die_with_unflushed_data(daemon, image)
    with open(log_of(image), "r+b") as f:
        f.seek(at)
        old = f.read(1)
        f.seek(at)
        f.write(bytes([old[0] ^ 1]))
    same, text = read_back(daemon, image, data)
    assert not any(same) and "replayed" not in text
    tools.check(image)


def test_a_record_that_makes_no_sense_ends_the_replay(daemon, image):
    data = die_with_unflushed_data(daemon, image)
    with open(log_of(image), "r+b") as f:
        for slot in range(8):
            f.seek(4096 + 32 * slot)
            where, entry, bits, count, kind, step = struct.unpack("<QQQIHH", f.read(32))
            if kind == 1:
                f.seek(4096 + 32 * slot)
                f.write(struct.pack("<QQQIHH", where, entry + (1 << 50), bits, count, kind, step))
    same, text = read_back(daemon, image, data)
    assert not any(same) and "is damaged" in text
    tools.check(image)


def test_a_link_in_its_place_is_not_followed(daemon, image, tmp):
    (tmp / "victim").write_bytes(b"precious")
    os.symlink(tmp / "victim", log_of(image))
    data = die_with_unflushed_data(daemon, image)
    assert all(read_back(daemon, image, data)[0])
    assert (tmp / "victim").read_bytes() == b"precious"


def test_without_one_what_was_not_flushed_is_gone(daemon, image):
    data = die_with_unflushed_data(daemon, image, "crash-log=off")
    assert not log_of(image).exists()
    same, text = read_back(daemon, image, data)
    assert not any(same) and "was repaired" in text
    tools.check(image)


@pytest.mark.parametrize("option, why", [
    ("crash-log=perhaps", "perhaps"), ("crash-log=off,crash-log-dir=/tmp", "makes no sense"),
    ("crash-log-dir=here", "absolute path"), ("crash-log=on,crash-log-dir=/nonexistent", "/nonexistent/crash-log-")])
def test_nonsense_is_refused(daemon, image, option, why):
    before = image.read_bytes()
    with pytest.raises(lib_daemon.DidNotStart, match=why):
        daemon.serve(image, blockdev=option)
    assert image.read_bytes() == before


def test_where_it_cannot_be_made_a_warning_says_so(daemon, image):
    d = daemon.serve(image, blockdev="crash-log-dir=/nonexistent")
    assert "no crash log" in d.stderr()
    d.libnbd().pwrite(b"x" * 512, 0)
    d.stop()
    tools.check(image)


@pytest.mark.parametrize("lose", ["refcounts", "nothing"])
def test_the_dirty_bit_means_repair(daemon, tmp, lose):
    """What QEMU leaves with lazy refcounts when it dies: the bit, and refcounts of zero."""
    image = tmp / "image"
    tools.create(image, 16 * M, lazy_refcounts="on")
    tools.qemu_io(image, "write -P 5 0 1M", "write -P 6 8M 1M")
    if lose == "refcounts":
        table = qcow2bytes.get(image, "reftable_offset")
        with open(image, "r+b") as f:
            f.seek(table)
            block = struct.unpack(">Q", f.read(8))[0]
            f.seek(block)
            f.write(bytes(128))
    qcow2bytes.put(image, incompatible=1)
    d = daemon.serve(image)
    assert "was repaired" in d.stderr()
    d.libnbd().pwrite(b"x" * 65536, 4 * M)
    d.stop()
    assert qcow2bytes.get(image, "incompatible") == 0
    tools.check(image)
    tools.qemu_io(image, "read -P 5 0 1M", "read -P 6 8M 1M", "read -P 120 4M 64k")


def test_leaks_of_every_kind_are_freed_and_nothing_else(daemon, tmp):
    """Snapshots, compressed clusters and bitmaps own clusters, too."""
    image = tmp / "image"
    tools.create(image, 64 * M)
    tools.qemu_io(image, "write -P 1 0 4M")
    tools.run("qemu-img", "snapshot", "-c", "one", image)
    tools.qemu_io(image, "write -P 2 2M 4M", "write -c -P 3 16M 2M")
    tools.run("qemu-img", "bitmap", "--add", image, "b")
    tools.qemu_io(image, "write -P 4 30M 1M")
    tools.run("qemu-img", "snapshot", "-c", "two", image)
    old = tools.content(image)
    die_with_unflushed_data(daemon, image, writes=1)
    before = tools.info(image)["format-specific"]["data"]["bitmaps"]
    assert read_back(daemon, image, [b"A" * 65536])[0] == [True]
    tools.check(image)
    assert tools.content(image) == b"A" * 65536 + old[65536:]
    assert len(tools.info(image)["format-specific"]["data"]["bitmaps"]) == len(before) == 1
    tools.run("qemu-img", "bitmap", "--remove", image, "b")
    tools.run("qemu-img", "snapshot", "-a", "two", image)
    tools.check(image)
    assert tools.content(image) == old


def test_an_image_in_the_place_of_one_that_is_open(daemon, image, tmp):
    """The log of the newer one stays when the older one is closed."""
    older = daemon.serve(image)
    os.rename(image, tmp / "moved")
    tools.create(image, 16 * M)
    newer = daemon.serve(image)
    newer.libnbd().pwrite(b"a" * 65536, 0)
    older.stop()
    assert log_of(image).exists()
    newer.kill()
    assert read_back(daemon, image, [b"a" * 65536])[0] == [True]
