# SPDX-License-Identifier: BSD-3-Clause
"""compress: whole clusters are stored compressed; the content is what was written."""

import os

import pytest

from lib import tools
from lib.daemon import DidNotStart

SIZE = 8 << 20


def node(path):
    return f"driver=compress,node-name=disk,file.driver=qcow2,file.file.driver=file,file.file.filename={path}"


@pytest.mark.parametrize("compression", ["zlib", "zstd"])
def test_compresses(daemon, tmp, compression):
    path = tools.create(tmp / "a.qcow2", SIZE, compression_type=compression)
    d = daemon.start("--blockdev", node(path), "--export", "type=nbd,id=disk,node-name=disk,writable=on")
    h = d.libnbd()
    text = b"the same again and again, " * 5042
    data = text[:65536 * 2]
    model = bytearray(SIZE)
    for at in (0, 1 << 20, (3 << 20) + 65536, SIZE - 131072):
        h.pwrite(data, at)
        model[at:at + len(data)] = data
    assert h.pread(SIZE, 0) == model
    d.stop()
    tools.check(path)
    assert tools.content(path) == model
    assert os.stat(path).st_size < 4 * 131072 + 262144
    compressed = [e for e in tools.mapping(path) if e["data"] and "offset" not in e]
    assert sum(e["length"] for e in compressed) == 4 * 131072


def test_only_what_can(daemon, tmp):
    path = tools.create(tmp / "a.raw", SIZE, "raw")
    with pytest.raises(DidNotStart) as e:
        daemon.start("--blockdev", f"driver=compress,node-name=disk,file.driver=raw,file.file.driver=file,file.file.filename={path}")
    assert "Compression is not supported for underlying format: raw" in e.value.stderr
