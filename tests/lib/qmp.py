# SPDX-License-Identifier: BSD-3-Clause
"""A QMP client: commands for most tests, raw bytes for those that look at the wire."""

import json
import socket

from lib.patience import HANG, connect


def without_sizes(value):
    """A reply without what files occupy: that depends on who wrote to them last, and on when it was stored."""
    if isinstance(value, dict):
        return {k: without_sizes(v) for k, v in value.items() if k != "actual-size"}
    return [without_sizes(v) for v in value] if isinstance(value, list) else value


class QMPError(Exception):
    def __init__(self, error):
        super().__init__(f"{error['class']}: {error['desc']}")
        self.kind, self.desc = error["class"], error["desc"]


class QMP:
    def __init__(self, path, timeout=HANG, negotiate=True):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout)
        connect(self.sock, path)
        self.buffer = b""
        self.events = []
        self.next_id = 0
        self.greeting = None
        if negotiate:
            self.greeting = self.message()
            self.cmd("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data if isinstance(data, bytes) else data.encode())

    def line(self):
        """The next line as bytes, its end included; b"" at the end of the stream."""
        while b"\n" not in self.buffer:
            got = self.sock.recv(65536)
            if not got:
                return b""
            self.buffer += got
        line, _, self.buffer = self.buffer.partition(b"\n")
        return line + b"\n"

    def message(self):
        """The next message, whatever it is."""
        line = self.line()
        assert line, "the monitor closed the connection"
        return json.loads(line)

    def reply(self):
        """The next message that is no event; events are kept in .events."""
        while True:
            m = self.message()
            if "event" not in m:
                return m
            self.events.append(m)

    def silent(self, seconds=0.3):
        """True when nothing comes for that long."""
        if self.buffer:
            return False
        old = self.sock.gettimeout()
        self.sock.settimeout(seconds)
        try:
            self.buffer += self.sock.recv(65536)
            return False
        except TimeoutError:
            return True
        finally:
            self.sock.settimeout(old)

    def raw(self, data):
        """Send bytes as they are, return the next reply."""
        self.send(data)
        return self.reply()

    def exchange(self, name, arguments=None, /):
        """Send one command; its whole reply, "return" or "error"."""
        self.next_id += 1
        message = {"execute": name, "id": self.next_id}
        if arguments is not None:
            message["arguments"] = arguments
        self.send(json.dumps(message) + "\n")
        reply = self.reply()
        assert reply.get("id") == self.next_id, reply
        return reply

    def cmd(self, name, arguments=None, /, **kw):
        """What the command returns.  Dashes in argument names: pass a dict, or write underscores."""
        if kw:
            arguments = {k.replace("_", "-"): v for k, v in kw.items()}
        reply = self.exchange(name, arguments)
        if "error" in reply:
            raise QMPError(reply["error"])
        return reply["return"]

    def error(self, name, arguments=None, /, **kw):
        """The command must fail; (class, text)."""
        try:
            result = self.cmd(name, arguments, **kw)
        except QMPError as e:
            return e.kind, e.desc
        raise AssertionError(f"{name} succeeded: {result}")

    def event(self, name):
        """Wait for an event of this name (one that came before counts)."""
        while True:
            for i, e in enumerate(self.events):
                if e["event"] == name:
                    return self.events.pop(i)
            m = self.message()
            assert "event" in m, m
            self.events.append(m)
