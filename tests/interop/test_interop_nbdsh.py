# SPDX-License-Identifier: BSD-3-Clause
"""nbdsh: libnbd's calls from the shell."""

from lib import tools


def nbdsh(d, *scripts, before=()):
    """Each script is one -c after the connection is up; a failed assert in one fails the test."""
    argv = ["nbdsh"]
    for s in before:
        argv += ["-c", s]
    argv += ["-c", f"h.connect_uri({d.uri()!r})"]
    for s in scripts:
        argv += ["-c", s]
    return tools.run(*argv).stdout


def test_uri_option(disk):
    assert tools.run("nbdsh", "-u", disk.uri(), "-c", "print(h.get_size())").stdout == "4194304\n"


def test_write_and_read_back(disk):
    nbdsh(disk, "h.pwrite(b'hello' * 100, 2000001)", "assert h.pread(500, 2000001) == b'hello' * 100",
          "assert h.pread(1, 2000000) == b'\\0'")


def test_zero_trim_cache_flush(disk):
    nbdsh(disk, "h.zero(65536, 0)", "assert h.pread(65536, 0) == bytes(65536)", "h.trim(65536, 524288)",
          "h.cache(4 << 20, 0)", "h.flush()", "h.zero(512, 1 << 20, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE)",
          "assert h.pread(512, 1 << 20) == bytes(512)", "h.shutdown()")


def test_errors_carry_their_number(disk):
    """With libnbd's own checks switched off, ours are the ones that answer."""
    nbdsh(disk, """
h.set_strict_mode(0)
import errno
for offset in (4 << 20, 1 << 40):
    try:
        h.pread(512, offset)
        assert False
    except nbd.Error as e:
        assert e.errnum == errno.EINVAL, e
assert len(h.pread(512, 0)) == 512
""")


def test_several_contexts_in_one_reply(disk):
    names = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:b0"]
    out = nbdsh(disk, "seen = {}", "h.block_status(4 << 20, 0, lambda m, o, e, err: seen.update({m: e}))",
                "print(sorted(seen))", before=[f"h.add_meta_context({n!r})" for n in names])
    assert out == f"{names!r}\n"


def test_listing_contexts_of_an_export(disk):
    out = nbdsh(disk, "h.opt_list_meta_context(lambda n: print(n))", "h.opt_abort()",
                before=["h.set_opt_mode(True)"])
    assert sorted(out.split()) == ["base:allocation", "merino:changes:b0", "qemu:allocation-depth",
                                    "qemu:dirty-bitmap:b0"]


def test_simple_replies_only(disk):
    nbdsh(disk, "assert not h.get_structured_replies_negotiated()", "assert len(h.pread(1 << 20, 0)) == 1 << 20",
          before=["h.set_request_structured_replies(False)"])


def test_hundreds_in_flight(disk):
    nbdsh(disk, """
bufs = []
for i in range(400):
    b = nbd.Buffer.from_bytearray(bytearray([i % 251]) * 4096)
    bufs.append((h.aio_pwrite(b, i * 8192), b))
while h.aio_in_flight():
    h.poll(-1)
for c, _ in bufs:
    assert h.aio_command_completed(c)
for i in range(400):
    assert h.pread(4096, i * 8192) == bytearray([i % 251]) * 4096
""")


def test_structured_read_callback(disk):
    """pread_structured sees holes as holes."""
    out = nbdsh(disk, "kinds = set()",
                "h.pread_structured(1 << 20, 2 << 20, lambda b, o, s, err: kinds.add(s))",
                "print(kinds == {nbd.READ_HOLE})")
    assert out == "True\n"
