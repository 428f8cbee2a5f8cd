# SPDX-License-Identifier: BSD-3-Clause
"""A backup repository made by the page that describes it (doc/formats/backup-repository.md), with qemu-img and Python
alone: what Merino writes is compared with it, and what Merino has to refuse is made of it."""

import hashlib
import json
import pathlib
import uuid

from lib import tools

CHUNK = 65536
MIB = 1 << 20


def sha(*parts):
    return hashlib.sha256(b"".join(parts))


def number(n, size=8):
    return n.to_bytes(size, "big")


def file_name(disk, point, suffix):
    def one(i, b):
        c = chr(b)
        plain = c.isascii() and c.isalnum() or c in "_+-" or c == "." and i
        return c if plain else f"%{b:02X}"
    return "".join(one(i, b) for i, b in enumerate(disk.encode())) + f"@{point}.{suffix}"


def chunks(content):
    for i in range(0, len(content), CHUNK):
        yield i // CHUNK, content[i:i + CHUNK]


def is_zero(data):
    return not data.strip(b"\0")


def disk_root(content):
    """Over what the guest sees."""
    h = sha(b"merino root\n", number(CHUNK), number(len(content)))
    for i, data in chunks(content):
        if not is_zero(data):
            h.update(number(i) + sha(data).digest())
    return h.hexdigest()


def point_root(disks):
    h = sha(b"merino point\n")
    for d in sorted(disks, key=lambda d: d["name"].encode()):
        h.update(d["name"].encode() + b"\0" + bytes.fromhex(d["root"]))
    return h.hexdigest()


def sums(content, indices):
    """The file for the chunks that a point brought."""
    out = [b"MRNSUMS1", number(CHUNK, 4), bytes(4), number(len(content)), bytes(8)]
    for i in sorted(indices):
        data = content[i * CHUNK:(i + 1) * CHUNK]
        zero = is_zero(data)
        out += [number(i), number(1, 4), number(2 if zero else 1, 4), b"" if zero else sha(data).digest()]
    return b"".join(out)


def sealed(manifest):
    """The manifest's text, with the checksum of itself."""
    text = json.dumps({**manifest, "manifest-sha256": "0" * 64}, indent=1)
    return text.replace('"' + "0" * 64 + '"', f'"{sha(text.encode()).hexdigest()}"')


class Repository:
    """Points whose contents are kept in self.content[point, disk]."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.path.mkdir()
        self.id = str(uuid.uuid4())
        self.content = {}
        self.points = []
        (self.path / "repository.json").write_text(json.dumps({"merino-repository": 1, "id": self.id}))

    def file(self, disk, point, suffix="qcow2"):
        return self.path / file_name(disk, point, suffix)

    def manifest_path(self, point):
        return self.path / f"{point}.json"

    def manifest(self, point):
        return json.loads(self.manifest_path(point).read_text())

    def write_manifest(self, manifest):
        self.manifest_path(manifest["point"]).write_text(sealed(manifest))

    def add(self, point, disks, parents=None, time=None):
        """DISKS: {name: (size, [(offset, bytes or a length of zeroes)])}, on top of the last point that has the disk
        or of PARENTS[name] (None: a full).  Returns the manifest."""
        rows = []
        for name, (size, writes) in disks.items():
            parent = parents[name] if parents and name in parents else self.last(name)
            rows.append(self.add_disk(point, name, size, writes, parent))
        self.points.append(point)
        n = len(self.points)
        manifest = {
            "merino-point": 1, "repository": self.id, "point": point, "sequence": n,
            "time": time or f"2026-11-{n:02}T02:00:00Z", "finished": time or f"2026-11-{n:02}T02:00:09Z",
            "consistency": "crash-consistent", "tool": "a test", "arguments": ["backup"], "chunk-size": CHUNK,
            "disks": rows, "root": point_root(rows),
        }
        self.write_manifest(manifest)
        return manifest

    def last(self, disk):
        return next((p for p in reversed(self.points) if (p, disk) in self.content), None)

    def add_disk(self, point, name, size, writes, parent):
        image = self.file(name, point)
        content = bytearray(self.content[parent, name] if parent else b"")
        grown = len(content)
        content += bytes(size - len(content))
        brought = {grown // CHUNK} if parent and grown % CHUNK and size > grown else set()
        tools.create(image, size + -size % 512, backing=parent and file_name(name, parent, "qcow2"))
        commands = []
        for offset, what in writes:
            data = bytes(what) if isinstance(what, int) else what
            content[offset:offset + len(data)] = data
            brought |= set(range(offset // CHUNK, (offset + len(data) - 1) // CHUNK + 1))
            if isinstance(what, int):
                commands.append(f"write -z {offset} {what}")
            else:
                raw = self.path.parent / f"piece{len(commands)}"
                raw.write_bytes(data)
                commands.append(f"write -s {raw} {offset} {len(data)}")
        if commands:
            tools.qemu_io(image, *commands)
        content = bytes(content)
        self.content[point, name] = content
        text = sums(content, brought)
        self.file(name, point, "sums").write_bytes(text)
        row = {"name": name, "size": size, "format": "qcow2", "file": image.name, "level": "full", "reason": "the first",
               "read-bytes": 0, "data-bytes": 0, "zero-bytes": 0, "sums": file_name(name, point, "sums"),
               "sums-bytes": len(text), "sums-sha256": sha(text).hexdigest(), "root": disk_root(content)}
        if parent:
            del row["reason"]
            row.update(level="incremental", parent=parent)
        return row

    def check(self, point, disk):
        """What qemu-img alone reads of a point is what was backed up."""
        got = tools.content(self.file(disk, point))
        pathlib.Path(f"{self.file(disk, point)}.content").unlink()
        want = self.content[point, disk]
        assert got == want.ljust(len(want) + -len(want) % 512, b"\0"), f"{point} {disk}"

    def check_all(self, points=None):
        for point, disk in self.content:
            if points is None or point in points:
                self.check(point, disk)


def sample(path, points=4, size=2 * MIB, disks=("vda",)):
    """A full and incrementals that overwrite one another, zero, and leave alone; p1, p2, ..."""
    from lib import pattern
    r = Repository(path)
    for n in range(1, points + 1):
        def writes(disk):
            if n == 1:
                return [(0, pattern.block(f"{disk}full", 9 * CHUNK)), (20 * CHUNK, pattern.block(f"{disk}b", 3 * CHUNK))]
            return [(n * CHUNK, pattern.block(f"{disk}{n}", CHUNK)),
                    ((20 + n % 3) * CHUNK, CHUNK),
                    (25 * CHUNK + 512 * n, pattern.block(f"{disk}part{n}", 1024))]
        r.add(f"p{n}", {d: (size, writes(d)) for d in disks})
    return r


def flip(path, offset, bit=1):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([byte ^ bit]))


def host_offset(repo, point, guest, disk="vda"):
    """Where an image's own data of a guest offset lies in its file."""
    for e in tools.mapping(repo.file(disk, point)):
        if e["start"] <= guest < e["start"] + e["length"]:
            assert e["depth"] == 0
            return e["offset"] + guest - e["start"]
    raise AssertionError
