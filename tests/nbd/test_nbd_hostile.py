# SPDX-License-Identifier: BSD-3-Clause
"""Clients that lie about lengths, send garbage, stall or vanish.  The others must not notice."""

import socket
import struct
import time

import pytest

from lib import nbdraw, pattern, tools
from lib.nbdproto import *                               # noqa: F403
from lib.nbdraw import info_payload
from lib.patience import HANG, wait_until


@pytest.fixture
def served(disk):
    """The daemon; after the test it must still serve a new client, and end cleanly."""
    yield disk
    assert disk.alive(), disk.stderr()
    assert len(disk.enter().read(0, 65536)) == 65536


def greeted(d):
    c = d.connect()
    c.greet()
    return c


def test_garbage_instead_of_client_flags(served):
    c = served.connect()
    c.greet(None)
    c.offer(pattern.block("garbage", 4096))
    assert c.closed_by_server()


def test_option_with_wrong_magic(served):
    c = greeted(served)
    c.send_option(OPT_LIST, magic=b"IHAVEOPS")
    assert c.closed_by_server()


@pytest.mark.parametrize("option", [OPT_EXPORT_NAME, OPT_LIST, OPT_INFO, OPT_GO, OPT_SET_META, 0x7777])
@pytest.mark.parametrize("length", [(32 << 20) + 1, 0xFFFFFFFF])
def test_option_longer_than_any_buffer_ends_the_connection(served, option, length):
    """Without waiting for the bytes announced: nobody reads 4 GiB from a stranger (CVE-2017-15119)."""
    c = greeted(served)
    c.send_option(option, length=length)
    assert c.closed_by_server()


@pytest.mark.parametrize("option", [OPT_LIST, OPT_SET_META, OPT_INFO, 0x7777])
def test_big_option_is_skipped_or_ends_the_connection(served, option):
    """1 MiB of payload: an error reply and in step with the stream, or the end; memory does not grow."""
    c, before = greeted(served), served.memory()
    try:
        c.send_option(option, bytes(1 << 20))
        assert c.option_reply().type & REP_ERROR
        assert c.option(OPT_LIST)[-1].type == REP_ACK
    except (nbdraw.Closed, ConnectionError):
        pass
    assert served.memory() - before < 16 << 20


@pytest.mark.parametrize("payload", [
    b"",
    b"\0\0\0\x04",
    b"\0\0\0\x04disk",                                   # no count of info requests
    b"\0\0\0\x04disk\0\x02\0\0",                         # two announced, one there
    b"\0\0\0\x04disk\0\0tail",
    b"\xff\xff\xff\xffdisk\0\0",
    b"\0\0\0\x05disk\0\0",
    b"\0\0\x10\x01" + b"n" * 4097 + b"\0\0",             # a name of 4097 bytes
])
@pytest.mark.parametrize("option", [OPT_INFO, OPT_GO])
def test_broken_info_is_invalid_and_negotiation_goes_on(served, option, payload):
    c = greeted(served)
    replies = c.option(option, payload)
    assert [r.type for r in replies] in ([REP_ERR_INVALID], [REP_ERR_TOO_BIG])
    c.go("disk")
    assert len(c.read(0, 512)) == 512


def test_export_name_with_a_long_name_ends_the_connection(served):
    """256 bytes and 4096 bytes were the sizes of buffers that overflowed (CVE-2017-15118)."""
    for n in (255, 256, 257, 4096, 4097, 65536):
        c = greeted(served)
        c.offer(OPTS_MAGIC + struct.pack(">II", OPT_EXPORT_NAME, n) + b"A" * n)
        assert c.closed_by_server()


@pytest.mark.parametrize("name", [b"di\0sk", b"\xff\xfe\x80", b"disk\0", b"%s%n%n", b"../../etc/passwd"])
def test_strange_names_are_unknown(served, name):
    c = greeted(served)
    kinds = [r.type for r in c.option(OPT_GO, info_payload(name))]
    assert len(kinds) == 1 and kinds[0] in (REP_ERR_UNKNOWN, REP_ERR_INVALID)


def test_long_unknown_name_is_answered_within_bounds(served):
    """The name must not overflow the text of the error (CVE-2020-10761)."""
    c = greeted(served)
    last = c.option(OPT_GO, info_payload("%" * 4096))[-1]
    assert last.type == REP_ERR_UNKNOWN and len(last.data) <= 4096


def test_hundreds_of_options(served):
    """A client may ask often; it may also be shown the door, but the others are served."""
    c = greeted(served)
    try:
        for _ in range(500):
            c.option(OPT_LIST)
    except (nbdraw.Closed, ConnectionError):
        pass


def test_flood_of_options_that_are_never_read(served):
    """The replies to 20,000 options must not pile up in the server."""
    c, before = greeted(served), served.memory()
    c.sock.settimeout(1)
    try:
        c.send((OPTS_MAGIC + struct.pack(">II", OPT_LIST, 0)) * 20000)
    except (TimeoutError, ConnectionError):
        pass
    assert len(served.enter().read(0, 512)) == 512
    assert served.memory() - before < 32 << 20


