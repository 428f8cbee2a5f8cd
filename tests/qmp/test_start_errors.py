# SPDX-License-Identifier: BSD-3-Clause
"""What a person reads when the daemon cannot start."""

import pytest

from lib import tools
from lib.daemon import DidNotStart, disk_args


def test_hint_on_a_line_of_its_own(daemon, tmp):
    image = tools.create(tmp / "a.qcow2", "1M")
    daemon.serve(image)
    with pytest.raises(DidNotStart) as failed:
        daemon.start(*disk_args(image))
    lines = failed.value.stderr.splitlines()
    assert failed.value.status == 1 and len(lines) == 2
    assert lines[0].endswith('Failed to get "write" lock')
    assert lines[1].endswith(f"Is another process using the image [{image}]?")
