# SPDX-License-Identifier: BSD-3-Clause
"""EXTENDED_HEADERS: 64-bit requests and replies.

No client that others wrote has them here, so lib/nbdraw.py is the oracle.  It was written from the specification
(branch extension-ext-header of NetworkBlockDevice/nbd): it demands the 32-byte reply with the request's offset for
everything, and refuses simple replies and 32-bit block status.
"""

import os
import struct
import time

import pytest

from lib import nbdraw, pattern, tools
from lib.nbdproto import *                               # noqa: F403
from lib.patience import HANG
from lib.smalldisk import CONTENT, DATA, SIZE

pytestmark = pytest.mark.merino_only                     # QEMU has them since 8.2

TIB = 1 << 40


@pytest.fixture
def greeted(disk):
    c = disk.connect()
    c.greet()
    return c


def huge_raw(tmp, size=8 * TIB):
    """A raw disk of SIZE, all hole but 64 KiB at 5 TiB."""
    path = tmp / "huge.raw"
    with open(path, "wb") as f:
        f.truncate(size)
        f.seek(5 * TIB)
        f.write(b"#" * 65536)
    return str(path)


# --- negotiation

def test_extended_without_structured(greeted):
    greeted.negotiate_extended()
    greeted.go("disk")
    assert greeted.read(0, 4096) == DATA[:4096]


def test_extended_after_structured(greeted):
    greeted.negotiate_structured()
    greeted.negotiate_extended()
    greeted.go("disk")
    assert greeted.read(0, SIZE) == CONTENT


def test_structured_after_extended_is_refused(greeted):
    greeted.negotiate_extended()
    assert [r.type for r in greeted.option(OPT_STRUCTURED_REPLY)] == [REP_ERR_EXT_HEADER_REQD]
    greeted.go("disk")
    assert greeted.read(0, 512) == DATA[:512]


def test_extended_twice_or_with_data(greeted):
    assert [r.type for r in greeted.option(OPT_EXTENDED_HEADERS, b"x")] == [REP_ERR_INVALID]
    greeted.negotiate_extended()
    assert [r.type for r in greeted.option(OPT_EXTENDED_HEADERS)] == [REP_ERR_INVALID]
    greeted.go("disk")
    assert greeted.read(0, 512) == DATA[:512]


def test_export_name_after_extended_ends_the_connection(greeted):
    greeted.negotiate_extended()
    greeted.send_option(OPT_EXPORT_NAME, b"disk")
    assert greeted.closed_by_server()


def test_contexts_selected_before_extended_stay(greeted):
    greeted.negotiate_structured()
    greeted.meta(OPT_SET_META, "disk", ["base:allocation"])
    greeted.negotiate_extended()
    greeted.go("disk")
    assert greeted.status(0, SIZE) == [(1 << 20, 0), (3 << 20, STATE_HOLE | STATE_ZERO)]


def test_flags(disk):
    """DF with any chunks; the payload filter only where there is something to filter, or may be."""
    plain, structured, extended, contexts = (disk.connect() for _ in range(4))
    for c in (plain, structured, extended, contexts):
        c.greet()
    structured.negotiate_structured()
    extended.negotiate_extended()
    contexts.negotiate_extended()
    told, = struct.unpack(">H", extended.info("disk")[INFO_EXPORT][8:])
    assert told & BLOCK_STATUS_PAYLOAD
    contexts.meta(OPT_SET_META, "disk", ["base:allocation"])
    for c in (plain, structured, extended, contexts):
        c.go("disk")
    assert not plain.flags & (SEND_DF | BLOCK_STATUS_PAYLOAD)
    assert structured.flags & (SEND_DF | BLOCK_STATUS_PAYLOAD) == SEND_DF
    assert extended.flags & (SEND_DF | BLOCK_STATUS_PAYLOAD) == SEND_DF
    assert contexts.flags & (SEND_DF | BLOCK_STATUS_PAYLOAD) == SEND_DF | BLOCK_STATUS_PAYLOAD


# --- requests

