"""The built wheel, in an empty environment: has its C++ ops with it, and they pass their tests."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_passes_the_op_tests(tmp_path):
    wheels, environment, away = tmp_path / "wheels", tmp_path / "environment", tmp_path / "away"
    pip = ["-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([sys.executable, *pip, "wheel", "--no-deps", "-w", str(wheels), str(ROOT)], check=True)
    (wheel,) = wheels.glob("raylingvo-*.whl")
    venv.create(environment, with_pip=True)
    python = str(environment / "bin/python")
    constraints = str(ROOT / "constraints.txt")
    subprocess.run([python, *pip, "install", "-c", constraints, f"{wheel}[test]"], check=True)

    # Away from the source tree, so that only what the wheel holds can be imported.
    away.mkdir()
    shutil.copytree(ROOT / "tests", away / "tests")
    shutil.copy(ROOT / "pyproject.toml", away)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "RAYLINGVO_OPS"))}
    where = "import raylingvo.ops._native as n; print(n.__file__); assert not n.why_unavailable(), n.why_unavailable()"
    subprocess.run([python, "-c", where], check=True, cwd=away, env=clean)
    subprocess.run([python, "-m", "pytest", "-q", "tests/ops"], check=True, cwd=away, env=clean)
