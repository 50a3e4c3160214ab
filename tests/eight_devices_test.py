"""What spreads over several devices, on eight: the tests in tests/eight_devices, in a process that has as many."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).with_name("eight_devices")


def test_all_tests_for_eight_devices_pass() -> None:
    files = sorted(path for path in FOLDER.glob("*.py") if path.name != "conftest.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files],
        env=os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
