# SPDX-License-Identifier: BSD-3-Clause
"""Block drivers and filters, each compared with QEMU's: run with MERINOD=qemu-storage-daemon, too."""
