"""A package of models exports its public classes."""

import dataclasses
import importlib
import pkgutil

import pytest
from flax import nnx

from raylingvo.models import layers, lm, mt


def public_classes(package):
    """(name, class) of what is defined in the package's files, those that register experiments excepted."""
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        if hasattr(module, "register"):
            continue
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_"):
                yield name, value


@pytest.mark.parametrize("package", [layers, lm, mt])
def test_every_layer_and_config_is_exported(package):
    found = dict(public_classes(package))
    # Networks of tasks are made by their configs.
    wanted = {
        name
        for name, value in found.items()
        if dataclasses.is_dataclass(value) or (package is layers and issubclass(value, nnx.Module))
    }
    internal = {"HeadsProjection"} if package is layers else set()
    assert {name for name in wanted - internal if getattr(package, name, None) is not found[name]} == set()
