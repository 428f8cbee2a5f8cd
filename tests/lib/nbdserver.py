# SPDX-License-Identifier: BSD-3-Clause
"""An NBD server that says what a test tells it to say, right or wrong.

A test makes a Server and overrides what it wants to go wrong: `read` and `status` are plain methods, and
`die_after` ends a connection in the middle.  One thread per connection; everything ends with close().
"""

import contextlib
import socket
import struct
import threading

FLAG_MULTI_CONN = 1 << 8
STATE_HOLE, STATE_ZERO = 1, 2
OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO, OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META = \
    1, 2, 3, 6, 7, 8, 9, 10
REP_ACK, REP_INFO, REP_META = 1, 3, 4
REP_ERR_UNSUP = 0x80000001
EIO = 5


class Gone(Exception):
    pass


class Server:
    """Serves DATA (bytes, or a size for zeroes).  CONTEXTS: names; extents come from status()."""

    def __init__(self, path, data, contexts=("base:allocation",), structured=True, multi_conn=True,
                 blocks=None, die_after=None):
        self.path, self.data, self.contexts, self.structured = str(path), data, list(contexts), structured
        self.size = data if isinstance(data, int) else len(data)
        self.multi_conn, self.blocks, self.die_after = multi_conn, blocks, die_after
        self.requests = []                    # (command, offset, length) of all connections
        self.connections = 0
        self.lock = threading.Lock()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(self.path)
        self.sock.listen(16)
        self.live = []
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.path}"

    def hang_up(self):
        """Nobody is let in any more: accept(2) goes on with a socket that was only closed."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def close(self):
        """No more connections, and the end of those there are: close() alone does not wake a thread that reads."""
        self.hang_up()
        for s in list(self.live):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- what tests override

    def read(self, offset, length):
        """What a READ is answered with: bytes, an errno, or a list of (offset, bytes) chunks."""
        return bytes(length) if isinstance(self.data, int) else self.data[offset:offset + length]

    def status(self, context, offset, length):
        """Extents [(length, flags)] of one context; None leaves the context out; an errno fails."""
        return [(length, 1 if context.startswith("qemu:") else 0)]

    def size_for(self, connection):
        return self.size

    def flags_for(self, connection):
        return 0

    # --- the protocol

    def accept(self):
        while True:
            try:
                s, _ = self.sock.accept()
            except OSError:
                return
            with self.lock:
                number = self.connections
                self.connections += 1
            self.live.append(s)
            threading.Thread(target=self.serve, args=(s, number), daemon=True).start()

    def serve(self, s, number):
        try:
            negotiated = self.handshake(s, number)
            if negotiated is not None:
                self.transmit(s, *negotiated)
        except (Gone, OSError):
            pass
        finally:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            s.close()

    def recv(self, s, n):
        out = b""
        while len(out) < n:
            got = s.recv(n - len(out))
            if not got:
                raise Gone
            out += got
        return out

    def handshake(self, s, number):
        """(structured, [contexts]) for the transmission, or None."""
        s.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        self.recv(s, 4)
        structured, chosen = False, []
        flags = 1 | (FLAG_MULTI_CONN if self.multi_conn else 0) | self.flags_for(number)
        size = self.size_for(number)
        while True:
            _, option, length = struct.unpack(">8sII", self.recv(s, 16))
            data = self.recv(s, length)

            def reply(kind, payload=b"", option=option):
                s.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(payload)) + payload)

            if option == OPT_STRUCTURED and self.structured:
                structured = True
                reply(REP_ACK)
            elif option in (OPT_SET_META, OPT_LIST_META) and structured:
                asked = self.queries(data)
                names = [c for c in self.contexts if c in asked or (option == OPT_LIST_META and not asked)]
                if option == OPT_SET_META:
                    chosen = names
                for c in names:
                    reply(REP_META, struct.pack(">I", self.contexts.index(c) + 1) + c.encode())
                reply(REP_ACK)
            elif option in (OPT_INFO, OPT_GO):
                reply(REP_INFO, struct.pack(">HQH", 0, size, flags))
                if self.blocks:
                    reply(REP_INFO, struct.pack(">HIII", 3, *self.blocks))
                reply(REP_ACK)
                if option == OPT_GO:
                    return structured, chosen
            elif option == OPT_EXPORT_NAME:
                s.sendall(struct.pack(">QH", size, flags))
                return structured, chosen
            elif option == OPT_ABORT:
                reply(REP_ACK)
                return None
            else:
                reply(REP_ERR_UNSUP)

    def queries(self, data):
        n, = struct.unpack(">I", data[:4])
        at = 4 + n
        count, = struct.unpack(">I", data[at:at + 4])
        at += 4
        out = []
        for _ in range(count):
            n, = struct.unpack(">I", data[at:at + 4])
            out.append(data[at + 4:at + 4 + n].decode())
            at += 4 + n
        return out

    def chunk(self, s, cookie, kind, payload, done=False):
        s.sendall(struct.pack(">IHHQI", 0x668e33ef, int(done), kind, cookie, len(payload)) + payload)

    def transmit(self, s, structured, contexts):
        while True:
            _, _, cmd, cookie, offset, length = struct.unpack(">IHHQQI", self.recv(s, 28))
            with self.lock:
                self.requests.append((cmd, offset, length))
                if cmd == 2 or (self.die_after is not None and len(self.requests) > self.die_after):
                    raise Gone
            if cmd == 0:
                self.answer_read(s, cookie, structured, offset, self.read(offset, length))
            elif cmd == 7:
                self.answer_status(s, cookie, contexts, offset, length)
            else:
                self.chunk(s, cookie, 0x8001, struct.pack(">IH", 22, 0), True)

    def answer_read(self, s, cookie, structured, offset, answer):
        if isinstance(answer, int):
            if structured:
                self.chunk(s, cookie, 0x8001, struct.pack(">IH", answer, 0), True)
            else:
                s.sendall(struct.pack(">IIQ", 0x67446698, answer, cookie))
            return
        if not structured:
            s.sendall(struct.pack(">IIQ", 0x67446698, 0, cookie) + answer)
            return
        for at, data in answer if isinstance(answer, list) else [(offset, answer)]:
            self.chunk(s, cookie, 1, struct.pack(">Q", at) + data)
        self.chunk(s, cookie, 0, b"", True)

    def answer_status(self, s, cookie, contexts, offset, length):
        answers = {c: self.status(c, offset, length) for c in contexts}
        for c, extents in answers.items():
            if isinstance(extents, int):
                self.chunk(s, cookie, 0x8001, struct.pack(">IH", extents, 0), True)
                return
        for c, extents in answers.items():
            if extents is not None:
                payload = struct.pack(">I", self.contexts.index(c) + 1)
                payload += b"".join(struct.pack(">II", n, f) for n, f in extents)
                self.chunk(s, cookie, 5, payload)
        self.chunk(s, cookie, 0, b"", True)
