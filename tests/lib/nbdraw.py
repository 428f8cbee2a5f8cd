# SPDX-License-Identifier: BSD-3-Clause
"""An NBD client that does exactly what a test tells it, byte by byte.

It owns one socket.  Nothing is sent that the test did not ask for, so it serves hostile tests as well as plain
ones; what comes back is parsed strictly, and a server that breaks the protocol fails the test (ProtocolError).
"""

import contextlib
import dataclasses
import select
import socket
import struct

from lib.nbdproto import *                               # noqa: F401,F403
from lib.patience import HANG, connect


class ProtocolError(AssertionError):
    """The server sent what the specification does not allow."""


class Closed(ConnectionError):
    """The server ended the connection, by FIN or RST, where a test wanted more bytes."""


class OptionRefused(Exception):
    """An option was answered by an error reply; .type is NBD_REP_ERR_*, .text what the server said."""

    def __init__(self, kind, text):
        super().__init__(f"{kind:#x}: {text}")
        self.type, self.text = kind, text


@dataclasses.dataclass
class OptionReply:
    option: int
    type: int
    data: bytes


@dataclasses.dataclass
class Chunk:
    """One structured reply chunk, or a simple reply (kind is None)."""
    cookie: int
    kind: int | None
    flags: int
    data: bytes
    error: int = 0


@dataclasses.dataclass
class Answer:
    """All chunks that answer one request."""
    error: int = 0
    text: str = ""
    chunks: list = dataclasses.field(default_factory=list)

    def extents(self):
        """The block status chunks: {context id: [(length, flags), ...]}."""
        out = {}
        for c in self.chunks:
            if c.kind == CHUNK_STATUS:
                words = struct.unpack(f">{len(c.data) // 4}I", c.data)
                assert words[0] not in out, "two chunks for one context"
                out[words[0]] = list(zip(words[1::2], words[2::2]))
            elif c.kind == CHUNK_STATUS_EXT:
                context, count = struct.unpack(">II", c.data[:8])
                if not count or len(c.data) != 8 + 16 * count:
                    raise ProtocolError(f"{count} extents in {len(c.data)} bytes")
                words = struct.unpack(f">{2 * count}Q", c.data[8:])
                assert context not in out, "two chunks for one context"
                if any(w >> 32 for w in words[1::2]):
                    raise ProtocolError("status flags above 32 bits")
                out[context] = list(zip(words[0::2], words[1::2]))
        return out

    def pieces(self):
        """The data and hole chunks: [(offset, bytes or None for a hole, length)], as they came."""
        out = []
        for c in self.chunks:
            if c.kind == CHUNK_DATA:
                out.append((struct.unpack(">Q", c.data[:8])[0], c.data[8:], len(c.data) - 8))
            elif c.kind == CHUNK_HOLE:
                offset, length = struct.unpack(">QI", c.data)
                out.append((offset, None, length))
        return out

    def assemble(self, offset, length):
        """The bytes of a structured read; every byte must come exactly once."""
        out, at = bytearray(length), offset
        for start, data, size in sorted(self.pieces()):
            if start != at or size == 0:
                raise ProtocolError(f"chunk at {start:#x}+{size:#x} where {at:#x} was due")
            if data is not None:
                out[start - offset:start - offset + size] = data
            at += size
        if at != offset + length:
            raise ProtocolError(f"{at - offset:#x} of {length:#x} bytes came")
        return bytes(out)


