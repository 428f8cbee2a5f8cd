# SPDX-License-Identifier: BSD-3-Clause
"""qemu-io over nbd://, as QEMU's own tests use it."""

from lib import tools


def qemu_io(d, *commands):
    return tools.qemu_io(d.uri(), *commands, fmt="raw")


def test_write_and_verify(disk):
    """read -P fails ("Pattern verification failed") when a byte differs."""
    qemu_io(disk, "write -P 0x11 0 64k", "write -P 0x22 64k 1", "write -P 0x33 100001 777", "read -P 0x11 0 64k",
            "read -P 0x22 64k 1", "read -P 0x33 100001 777")


def test_write_zeroes_and_discard(disk):
    qemu_io(disk, "write -z 0 64k", "read -P 0 0 64k", "write -z -u 600k 100k", "read -P 0 600k 100k",
            "discard 1M 64k", "write -f -P 4 1M 512", "read -P 4 1M 512", "flush")


def test_many_in_flight(disk):
    qemu_io(disk, *[f"aio_write -P {i + 1} {i * 70000} 70000" for i in range(40)], "aio_flush",
            *[f"read -P {i + 1} {i * 70000} 70000" for i in range(40)])


def test_vectors(disk):
    qemu_io(disk, "writev -P 9 12345 512 1024 4096", "readv -P 9 12345 4096 1024 512")


def test_past_the_end_fails(disk):
    done = tools.run("qemu-io", "-f", "raw", "-c", "read 4M 512", disk.uri(), check=False)
    assert "failed" in done.stdout + done.stderr


def test_read_only_export_refuses_writes(daemon, tmp):
    d = daemon.serve(tools.create(tmp / "a.raw", "1M", "raw"), "raw", writable=False)
    done = tools.run("qemu-io", "-f", "raw", "-c", "write 0 512", d.uri(), check=False)
    assert done.returncode != 0 and "Permission denied" in done.stdout + done.stderr
    tools.qemu_io(d.uri(), "read -P 0 0 1M", fmt="raw", options=["-r"])
