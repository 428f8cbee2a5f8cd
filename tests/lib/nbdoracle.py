# SPDX-License-Identifier: BSD-3-Clause
"""What the specification lets a server answer to a request, whatever its numbers are.

Written from NBD's proto.md (and its branch extension-ext-header), not from our code.  Every rule that a request
breaks adds the errors that may be replied for it; which rule is looked at first is the server's choice.  A request
that breaks none must succeed.
"""

import dataclasses

from lib.nbdproto import *                               # noqa: F401,F403

CLOSE = "close"                                          # the connection may, or must, end
COMMANDS = (CMD_READ, CMD_WRITE, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES, CMD_BLOCK_STATUS)
WRITES = (CMD_WRITE, CMD_TRIM, CMD_WRITE_ZEROES)


@dataclasses.dataclass
class Export:
    size: int
    writable: bool
    structured: bool
    extended: bool
    contexts: bool                                       # some were selected

    def flags_of(self, cmd):
        """FUA may come with any command ("the server MUST accept FUA on any command")."""
        return F_FUA | {CMD_READ: F_DF if self.structured else 0, CMD_BLOCK_STATUS: F_REQ_ONE,
                        CMD_WRITE_ZEROES: F_NO_HOLE | F_FAST_ZERO}.get(cmd, 0)


def payload_of(e, cmd, length, flags):
    """How many bytes follow the header."""
    has = flags & F_PAYLOAD_LEN if e.extended else cmd == CMD_WRITE
    return length if has else 0


def allowed(e, cmd, offset, length, flags):
    """The set of answers: 0, NBD errors, CLOSE."""
    payload = payload_of(e, cmd, length, flags)
    out = set()
    if payload > MAX_REQUEST:
        return {CLOSE}                                   # nobody takes that in to find out what follows
    if cmd not in COMMANDS:
        return {EINVAL}
    if e.extended:
        if bool(flags & F_PAYLOAD_LEN) != (cmd == CMD_WRITE):
            out.add(EINVAL)                              # a filter of BLOCK_STATUS made of zeroes is as wrong
        flags &= ~F_PAYLOAD_LEN
    if flags & ~e.flags_of(cmd):
        out.add(EINVAL)
    if cmd in WRITES and not e.writable:
        out.add(EPERM)
    if cmd == CMD_FLUSH:
        return out or ({0, EINVAL} if offset or length else {0})
    if offset + length > e.size:
        out.add(ENOSPC if cmd in (CMD_WRITE, CMD_WRITE_ZEROES) else EINVAL)
    if cmd == CMD_BLOCK_STATUS and not e.contexts:
        out.add(EINVAL)
    if cmd == CMD_READ and length > MAX_REQUEST:
        out |= {EINVAL, EOVERFLOW}
    if out:
        return out
    if length == 0:
        return {0, EINVAL}                               # "unspecified although the server SHOULD NOT disconnect"
    if flags & F_FAST_ZERO:
        return {0, ENOTSUP}
    return {0}