def test_everything(disk):
    c = disk.enter(contexts=["base:allocation"], extended=True)
    c.write(4096, b"a" * 4096)
    c.write(2 << 20, pattern.block("w", 300000), F_FUA)
    c.zero(0, 512)
    c.trim(8192, 65536)
    c.flush()
    c.ok(CMD_CACHE, 0, SIZE)
    want = bytearray(CONTENT)
    want[4096:8192] = b"a" * 4096
    want[2 << 20:(2 << 20) + 300000] = pattern.block("w", 300000)
    want[:512] = bytes(512)
    got = c.read(0, SIZE)
    assert pattern.first_difference(got[:8192], bytes(want[:8192])) is None
    assert pattern.first_difference(got[8192 + 65536:], bytes(want[8192 + 65536:])) is None
    assert sum(length for length, _ in c.status(0, SIZE)) == SIZE
    assert c.disconnect()


def test_compact_request_ends_the_connection(disk):
    c = disk.enter(extended=True)
    c.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ, 1, 0, 512) + bytes(4))     # as long as an extended one
    assert c.closed_by_server()


def test_extended_request_without_negotiation_ends_the_connection(disk):
    c = disk.enter()
    c.send(struct.pack(">IHHQQQ", EXT_REQUEST_MAGIC, 0, CMD_READ, 1, 0, 512))
    assert c.closed_by_server()


def test_long_writes(disk):
    """Inline, in a block of their own, and in pieces."""
    c = disk.enter(extended=True)
    for n in (1, 65536, 65537, 2 << 20, (2 << 20) + 1, SIZE):
        data = pattern.block(f"n{n}", n)
        c.write(0, data)
        assert pattern.first_difference(c.read(0, n), data) is None


def test_many_at_once(disk):
    c = disk.enter(extended=True)
    cookies = [c.start(CMD_READ if i % 3 else CMD_FLUSH, 0 if i % 3 == 0 else 4096 * (i % 100), 4096 if i % 3 else 0)
               for i in range(600)]
    for cookie in cookies:
        assert c.answer(cookie).error == 0


# --- payloads

@pytest.mark.parametrize("cmd", [CMD_READ, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS, 8, 99])
@pytest.mark.parametrize("length", [1, 511, 100000, MAX_REQUEST])
def test_payload_of_a_command_without_is_taken_and_refused(disk, cmd, length):
    c = disk.enter(extended=True)
    assert c.call(cmd, 0, length, F_PAYLOAD_LEN, data=bytes(length)).error == EINVAL
    assert c.read(0, 512) == DATA[:512]                  # still in step


@pytest.mark.parametrize("cmd", [CMD_READ, CMD_WRITE, CMD_BLOCK_STATUS, 99])
@pytest.mark.parametrize("length", [MAX_REQUEST + 1, 1 << 32, (1 << 64) - 1])
def test_payload_too_long_ends_the_connection(disk, cmd, length):
    c = disk.enter(extended=True)
    c.send(c.pack(cmd, 0, length, F_PAYLOAD_LEN))
    assert c.closed_by_server()


def test_write_without_the_flag_has_no_payload(disk):
    c = disk.enter(extended=True)
    c.send(c.pack(CMD_WRITE, 0, 4096))
    assert c.answer(c.last_cookie).error == EINVAL
    assert c.read(0, 4096) == DATA[:4096]


def test_the_flag_means_nothing_in_compact_headers(disk):
    c = disk.enter()
    assert c.call(CMD_WRITE, 0, 512, F_PAYLOAD_LEN, b"x" * 512).error == EINVAL
    assert c.call(CMD_READ, 0, 512, F_PAYLOAD_LEN).error == EINVAL
    assert c.read(0, 512) == DATA[:512]


# --- block status and its filter

@pytest.fixture
def bitmapped(daemon, tmp):
    """Contexts: base:allocation, allocation-depth and two bitmaps that differ."""
    path = tools.create(tmp / "a.qcow2", "4M")
    tools.run("qemu-img", "bitmap", "--add", path, "one")
    tools.qemu_io(path, "write 0 64k")
    tools.run("qemu-img", "bitmap", "--add", path, "two")
    tools.qemu_io(path, "write 1M 64k")
    return daemon.serve(path, bitmaps=["one", "two"], export="allocation-depth=on")


NAMES = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:one", "qemu:dirty-bitmap:two"]


def filtered(c, ids, length, flags=0, offset=0):
    data = struct.pack(f">Q{len(ids)}I", length, *ids)
    return c.call(CMD_BLOCK_STATUS, offset, len(data), flags | F_PAYLOAD_LEN, data)