class Conn:
    """One connection.  ADDRESS is the path of a unix socket or (host, port)."""

    def __init__(self, address, timeout=HANG):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        connect(self.sock, address)
        self.buffer = bytearray()
        self.waiting = {}               # cookie -> (command, length, Answer, offset), sent, not yet fully answered
        self.done = {}                  # cookie -> Answer, answered and not yet asked for
        self.order = []                 # cookies in the order in which their answers ended
        self.next_cookie = 0x1000
        self.structured = self.extended = False
        self.no_zeroes = False
        self.size = self.flags = None
        self.contexts = {}              # context name -> id

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    # --- bytes

    def send(self, data):
        """All of DATA, without reading anything meanwhile; ConnectionError where the server hangs up."""
        self.sock.sendall(data)

    def offer(self, data):
        """As much of DATA as the server takes, which may hang up before it has read all.  What it said before that is
        there to be read, and closed_by_server() is true then."""
        with contextlib.suppress(ConnectionError):
            self.send(data)

    def pump(self, data):
        """All of DATA, taking in what the server sends meanwhile, as a client with requests in flight must."""
        rest = memoryview(data)
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLOUT)
        while rest:
            events = poll.poll(self.sock.gettimeout() * 1000)
            if not events:
                raise TimeoutError("the server neither reads nor writes")
            if events[0][1] & ~select.POLLOUT:
                self.fill(1 << 20, "while sending")
            if events[0][1] & select.POLLOUT:
                rest = rest[self.sock.send(rest, socket.MSG_DONTWAIT):]

    def fill(self, n, why):
        """Up to N bytes more in the buffer, at least one."""
        try:
            got = self.sock.recv(n)
        except ConnectionError as e:
            raise Closed(f"{why}: {e}") from None
        if not got:
            raise Closed(why)
        self.buffer += got

    def recv(self, n):
        """Exactly N bytes."""
        while len(self.buffer) < n:
            self.fill(max(65536, min(n - len(self.buffer), 1 << 20)), f"{len(self.buffer)} of {n} bytes")
        out = bytes(self.buffer[:n])
        del self.buffer[:n]
        return out

    def closed_by_server(self, timeout=HANG):
        """True when the server ends the connection without sending anything more."""
        if self.buffer:
            return False
        self.sock.settimeout(timeout)
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:                          # it had not read all that was sent
            return True
        except TimeoutError:
            return False

    # --- handshake

    def greet(self, flags=FIXED_NEWSTYLE | NO_ZEROES):
        """Take the greeting, answer with FLAGS (None: do not answer); returns the server's flags."""
        init, opts, server = struct.unpack(">8s8sH", self.recv(18))
        if init != INIT_MAGIC or opts != OPTS_MAGIC:
            raise ProtocolError("greeting")
        if flags is not None:
            self.send(struct.pack(">I", flags))
            self.no_zeroes = bool(flags & NO_ZEROES)
        return server

    def send_option(self, option, data=b"", length=None, magic=OPTS_MAGIC):
        self.send(magic + struct.pack(">II", option, len(data) if length is None else length) + data)

    def option_reply(self):
        magic, option, kind, length = struct.unpack(">QIII", self.recv(20))
        if magic != OPT_REPLY_MAGIC:
            raise ProtocolError(f"option reply magic {magic:#x}")
        if length > 65536:
            raise ProtocolError(f"option reply of {length} bytes")
        return OptionReply(option, kind, self.recv(length))

    def option(self, option, data=b"", **kw):
        """Send one option; its replies up to the last one (ACK or error), which is the last of the list."""
        self.send_option(option, data, **kw)
        replies = []
        while True:
            r = self.option_reply()
            if r.option != option:
                raise ProtocolError(f"reply to option {r.option}, not {option}")
            replies.append(r)
            if r.type == REP_ACK or r.type & REP_ERROR:
                return replies

    def must(self, option, data=b""):
        """Like option(), without the ACK; raises OptionRefused on an error reply."""
        *rest, last = self.option(option, data)
        if last.type != REP_ACK:
            raise OptionRefused(last.type, last.data.decode(errors="replace"))
        if last.data:
            raise ProtocolError("ACK with a payload")
        return rest

    def negotiate_structured(self):
        self.must(OPT_STRUCTURED_REPLY)
        self.structured = True

    def negotiate_extended(self):
        self.must(OPT_EXTENDED_HEADERS)
        self.structured = self.extended = True

    def meta(self, option, export, queries):
        """LIST or SET_META_CONTEXT; returns {name: id} and remembers it after SET."""
        out = {}
        for r in self.must(option, meta_payload(export, queries)):
            if r.type != REP_META_CONTEXT:
                raise ProtocolError(f"reply {r.type:#x} to a meta context option")
            name = r.data[4:].decode()
            if name in out:
                raise ProtocolError(f"context {name} twice")
            out[name] = struct.unpack(">I", r.data[:4])[0]
        if option == OPT_SET_META:
            self.contexts = out
        return out

    def info(self, name, infos=(), option=OPT_INFO):
        """INFO or GO: {info type: payload bytes}."""
        out = {}
        for r in self.must(option, info_payload(name, infos)):
            if r.type != REP_INFO:
                raise ProtocolError(f"reply {r.type:#x} to INFO or GO")
            out[struct.unpack(">H", r.data[:2])[0]] = r.data[2:]
        if INFO_EXPORT not in out:
            raise ProtocolError("no NBD_INFO_EXPORT")
        if option == OPT_GO:
            self.size, self.flags = struct.unpack(">QH", out[INFO_EXPORT])
        return out

    def go(self, name, infos=()):
        return self.info(name, infos, OPT_GO)

    def export_name(self, name):
        self.send_option(OPT_EXPORT_NAME, name.encode())
        self.size, self.flags = struct.unpack(">QH", self.recv(10))
        if not self.no_zeroes and self.recv(124) != bytes(124):
            raise ProtocolError("the 124 zeroes")

    def enter(self, name, contexts=(), structured=True, extended=False):
        """The whole handshake, in one go."""
        self.greet()
        if extended:
            self.negotiate_extended()
        elif structured:
            self.negotiate_structured()
        if contexts:
            got = self.meta(OPT_SET_META, name, contexts)
            assert set(contexts) <= set(got), f"asked for {contexts}, got {got}"
        self.go(name)
        return self

    # --- transmission

    def pack(self, cmd, offset=0, length=0, flags=0, data=b"", cookie=None, magic=None):
        """The bytes of a request, whose answer is then expected.  With extended headers a payload needs its flag."""
        if cookie is None:
            cookie = self.next_cookie
            self.next_cookie += 1
        self.last_cookie = cookie
        self.waiting[cookie] = (cmd, length, Answer(), offset)
        if self.extended:
            return struct.pack(">IHHQQQ", magic or EXT_REQUEST_MAGIC, flags, cmd, cookie, offset, length) + data
        magic = magic or REQUEST_MAGIC
        return struct.pack(">IHHQQI", magic, flags, cmd, cookie, offset, length) + data

    def start(self, cmd, offset=0, length=None, flags=0, data=b"", cookie=None):
        """Send a request and return its cookie; answer() waits for it."""
        if self.extended and cmd == CMD_WRITE:
            flags |= F_PAYLOAD_LEN
        self.pump(self.pack(cmd, offset, len(data) if length is None else length, flags, data, cookie))
        return self.last_cookie

    def chunk(self):
        """The next simple reply (its data taken along) or structured chunk."""
        magic, = struct.unpack(">I", self.recv(4))
        if self.extended:
            return self.extended_chunk(magic)
        if magic == SIMPLE_MAGIC:
            error, cookie = struct.unpack(">IQ", self.recv(12))
            if cookie not in self.waiting:
                raise ProtocolError(f"reply to cookie {cookie:#x}, which is not waiting")
            cmd, length, *_ = self.waiting[cookie]
            if self.structured and cmd == CMD_READ:
                raise ProtocolError("simple reply to READ after structured replies were negotiated")
            data = self.recv(length) if cmd == CMD_READ and not error else b""
            return Chunk(cookie, None, CHUNK_DONE, data, error)
        if magic != CHUNK_MAGIC:
            raise ProtocolError(f"reply magic {magic:#x}")
        if not self.structured:
            raise ProtocolError("structured reply that was not negotiated")
        flags, kind, cookie, length = struct.unpack(">HHQI", self.recv(16))
        if length > MAX_REQUEST + 1024:
            raise ProtocolError(f"chunk of {length} bytes")
        if cookie not in self.waiting:
            raise ProtocolError(f"chunk for cookie {cookie:#x}, which is not waiting")
        return Chunk(cookie, kind, flags, self.recv(length))

    def extended_chunk(self, magic):
        """The rest of a reply with extended headers, which know one form only."""
        if magic != EXT_CHUNK_MAGIC:
            raise ProtocolError(f"reply magic {magic:#x} after extended headers were negotiated")
        flags, kind, cookie, offset, length = struct.unpack(">HHQQQ", self.recv(28))
        if length > MAX_REQUEST + 1024:
            raise ProtocolError(f"chunk of {length} bytes")
        if cookie not in self.waiting:
            raise ProtocolError(f"chunk for cookie {cookie:#x}, which is not waiting")
        if offset != self.waiting[cookie][3]:
            raise ProtocolError(f"reply offset {offset:#x}, asked for {self.waiting[cookie][3]:#x}")
        if kind == CHUNK_STATUS:
            raise ProtocolError("32-bit block status after extended headers were negotiated")
        return Chunk(cookie, kind, flags, self.recv(length))

    def take(self):
        """Read one chunk and file it; the cookie when that ended its request, else None."""
        c = self.chunk()
        cmd, length, answer, _ = self.waiting[c.cookie]
        answer.chunks.append(c)
        if c.kind is None:
            answer.error = c.error
        elif c.kind in (CHUNK_ERROR, CHUNK_ERROR_OFFSET):
            error, n = struct.unpack(">IH", c.data[:6])
            if error == 0:
                raise ProtocolError("error chunk without an error")
            answer.error, answer.text = error, c.data[6:6 + n].decode()
        elif c.kind == CHUNK_NONE and (c.data or not c.flags & CHUNK_DONE):
            raise ProtocolError("chunk of type NONE with data or without DONE")
        if not c.flags & CHUNK_DONE:
            return None
        del self.waiting[c.cookie]
        self.done[c.cookie] = answer
        self.order.append(c.cookie)
        return c.cookie

    def answer(self, cookie):
        while cookie not in self.done:
            self.take()
        return self.done.pop(cookie)

    def call(self, cmd, offset=0, length=None, flags=0, data=b""):
        """One request and its Answer."""
        return self.answer(self.start(cmd, offset, length, flags, data))

    def ok(self, cmd, offset=0, length=None, flags=0, data=b""):
        a = self.call(cmd, offset, length, flags, data)
        assert a.error == 0, f"command {cmd} at {offset:#x}: error {a.error} {a.text}"
        return a

    def read(self, offset, length, flags=0):
        a = self.ok(CMD_READ, offset, length, flags)
        return a.assemble(offset, length) if self.structured else a.chunks[0].data

    def write(self, offset, data, flags=0):
        self.ok(CMD_WRITE, offset, None, flags, data)

    def zero(self, offset, length, flags=0):
        self.ok(CMD_WRITE_ZEROES, offset, length, flags)

    def trim(self, offset, length, flags=0):
        self.ok(CMD_TRIM, offset, length, flags)

    def flush(self):
        self.ok(CMD_FLUSH)

    def disconnect(self):
        """NBD_CMD_DISC: the server answers by closing, and by nothing else."""
        self.send(self.pack(CMD_DISC))
        closed = self.closed_by_server()
        self.close()
        return closed

    def status(self, offset, length, flags=0, context=None):
        """The extents of CONTEXT (the only one, when not said)."""
        by_id = self.ok(CMD_BLOCK_STATUS, offset, length, flags).extents()
        if set(by_id) != set(self.contexts.values()):
            raise ProtocolError(f"contexts {by_id.keys()} answered, {self.contexts} negotiated")
        return by_id[self.contexts[context] if context else next(iter(self.contexts.values()))]

    def status_all(self, context=None, step=0x7FFFFE00):
        """Extents of the whole export, equal neighbours joined: [(offset, length, flags)]."""
        out, at = [], 0
        while at < self.size:
            for length, flags in self.status(at, min(step, self.size - at), context=context):
                if length == 0:
                    raise ProtocolError("extent of length 0")
                if out and out[-1][2] == flags:
                    out[-1] = (out[-1][0], out[-1][1] + length, flags)
                else:
                    out.append((at, length, flags))
                at += length
        if at != self.size:
            raise ProtocolError(f"extents end at {at}, the export at {self.size}")
        return out


def info_payload(name, infos=()):
    raw = name.encode() if isinstance(name, str) else name
    return struct.pack(">I", len(raw)) + raw + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def meta_payload(export, queries=()):
    raw = export.encode()
    out = struct.pack(">I", len(raw)) + raw + struct.pack(">I", len(queries))
    for q in queries:
        out += struct.pack(">I", len(q.encode())) + q.encode()
    return out
