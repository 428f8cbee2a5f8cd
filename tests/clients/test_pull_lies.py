# SPDX-License-Identifier: BSD-3-Clause
"""merino pull against servers that fail, lie or stop: an error, and no file that looks like a backup."""

import errno
import pathlib

import pytest

from lib import pattern
from lib.nbdserver import Server, STATE_HOLE, STATE_ZERO
from lib.patience import HANG, wait_until

MIB = 1 << 20
BITMAP = "qemu:dirty-bitmap:b"


def with_status(answer):
    """A server whose block status is answer(context, offset, length)."""
    class Lying(Server):
        def status(self, context, offset, length):
            return answer(context, offset, length)
    return Lying


def with_read(answer):
    class Lying(Server):
        def read(self, offset, length):
            right = Server.read(self, offset, length)
            return answer(offset, length, right)
    return Lying


def copied(merino, server, *args, **kw):
    merino.pull("-f", "raw", *args, server.uri, "out.raw", **kw)
    return (pathlib.Path(merino.cwd) / "out.raw").read_bytes()


# --- what must work

def test_no_structured_replies(serve, merino):
    content = pattern.block(1, 3 * MIB + 512)
    assert copied(merino, serve(content, structured=False)) == content


def test_short_answers(serve, merino):
    """A server may always answer with less than was asked."""
    content = pattern.block(2, MIB) + bytes(MIB) + pattern.block(3, 4096)
    def answer(context, offset, length):
        zero = MIB <= offset < 2 * MIB
        return [(min(length, 65536, content_left(offset)), STATE_ZERO | STATE_HOLE if zero else 0)]
    def content_left(offset):
        return len(content) - offset
    s = serve(content, with_status(answer))
    assert copied(merino, s) == content
    assert not [r for r in s.requests if r[0] == 0 and MIB <= r[1] < 2 * MIB], "zeroes were read"


def test_extents_longer_than_asked(serve, merino):
    content = pattern.block(4, MIB)
    s = serve(content, with_status(lambda c, o, n: [(n + 4096, 0)]))
    assert copied(merino, s) == content


def test_unaligned_extents(serve, merino):
    """Extents that cut the server's blocks: requests stay aligned, nothing is lost."""
    content = pattern.block(5, 64 << 10) + bytes(64 << 10)
    def answer(context, offset, length):
        return [(1000, 0), (length - 1000, 0)] if offset < 65536 else [(100, STATE_ZERO)]
    s = serve(content, with_status(answer), blocks=(4096, 4096, MIB))
    assert copied(merino, s) == content
    assert all(o % 4096 == 0 and n % 4096 == 0 for _, o, n in s.requests)


def test_unaligned_tail(serve, merino):
    """A size that is no multiple of the minimum block: the tail is asked for as it is."""
    content = pattern.block(6, 3 * 4096 + 100)
    s = serve(content, blocks=(4096, 4096, MIB))
    assert copied(merino, s) == content


def test_block_sizes(serve, merino):
    content = pattern.block(7, MIB)
    s = serve(content, blocks=(4096, 4096, 16384))
    assert copied(merino, s) == content
    assert max(n for cmd, _, n in s.requests if cmd == 0) == 16384


def test_chunks(serve, merino):
    """Data in several chunks, out of order."""
    content = pattern.block(8, MIB)
    s = serve(content, with_read(lambda o, n, right: [(o + n // 2, right[n // 2:]), (o, right[:n // 2])]))
    assert copied(merino, s) == content


def test_many_extents(serve, merino):
    """More extents than fit in one reply that is kept, and than the plan holds."""
    size = 140000 * 512
    class Many(Server):
        def status(self, context, offset, length):
            n = min(length, self.size - offset) // 512
            return [(512, (offset // 512 + i) % 2 * STATE_ZERO) for i in range(n)]
        def read(self, offset, length):
            assert length == 512
            return b"x" * 512
    s = serve(size, Many, multi_conn=False)
    got = copied(merino, s, "--requests=64", timeout=2 * HANG)         # a request at a time, for Python
    assert got == (b"x" * 512 + bytes(512)) * 70000


def test_empty_export(serve, merino):
    assert copied(merino, serve(0)) == b""


def test_connections(serve, merino):
    content = pattern.block(9, 4 * MIB)
    s = serve(content)
    assert copied(merino, s, "--connections=3") == content
    wait_until(lambda: s.connections >= 3)               # the last may still wait to be accepted
    assert s.connections == 3
    s = serve(content, multi_conn=False)
    assert copied(merino, s, "--force", "--connections=3") == content
    assert s.connections == 1


def test_extra_connection_that_never_answers(serve, merino):
    """qemu-nbd leaves clients past its limit waiting: the copy goes on with those it has."""
    content = pattern.block(10, 4 * MIB)
    class Mute(Server):
        def handshake(self, s, number):
            if number:
                self.recv(s, 1000)
            return Server.handshake(self, s, number)
    assert copied(merino, serve(content, Mute)) == content


# --- what must fail

@pytest.mark.parametrize("answer, text", [
    (lambda c, o, n: [(0, 0), (n, 0)], "length 0"),
    (lambda c, o, n: [], ""),
    (lambda c, o, n: [(n + MIB, STATE_ZERO)], "behind the export"),
    (lambda c, o, n: [(4096, 0), (0xffffffff, STATE_ZERO)], "behind the export"),
    (lambda c, o, n: errno.EIO, "block status"),
    (lambda c, o, n: None, "left out"),
    (lambda c, o, n: None if c == BITMAP else [(n, 0)], "left out"),
], ids=["zero-length", "no-extents", "behind-end", "overflow", "error", "no-context", "no-bitmap"])
def test_status_lies(serve, merino, answer, text):
    s = serve(pattern.block(11, MIB), with_status(answer), contexts=["base:allocation", BITMAP])
    old = pathlib.Path(merino.cwd) / "old.raw"
    old.write_bytes(bytes(MIB))
    assert text in merino.refused("--bitmap=b", "--onto", "-f", "raw", s.uri, "old.raw")
    assert old.read_bytes() == bytes(MIB)


@pytest.mark.parametrize("answer", [
    lambda o, n, right: errno.EIO if o >= MIB else right,
    lambda o, n, right: [(o, right[:-512])],
    lambda o, n, right: [],
    lambda o, n, right: [(o + n, right)],
    lambda o, n, right: [(2 ** 64 - 512, right)],
], ids=["error", "short", "nothing", "elsewhere", "overflow"])
@pytest.mark.parametrize("connections", [1, 4])
def test_read_lies(serve, merino, answer, connections):
    """CVE-2022-0485: every result counts."""
    s = serve(pattern.block(12, 4 * MIB), with_read(answer))
    merino.refused("-f", "raw", f"--connections={connections}", s.uri, "new.raw")


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("after", [0, 1, 5, 12])
def test_server_dies(serve, merino, structured, after):
    s = serve(pattern.block(13, 4 * MIB), structured=structured, die_after=after)
    assert s.uri in merino.refused("-f", "raw", s.uri, "new.raw")


def test_error_names_the_place(serve, merino):
    s = serve(pattern.block(14, 4 * MIB), with_read(lambda o, n, right: errno.EIO if o == 2 * MIB else right))
    assert "reading 262144 bytes at offset 2097152: Input/output error" in \
        merino.refused("-f", "raw", s.uri, "new.raw")




def test_chunk_that_comes_twice(serve, merino):
    s = serve(4 * MIB, with_read(lambda off, n, right: [(off, right[:n // 2]), (off, right[:n // 2])]))
    assert "did not send" in merino.refused("-f", "raw", s.uri, "out.raw")
