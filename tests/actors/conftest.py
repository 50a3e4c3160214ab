"""What the tests of real runs share: Ray, and gates."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import gates
import pytest


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of a module; every run starts its own actors in it."""
    import ray

    ray.init(address="local", num_cpus=4, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture
def new_gate(tmp_path: Path) -> Iterator[Callable[[str], gates.Gate]]:
    """new_gate(name): a gate that is closed until the test opens it."""
    with contextlib.ExitStack() as opened:
        yield lambda name: opened.enter_context(contextlib.closing(gates.Gate(tmp_path / name)))
