# SPDX-License-Identifier: BSD-3-Clause
"""The handshake: each option, and what the server answers."""

import struct

import pytest

from lib import nbdraw, tools
from lib.daemon import disk_args
from lib.nbdproto import *                               # noqa: F403
from lib.nbdraw import info_payload

SIZE = 4 << 20


def greeted(d):
    c = d.connect()
    c.greet()
    return c


def refused(c, option, data=b""):
    """The option must be answered by one error reply; its type."""
    replies = c.option(option, data)
    assert len(replies) == 1 and replies[0].type & REP_ERROR, replies
    return replies[0].type


def still_negotiates(c):
    return c.option(OPT_LIST)[-1].type == REP_ACK


def test_greeting_offers_fixed_newstyle_without_zeroes(disk):
    assert disk.connect().greet() == FIXED_NEWSTYLE | NO_ZEROES


def test_export_name(disk):
    c = greeted(disk)
    c.export_name("disk")
    assert c.size == SIZE
    assert len(c.read(0, 512)) == 512


def test_export_name_sends_124_zeroes_to_a_client_that_wants_them(disk):
    c = disk.connect()
    c.greet(FIXED_NEWSTYLE)
    c.export_name("disk")                                # checks that 124 zeroes come
    assert len(c.read(0, 512)) == 512


def test_export_name_unknown_ends_the_connection(disk):
    c = greeted(disk)
    c.send_option(OPT_EXPORT_NAME, b"nope")
    assert c.closed_by_server()


def test_client_with_unknown_flags_is_dropped(disk):
    c = disk.connect()
    c.greet(FIXED_NEWSTYLE | 0x80)
    with pytest.raises((nbdraw.Closed, ConnectionError)):
        c.option(OPT_LIST)


def test_abort_is_acknowledged_and_closes(disk):
    c = greeted(disk)
    assert [r.type for r in c.option(OPT_ABORT)] == [REP_ACK]
    assert c.closed_by_server()


def test_list_names_every_export(daemon, tmp):
    args = []
    for name in ("a", "b", "c"):
        args += disk_args(tools.create(tmp / f"{name}.raw", "1M", "raw"), "raw", name)
    names = []
    for r in greeted(daemon.start(*args)).must(OPT_LIST):
        assert r.type == REP_SERVER
        length, = struct.unpack(">I", r.data[:4])
        names.append(r.data[4:4 + length].decode())
    assert sorted(names) == ["a", "b", "c"]


def test_list_with_a_payload_is_invalid(disk):
    c = greeted(disk)
    assert refused(c, OPT_LIST, b"x") == REP_ERR_INVALID
    assert still_negotiates(c)


def test_unknown_option_is_unsupported(disk):
    c = greeted(disk)
    assert refused(c, 0x7777, b"payload to skip") == REP_ERR_UNSUP
    assert still_negotiates(c)


def test_starttls_without_tls_is_refused_and_negotiation_goes_on(disk):
    c = greeted(disk)
    assert refused(c, OPT_STARTTLS) in (REP_ERR_POLICY, REP_ERR_UNSUP)
    assert still_negotiates(c)


@pytest.mark.parametrize("option", [OPT_INFO, OPT_GO])
def test_info_and_go_of_unknown_export(disk, option):
    c = greeted(disk)
    assert refused(c, option, info_payload("nope")) == REP_ERR_UNKNOWN
    assert c.go("disk") and c.size == SIZE


def test_info_tells_what_go_tells_and_stays_in_negotiation(disk):
    c = greeted(disk)
    told = c.info("disk")[INFO_EXPORT]
    assert c.go("disk")[INFO_EXPORT] == told


def test_go_without_structured_replies_gives_simple_replies(disk):
    c = greeted(disk)
    c.go("disk")
    assert len(c.read(0, 4096)) == 4096                  # Conn refuses a structured reply here
    c.write(0, b"x" * 512)


def test_flags_of_a_writable_export(disk):
    c = greeted(disk)
    c.negotiate_structured()
    c.go("disk")
    want = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | SEND_DF | SEND_CACHE | SEND_FAST_ZERO
    assert c.flags & want == want
    assert c.flags & CAN_MULTI_CONN
    assert not c.flags & (READ_ONLY | ROTATIONAL | SEND_RESIZE)


