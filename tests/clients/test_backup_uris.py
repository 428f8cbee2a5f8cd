# SPDX-License-Identifier: BSD-3-Clause
"""merino backup of NBD URIs: servers that fail, lie, and go away for a while."""

import json
import pathlib

import pytest

from lib import pattern
from lib.nbdserver import EIO, Gone, STATE_HOLE, STATE_ZERO, Server
from lib.proof import leftovers, points, prove

pytestmark = pytest.mark.merino_only

MIB = 1 << 20
BITMAP = "qemu:dirty-bitmap:b"


def repo(merino):
    return pathlib.Path(merino.cwd) / "repo"


def backup(merino, *args):
    return json.loads(merino.run("backup", "--json", "--to", "repo", *args).stdout)


def refused(merino, *args, timeout=60):
    """Exit 1, and no trace of a point.  TIMEOUT: for a server that does not come back."""
    before = set(points(repo(merino))) if repo(merino).exists() else set()
    text = merino.run("backup", "--to", "repo", f"--timeout={timeout}", *args, status=1).stderr
    assert text.startswith("merino backup: "), text
    assert set(points(repo(merino))) == before and not leftovers(repo(merino))
    return text


class Breaking(Server):
    """Its connections break, with a few requests unanswered, every now and then."""
    every = 7

    def read(self, offset, length):
        if len(self.requests) % self.every == 0:
            raise Gone
        return super().read(offset, length)


@pytest.mark.parametrize("multi_conn", [False, True])
def test_connections_that_break(serve, merino, multi_conn):
    content = pattern.block("disk", 12 * MIB + 512)
    s = serve(content, Breaking, multi_conn=multi_conn)
    done = merino.run("backup", "--json", "--to", "repo", f"vda={s.uri}")
    assert "connecting again" in done.stderr and s.connections > 2
    p = json.loads(done.stdout)
    assert p["consistency"] == "unknown" and p["disks"][0]["source"] == s.uri
    assert prove(repo(merino), p["point"]) == {"vda": content}


def test_server_that_never_comes_back(serve, merino):
    s = serve(8 * MIB, die_after=5)
    read, s.read = s.read, lambda offset, length: (s.hang_up(), read(offset, length))[1]
    assert "given up after 2 s" in refused(merino, s.uri, timeout=2)


def test_server_that_comes_back_as_another(serve, merino):
    class Other(Breaking):
        every = 3

        def size_for(self, connection):
            return self.size if connection == 0 else self.size + MIB
    s = serve(pattern.block("disk", 4 * MIB), Other, multi_conn=False)
    assert "size has changed" in refused(merino, s.uri)


def test_server_that_breaks_for_ever(serve, merino):
    class Useless(Server):
        def read(self, offset, length):
            raise Gone
    assert "merino backup" in refused(merino, serve(4 * MIB, Useless).uri)


@pytest.mark.parametrize("size", [1, 511, 65536, 65537, 3 * MIB + 1])
def test_odd_sizes(serve, merino, size):
    content = pattern.block(size, size)
    p = backup(merino, serve(content).uri)
    assert prove(repo(merino), p["point"]) == {"disk": content}


def test_small_requests(serve, merino):
    """A server that takes little at a time: chunks come in parts."""
    content = pattern.block("a", 200000) + bytes(300000) + pattern.block("b", 100000)
    p = backup(merino, serve(content, blocks=(1, 4096, 4096)).uri)
    assert prove(repo(merino), p["point"]) == {"disk": content}


class Parts(Server):
    """Dirty extents that begin and end anywhere; some of them zero."""
    dirty = [(1000, 5000, 0), (65536, 65536, 0), (150000, 20000, 1), (200000, 400000, 1), (700000, 100, 0)]

    def status(self, context, offset, length):
        out, at = [], 0
        for start, n, zero in self.dirty:
            flags = (0, 1) if context == BITMAP else (0, zero * (STATE_ZERO | STATE_HOLE))
            out += [(start - at, flags[0]), (n, flags[1])]
            at = start + n
        out.append((self.size - at, 0))
        return out if offset == 0 else [(length, 0)]


