# SPDX-License-Identifier: BSD-3-Clause
"""Who has no right to come in under TLS, and who breaks its rules: refused, and nobody else notices."""

import contextlib
import os
import socket
import ssl
import struct
import time

import pytest

from lib import nbdraw, pki as pki_module, tools
from lib.daemon import disk_args, free_port, is_qsd
from lib.nbdproto import *                               # noqa: F403
from lib.patience import HANG, wait_until
from lib.smalldisk import DATA, SIZE, raw


def start(daemon, tmp, *objects, listen="tls-creds=tls", disk=None):
    address = str(tmp / "nbds")
    d = daemon.start(*objects, "--nbd-server", f"addr.type=unix,addr.path={address},{listen}",
                     *disk_args(disk or raw(tmp), "raw"), listen=None)
    d.nbd_address = address
    return d


@pytest.fixture
def x509(daemon, tmp, pki):
    """A daemon; after the test it must still serve a client who is in order, and end cleanly."""
    d = start(daemon, tmp, *pki.x509_object())
    yield d
    assert d.alive(), d.stderr()
    assert tools.run("nbdinfo", "--size", pki.uri(d)).stdout == f"{SIZE}\n"


@pytest.fixture
def psk(daemon, tmp, pki):
    d = start(daemon, tmp, *pki.psk_object())
    yield d
    assert tools.run("nbdinfo", "--size", pki.uri(d, "psk", "alice")).stdout == f"{SIZE}\n"


def connect(d):
    c = pki_module.Conn(d.nbd_address)
    d.clients.append(c)
    c.greet()
    return c


def acknowledged(d):
    """A connection whose next byte has to be TLS."""
    c = connect(d)
    c.must(OPT_STARTTLS)
    return c


class Memory:
    """A TLS client whose bytes go where a test wants them."""

    def __init__(self, context):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.done = False

    def step(self, received=b""):
        """What the client says next."""
        self.incoming.write(received)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
            self.done = True
        return self.outgoing.read()

    def run(self, c):
        """The whole handshake, on C; what the client said: [bytes, ...]."""
        said, received = [], b""
        while not self.done:
            said.append(self.step(received))
            c.send(said[-1])
            received = b"" if self.done else c.sock.recv(65536)
        return said


def hello(pki):
    return Memory(pki.context()).step()


def says_no_more(c):
    """Alerts may come, then the end; no NBD."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := c.sock.recv(65536):
            got += data
    assert struct.pack(">Q", OPT_REPLY_MAGIC) not in got
    return got


# --- before the handshake


@pytest.mark.merino_only
def test_bytes_behind_starttls_in_one_segment(x509):
    """They would be read as the client's own after the handshake (CVE-2011-0411 and its many children)."""
    c = connect(x509)
    option = OPTS_MAGIC + struct.pack(">II", OPT_STARTTLS, 0)
    c.send(option + OPTS_MAGIC + struct.pack(">II", OPT_LIST, 0))
    assert says_no_more(c) == b""


@pytest.mark.merino_only
def test_a_hello_behind_starttls_in_one_segment(x509, pki):
    """The same, even when it is what should come after the answer."""
    c = connect(x509)
    c.send(OPTS_MAGIC + struct.pack(">II", OPT_STARTTLS, 0) + hello(pki))
    assert says_no_more(c) == b""


@pytest.mark.parametrize("option", [OPT_LIST, OPT_GO, OPT_ABORT, OPT_EXPORT_NAME])
def test_plaintext_after_starttls(x509, option):
    c = acknowledged(x509)
    c.send_option(option, b"disk")
    c.sock.shutdown(socket.SHUT_WR)
    says_no_more(c)


@pytest.mark.merino_only                                 # QEMU hangs up
def test_starttls_with_a_payload(x509, pki):
    c = connect(x509)
    assert [r.type for r in c.option(OPT_STARTTLS, b"now!")] == [REP_ERR_INVALID]
    assert c.starttls(pki.context()).enter_greeted("disk").read(0, 512) == DATA[:512]


def test_starttls_twice(x509, pki):
    c = connect(x509).starttls(pki.context())
    assert [r.type for r in c.option(OPT_STARTTLS)] == [REP_ERR_INVALID]
    assert c.enter_greeted("disk").read(0, 512) == DATA[:512]


def test_starttls_without_fixed_newstyle(x509):
    c = pki_module.Conn(x509.nbd_address)
    c.greet(NO_ZEROES)
    c.offer(OPTS_MAGIC + struct.pack(">II", OPT_STARTTLS, 0))
    assert c.ends()


GARBAGE = {
    "noise": bytes(range(256)) * 20,
    "record-too-long": b"\x16\x03\x01\xff\xff" + bytes(70000),
    "message-too-long": b"\x16\x03\x01\x40\x00\x01\xff\xff\xff" + bytes(1 << 20),
    "sslv2": b"\x80\x2e\x01\x03\x01",
    "alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "data": b"\x17\x03\x03\x00\x10" + bytes(16),
    "ccs": b"\x14\x03\x03\x00\x01\x01" * 1000,
    "warnings": b"\x15\x03\x03\x00\x02\x01\x5a" * 20000,
    "empty-records": b"\x16\x03\x01\x00\x00" * 20000,
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE)
def test_garbage_instead_of_a_hello(x509, data):
    c = acknowledged(x509)
    c.offer(data)
    with contextlib.suppress(OSError):                   # not connected any more
        c.sock.shutdown(socket.SHUT_WR)
    says_no_more(c)


