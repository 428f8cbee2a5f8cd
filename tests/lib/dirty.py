# SPDX-License-Identifier: BSD-3-Clause
"""Dirty bitmaps as tests look at them: over QMP, over NBD, and as a model."""

import itertools
import json

from lib import tools

_serial = itertools.count()


def states(d, node="disk"):
    """What query-named-block-nodes says of a node's bitmaps: {name: {...}}, without what only merinod says."""
    for n in d.qmp.cmd("query-named-block-nodes"):
        if n["node-name"] == node:
            return {b["name"]: {k: v for k, v in b.items() if k != "crash-safe"} for b in n.get("dirty-bitmaps", [])}
    raise AssertionError(f"no node {node}")


def crash_safe(d, name, node="disk"):
    """Whether merinod says that the bitmap survives a crash."""
    node, = [n for n in d.qmp.cmd("query-named-block-nodes") if n["node-name"] == node]
    bitmap, = [b for b in node["dirty-bitmaps"] if b["name"] == name]
    return bitmap.get("crash-safe", False)


def add(d, name, node="disk", **options):
    d.qmp.cmd("block-dirty-bitmap-add", {"node": node, "name": name, **options})


def verb(d, what, name, node="disk"):
    d.qmp.cmd(f"block-dirty-bitmap-{what}", {"node": node, "name": name})


def merge(d, target, sources, node="disk"):
    d.qmp.cmd("block-dirty-bitmap-merge", {"node": node, "target": target, "bitmaps": sources})


def ranges(d, name, node="disk", writable=True):
    """The dirty ranges [(offset, length)] by an export of its own, which is taken away again."""
    tag = f"look{next(_serial)}"
    d.qmp.cmd("block-export-add", {"type": "nbd", "id": tag, "node-name": node, "name": tag, "writable": writable,
                                   "bitmaps": [name]})
    c = d.enter(tag, [f"qemu:dirty-bitmap:{name}"])
    out = [(offset, length) for offset, length, flags in c.status_all() if flags]
    c.disconnect()
    d.clients.remove(c)
    d.qmp.cmd("block-export-del", {"id": tag, "mode": "hard"})
    while d.qmp.event("BLOCK_EXPORT_DELETED")["data"]["id"] != tag:
        pass
    return out


def by_qemu(path, name, tmp):
    """The dirty ranges of a stored bitmap as QEMU reads them: qemu-nbd -B, nbdinfo."""
    tools.need("qemu-nbd")
    out = tools.run(
        "sh", "-c", 'qemu-nbd -r -t -f qcow2 -k "$1/s" -B "$2" --pid-file "$1/p" "$3" & pid=$!;'
        'while ! test -s "$1/p"; do kill -0 $pid || exit 1; sleep 0.02; done;'
        'nbdinfo --json --map="qemu:dirty-bitmap:$2" "nbd+unix:///?socket=$1/s"; rc=$?;'
        'kill $pid; wait $pid; rm -f "$1/p"; exit $rc', "sh", tmp, name, path).stdout
    return [(e["offset"], e["length"]) for e in json.loads(out) if e["type"]]


def model(touched, granularity, size):
    """The ranges that a bitmap must show after writes to [(offset, length)]."""
    dirty = set()
    for offset, length in touched:
        if length:
            dirty.update(range(offset // granularity, (offset + length - 1) // granularity + 1))
    out = []
    for g in sorted(dirty):
        start, end = g * granularity, min((g + 1) * granularity, size)
        if out and out[-1][0] + out[-1][1] == start:
            out[-1] = (out[-1][0], end - out[-1][0])
        else:
            out.append((start, end - start))
    return out


def count(touched, granularity):
    """QEMU's "count": bytes, in whole granules."""
    return granularity * len({g for offset, length in touched if length
                              for g in range(offset // granularity, (offset + length - 1) // granularity + 1)})