def changed(old):
    new = bytearray(old)
    for start, n, zero in Parts.dirty:
        new[start:start + n] = bytes(n) if zero else pattern.block(start, n)
    return bytes(new)


def test_incremental_of_parts(serve, merino):
    old = pattern.block("old", MIB)
    new = changed(old)
    first = backup(merino, f"d={serve(old).uri}")
    s = serve(new, Parts, contexts=["base:allocation", BITMAP])
    p = backup(merino, "--bitmap=b", f"d={s.uri}")
    assert p["disks"][0]["parent"] == first["point"]
    assert prove(repo(merino), p["point"]) == {"d": new}
    assert prove(repo(merino), first["point"]) == {"d": old}


def test_incremental_over_rotten_parts(serve, merino):
    """A chunk that is only partly new would get a checksum over rotten bytes: full instead, and the old one is damaged."""
    old = pattern.block("old", MIB)
    first = backup(merino, f"d={serve(old).uri}")
    image = repo(merino) / first["disks"][0]["file"]
    data = bytearray(image.read_bytes())
    data[data.index(old[:4096]) + 30000] ^= 1
    image.write_bytes(data)
    s = serve(changed(old), Parts, contexts=["base:allocation", BITMAP])
    done = merino.run("backup", "--json", "--to", "repo", "--bitmap=b", f"d={s.uri}")
    p = json.loads(done.stdout)
    assert p["disks"][0]["level"] == "full" and "is not what was stored" in p["disks"][0]["reason"]
    assert prove(repo(merino), p["point"])["d"] == changed(old)
    listed = json.loads(merino.run("list", "--json", "repo", status=2).stdout)["points"]
    assert [x["state"] for x in listed] == ["damaged", "good"]


def test_no_such_bitmap(serve, merino):
    uri = serve(MIB, contexts=["base:allocation"]).uri
    assert "does not offer the context qemu:dirty-bitmap:b" in refused(merino, "--bitmap=b", uri)


@pytest.mark.parametrize("where", [0, 5 * MIB, 8 * MIB - 1])
def test_one_read_that_fails(serve, merino, where):
    class Bad(Server):
        def read(self, offset, length):
            return EIO if offset <= where < offset + length else super().read(offset, length)
    text = refused(merino, serve(pattern.block("disk", 8 * MIB), Bad).uri)
    assert "Input/output error" in text and "connecting again" not in text


def test_read_that_is_short(serve, merino):
    class Bad(Server):
        def read(self, offset, length):
            return [(offset, bytes(length - 512))] if offset else bytes(length)
    refused(merino, serve(4 * MIB, Bad).uri)


def test_chunk_that_comes_twice(serve, merino):
    """Their lengths add up, and half of the buffer was never written to."""
    class Bad(Server):
        def read(self, offset, length):
            return [(offset, bytes(length // 2)), (offset, bytes(length // 2))]
    assert "did not send all of it" in refused(merino, serve(4 * MIB, Bad).uri)


def test_chunks_in_any_order(serve, merino):
    class Backwards(Server):
        def read(self, offset, length):
            right = Server.read(self, offset, length)
            return [(offset + i, right[i:i + 32768]) for i in reversed(range(0, length, 32768))]
    content = pattern.block("disk", 4 * MIB)
    assert prove(repo(merino), backup(merino, serve(content, Backwards).uri)["point"]) == {"disk": content}


@pytest.mark.parametrize("extents", [[], [(0, 0)], [(64 * MIB, 0)], None, 5])
def test_status_that_lies(serve, merino, extents):
    class Bad(Server):
        def status(self, context, offset, length):
            return extents
    refused(merino, serve(4 * MIB, Bad).uri)


def test_two_disks_of_one_name(serve, merino):
    uri = serve(MIB).uri
    assert "two disks are called" in refused(merino, uri, uri)


def test_limit(serve, merino):
    p = backup(merino, "--limit=4M", serve(pattern.block("disk", 8 * MIB)).uri)
    assert p["seconds"] > 0.8
