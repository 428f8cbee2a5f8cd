# SPDX-License-Identifier: BSD-3-Clause
"""A repository that Merino wrote, proven by others: qemu-img restores, hashlib sums; and a writer whose history tells
which instant a restored disk is from."""

import hashlib
import json
import os
import pathlib
import random
import threading

import nbd

from lib import tools
from lib.repository import CHUNK, chunks, disk_root, file_name, is_zero, point_root


def points(directory):
    """{id: manifest}, as they were made."""
    found = [json.loads(p.read_text()) for p in pathlib.Path(directory).glob("*.json") if p.name != "repository.json"]
    return {m["point"]: m for m in sorted(found, key=lambda m: m["sequence"])}


def restored(directory, manifest, disk):
    """The disk's bytes as qemu-img alone reads them."""
    image = pathlib.Path(directory) / disk["file"]
    out = pathlib.Path(directory).parent / f"restored-{os.getpid()}"
    tools.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, out)
    data = out.read_bytes()
    out.unlink()
    assert not any(data[disk["size"]:])
    return data[:disk["size"]]


def runs(data):
    """{chunk: its hash, or None for zeroes} of a .sums file."""
    out, at, last = {}, 32, 0
    while at < len(data):
        first, count, kind = (int.from_bytes(data[at + a:at + b], "big") for a, b in ((0, 8), (8, 12), (12, 16)))
        assert first >= last and count and kind in (1, 2) and (kind == 2 or count <= 1024)
        at, last = at + 16, first + count
        for i in range(first, last):
            out[i] = data[at:at + 32] if kind == 1 else None
            at += 32 if kind == 1 else 0
    assert at == len(data)
    return out


def prove_disk(directory, manifest, disk):
    """Image, sums and root say the same.  Returns the content."""
    content = restored(directory, manifest, disk)
    assert disk["file"] == file_name(disk["name"], manifest["point"], "qcow2")
    assert disk_root(content) == disk["root"], f"{disk['file']}: root"
    text = (pathlib.Path(directory) / disk["sums"]).read_bytes()
    assert len(text) == disk["sums-bytes"] and hashlib.sha256(text).hexdigest() == disk["sums-sha256"]
    assert text[:12] == b"MRNSUMS1" + CHUNK.to_bytes(4, "big") and int.from_bytes(text[16:24], "big") == disk["size"]
    told = runs(text)
    for i, data in chunks(content):
        if i in told:
            assert told[i] == (None if is_zero(data) else hashlib.sha256(data).digest()), f"{disk['sums']}: {i}"
        elif disk["level"] == "full":
            assert is_zero(data), f"{disk['sums']}: chunk {i} is not told of"
    backing = tools.info(pathlib.Path(directory) / disk["file"]).get("backing-filename")
    assert backing == (file_name(disk["name"], disk["parent"], "qcow2") if "parent" in disk else None)
    tools.check(pathlib.Path(directory) / disk["file"])
    return content


def prove(directory, point):
    """{disk: content} of a point that is proven."""
    path = pathlib.Path(directory) / f"{point}.json"
    text, manifest = path.read_text(), json.loads(path.read_text())
    said = manifest["manifest-sha256"]
    assert hashlib.sha256(text.replace(said, "0" * 64).encode()).hexdigest() == said
    assert manifest["root"] == point_root(manifest["disks"])
    return {d["name"]: prove_disk(directory, manifest, d) for d in manifest["disks"]}


def leftovers(directory):
    """What is in a repository beside points that exist."""
    known = {"repository.json", ".lock", ".in-use"}
    for m in points(directory).values():
        known |= {f"{m['point']}.json"} | {d["file"] for d in m["disks"]} | {d["sums"] for d in m["disks"]}
    return set(os.listdir(directory)) - known


class Writer:
    """Writes to several disks, one request after the other, each with its number in every 512 bytes: a restored set
    of disks is of one instant if and only if it is what some number of first requests made."""

    def __init__(self, uris, size, seed=0, pause=0.0):
        self.handles = {}
        self.size, self.random, self.pause = size, random.Random(seed), pause
        for name, uri in uris.items():
            self.handles[name] = nbd.NBD()
            self.handles[name].connect_uri(uri)
        self.history = []                     # (disk, offset, length, zero)
        self.stop, self.thread = threading.Event(), None

    def one(self):
        r = self.random
        length = r.choice([512, 4096, 4096, 20480, 65536, 131072])
        offset = r.randrange(0, (self.size - length) // 512 + 1) * 512
        entry = r.choice(sorted(self.handles)), offset, length, r.random() < 0.15
        self.history.append(entry)
        if entry[3]:
            self.handles[entry[0]].zero(length, offset)
        else:
            self.handles[entry[0]].pwrite(self.block(len(self.history), length), offset)

    @staticmethod
    def block(number, length):
        return (number.to_bytes(8, "big") * 64) * (length // 512)

    def write(self, n):
        for _ in range(n):
            self.one()

    def __enter__(self):
        def work():
            while not self.stop.wait(self.pause):
                self.one()
        self.stop.clear()
        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()

    def instant(self, disks):
        """How many requests made DISKS ({name: content}); fails when no number did.  The last ones may not be seen any
        more: zeroes went over them."""
        seen = max(int.from_bytes(c[i:i + 8], "big") for c in disks.values() for i in range(0, len(c), 512))
        state = {name: bytearray(len(c)) for name, c in disks.items()}
        for number, (name, offset, length, zero) in enumerate(self.history, 1):
            if number > seen and all(state[n] == disks[n] for n in disks):
                return number - 1
            state[name][offset:offset + length] = bytes(length) if zero else self.block(number, length)
        assert all(state[n] == disks[n] for n in disks), "the disks are of no instant"
        return len(self.history)
