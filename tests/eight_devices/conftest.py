"""For the tests that tests/eight_devices_test.py runs, in a process of its own."""

import jax
import pytest


@pytest.fixture(scope="session", autouse=True)
def eight_devices() -> None:
    assert jax.device_count() == 8
