# SPDX-License-Identifier: BSD-3-Clause
"""LIST and SET_META_CONTEXT: which queries name which contexts, and when they are in force."""

import struct

import pytest

from lib import tools
from lib.daemon import disk_args
from lib.nbdproto import *                               # noqa: F403
from lib.nbdraw import Closed, OptionRefused, meta_payload

BASE, DEPTH = "base:allocation", "qemu:allocation-depth"
BITMAPS = ["qemu:dirty-bitmap:b0", "qemu:dirty-bitmap:b1"]


@pytest.fixture
def rich(daemon, tmp):
    """A daemon whose export "disk" has two bitmaps and allocation-depth; "plain" has base:allocation only."""
    path = tools.create(tmp / "a.qcow2", "4M")
    for b in ("b0", "b1"):
        tools.run("qemu-img", "bitmap", "--add", path, b)
    plain = tools.create(tmp / "p.raw", "1M", "raw")
    return daemon.start(*disk_args(path, bitmaps=("b0", "b1"), export="allocation-depth=on"),
                        *disk_args(plain, "raw", "plain"))


def negotiating(d):
    c = d.connect()
    c.greet()
    c.negotiate_structured()
    return c


@pytest.mark.parametrize("queries, want", [
    ([], [BASE, DEPTH, *BITMAPS]),
    (["base:"], [BASE]),
    (["qemu:"], [DEPTH, *BITMAPS]),
    (["qemu:dirty-bitmap:"], BITMAPS),
    (["base:", "qemu:"], [BASE, DEPTH, *BITMAPS]),
    ([BASE], [BASE]),
    ([DEPTH], [DEPTH]),
    ([BITMAPS[1]], [BITMAPS[1]]),
    ([BASE, BASE], [BASE]),
    (["x-unknown:thing"], []),
    (["unknown"], []),
    (["base:alloc"], []),
    (["base:allocation2"], []),
    (["qemu:dirty-bitmap:nope"], []),
    (["qemu:nope"], []),
    (["x-unknown:", BASE], [BASE]),
])
def test_list(rich, queries, want):
    names = negotiating(rich).meta(OPT_LIST_META, "disk", queries)
    assert sorted(n for n in names if not n.startswith("merino:")) == sorted(want)


@pytest.mark.parametrize("queries, want", [
    ([], []),
    (["base:"], []),
    (["qemu:"], []),
    (["qemu:dirty-bitmap:"], []),
    ([BASE], [BASE]),
    ([BASE, *BITMAPS, DEPTH], [BASE, DEPTH, *BITMAPS]),
    ([BASE, "x-unknown:thing"], [BASE]),
    ([BASE, BASE], [BASE]),
    (["qemu:dirty-bitmap:nope"], []),
    (["base:allocation2"], []),
])
def test_set(rich, queries, want):
    """Unlike LIST, SET takes whole names only; what it does not know it leaves out."""
    assert sorted(negotiating(rich).meta(OPT_SET_META, "disk", queries)) == sorted(want)


def test_set_gives_different_ids(rich):
    ids = negotiating(rich).meta(OPT_SET_META, "disk", [BASE, DEPTH, *BITMAPS]).values()
    assert len(set(ids)) == 4


def test_plain_export_has_base_allocation_only(rich):
    assert list(negotiating(rich).meta(OPT_LIST_META, "plain", [])) == [BASE]


def test_set_is_refused_before_structured_replies(rich):
    c = rich.connect()
    c.greet()
    with pytest.raises(OptionRefused) as e:
        c.meta(OPT_SET_META, "disk", [BASE])
    assert e.value.type == REP_ERR_INVALID
    c.negotiate_structured()
    assert list(c.meta(OPT_SET_META, "disk", [BASE])) == [BASE]


@pytest.mark.parametrize("option", [OPT_LIST_META, OPT_SET_META])
def test_unknown_export(rich, option):
    c = negotiating(rich)
    with pytest.raises(OptionRefused) as e:
        c.meta(option, "nope", [BASE])
    assert e.value.type == REP_ERR_UNKNOWN


def status_error(c):
    return c.call(CMD_BLOCK_STATUS, 0, 65536).error


def test_block_status_without_context_is_invalid(rich):
    assert status_error(rich.enter()) == EINVAL


def test_set_is_in_force_after_go(rich):
    c = negotiating(rich)
    c.meta(OPT_SET_META, "disk", [BASE])
    c.go("disk")
    assert c.status(0, 65536)