def test_df_is_offered_with_structured_replies_only(disk):
    c = greeted(disk)
    c.go("disk")
    assert not c.flags & SEND_DF


def test_flags_of_a_read_only_export(readonly):
    c = readonly.enter()
    assert c.flags & (READ_ONLY | CAN_MULTI_CONN) == READ_ONLY | CAN_MULTI_CONN
    assert not c.flags & (SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO)


def test_block_sizes_when_asked(disk):
    c = greeted(disk)
    minimum, preferred, maximum = struct.unpack(">III", c.info("disk", [INFO_BLOCK_SIZE])[INFO_BLOCK_SIZE])
    assert (minimum, maximum) == (1, MAX_REQUEST)
    assert preferred >= 4096 and preferred & (preferred - 1) == 0


def test_unknown_info_requests_are_ignored(disk):
    c = greeted(disk)
    assert INFO_EXPORT in c.info("disk", [0x4242, INFO_BLOCK_SIZE, 0xFFFF])


def test_name_and_description_when_asked(daemon, tmp):
    path = tools.create(tmp / "a.raw", "1M", "raw")
    c = greeted(daemon.serve(path, "raw", export="description=a fine disk"))
    told = c.info("disk", [INFO_NAME, INFO_DESCRIPTION])
    assert told[INFO_NAME] == b"disk" and told[INFO_DESCRIPTION] == b"a fine disk"


def test_description_in_list(daemon, tmp):
    path = tools.create(tmp / "a.raw", "1M", "raw")
    c = greeted(daemon.serve(path, "raw", export="description=a fine disk"))
    assert [r.data for r in c.must(OPT_LIST)] == [b"\0\0\0\4diska fine disk"]


def test_structured_reply_with_a_payload_is_invalid(disk):
    c = greeted(disk)
    assert refused(c, OPT_STRUCTURED_REPLY, b"x") == REP_ERR_INVALID
    c.go("disk")
    assert len(c.read(0, 512)) == 512                    # by a simple reply: nothing was negotiated


def test_structured_reply_twice_is_invalid(disk):
    c = greeted(disk)
    c.negotiate_structured()
    assert refused(c, OPT_STRUCTURED_REPLY) == REP_ERR_INVALID


def test_options_arrive_in_one_packet(disk):
    """What follows an option must not be lost when it comes in the same segment."""
    c = disk.connect()
    c.greet(None)
    go = info_payload("disk")
    c.send(struct.pack(">I", 3)
           + OPTS_MAGIC + struct.pack(">II", OPT_LIST, 0)
           + OPTS_MAGIC + struct.pack(">II", OPT_GO, len(go)) + go
           + struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ, 7, 0, 512))
    assert [c.option_reply().type for _ in range(2)] == [REP_SERVER, REP_ACK]
    while c.option_reply().type != REP_ACK:
        pass
    assert struct.unpack(">IIQ", c.recv(16)) == (SIMPLE_MAGIC, 0, 7)


def test_options_arrive_byte_by_byte(disk):
    c = disk.connect()
    c.greet(None)
    go = info_payload("disk", [INFO_BLOCK_SIZE])
    for b in struct.pack(">I", 3) + OPTS_MAGIC + struct.pack(">II", OPT_GO, len(go)) + go:
        c.send(bytes([b]))
    replies = [c.option_reply()]
    while replies[-1].type != REP_ACK:
        replies.append(c.option_reply())
    assert {r.type for r in replies[:-1]} == {REP_INFO}


def test_default_export_name(daemon, tmp):
    """The empty name is a name like any other (vdsm uses it)."""
    path = tools.create(tmp / "a.raw", "1M", "raw")
    d = daemon.start("--blockdev", f"driver=file,node-name=n,filename={path}",
                     "--export", "type=nbd,id=e,node-name=n,name=")
    c = greeted(d)
    c.go("")
    assert c.size == 1 << 20


def test_long_export_name(daemon, tmp):
    """Names may have up to 4096 bytes."""
    path, name = tools.create(tmp / "a.raw", "1M", "raw"), "n" * 4096
    d = daemon.start("--blockdev", f"driver=file,node-name=n,filename={path}")
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n", "name": name})
    c = greeted(d)
    c.go(name)
    assert c.size == 1 << 20