def test_filter(bitmapped):
    c = bitmapped.enter(contexts=NAMES, extended=True)
    all_ids = set(c.contexts.values())
    everything = c.ok(CMD_BLOCK_STATUS, 0, 4 << 20).extents()
    assert set(everything) == all_ids
    for names in ([NAMES[0]], [NAMES[3]], NAMES[1:3], NAMES[::-1]):
        ids = [c.contexts[n] for n in names]
        a = filtered(c, ids, 4 << 20)
        assert a.error == 0
        assert a.extents() == {i: everything[i] for i in ids}
    assert everything[c.contexts[NAMES[3]]] != everything[c.contexts[NAMES[2]]]


def test_filter_without_ids_answers_nothing(bitmapped):
    c = bitmapped.enter(contexts=NAMES, extended=True)
    a = filtered(c, [], 4 << 20)
    assert a.error == 0 and a.extents() == {}


def test_filter_of_ids_that_were_not_selected(bitmapped):
    c = bitmapped.enter(contexts=NAMES[:1] + NAMES[3:], extended=True)
    good, other = c.contexts[NAMES[0]], set(range(5)) - set(c.contexts.values())
    for bad in ([min(other)], [good, min(other)], [good, good], [0xFFFFFFFF], [good, good, good], [1000]):
        assert filtered(c, bad, 4096).error == EINVAL
    assert filtered(c, [good], 4096).error == 0


@pytest.mark.parametrize("length", [0, 7, 9, 11, 13, 8 + 65 * 4, 100001])
def test_filter_of_a_broken_length(bitmapped, length):
    c = bitmapped.enter(contexts=NAMES, extended=True)
    assert c.call(CMD_BLOCK_STATUS, 0, length, F_PAYLOAD_LEN, bytes(length)).error == EINVAL
    assert filtered(c, [0], 4096).error == 0


def test_filter_checks_its_own_length(bitmapped):
    c = bitmapped.enter(contexts=NAMES, extended=True)
    assert filtered(c, [0], (4 << 20) + 1).error == EINVAL
    assert filtered(c, [0], 0).error == EINVAL
    assert filtered(c, [0], (1 << 64) - 1).error == EINVAL
    assert filtered(c, [0], 4096, offset=4 << 20).error == EINVAL
    assert filtered(c, [0], 4096, F_REQ_ONE).extents() == {0: [(4096, 0)]}
    assert filtered(c, [0], 4096, F_NO_HOLE).error == EINVAL


def test_filter_without_contexts(bitmapped):
    c = bitmapped.enter(extended=True)
    assert filtered(c, [0], 4096).error == EINVAL
    assert filtered(c, [], 4096).error == EINVAL
    assert c.read(0, 512) is not None


# --- more than 4 GiB

def test_status_of_the_whole_disk(daemon, tmp):
    c = daemon.serve(huge_raw(tmp), "raw").enter(contexts=["base:allocation"], extended=True)
    hole = STATE_HOLE | STATE_ZERO
    assert c.status_all(step=8 * TIB) == [(0, 5 * TIB, hole), (5 * TIB, 65536, 0),
                                          (5 * TIB + 65536, 3 * TIB - 65536, hole)]
    (length, flags), = c.status(1 * TIB, 7 * TIB, F_REQ_ONE)
    assert flags == hole and 4 << 30 < length <= 4 * TIB        # after a second it tells what it has
    assert c.status(5 * TIB, 3 * TIB, F_REQ_ONE) == [(65536, 0)]


def test_status_of_a_whole_qcow2_and_its_bitmap(daemon, tmp):
    path = tools.create(tmp / "a.qcow2", "16T", cluster_size="2M")
    tools.run("qemu-img", "bitmap", "--add", "-g", "2M", path, "b")
    tools.qemu_io(path, "write 9T 2M")
    c = daemon.serve(path, bitmaps=["b"]).enter(contexts=["base:allocation", "qemu:dirty-bitmap:b"], extended=True)
    hole, piece = STATE_HOLE | STATE_ZERO, 2 << 20
    for context, data, rest in ("base:allocation", 0, hole), ("qemu:dirty-bitmap:b", 1, 0):
        assert c.status(0, 16 * TIB, context=context)[0][0] > 4 << 30
        assert c.status_all(context, step=16 * TIB) == [(0, 9 * TIB, rest), (9 * TIB, piece, data),
                                                        (9 * TIB + piece, 7 * TIB - piece, rest)]