def test_set_is_in_force_after_export_name(rich):
    c = negotiating(rich)
    c.meta(OPT_SET_META, "disk", [BASE])
    c.export_name("disk")
    assert c.status(0, 65536)


def test_second_set_replaces_the_first(rich):
    c = negotiating(rich)
    c.meta(OPT_SET_META, "disk", [BASE])
    c.meta(OPT_SET_META, "disk", [DEPTH])
    c.go("disk")
    c.status(0, 65536)                                   # checks that exactly the second set answers


def test_empty_set_takes_the_contexts_back(rich):
    c = negotiating(rich)
    c.meta(OPT_SET_META, "disk", [BASE])
    c.meta(OPT_SET_META, "disk", [])
    c.go("disk")
    assert status_error(c) == EINVAL


def test_failed_set_takes_the_contexts_back(rich):
    c = negotiating(rich)
    c.meta(OPT_SET_META, "disk", [BASE])
    with pytest.raises(OptionRefused):
        c.meta(OPT_SET_META, "nope", [BASE])
    c.go("disk")
    assert status_error(c) == EINVAL


def test_contexts_of_another_export_are_not_in_force(rich):
    """SET for one export and GO for another: no context, rather than the other's."""
    c = negotiating(rich)
    c.meta(OPT_SET_META, "disk", [BASE])
    c.go("plain")
    assert status_error(c) == EINVAL


@pytest.mark.merino_only                                 # QEMU goes on without the contexts
def test_contexts_that_went_with_their_export_are_missed(rich):
    """Another export takes the name between SET_META_CONTEXT and GO: the client hears of it, once."""
    c = negotiating(rich)
    c.meta(OPT_SET_META, "plain", [BASE])
    rich.qmp.cmd("block-export-del", {"id": "plain"})
    rich.qmp.cmd("block-export-add", {"type": "nbd", "id": "again", "node-name": "plain", "name": "plain"})
    with pytest.raises(OptionRefused, match="has gone"):
        c.go("plain")
    assert c.meta(OPT_SET_META, "plain", [BASE])
    c.go("plain")
    assert c.status(0, 1 << 20)


def test_list_does_not_change_what_is_set(rich):
    c = negotiating(rich)
    c.meta(OPT_SET_META, "disk", [DEPTH])
    c.meta(OPT_LIST_META, "disk", [])
    c.go("disk")
    assert c.status(0, 65536)


def test_failed_go_keeps_what_is_set(rich):
    c = negotiating(rich)
    c.meta(OPT_SET_META, "disk", [BASE])
    with pytest.raises(OptionRefused):
        c.go("nope")
    c.go("disk")
    assert c.status(0, 65536)


@pytest.mark.parametrize("option", [OPT_LIST_META, OPT_SET_META])
@pytest.mark.parametrize("payload", [
    b"",                                                 # no name length
    struct.pack(">I", 4),                                # the name is missing
    struct.pack(">I", 4) + b"disk",                      # no count
    struct.pack(">I", 4) + b"disk" + struct.pack(">I", 1),               # one query announced, none there
    struct.pack(">I", 4) + b"disk" + struct.pack(">II", 1, 100) + b"base:",      # a query cut short
    pytest.param(struct.pack(">I", 4) + b"disk" + struct.pack(">I", 0) + b"tail",     # bytes after the last query
                 marks=pytest.mark.merino_only),
    struct.pack(">I", 0xFFFFFFFF) + b"disk",             # a name longer than the option
    struct.pack(">I", 4) + b"disk" + struct.pack(">I", 0xFFFFFFFF) + b"xxxx",    # 2^32 - 1 queries
])
def test_broken_payload_is_invalid_and_the_connection_goes_on(rich, option, payload):
    c = negotiating(rich)
    replies = c.option(option, payload)
    # Contexts that were found before the fault may have been answered already.
    assert replies[-1].type == REP_ERR_INVALID and {r.type for r in replies[:-1]} <= {REP_META_CONTEXT}
    c.go("disk")
    assert status_error(c) == EINVAL


def test_many_queries(rich):
    """10,000 queries in one option: answered, refused, or the end, but the server lives on for others."""
    c = negotiating(rich)
    try:
        last = c.option(OPT_SET_META, meta_payload("disk", ["base:x"] * 10000))[-1].type
        assert last == REP_ACK or last & REP_ERROR
    except (Closed, ConnectionError):
        pass
    assert rich.enter(contexts=[BASE]).status(0, 65536)
