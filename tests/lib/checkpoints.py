# SPDX-License-Identifier: BSD-3-Clause
"""A client of checkpoints: begins and ends them, and pulls what they offer with libnbd."""

import nbd


def begin(d, disks, name=None, since=None, monitor=None, **kw):
    """DISKS: names of nodes, or objects.  Keyword arguments are checkpoint-begin's."""
    args = {"disks": [x if isinstance(x, dict) else {"node": x} for x in disks], **kw}
    if name:
        args["id"] = name
    if since:
        args["since"] = since
    return (monitor or d.qmp).cmd("checkpoint-begin", args)


def end(d, name, success=True, monitor=None):
    (monitor or d.qmp).cmd("checkpoint-end", {"id": name, "success": success})


def states(d):
    return {c["id"]: c["state"] for c in d.qmp.cmd("query-checkpoints")}


def handle(c, i, context=None):
    """A libnbd handle of disk number I of C, what checkpoint-begin returned."""
    h = nbd.NBD()
    if context:
        h.add_meta_context(context)
    h.connect_uri(c["disks"][i]["uris"][0])
    return h


def read(c, i, at, n):
    h = handle(c, i)
    data = bytes(h.pread(n, at))
    h.shutdown()
    return data


def dirty(h, context, size):
    """Dirty ranges (offset, length)."""
    out, at = [], 0

    def extents(name, offset, entries, error):
        nonlocal at
        for n, flags in zip(entries[::2], entries[1::2]):
            if name == context and flags & 1:
                if out and sum(out[-1]) == at:
                    out[-1] = (out[-1][0], out[-1][1] + n)
                else:
                    out.append((at, n))
            at += n if name == context else 0
        return 0

    while at < size:
        h.block_status(min(size - at, 1 << 30), at, extents)
    return out


def changed(c, i, since):
    context = f"qemu:dirty-bitmap:{since}"
    h = handle(c, i, context)
    ranges = dirty(h, context, c["disks"][i]["size"])
    h.shutdown()
    return ranges


def pull(c, i, since=None, base=b"", piece=1 << 20):
    """The whole disk; with SINCE, BASE with what changed since put over it."""
    size = c["disks"][i]["size"]
    context = f"qemu:dirty-bitmap:{since}" if since else None
    h = handle(c, i, context)
    out = bytearray(base[:size].ljust(size, b"\0"))
    for at, n in dirty(h, context, size) if since else [(0, size)]:
        for off in range(at, at + n, piece):
            got = min(piece, at + n - off)
            out[off:off + got] = h.pread(got, off)
    h.shutdown()
    return bytes(out)


def epochs(d):
    """What the nodes keep: {node: ["active NAME", ...]}, the oldest first."""
    out = {}
    for n in d.qmp.cmd("query-named-block-nodes"):
        labels = [b["name"].split(":", 5) for b in n.get("dirty-bitmaps", []) if b["name"].startswith("merino:")]
        if labels:
            labels.sort(key=lambda x: int(x[2].split("-")[0]))
            out[n["node-name"]] = [f"{x[1]} {x[5]}" for x in labels]
    return out