@pytest.mark.parametrize("cmd", [CMD_TRIM, CMD_WRITE_ZEROES])
@pytest.mark.parametrize("flags", [0, F_FUA])
def test_zeroes_and_trim_of_the_whole_disk(daemon, tmp, cmd, flags):
    path = huge_raw(tmp)
    c = daemon.serve(path, "raw").enter(contexts=["base:allocation"], extended=True)
    c.write(0, b"head" * 1024)
    c.ok(cmd, 1, 8 * TIB - 2, flags)
    assert c.read(5 * TIB, 65536) == bytes(65536)
    assert c.read(0, 4096) == b"h" + bytes(4095)
    assert os.stat(path).st_blocks <= 16


def test_fast_zeroes_of_the_whole_disk(daemon, tmp):
    c = daemon.serve(huge_raw(tmp), "raw").enter(extended=True)
    c.zero(0, 8 * TIB, F_FAST_ZERO)
    assert c.read(5 * TIB, 65536) == bytes(65536)


def test_zeroes_of_a_large_qcow2(daemon, tmp):
    """In pieces whose ends fall between clusters; what lies around them stays."""
    path = tools.create(tmp / "a.qcow2", "64G", cluster_size="64k")
    tools.qemu_io(path, "write -P 1 0 64k", "write -P 2 20G 1M", "write -P 3 68719411200 64k")
    d = daemon.serve(path)
    c = d.enter(contexts=["base:allocation"], extended=True)
    c.zero(1000, (64 << 30) - 2000)
    assert c.read(0, 2000) == b"\1" * 1000 + bytes(1000)
    assert c.read(20 << 30, 1 << 20) == bytes(1 << 20)
    assert c.read((64 << 30) - 2000, 2000) == bytes(1000) + b"\3" * 1000
    d.stop()
    tools.check(path)


def test_cache_of_the_whole_disk(daemon, tmp):
    c = daemon.serve(huge_raw(tmp), "raw").enter(extended=True)
    c.ok(CMD_CACHE, 0, 8 * TIB)


def test_a_read_longer_than_a_payload(daemon, tmp):
    c = daemon.serve(huge_raw(tmp), "raw").enter(extended=True)
    for length in (MAX_REQUEST + 1, 1 << 32, 8 * TIB):
        assert c.call(CMD_READ, 0, length).error == EOVERFLOW
    assert c.call(CMD_READ, 0, 8 * TIB + 1).error == EINVAL
    assert c.read(5 * TIB, MAX_REQUEST)[:65537] == b"#" * 65536 + b"\0"


@pytest.mark.parametrize("cmd", [CMD_WRITE_ZEROES, CMD_TRIM, CMD_CACHE, CMD_BLOCK_STATUS])
def test_long_requests_leave_the_gate(daemon, tmp, cmd):
    """While they run, a command that needs the disk quiet goes through, and others are served."""
    path = tools.create(tmp / "a.qcow2", "512G", cluster_size="64k", preallocation="off")
    d = daemon.serve(path)
    c, other = d.enter(contexts=["base:allocation"], extended=True), d.enter()
    if cmd in (CMD_TRIM, CMD_CACHE, CMD_BLOCK_STATUS):
        c.zero(0, 32 << 30, F_NO_HOLE)                   # something to look at
    cookies = [c.start(cmd, 0, 512 << 30) for _ in range(2)]
    for i in range(3):
        d.qmp.cmd("block-dirty-bitmap-add", node="disk", name=f"b{i}")
        assert len(other.read(0, 4096)) == 4096
    c.sock.settimeout(HANG)
    for cookie in cookies:
        assert c.answer(cookie).error == 0


def test_a_client_that_leaves_ends_its_long_request(daemon, tmp):
    """Nobody waits for zeroes that nobody wants."""
    d = daemon.serve(tools.create(tmp / "a.qcow2", "32T", cluster_size="64k"))
    c = d.enter(extended=True)
    c.send(c.pack(CMD_WRITE_ZEROES, 0, 32 * TIB, F_NO_HOLE))
    time.sleep(0.2)
    c.close()
    d.stop()
