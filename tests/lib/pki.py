# SPDX-License-Identifier: BSD-3-Clause
"""Certificates and keys for tests of TLS, made by certtool; and an NBD client that speaks TLS by Python's OpenSSL.

Directories below one root, each as QEMU, libvirt and libnbd want them: server; client (CN=vm1), other (CN=vm2),
stranger (signed by somebody else), expired, wrong-purpose (a server's), nobody (has ca-cert.pem only); psk (users alice
and bob), psk-wrong (another key for alice), psk-stranger (user mallory).
"""

import shutil
import ssl
import subprocess
import urllib.parse

from lib import nbdraw, tools
from lib.nbdproto import OPT_STARTTLS
from lib.patience import HANG

USUAL = "expiration_days = 3"
LONG_AGO = 'activation_date = "2020-01-01 00:00:00"\nexpiration_date = "2021-01-01 00:00:00"'
GONE = (ssl.SSLError, ConnectionError)       # what a client gets whom a server hangs up on
NAMES = "dns_name = localhost\nip_address = 127.0.0.1"


def certtool(*argv):
    subprocess.run([tools.need("certtool"), *map(str, argv)], check=True, capture_output=True, timeout=HANG)


class Pki:
    def __init__(self, root):
        self.root = root
        self.ca(root / "ca", "Test CA")
        self.ca(root / "ca2", "Another CA")
        self.certificate("server", "server", "cn = localhost\n" + NAMES)
        self.certificate("client", "client", "cn = vm1\norganization = Merino\ncountry = GB")
        self.certificate("other", "client", "cn = vm2\norganization = Merino\ncountry = GB")
        self.certificate("stranger", "client", "cn = vm1\norganization = Merino\ncountry = GB", ca="ca2")
        self.certificate("expired", "client", "cn = vm1", when=LONG_AGO)
        self.certificate("wrong-purpose", "client", "cn = vm1", purpose="server")
        self.directory("nobody")
        self.psk("psk", alice="00112233445566778899aabbccddeeff", bob="ff" * 32)
        self.psk("psk-wrong", alice="01" * 16)
        self.psk("psk-stranger", mallory="01" * 16)

    def directory(self, name, ca="ca"):
        (self.root / name).mkdir(exist_ok=True)
        shutil.copy(self.root / ca / "ca-cert.pem", self.root / name)
        return self.root / name

    def ca(self, path, name):
        path.mkdir()
        (path / "info").write_text(f'cn = "{name}"\nca\ncert_signing_key\ncrl_signing_key\n{USUAL}\n')
        certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", path / "ca-key.pem")
        certtool("--generate-self-signed", "--load-privkey", path / "ca-key.pem", "--template", path / "info",
                 "--outfile", path / "ca-cert.pem")

    def certificate(self, name, role, subject, ca="ca", when=USUAL, purpose=None, password=None):
        """NAME/ROLE-cert.pem and its key, signed by CA; ca-cert.pem beside it is always the first CA's."""
        here = self.directory(name)
        (here / "info").write_text(f"{subject}\ntls_www_{purpose or role}\nsigning_key\n{when}\n")
        secret = [f"--password={password}", "--pkcs8"] if password else []
        certtool("--generate-privkey", "--key-type=ecdsa", *secret, "--outfile", here / f"{role}-key.pem")
        certtool("--generate-certificate", "--load-ca-certificate", self.root / ca / "ca-cert.pem",
                 "--load-ca-privkey", self.root / ca / "ca-key.pem", "--load-privkey", here / f"{role}-key.pem",
                 *secret, "--template", here / "info", "--outfile", here / f"{role}-cert.pem")
        return here

    def revoke(self, name, into):
        """INTO/ca-crl.pem takes NAME's certificate back."""
        (self.root / "crl.info").write_text("crl_next_update = 3\ncrl_number = 1\n")
        certtool("--generate-crl", "--load-ca-certificate", self.root / "ca" / "ca-cert.pem", "--load-ca-privkey",
                 self.root / "ca" / "ca-key.pem", "--load-certificate", self.root / name / "client-cert.pem",
                 "--template", self.root / "crl.info", "--outfile", into / "ca-crl.pem")

    def psk(self, name, **keys):
        (self.root / name).mkdir()
        (self.root / name / "keys.psk").write_text("".join(f"{user}:{key}\n" for user, key in keys.items()))

    def x509_object(self, name="tls", where="server", **options):
        return self.object("tls-creds-x509", name, dir=self.root / where, endpoint="server", **options)

    def psk_object(self, name="tls", **options):
        return self.object("tls-creds-psk", name, dir=self.root / "psk", endpoint="server", **options)

    @staticmethod
    def object(kind, name, **options):
        """--object and its value."""
        return ["--object", f"{kind},id={name}" + "".join(f",{k.replace('_', '-')}={v}" for k, v in options.items())]

    def context(self, who="client", verify=True):
        """For Python's ssl: WHO's certificate, if it has one, and the CA that must have signed the server's."""
        c = ssl.create_default_context(cafile=str(self.root / "ca" / "ca-cert.pem"))
        c.check_hostname = verify
        if (self.root / who / "client-cert.pem").exists():
            c.load_cert_chain(self.root / who / "client-cert.pem", self.root / who / "client-key.pem")
        return c

    def uri(self, daemon, who="client", user=None, name="disk"):
        """For libnbd and its tools; WHO is a directory of certificates or of keys."""
        keys = self.root / who / "keys.psk"
        query = {"tls-psk-file": keys} if keys.exists() else {"tls-certificates": self.root / who}
        at = f"{user}@" if user else ""
        if isinstance(daemon.nbd_address, str):
            return f"nbds+unix://{at}/{name}?" + urllib.parse.urlencode({"socket": daemon.nbd_address, **query}, safe="/")
        # A name that its certificate has.
        return f"nbds://{at}localhost:{daemon.nbd_address[1]}/{name}?" + urllib.parse.urlencode(query, safe="/")


class Conn(nbdraw.Conn):
    """nbdraw's client, which can go on under TLS."""

    tls = False

    def starttls(self, context):
        self.must(OPT_STARTTLS)
        self.wrap(context)
        return self

    def wrap(self, context):
        self.sock = context.wrap_socket(self.sock, server_hostname="localhost")
        self.tls = True

    def enter_greeted(self, name):
        self.negotiate_structured()
        self.go(name)
        return self

    def pump(self, data):
        if self.tls:
            self.send(data)
        else:
            super().pump(data)

    def ends(self):
        """The server ends the connection, and says nothing of NBD any more; True, or TimeoutError."""
        try:
            return not self.buffer and self.sock.recv(1) == b""
        except GONE:
            return True
