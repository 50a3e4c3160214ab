"""The processes in which roles work, and those that wait for another run to need them."""

from __future__ import annotations

import json
from typing import Any

import ray
from ray.exceptions import RayError

from raylingvo.actors.calls import fetch


class Workers:
    """Starts the actors of roles. What one process has imported and compiled, another run's role finds there.

    An actor's class has `renew`, which takes the arguments of its constructor and makes the actor as good as new.
    """

    def __init__(self, *, keep: bool = False):
        """keep: actors whose work has ended well wait for the next run; otherwise, and by default, they end with it."""
        self.keep = keep
        self._kinds: dict[Any, str] = {}
        self._idle: dict[str, list[Any]] = {}

    def start(self, cls: type, options: dict[str, Any], *args: Any, use: str = "") -> Any:
        """An actor of this class, with these options of Ray's, new or renewed.

        use: what sets its work apart from that of others of the same class and options, such as its dataset.
        """
        kind = json.dumps([cls.__name__, use, options], default=repr, sort_keys=True)
        while idle := self._idle.get(kind):
            actor = idle.pop()
            try:
                fetch(actor.renew.remote(*args))
            except RayError:  # it has died since
                continue
            self._kinds[actor] = kind
            return actor
        actor = ray.remote(cls).options(**options).remote(*args)
        self._kinds[actor] = kind
        return actor

    def release(self, actor: Any, *, well: bool) -> None:
        """The work of an actor is over. well: nobody waits for an answer of it, and it has not failed."""
        kind = self._kinds.pop(actor, None)
        if self.keep and well and kind is not None:
            self._idle.setdefault(kind, []).append(actor)
        else:
            ray.kill(actor)

    def close(self) -> None:
        """Ends those that wait."""
        for actors in self._idle.values():
            for actor in actors:
                ray.kill(actor)
        self._idle.clear()
