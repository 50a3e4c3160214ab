"""What every test has: the CPU, a compilation cache, strict ranks, golden files and vectors, and gates."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest

if TYPE_CHECKING:
    from gates import Gate

# JAX reads these when it is imported, in this process and in those that tests start, which with pytest-xdist all do.
_is_first = "PYTEST_XDIST_WORKER" not in os.environ
# Most of the time of a small program is the compiler's, and half of that is for what the few runs of it do not need.
# Trainings that take minutes do: `-m slow` compiles as users do, and so does the main job of `.ci/run`.
if _is_first and not any("slow" in argument for argument in sys.argv):
    _quickly = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_quickly}".strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Most tests of the roles compile the same few programs: seconds each time on a busy core, 0.1 s from a cache. The tests
# with sanitizers use that of all tests, which RAYLINGVO_TEST_COMPILED names.
_compiled = None
if _is_first:
    if not (_kept := os.environ.get("RAYLINGVO_TEST_COMPILED")):
        _compiled = tempfile.TemporaryDirectory(prefix="raylingvo-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _kept or _compiled.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Ray would start a process for each CPU beforehand. Roles in the Ray of a test take none of them, as they ask for
# variables of their own.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

# The same examples in every run: what passes once passes again.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden that differ")


def pytest_configure(config: pytest.Config) -> None:
    # JAX compiles what it could not read: a file that another process is writing.
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache entry:UserWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest first, or the last of them would keep one process busy and the other idle."""
    long = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in long)


def pytest_unconfigure() -> None:
    if _compiled:
        _compiled.cleanup()


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """check_golden(file name, text): the text is that of the file in tests/golden, which --update-golden rewrites."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(text)
        assert path.exists(), f"{path} does not exist; run pytest --update-golden and review the new file"
        assert text == path.read_text(), f"{path} differs; if it should, run pytest --update-golden and review the diff"

    return check


@pytest.fixture
def recorded_tensorflow(request: pytest.FixtureRequest) -> Callable[..., dict[str, np.ndarray]]:
    """recorded_tensorflow(file name, compute): compute(tensorflow), arrays by name, as tests/golden has recorded them.

    --update-golden computes and records them again, with the inputs, which takes `pip install -e '.[tensorflow]'`.
    """

    def recorded(name: str, compute: Callable[[Any], dict[str, Any]]) -> dict[str, np.ndarray]:
        path = GOLDEN / "tensorflow" / name
        if request.config.getoption("--update-golden"):
            tensorflow = pytest.importorskip("tensorflow")
            arrays = {key: np.asarray(array) for key, array in compute(tensorflow).items()}
            lines = {key: {"dtype": str(array.dtype), "values": array.tolist()} for key, array in arrays.items()}
            whole = {"tensorflow": tensorflow.__version__, **lines}
            path.write_text("{\n" + ",\n".join(f'"{key}": {json.dumps(line)}' for key, line in whole.items()) + "\n}\n")
        assert path.exists(), f"{path} does not exist; run pytest --update-golden with TensorFlow"
        whole = json.loads(path.read_text())
        return {key: np.array(line["values"], line["dtype"]) for key, line in whole.items() if key != "tensorflow"}

    return recorded


@pytest.fixture
def new_gate(tmp_path: Path) -> Iterator[Callable[[str], Gate]]:
    """new_gate(name): a gate that is closed until the test opens it."""
    from gates import Gate  # imports JAX, which the settings above come before

    with contextlib.ExitStack() as opened:
        yield lambda name: opened.enter_context(contextlib.closing(Gate(tmp_path / name)))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder RAYLINGVO_TEST_DATA; tests that need it are skipped without it."""
    if not (folder := os.environ.get("RAYLINGVO_TEST_DATA")):
        pytest.skip("RAYLINGVO_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def lingvo_vectors(test_data: Path) -> Callable[[str], list[tuple[dict[str, Any], dict[str, np.ndarray]]]]:
    """lingvo_vectors(family): (case, its arrays) of `golden/<family>`, beside the folder RAYLINGVO_TEST_DATA."""

    def load(family: str) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
        folder = test_data.parent / "golden"
        if not folder.is_dir():
            pytest.skip(f"there are no golden vectors beside RAYLINGVO_TEST_DATA: {folder} does not exist")
        cases = json.loads((folder / f"{family}.json").read_text())["cases"]
        with np.load(folder / f"{family}.npz") as arrays:
            return [(case, {name: arrays[f"{case['id']}/{name}"] for name in case["arrays"]}) for case in cases]

    return load


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    """What a module has compiled is not kept: a process that goes through all of them would grow to 7 GB."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
