# SPDX-License-Identifier: BSD-3-Clause
"""Foreign clients of ours and our clients of foreign servers, under TLS, with certificates and with keys."""

import os
import socket
import subprocess
import time

import pytest

from lib import layered, pattern, tools
from lib.daemon import ROOT, die_with_parent, disk_args, free_port
from lib.patience import HANG

CONTENT = layered.CONTENT


@pytest.fixture
def merino():
    return os.environ.get("MERINO") or str(ROOT / os.environ.get("BUILD", "build") / "merino")


@pytest.fixture(params=["x509", "psk"])
def mode(request):
    return request.param


@pytest.fixture
def served(daemon, tmp, pki, mode):
    """Our daemon on TCP, since certificates are for names; .tls_uri and .tls_options (of QEMU's programs) lead to it."""
    port, make = free_port(), {"x509": pki.x509_object, "psk": pki.psk_object}[mode]
    d = daemon.start(*make(), "--nbd-server", f"addr.type=inet,addr.host=localhost,addr.port={port},tls-creds=tls",
                     *disk_args(layered.make(tmp)), *disk_args(layered.make_empty(tmp),
                                                                name="empty"), listen=None)
    d.nbd_address = ("localhost", port)
    who = {"x509": "client", "psk": "psk"}[mode]
    d.tls_uri = lambda name="disk": pki.uri(d, who, "alice" if mode == "psk" else None, name)
    user = ",username=alice" if mode == "psk" else ""
    d.tls_object = ["--object", f"tls-creds-{mode},id=tls,dir={pki.root / who},endpoint=client{user}"]
    d.tls_image = lambda name="disk": (f"driver=nbd,server.type=inet,server.host=localhost,server.port={port},"
                                       f"export={name},tls-creds=tls")
    return d


def test_nbdinfo(served):
    out = tools.run("nbdinfo", served.tls_uri()).stdout
    assert "protocol: newstyle-fixed with TLS, using structured packets" in out
    assert "can_multi_conn: true" in out
    assert len(tools.run("nbdinfo", "--map", served.tls_uri()).stdout.splitlines()) > 1
    assert tools.run("nbdinfo", "--list", served.tls_uri()).stdout.count('export="') == 2


@pytest.mark.parametrize("options", [[], ["--synchronous"], ["--connections=4", "--requests=64"],
                                     ["--request-size=4096"]], ids=lambda o: "".join(o) or "default")
def test_nbdcopy(served, tmp, options):
    tools.run("nbdcopy", *options, served.tls_uri(), tmp / "out")
    assert pattern.first_difference((tmp / "out").read_bytes(), CONTENT) is None
    tools.run("nbdcopy", *options, tmp / "out", served.tls_uri("empty"))
    tools.run("nbdcopy", *options, served.tls_uri("empty"), tmp / "back")
    assert pattern.first_difference((tmp / "back").read_bytes(), CONTENT) is None


def test_nbdsh(served):
    out = tools.run("nbdsh", "-c", "h.set_uri_allow_local_file(True)", "-c", f"h.connect_uri('{served.tls_uri()}')",
                    "-c", "print(h.get_tls_negotiated(), h.get_size(), len(h.pread(1 << 20, 0)))").stdout
    assert out.split() == ["True", str(layered.SIZE), str(1 << 20)]


def test_qemu_img(served, tmp):
    tools.run("qemu-img", "convert", *served.tls_object, "--image-opts", "-O", "raw", served.tls_image(), tmp / "out")
    assert pattern.first_difference((tmp / "out").read_bytes(), CONTENT) is None
    tools.run("qemu-img", "convert", *served.tls_object, "--target-image-opts", "-n", "-f", "raw", tmp / "out",
              served.tls_image("empty"))
    served.stop()
    tools.check(tmp / "empty.qcow2")
    assert pattern.first_difference(tools.content(tmp / "empty.qcow2"), CONTENT) is None


def test_qemu_io(served):
    out = tools.run("qemu-io", *served.tls_object, "--image-opts", served.tls_image("empty"), "-c", "write -P 7 1M 3M",
                    "-c", "read -v -P 7 1M 512", "-c", "read -P 0 0 1M", "-c", "discard 1M 1M", "-c", "flush").stdout
    assert "failed" not in out


def test_merino_pull(served, tmp, merino):
    tools.run(merino, "pull", served.tls_uri(), tmp / "out.qcow2")
    assert pattern.first_difference(tools.content(tmp / "out.qcow2"), CONTENT) is None


# --- foreign servers


def wait_for(port, proc):
    end = time.monotonic() + HANG
    while time.monotonic() < end:
        assert proc.poll() is None
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("the server is not ready")


@pytest.fixture(params=["qemu-nbd", "nbdkit"])
def foreign(request, tmp, pki, mode):
    """A URI of a foreign server."""
    port, image = free_port(), tmp / "image.raw"
    image.write_bytes(CONTENT)
    if request.param == "qemu-nbd":
        where = {"x509": "server", "psk": "psk"}[mode]
        argv = ["qemu-nbd", "-t", "-b", "127.0.0.1", "-p", port, "-f", "raw", "-x", "disk", "-e", "8", "--tls-creds", "tls",
                "--object", f"tls-creds-{mode},id=tls,dir={pki.root / where},endpoint=server", image]
    else:
        keys = {"x509": [f"--tls-certificates={pki.root / 'server'}", "--tls-verify-peer"],
                "psk": [f"--tls-psk={pki.root / 'psk' / 'keys.psk'}"]}[mode]
        argv = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", port, "--tls=require", *keys, "file", image]
    proc = subprocess.Popen([tools.need(str(argv[0]))] + [str(a) for a in argv[1:]], preexec_fn=die_with_parent)
    try:
        wait_for(port, proc)

        class Server:
            nbd_address = ("localhost", port)
        yield pki.uri(Server, {"x509": "client", "psk": "psk"}[mode], "alice" if mode == "psk" else None)
    finally:
        proc.kill()
        proc.wait()


def test_merino_pull_from_others(foreign, tmp, merino):
    tools.run(merino, "pull", foreign, tmp / "out.qcow2")
    assert pattern.first_difference(tools.content(tmp / "out.qcow2"), CONTENT) is None


@pytest.mark.parametrize("who", ["stranger", "nobody"])
def test_merino_pull_is_told_when_it_is_refused(served, pki, tmp, merino, mode, who):
    if mode == "psk":
        pytest.skip("certificates only")
    done = tools.run(merino, "pull", pki.uri(served, who), tmp / "out.qcow2", check=False)
    assert done.returncode == 1 and "TLS" in done.stderr.upper() and not (tmp / "out.qcow2").exists()
