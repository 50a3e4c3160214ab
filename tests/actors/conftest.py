"""What the tests of real runs share: Ray."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from running import own_ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all tests of a module; every run starts its own actors in it."""
    with own_ray(num_cpus=4):
        yield