def test_a_hello_that_was_tampered_with(x509, pki):
    """One bit at each of many places: an alert or the wait for more, never a session."""
    for at in range(0, 200, 7):
        c, data = acknowledged(x509), bytearray(hello(pki))
        data[at] ^= 0x10
        c.send(data)
        c.sock.shutdown(socket.SHUT_WR)
        says_no_more(c)


# --- who is not who


def handshake_fails(d, context):
    """During the handshake, or at the first word after it: TLS 1.3's clients are done before the server is."""
    c = connect(d)
    try:
        c.starttls(context)
        c.send_option(OPT_LIST)
        assert c.ends()
    except pki_module.GONE as e:
        return getattr(e, "reason", None)


def only(context, version):
    context.minimum_version = context.maximum_version = version
    return context


VERSIONS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


@VERSIONS
@pytest.mark.parametrize("who", ["nobody", "stranger", "expired", "wrong-purpose"])
def test_certificates(x509, pki, who, version):
    if who == "wrong-purpose" and is_qsd():
        pytest.skip("QEMU lets a server's certificate in")
    handshake_fails(x509, only(pki.context(who), version))
    done = tools.run("nbdinfo", "--size", pki.uri(x509, who), check=False)
    assert done.returncode and not done.stdout           # 1, or SIGPIPE: libnbd leaves that to its programs


@pytest.mark.merino_only
def test_the_log_says_why(x509, pki):
    for who in "stranger", "expired", "nobody":
        handshake_fails(x509, pki.context(who))
    wait_until(lambda: x509.stderr().count("client refused") >= 3)
    log = x509.stderr()
    assert "issuer is unknown" in log and "expired" in log and log.count("client refused") == 3


@VERSIONS
def test_a_certificate_that_was_taken_back(daemon, tmp, pki, version):
    here = pki.certificate("s-crl", "server", "cn = localhost\n" + pki_module.NAMES)
    pki.revoke("other", into=here)
    d = start(daemon, tmp, *pki.x509_object(where="s-crl"))
    handshake_fails(d, only(pki.context("other"), version))
    assert tools.run("nbdinfo", "--size", pki.uri(d, "other"), check=False).returncode
    assert tools.run("nbdinfo", "--size", pki.uri(d, "client")).stdout == f"{SIZE}\n"


def test_no_certificate_where_none_is_asked_for(daemon, tmp, pki):
    d = start(daemon, tmp, *pki.x509_object(verify_peer="off"))
    assert connect(d).starttls(pki.context("nobody")).enter_greeted("disk").read(0, 512) == DATA[:512]


@pytest.mark.parametrize("who, user", [("psk-wrong", "alice"), ("psk-stranger", "mallory")])
def test_keys(psk, pki, who, user):
    done = tools.run("nbdinfo", "--size", pki.uri(psk, who, user), check=False)
    assert done.returncode and not done.stdout           # 1, or SIGPIPE: libnbd leaves that to its programs


def test_an_unknown_user_looks_like_a_wrong_key(psk, pki):
    """Nobody can find out who has a key."""
    told = [tools.run("nbdinfo", "--size", pki.uri(psk, who, user), check=False).stderr
            .replace(who, "FILE").replace(user, "USER") for who, user in
            (("psk-wrong", "alice"), ("psk-stranger", "mallory"))]
    assert told[0] == told[1] and "TLS" in told[0].upper()


def test_a_certificate_where_keys_are_wanted(psk, pki):
    handshake_fails(psk, pki.context())


