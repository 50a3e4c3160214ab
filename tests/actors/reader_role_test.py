"""What follows when an Evaler ends, also one that the SnapshotStore has forgotten. Nothing is started here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import toy
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from running import Watcher

from raylingvo.actors import agenda, execution, reader_role, supervisor, trainer_role
from raylingvo.actors.gang import Gang
from raylingvo.actors.supervisor import Supervisor
from raylingvo.errors import RequestError

EVALER = "Evaler(test)"
DIED = ActorDiedError()


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("run", "Traceback ..", cause)


class Lives:
    """Those of an Evaler, under a Supervisor. Actors only note what they are told; the test says what they answer."""

    def __init__(self, logdir: Path, monkeypatch: pytest.MonkeyPatch):
        self.store = mock.MagicMock()
        self._answers: dict[Any, Any] = {self.store.open.remote.return_value: ("store 1", False)}
        monkeypatch.setenv("RAYLINGVO_EXPORT_METRICS", "0")
        monkeypatch.setattr(agenda.ray, "wait", lambda refs, **_: ([ref for ref in refs if ref in self._answers], []))
        monkeypatch.setattr(execution, "object_store_bytes", lambda: 0)
        monkeypatch.setattr(execution.remote, "start_store", lambda *_, **__: self.store)
        monkeypatch.setattr(trainer_role.remote, "start_trainer", self._start_trainer)
        monkeypatch.setattr(reader_role.remote, "start_reader", self._start_reader)
        for module in (agenda, supervisor, trainer_role):
            monkeypatch.setattr(module, "fetch", self._fetch)
        self.evalers: list[Any] = []
        self.view = Watcher()
        job: Any = mock.MagicMock(run="run")
        within: Any = mock.MagicMock(runs_beside=0, commands=None)
        self.supervisor = Supervisor(toy.experiment(), job, logdir, self.view, within)
        assert self.supervisor._start()
        self._store_lives = 1
        self.role = self.supervisor._readers[EVALER]

    def _start_trainer(self, workers: Any, *_: Any) -> Gang:
        return Gang("trainer", [mock.MagicMock()], None, workers)

    def _start_reader(self, _workers: Any, kind: str, *_: Any) -> Any:
        actor = mock.MagicMock()
        if kind == "evaler":
            self.evalers.append(actor)
        return actor

    def _fetch(self, ref: Any) -> Any:
        if isinstance(answer := self._answers.pop(ref), RayError):
            raise answer
        return answer

    def _hears(self, ref: Any, answer: Any) -> None:
        self._answers[ref] = answer
        self.supervisor._agenda.wait(0.0)

    def store_restarts(self) -> None:
        """It has forgotten what each reader works on."""
        self._store_lives += 1
        self._hears(self.store.results.remote.return_value, (f"store {self._store_lives}", []))

    def ends(self, error: RayError) -> None:
        """The store is asked which step the Evaler was working on."""
        self._hears(self.evalers[-1].run.remote.return_value, error)

    def store_says(self, step: int | None) -> None:
        """None: it knows of no work of the Evaler."""
        self._hears(self.store.died.remote.return_value, step)
        self.supervisor._agenda.do_what_is_due(hurry=True)


NewLives = Callable[[], Lives]


@pytest.fixture
def new_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewLives:
    return lambda: Lives(tmp_path, monkeypatch)


def test_what_fails_before_its_first_snapshot_is_lost(new_lives: NewLives) -> None:
    lives = new_lives()
    lives.ends(raised(OSError("away")))
    lives.store_says(None)
    assert (len(lives.evalers), lives.role.ended) == (1, "failed")
    lost = f"{EVALER} failed; training goes on without it: OSError: away"
    assert [message for message, _ in lives.supervisor.failures] == [lost]
    lives.store.unregister.remote.assert_called_once_with(EVALER)


@pytest.mark.parametrize("error", [raised(OSError("away")), DIED])
def test_what_ends_at_work_is_started_again(new_lives: NewLives, error: RayError) -> None:
    lives = new_lives()
    lives.ends(error)
    lives.store_says(3)
    assert (len(lives.evalers), lives.role.ended) == (2, None)


@pytest.mark.parametrize("asked_before", [False, True])
def test_what_fails_at_work_is_started_again_though_the_store_has_forgotten_that(
    new_lives: NewLives, asked_before: bool
) -> None:
    """asked_before: the Evaler had failed already when it was heard that the store had died."""
    lives = new_lives()
    failed = raised(OSError("away"))
    if asked_before:
        lives.ends(failed)
        lives.store_restarts()
    else:
        lives.store_restarts()
        lives.ends(failed)
    lives.store_says(None)
    assert (len(lives.evalers), lives.role.ended, lives.supervisor.failures) == (2, None, [])
    assert lives.view.events[-1] == f"{EVALER} failed; started again (1): OSError: away"
    # What the store has forgotten of one life says nothing of the next.
    lives.ends(failed)
    lives.store_says(None)
    assert (len(lives.evalers), lives.role.ended) == (2, "failed")


def test_a_snapshot_that_ends_it_twice_is_set_aside(new_lives: NewLives) -> None:
    lives = new_lives()
    for _ in range(2):
        lives.ends(DIED)
        lives.store_says(3)
    assert lives.role.set_aside == [3]
    lives.store.set_aside.remote.assert_called_once_with(EVALER, 3)
    assert f"{EVALER} died twice on the snapshot of step 3, which is set aside" in lives.view.events
    assert (len(lives.evalers), lives.role.ended) == (3, None)


def test_a_wrong_request_is_raised(new_lives: NewLives) -> None:
    lives = new_lives()
    lives.ends(raised(RequestError("no such data")))
    with pytest.raises(RequestError, match="no such data"):
        lives.store_says(None)
