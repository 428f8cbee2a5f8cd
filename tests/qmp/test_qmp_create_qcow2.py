# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-create of qcow2 images, judged by qemu-img."""

import pytest

from lib import tools
from lib.jobs import create, failure

MIB = 1 << 20


@pytest.fixture
def file_node(bare, tmp):
    create(bare, driver="file", filename=str(tmp / "a.qcow2"), size=0)
    bare.qmp.cmd("blockdev-add", {"driver": "file", "node-name": "f", "filename": str(tmp / "a.qcow2")})
    return bare


@pytest.mark.parametrize("options, want", [
    ({}, {"compat": "1.1", "refcount-bits": 16, "extended-l2": False, "compression-type": "zlib"}),
    ({"cluster_size": 4096, "refcount_bits": 64}, {"refcount-bits": 64}),
    ({"version": "v2"}, {"compat": "0.10"}),
    ({"extended_l2": True, "lazy_refcounts": True, "compression_type": "zstd"},
     {"extended-l2": True, "lazy-refcounts": True, "compression-type": "zstd"}),
    ({"preallocation": "metadata"}, {}),
    ({"preallocation": "full"}, {}),
])
def test_qcow2(file_node, tmp, options, want):
    create(file_node, driver="qcow2", file="f", size=8 * MIB, **options)
    file_node.qmp.cmd("blockdev-add", {"driver": "qcow2", "node-name": "q", "file": "f"})
    file_node.qmp.cmd("blockdev-del", {"node-name": "q"})
    file_node.qmp.cmd("blockdev-del", {"node-name": "f"})
    info = tools.info(tmp / "a.qcow2")
    assert info["virtual-size"] == 8 * MIB
    assert {k: info["format-specific"]["data"].get(k) for k in want} == want
    assert info["cluster-size"] == options.get("cluster_size", 65536)
    tools.check(tmp / "a.qcow2")


def test_qcow2_backing_file_is_recorded(file_node, tmp):
    tools.create(tmp / "base.raw", "8M", "raw")
    create(file_node, driver="qcow2", file="f", size=8 * MIB, backing_file="base.raw", backing_fmt="raw")
    info = tools.info(tmp / "a.qcow2")
    assert (info["backing-filename"], info["backing-filename-format"]) == ("base.raw", "raw")


def test_qcow2_data_file(file_node, tmp):
    create(file_node, driver="file", filename=str(tmp / "data"), size=0)
    file_node.qmp.cmd("blockdev-add", {"driver": "file", "node-name": "d", "filename": str(tmp / "data")})
    create(file_node, driver="qcow2", file="f", data_file="d", data_file_raw=True, size=8 * MIB)
    data = tools.info(tmp / "a.qcow2")["format-specific"]["data"]
    assert data["data-file"] == str(tmp / "data") and data["data-file-raw"] is True


@pytest.mark.parametrize("options, text", [
    ({"file": "nope", "size": MIB}, "Cannot find device='nope' nor node-name='nope'"),
    ({"file": "f", "size": 1001}, "Image size must be a multiple of 512 bytes"),
    ({"file": "f", "size": MIB, "cluster_size": 1000}, "Cluster size must be a power of two between 512 and 2048k"),
    ({"file": "f", "size": MIB, "refcount_bits": 63},
     "Refcount width must be a power of two and may not exceed 64 bits"),
])
def test_qcow2_failures_are_the_jobs(file_node, options, text):
    assert failure(file_node, driver="qcow2", **options) == text
