"""raylingvo: named experiments in JAX whose trainer, evalers and decoders are Ray actors.

import raylingvo as rl
exp = rl.override(rl.get("image.digits.LeNet5"), {"learner.learning_rate": 3e-4})
result = rl.run(exp, logdir="/tmp/digits")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raylingvo.actors.run import run
    from raylingvo.config import override
    from raylingvo.errors import RequestError
    from raylingvo.experiment import Experiment
    from raylingvo.registry import get, register
    from raylingvo.tune.sweep import sweep

__version__ = "0.1.0"
__all__ = ["Experiment", "RequestError", "get", "override", "register", "run", "sweep"]

# Resolved on first use, so that `import raylingvo` imports neither JAX nor Ray.
_HOMES = {
    "Experiment": "raylingvo.experiment",
    "RequestError": "raylingvo.errors",
    "get": "raylingvo.registry",
    "override": "raylingvo.config",
    "register": "raylingvo.registry",
    "run": "raylingvo.actors.run",
    "sweep": "raylingvo.tune.sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raylingvo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
