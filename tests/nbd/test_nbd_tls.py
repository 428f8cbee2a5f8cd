# SPDX-License-Identifier: BSD-3-Clause
"""TLS as it should be: certificates, keys, modes, several listeners, and who may come in."""

import contextlib
import json
import os
import socket
import ssl
import struct
import subprocess
import threading

import nbd
import pytest

from lib import pki as pki_module, tools
from lib.daemon import DidNotStart, disk_args, is_qsd, program
from lib.nbdproto import *                               # noqa: F403
from lib.patience import HANG, wait_until
from lib.smalldisk import DATA, SIZE, raw


def start(daemon, tmp, *objects, listen="tls-creds=tls", **kw):
    """A daemon with one unix listener; LISTEN: its further members."""
    address = str(tmp / "nbds")
    d = daemon.start(*objects, "--nbd-server", f"addr.type=unix,addr.path={address},{listen}",
                     *disk_args(raw(tmp), "raw"), listen=None, **kw)
    d.nbd_address = address
    return d


def connect(d, greet=True):
    c = pki_module.Conn(d.nbd_address)
    d.clients.append(c)
    if greet:
        c.greet()
    return c


def enter(d, context):
    return connect(d).starttls(context).enter_greeted("disk")


def libnbd(uri):
    h = nbd.NBD()
    h.set_uri_allow_local_file(True)
    h.connect_uri(uri)
    return h


@pytest.fixture
def x509(daemon, tmp, pki):
    return start(daemon, tmp, *pki.x509_object())


@pytest.fixture
def psk(daemon, tmp, pki):
    return start(daemon, tmp, *pki.psk_object())


# --- data


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_certificates(x509, pki, version):
    context = pki.context()
    context.minimum_version = context.maximum_version = version
    c = enter(x509, context)
    assert c.sock.version() == {ssl.TLSVersion.TLSv1_2: "TLSv1.2", ssl.TLSVersion.TLSv1_3: "TLSv1.3"}[version]
    assert c.size == SIZE and c.read(0, SIZE) == DATA + bytes(SIZE - len(DATA))
    c.write(4096, b"x" * 5000)
    c.flush()
    assert c.read(4000, 6000) == DATA[4000:4096] + b"x" * 5000 + DATA[9096:10000]
    assert c.disconnect()


def test_key(psk, pki):
    for user in "alice", "bob":
        h = libnbd(pki.uri(psk, "psk", user))
        assert h.get_tls_negotiated() and h.pread(4096, 0) == DATA[:4096]
        h.shutdown()


@pytest.mark.parametrize("sizes", [[1], [28, 512, 16384, 16385, 65536], [1 << 20], [3 << 20]])
def test_writes_of_all_sizes_arrive(psk, pki, sizes):
    """Payloads that end inside records and records that end inside requests."""
    h, at = libnbd(pki.uri(psk, "psk", "alice")), 0
    for n in sizes:
        data = os.urandom(n)
        h.pwrite(data, at)
        assert h.pread(n, at) == data
        at += n
    h.shutdown()


def test_requests_in_flight(psk, pki):
    """Many replies, gathered into records; each must be its own."""
    h = libnbd(pki.uri(psk, "psk", "alice"))
    buffers = [(i * 4096, nbd.Buffer(4096)) for i in range(256)]
    for at, b in buffers:
        h.aio_pread(b, at)
        while h.aio_in_flight() > 100:
            h.poll(-1)
    while h.aio_in_flight():
        h.poll(-1)
    assert all(b.to_bytearray() == DATA[at:at + 4096] for at, b in buffers)
    h.shutdown()