@pytest.mark.merino_only                                 # QEMU 7.2 answers, with a cookie made of garbage
def test_request_with_wrong_magic_ends_the_connection(served):
    c = served.enter()
    c.offer(c.pack(CMD_READ, 0, 512, magic=0x25609514))
    assert c.closed_by_server()


@pytest.mark.merino_only                                 # as above
def test_garbage_instead_of_requests(served):
    c = served.enter()
    c.offer(pattern.block("garbage", 1 << 16))
    assert c.closed_by_server()


def test_client_vanishes_in_the_greeting(served):
    for _ in range(20):
        served.connect().close()


def test_client_vanishes_in_an_option(served):
    c = greeted(served)
    c.send_option(OPT_GO, b"\0\0\0\x04di", length=10)
    c.close()


def test_client_vanishes_in_a_request_header(served):
    c = served.enter()
    c.send(c.pack(CMD_READ, 0, 512)[:13])
    c.close()


def test_half_a_write_is_not_a_write(served):
    """A payload that never came whole must change nothing."""
    other, c = served.enter(), served.enter()
    before, fds = other.read(0, 1 << 20), served.descriptors()
    c.send(c.pack(CMD_WRITE, 0, 1 << 20, data=b"#" * (1 << 19)))
    c.close()
    wait_until(lambda: served.descriptors() < fds)       # it has seen the end
    assert other.read(0, 1 << 20) == before


def test_client_vanishes_after_its_requests(served):
    """Requests in flight, replies nobody takes: repeated, since it is a matter of timing."""
    for i in range(60):
        c = served.enter()
        for k in range(16):
            c.send(c.pack(CMD_READ, k << 16, 1 << 18))
        c.send(c.pack(CMD_WRITE, 2 << 20, 65536, data=bytes([i]) * 65536))
        if i % 2:
            c.chunk()
        # RST rather than FIN (nbdkit 1.32.5 aborted on that).
        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.close()


def test_client_shuts_down_its_sending_side(served):
    """What was asked before is still answered, or the connection ends; it does not hang."""
    c = served.enter()
    cookie = c.start(CMD_READ, 0, 65536)
    c.sock.shutdown(socket.SHUT_WR)
    try:
        assert c.answer(cookie).error == 0
    except (nbdraw.Closed, ConnectionError):
        pass
    c.buffer.clear()
    assert c.closed_by_server()


def test_client_that_does_not_read_does_not_block_others(served):
    """The slow one asks for 64 MiB and takes nothing; the other one is served meanwhile."""
    slow, quick = served.enter(), served.enter()
    slow.sock.settimeout(1)
    try:
        for i in range(64):
            slow.send(slow.pack(CMD_READ, 0, 1 << 20))
    except TimeoutError:
        pass
    assert len(quick.read(0, 1 << 20)) == 1 << 20
    quick.write(0, b"x" * 4096)


def test_memory_stays_bounded_when_a_client_does_not_read(served):
    """1000 requests for 1 MiB each, none taken."""
    c, before = served.enter(), served.memory()
    c.sock.settimeout(1)
    try:
        for i in range(1000):
            c.send(c.pack(CMD_READ, 0, 1 << 20))
    except TimeoutError:
        pass
    assert served.memory() - before < 192 << 20


@pytest.mark.merino_only                                 # QEMU 7.2 as released waits for ever (CVE-2024-7409)
def test_handshake_ends_after_ten_seconds(served):
    """Whatever the client does meanwhile, except finishing; one that has finished stays."""
    began, finished = time.monotonic(), served.enter()
    silent, in_option, chatty = (served.connect() for _ in range(3))
    in_option.greet()
    in_option.send_option(OPT_GO, b"\0\0\0\x04di", length=10)
    chatty.greet()
    with pytest.raises((nbdraw.Closed, ConnectionError)):
        while time.monotonic() < began + HANG:
            chatty.option(OPT_LIST)
            time.sleep(0.2)
    assert time.monotonic() - began > 9
    silent.recv(18)
    assert silent.closed_by_server() and in_option.closed_by_server()
    assert len(finished.read(0, 512)) == 512


@pytest.mark.merino_only                                 # QEMU 7.2 has no limit by default
def test_connections_are_limited_to_100(disk):
    """The 101st waits or is turned away, and gets in when one leaves."""
    held = [disk.enter() for _ in range(100)]
    extra = disk.connect(timeout=0.5)
    with pytest.raises((TimeoutError, nbdraw.Closed, ConnectionError)):
        extra.greet()
    extra.close()
    held.pop().close()

    def comes_in():
        """Who is not let in goes: were he let in later, nobody else would be."""
        try:
            with disk.connect(timeout=1) as c:
                return c.greet() == FIXED_NEWSTYLE | NO_ZEROES
        except (TimeoutError, nbdraw.Closed, ConnectionError):
            return False
    wait_until(comes_in, why="no connection after one was freed")


def test_images_are_whole_after_hostile_clients(disk, tmp):
    for i in range(20):
        c = disk.enter()
        c.send(c.pack(CMD_WRITE, (1 << 20) + i * 65536, 65536, data=b"#" * (3000 * i)))
        c.close()
    disk.stop()
    tools.check(tmp / "disk.qcow2")
