# SPDX-License-Identifier: BSD-3-Clause
"""A guest agent that is slow, dumb, hostile or well: qemu-ga's protocol on a unix socket, one client at a time."""

import contextlib
import json
import select
import socket
import threading
import time

from lib.patience import HANG, wait_until

MAY_WHILE_FROZEN = ("guest-sync", "guest-sync-delimited", "guest-ping", "guest-info", "guest-fsfreeze-status",
                    "guest-fsfreeze-thaw")


class Agent(threading.Thread):
    """Answers as qemu-ga does, unless told otherwise; .log has the commands, and what others add to it."""

    systems = 3                     # that can be frozen

    def __init__(self, path, log=None):
        super().__init__(daemon=True)
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(8)
        self.log = [] if log is None else log
        self.frozen = 0
        self.prefix = b""           # said to everyone who connects
        self.errors = {}            # command: its error's text
        self.hang_up = {}           # command: how often the connection is closed instead of an answer
        self.partial = {}           # command: how many bytes of the answer are sent
        self.dumb = set()           # commands that are done and not answered; "": all, and none is done
        self.delay = 0              # of freeze, before it is done
        self.hold = False           # freeze is done when who asked for it has gone
        self.start()

    def run(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            with s, contextlib.suppress(OSError):
                self.serve(s)

    def serve(self, s):
        """One client.  A byte 0xff ends whatever came before it."""
        self.client, buffer = s, b""
        s.sendall(self.prefix)
        while got := s.recv(4096):
            buffer = (buffer + got).rpartition(b"\xff")[2]
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                request = json.loads(line)
                name = request["execute"]
                answer = self.answer(request)
                if self.hang_up.get(name):
                    self.hang_up[name] -= 1
                    return
                if name not in self.dumb and "" not in self.dumb:
                    s.sendall(answer[:self.partial.get(name, len(answer))])

    def answer(self, request):
        name, what = request["execute"], {}
        if "" in self.dumb:
            return b""
        self.log.append(name)
        if name in self.errors:
            what["error"] = {"class": "GenericError", "desc": self.errors[name]}
        elif self.frozen and name not in MAY_WHILE_FROZEN:
            what["error"] = {"class": "CommandNotFound",
                             "desc": f"Command {name} has been disabled: the command is not allowed"}
        else:
            what["return"] = self.do(name, request.get("arguments", {}))
        head = b"\xff" if name == "guest-sync-delimited" else b""
        return head + json.dumps(what).encode() + b"\n"

    def do(self, name, arguments):
        if name in ("guest-sync", "guest-sync-delimited"):
            return arguments["id"]
        if name == "guest-fsfreeze-status":
            return "frozen" if self.frozen else "thawed"
        if name == "guest-fsfreeze-freeze":
            time.sleep(self.delay)
            if self.hold:
                select.select([self.client], [], [], HANG)
            self.frozen = self.systems
            return self.systems
        assert name == "guest-fsfreeze-thaw", name
        n, self.frozen = self.frozen, 0
        return n

    def end(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def wait(done, what=""):
    """Until DONE() is true."""
    return wait_until(done, why=what)