def test_a_client_that_wants_short_records(x509, pki):
    """OpenSSL's s_client can ask for records of 512 bytes; it is put between two halves of our client."""
    c = connect(x509)
    c.must(OPT_STARTTLS)
    ours, theirs = socket.socketpair()
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    proc = subprocess.Popen(
        [tools.need("openssl"), "s_client", "-quiet", "-maxfraglen", "512", "-connect", f"127.0.0.1:{port}",
         "-CAfile", pki.root / "ca" / "ca-cert.pem", "-cert", pki.root / "client" / "client-cert.pem",
         "-key", pki.root / "client" / "client-key.pem"], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
    theirs.close()
    middle, _ = listening.accept()
    longest = []
    threads = [threading.Thread(target=relay, args=(middle, c.sock, None), daemon=True),
               threading.Thread(target=relay, args=(c.sock, middle, longest), daemon=True)]
    for t in threads:
        t.start()
    try:
        d = pki_module.Conn.__new__(pki_module.Conn)
        d.__dict__.update(c.__dict__, sock=ours, buffer=bytearray(), tls=True)
        ours.settimeout(HANG)
        d.enter_greeted("disk")
        assert d.read(0, 1 << 20) == DATA
        assert longest and max(longest) <= 512 + 64
    finally:
        proc.kill()
        proc.wait()
        for s in ours, middle, listening:
            s.close()


def relay(source, sink, lengths):
    """Bytes from one socket to the other; LENGTHS gets those of the TLS records of application data."""
    pending = b""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
            if lengths is None:
                continue
            pending += data                              # records: type, version, length
            while len(pending) >= 5 and len(pending) >= 5 + (n := struct.unpack(">H", pending[3:5])[0]):
                if pending[0] == 23:
                    lengths.append(n)
                pending = pending[5 + n:]
    except OSError:
        pass


@pytest.mark.merino_only
def test_the_fast_cipher_is_chosen(psk, pki, tmp):
    """With a PSK clients put ChaCha20 before AES-128-GCM, and cannot use AES-256-GCM: our order counts."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp / "relay"))
    listening.listen()
    seen = []

    def serve():
        client, _ = listening.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(psk.nbd_address)
        threading.Thread(target=relay, args=(client, server, None), daemon=True).start()
        with contextlib.suppress(ConnectionError):       # nbdinfo goes when it knows enough
            while data := server.recv(65536):
                seen.append(data)
                client.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    tools.run("nbdinfo", "--size", pki.uri(psk, "psk", "alice").replace("/nbds&", "/relay&"))
    hello = b"".join(seen)[18 + 20:]                     # behind greeting and ACK: record, ServerHello
    assert hello[:1] == b"\x16" and hello[5] == 2
    session = hello[5 + 4 + 2 + 32]
    at = 5 + 4 + 2 + 32 + 1 + session
    assert hello[at:at + 2] == b"\x13\x01"               # TLS_AES_128_GCM_SHA256
    listening.close()


# --- modes and listeners


def refused(c, option, data=b""):
    replies = c.option(option, data)
    assert len(replies) == 1
    return replies[0].type


@pytest.mark.parametrize("option, data", [
    (OPT_LIST, b""), (OPT_STRUCTURED_REPLY, b""), (OPT_INFO, b"\0\0\0\x04disk\0\0"), (OPT_GO, b"\0\0\0\x04disk\0\0"),
    (OPT_SET_META, b"\0\0\0\x04disk\0\0\0\0"), (OPT_EXTENDED_HEADERS, b""), (0x7777, b"x" * 5000), (0x7777, bytes(1 << 20))],
    ids=lambda v: len(v) if isinstance(v, bytes) else v)
def test_nothing_is_told_before_tls(x509, pki, option, data):
    """The payload is taken along, so the next option is understood."""
    c = connect(x509)
    assert refused(c, option, data) == REP_ERR_TLS_REQD
    assert refused(c, OPT_LIST) == REP_ERR_TLS_REQD
    assert c.starttls(pki.context()).enter_greeted("disk").read(0, 512) == DATA[:512]


def test_export_name_before_tls_ends_the_connection(x509):
    c = connect(x509)
    c.send_option(OPT_EXPORT_NAME, b"disk")
    assert c.ends()


def test_abort_before_tls(x509):
    c = connect(x509)
    c.send_option(OPT_ABORT)
    assert c.option_reply().type in (REP_ACK, REP_ERR_TLS_REQD)
    assert c.ends()


def test_clients_without_tls_are_told_why(x509):
    done = tools.run("qemu-img", "info", "--image-opts",
                     f"driver=nbd,export=disk,server.type=unix,server.path={x509.nbd_address}", check=False)
    assert done.returncode and "TLS" in done.stderr


@pytest.mark.merino_only
def test_tls_on_serves_both(daemon, tmp, pki):
    d = start(daemon, tmp, *pki.x509_object(), listen="tls-creds=tls,tls=on")
    assert connect(d).enter_greeted("disk").read(0, 512) == DATA[:512]
    assert enter(d, pki.context()).read(0, 512) == DATA[:512]
    assert connect(d).must(OPT_LIST)


@pytest.mark.merino_only
def test_what_was_negotiated_before_tls_is_forgotten(daemon, tmp, pki):
    """Structured replies and contexts, which somebody in the middle may have asked for."""
    d = start(daemon, tmp, *pki.x509_object(), listen="tls-creds=tls,tls=on")
    c = connect(d)
    c.negotiate_structured()
    assert c.meta(OPT_SET_META, "disk", ["base:allocation"])
    c.starttls(pki.context())
    c.structured, c.contexts = False, {}
    c.go("disk")
    assert not c.flags & SEND_DF
    assert c.read(0, 65536) == DATA[:65536]              # which insists on a simple reply
    assert c.call(CMD_BLOCK_STATUS, 0, 4096).error == EINVAL


@pytest.mark.merino_only
def test_extended_headers_before_tls_are_forgotten(daemon, tmp, pki):
    d = start(daemon, tmp, *pki.x509_object(), listen="tls-creds=tls,tls=on")
    c = connect(d)
    c.must(OPT_EXTENDED_HEADERS)
    c.starttls(pki.context()).enter_greeted("disk")
    assert c.read(0, 4096) == DATA[:4096]


@pytest.mark.merino_only
def test_each_listener_has_its_own_credentials(daemon, tmp, pki):
    where = {name: str(tmp / name) for name in ("x", "p", "plain")}
    d = daemon.start(*pki.x509_object("x"), *pki.psk_object("p"),
                     "--nbd-server", f"addr.type=unix,addr.path={where['x']},tls-creds=x",
                     "--nbd-server", f"addr.type=unix,addr.path={where['p']},tls-creds=p",
                     "--nbd-server", f"addr.type=unix,addr.path={where['plain']}",
                     *disk_args(raw(tmp), "raw"), listen=None)
    for name, uri in [("x", lambda: pki.uri(d)), ("p", lambda: pki.uri(d, "psk", "alice"))]:
        d.nbd_address = where[name]
        assert tools.run("nbdinfo", "--size", uri()).stdout == f"{SIZE}\n"
    for name, uri in [("p", lambda: pki.uri(d)), ("x", lambda: pki.uri(d, "psk", "alice")),
                      ("plain", lambda: pki.uri(d))]:
        d.nbd_address = where[name]
        assert tools.run("nbdinfo", "--size", uri(), check=False).returncode
    d.nbd_address = where["plain"]
    assert tools.run("nbdinfo", "--size", d.uri()).stdout == f"{SIZE}\n"


@pytest.mark.merino_only
def test_the_uri_that_is_printed_says_tls(daemon, tmp, pki):
    d = daemon.start(*pki.psk_object(), "--nbd-server", f"addr.type=unix,addr.path={tmp}/s,tls-creds=tls",
                     "-f", "raw", raw(tmp), listen=None)
    assert f"nbds+unix:///?socket={tmp}/s" in d.stderr().splitlines()


def test_by_qmp(daemon, tmp, pki):
    d = daemon.start("--blockdev", f"driver=file,node-name=n,filename={raw(tmp)}", listen=None)
    d.qmp.cmd("object-add", {"qom-type": "tls-creds-x509", "id": "tls", "endpoint": "server",
                             "dir": str(pki.root / "server"), "verify-peer": True})
    d.nbd_address = str(tmp / "s")
    d.qmp.cmd("nbd-server-start", {"addr": {"type": "unix", "data": {"path": d.nbd_address}}, "tls-creds": "tls"})
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": "e", "node-name": "n", "name": "disk"})
    assert enter(d, pki.context()).read(0, 512) == DATA[:512]
    if not os.environ.get("MERINOD", "").endswith("qemu-storage-daemon"):
        assert d.qmp.error("object-del", id="tls")[1] == "object 'tls' is in use, can not be deleted"
    d.qmp.cmd("nbd-server-stop")
    d.qmp.cmd("object-del", id="tls")


# --- who may come in


DN = "C=GB,O=Merino,CN=vm1"


@pytest.mark.parametrize("authz, allowed", [
    (["authz-simple,id=may,identity=" + DN.replace(",", ",,")], ["client"]),
    (["authz-list,id=may,rules.0.match=" + DN.replace(",", ",,") + ",rules.0.policy=allow"], ["client"]),
    (["authz-list,id=may,rules.0.match=*CN=vm?*,rules.0.format=glob,rules.0.policy=allow"], ["client", "other"]),
    (["authz-list,id=may,policy=allow,rules.0.match=*vm1*,rules.0.format=glob,rules.0.policy=deny"], ["other"]),
    (["authz-list,id=may"], []),
    (["authz-list,id=may,rules.0.match=CN=vm*,rules.0.policy=allow"], []),
])
def test_certificates_that_may(daemon, tmp, pki, authz, allowed):
    d = start(daemon, tmp, *pki.x509_object(), "--object", *authz, listen="tls-creds=tls,tls-authz=may")
    for who in "client", "other":
        if who in allowed:
            assert enter(d, pki.context(who)).read(0, 512) == DATA[:512]
            continue
        c = connect(d)
        try:
            c.starttls(pki.context(who))
        except pki_module.GONE:
            continue
        assert c.ends()
    if set(allowed) != {"client", "other"} and not is_qsd():
        wait_until(lambda: "not authorised" in d.stderr())


@pytest.mark.merino_only
def test_users_of_keys_that_may(daemon, tmp, pki):
    """QEMU does not ask its authz object about a PSK."""
    d = start(daemon, tmp, *pki.psk_object(), "--object", "authz-simple,id=may,identity=bob",
              listen="tls-creds=tls,tls-authz=may")
    assert tools.run("nbdinfo", "--size", pki.uri(d, "psk", "bob")).stdout == f"{SIZE}\n"
    assert tools.run("nbdinfo", "--size", pki.uri(d, "psk", "alice"), check=False).returncode


@pytest.mark.merino_only
@pytest.mark.parametrize("shut_in", [False, True])       # without a monitor it sees the files that it needs only
def test_rules_in_a_file_follow_it(daemon, tmp, pki, shut_in, tmp_path_factory):
    etc = tmp_path_factory.mktemp("etc")

    def rules(*names):
        new = etc / "new"
        new.write_text(json.dumps({"rules": [{"match": n, "policy": "allow"} for n in names]}))
        new.rename(etc / "rules")

    def may(user):
        return tools.run("nbdinfo", "--size", pki.uri(d, "psk", user), check=False).returncode == 0

    rules("alice")
    d = start(daemon, tmp, *pki.psk_object(), "--object", f"authz-listfile,id=may,filename={etc}/rules",
              listen="tls-creds=tls,tls-authz=may", monitor=not shut_in)
    assert may("alice") and not may("bob")
    rules("bob")
    assert may("bob") and not may("alice")
    (etc / "rules").write_text("{")
    assert not may("alice") and not may("bob")
    os.unlink(etc / "rules")
    assert not may("alice") and not may("bob")
    rules("alice", "bob")
    assert may("alice") and may("bob")


# --- what cannot be meant


def fails(*argv):
    done = subprocess.run([program(), *argv], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.merino_only
@pytest.mark.parametrize("listen, text", [
    ("tls=on", "tls=on needs tls-creds"),
    ("tls-creds=tls,tls=maybe", "Parameter 'tls' does not accept value 'maybe'"),
    ("tls-creds=nope", "No TLS credentials with id 'nope'"),
    ("tls-creds=may", "Object with id 'may' is not TLS credentials"),
    ("tls-creds=for-clients", "Expected TLS credentials for a server endpoint"),
    ("tls-authz=may", "TLS authorization is not supported without tls-creds"),
    ("tls-creds=tls,tls-authz=nope", "Cannot find QAuthZ object ID nope"),
    ("tls-creds=tls,tls-authz=tls", "Object 'tls' is not a QAuthZ subclass"),
    ("tls-creds=tls,tls-authz=may,tls=on", "tls-authz needs tls=require"),
    ("tls-creds=anybody,tls-authz=may", "tls-authz needs credentials with verify-peer=on"),
])
def test_listeners_that_are_refused(tmp, pki, listen, text):
    assert text in fails(*pki.x509_object(), *pki.x509_object("anybody", verify_peer="off"),
                         *pki.object("tls-creds-psk", "for-clients", dir=pki.root / "psk", username="alice"),
                         "--object", "authz-simple,id=may,identity=x",
                         "--nbd-server", f"addr.type=unix,addr.path={tmp}/s,{listen}")
    assert not (tmp / "s").exists()


def made(daemon, *argv):
    try:
        daemon.start(*argv, listen=None)
    except DidNotStart as e:
        return e.stderr
    return "it was made"


@pytest.mark.merino_only                                 # a purpose that is not critical
def test_certificates_that_are_refused_at_once(daemon, pki):
    """Each before a client can see it; sanity-check=off lets some of them through."""
    def server(name, **kw):
        return pki.certificate(name, "server", "cn = localhost", **kw)

    server("s-expired", when=pki_module.LONG_AGO)
    assert "has expired" in made(daemon, *pki.x509_object(where="s-expired"))
    server("s-foreign", ca="ca2")
    assert "hasn't got a known issuer" in made(daemon, *pki.x509_object(where="s-foreign"))
    server("s-purpose", purpose="client")
    assert "purpose does not allow" in made(daemon, *pki.x509_object(where="s-purpose"))
    assert "it was made" in made(daemon, *pki.x509_object(where="s-purpose", sanity_check="off"))
    here = server("s-no-ca")
    (here / "server-cert.pem").rename(here / "ca-cert.pem")
    assert "server-cert.pem: No such file" in made(daemon, *pki.x509_object(where="s-no-ca"))
    here = server("s-key")
    (here / "server-key.pem").write_bytes((pki.root / "server" / "server-key.pem").read_bytes())
    assert made(daemon, *pki.x509_object(where="s-key")) != "it was made"
    assert made(daemon, *pki.x509_object(where="nope")).count("Unable to access credentials")


def test_a_key_with_a_password(daemon, tmp, pki):
    pki.certificate("s-locked", "server", "cn = localhost\n" + pki_module.NAMES, password="open sesame")
    assert made(daemon, *pki.x509_object(where="s-locked")) != "it was made"
    (tmp / "password").write_text("open sesame")
    d = start(daemon, tmp, "--object", f"secret,id=pw,file={tmp}/password",
              *pki.x509_object(where="s-locked", passwordid="pw"))
    assert enter(d, pki.context()).read(0, 512) == DATA[:512]


@pytest.mark.merino_only
@pytest.mark.parametrize("text, error", [
    ("", "there are no keys"), ("alice", "line 1 is not"), ("a:00\n\nalice:0g\n", "line 3 is not"),
    (":00", "line 1 is not"), ("a:000", "line 1 is not"), ("a:", "line 1 is not"), ("#zz:00", "line 1 is not")])
def test_key_files_that_are_refused(tmp, text, error):
    (tmp / "keys.psk").write_text(text)
    assert error in fails("--object", f"tls-creds-psk,id=tls,dir={tmp},endpoint=server")


@pytest.mark.merino_only
def test_a_priority_that_is_nonsense(pki):
    assert "Unable to set TLS session priority" in fails(*pki.psk_object(priority="NORMAL:+NONSENSE"))


@pytest.mark.merino_only
def test_keys_that_others_can_read_are_warned_of(daemon, tmp):
    (tmp / "keys.psk").write_text("alice:00\n")
    (tmp / "keys.psk").chmod(0o644)
    d = daemon.start("--object", f"tls-creds-psk,id=tls,dir={tmp},endpoint=server", listen=None)
    assert "other users can read" in d.stderr()