@pytest.mark.merino_only                                 # QEMU 7.2 takes them
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("priority", [None, "NORMAL:+VERS-TLS1.0:+VERS-TLS1.1:%COMPAT"], ids=["default", "allowed"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=["1.0", "1.1"])
def test_old_versions(daemon, tmp, pki, version, priority):
    """The refusal is the server's: its alert says so.  No option allows them."""
    d = start(daemon, tmp, *pki.x509_object(**({"priority": priority} if priority else {})))
    context = only(pki.context(), version)
    context.set_ciphers("ALL:@SECLEVEL=0")
    assert handshake_fails(d, context) == "TLSV1_ALERT_PROTOCOL_VERSION"


# --- who stays, goes or hoards


@pytest.mark.merino_only
@pytest.mark.parametrize("stage", ["silent", "half-a-hello", "drip", "no-finish", "half-a-finish"])
def test_a_handshake_that_stalls_is_ended_in_time(daemon, tmp, pki, stage):
    """Who is in order comes in; on a busy machine a second may be too short for that, too."""
    d = start(daemon, tmp, *pki.x509_object(), listen="tls-creds=tls,handshake-max-seconds=1")

    def stalls():
        c, m = acknowledged(d), Memory(pki.context())
        first = m.step()
        if stage == "half-a-hello":
            c.send(first[:len(first) // 2])
        elif stage in ("no-finish", "half-a-finish"):
            c.send(first)
            if not (answer := c.sock.recv(65536)):
                raise nbdraw.Closed("too soon")
            last = m.step(answer)
            c.send(last[:len(last) // 2] if stage == "half-a-finish" else b"")
        return c, first

    def comes_so_far():
        with contextlib.suppress(*pki_module.GONE):
            return stalls()

    c, first = wait_until(comes_so_far)
    with contextlib.suppress(ConnectionError):
        for byte in first if stage == "drip" else b"":
            c.send(bytes([byte]))
            time.sleep(0.02)
    says_no_more(c)
    wait_until(lambda: tools.run("nbdinfo", "--size", pki.uri(d), check=False).stdout == f"{SIZE}\n")


def test_resets_at_every_stage(daemon, tmp, pki):
    """Reset by TCP after each of many bytes of what a client says; descriptors come back."""
    port = free_port()
    d = daemon.start(*pki.x509_object(),
                     "--nbd-server", f"addr.type=inet,addr.host=127.0.0.1,addr.port={port},tls-creds=tls",
                     *disk_args(raw(tmp), "raw"), listen=None)
    d.nbd_address = ("127.0.0.1", port)
    said = sum(len(f) for f in Memory(pki.context()).run(acknowledged(d)))
    d.close_clients()
    before = d.descriptors()
    for cut in range(0, said, max(1, said // 60)):
        c, m, received, left = acknowledged(d), Memory(pki.context()), b"", cut
        while left and not m.done:
            data = m.step(received)
            c.send(data[:left])
            left -= min(left, len(data))
            received = c.sock.recv(65536) if left and not m.done else b""
        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        c.close()
    wait_until(lambda: d.descriptors() <= before)
    assert tools.run("nbdinfo", "--size", pki.uri(d)).stdout == f"{SIZE}\n"


def test_the_end_without_a_good_bye(x509, pki):
    """A connection that is cut in the middle of a write, under TLS: nothing is written of it."""
    c = connect(x509).starttls(pki.context()).enter_greeted("disk")
    c.write(0, b"a" * 8192)
    c.send(c.pack(CMD_WRITE, 0, 65536, 0, b"b" * 4096))
    c.sock.shutdown(socket.SHUT_RDWR)
    c.close()
    assert connect(x509).starttls(pki.context()).enter_greeted("disk").read(0, 8192) == b"a" * 8192


def test_records_that_were_tampered_with(x509, pki):
    c, m = acknowledged(x509), Memory(pki.context())
    m.run(c)
    m.tls.write(OPTS_MAGIC + struct.pack(">II", OPT_LIST, 0))
    record = bytearray(m.outgoing.read())
    record[-1] ^= 1
    c.send(record)
    assert len(says_no_more(c)) < 1000                   # an alert


def hoard(d, pki, reads):
    """A client that asks and does not read."""
    c = connect(d).starttls(pki.context()).enter_greeted("disk")
    c.send(b"".join(c.pack(CMD_READ, 0, 32 << 20) for _ in range(reads)))
    return c


@pytest.mark.merino_only
def test_clients_that_do_not_read(daemon, tmp, pki):
    """8 of them, 32 reads of 32 MiB each: what they hold is bounded, and others are served."""
    path = tmp / "big.raw"
    path.write_bytes(os.urandom(1 << 20) * 32)
    d = start(daemon, tmp, *pki.x509_object(), disk=str(path))
    reader = connect(d).starttls(pki.context()).enter_greeted("disk")
    reader.read(0, 1 << 20)
    before = d.memory()
    for _ in range(8):
        hoard(d, pki, 32)
    end, last = time.monotonic() + HANG, -1
    while time.monotonic() < end and last != (last := d.memory()):
        time.sleep(0.5)
    assert d.memory() - before < 8 * (13 << 20) + (16 << 20)
    assert len(reader.read(0, 1 << 20)) == 1 << 20


@pytest.mark.merino_only
def test_an_export_with_stuck_clients_can_be_removed(daemon, tmp, pki):
    path = tmp / "big.raw"
    path.write_bytes(os.urandom(1 << 20) * 32)
    d = start(daemon, tmp, *pki.x509_object(), disk=str(path))
    for _ in range(4):
        hoard(d, pki, 4)
    time.sleep(0.2)
    d.qmp.cmd("block-export-del", id="disk", mode="hard")
    d.qmp.cmd("nbd-server-stop")


@pytest.mark.merino_only
def test_handshakes_cost_little_memory(daemon, tmp, pki):
    """64 KiB each at most, as many as there may be."""
    d = start(daemon, tmp, *pki.x509_object(), listen="tls-creds=tls,max-connections=0,handshake-max-seconds=50")
    tools.run("nbdinfo", "--size", pki.uri(d))
    before, said = d.memory(), hello(pki)
    for _ in range(200):
        acknowledged(d).send(said)
    for c in d.clients:
        c.sock.recv(65536)                               # the server's answer: its session is there
    assert d.memory() - before < 200 * (64 << 10)
