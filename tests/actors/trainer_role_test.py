"""What follows when a Trainer ends, and what its next life is told. Nothing is started here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import toy
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from running import Events

from raylingvo.actors import agenda, execution, trainer_role
from raylingvo.actors.execution import Execution
from raylingvo.actors.gang import Gang
from raylingvo.actors.trainer_role import TrainerRole
from raylingvo.errors import HostsApart, RequestError
from raylingvo.experiment import Resources

MAX_STEPS = 12
DIED = ActorDiedError()


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("run", "Traceback ..", cause)


def status(step: int) -> dict[str, Any]:
    return {"state": "training", "step": step, "first_step_time": 1.0 if step else None, "events": (0, [])}


class Lives:
    """A TrainerRole. Its actors only note what they are told; what they answer is what the test says."""

    def __init__(self, logdir: Path, monkeypatch: pytest.MonkeyPatch, *, hosts: int = 1):
        self._answers: dict[Any, Any] = {}
        monkeypatch.setenv("RAYLINGVO_EXPORT_METRICS", "0")
        monkeypatch.setattr(agenda.ray, "wait", lambda refs, **_: ([ref for ref in refs if ref in self._answers], []))
        monkeypatch.setattr(execution, "object_store_bytes", lambda: 0)
        monkeypatch.setattr(execution.remote, "start_store", mock.MagicMock())
        monkeypatch.setattr(trainer_role.remote, "start_trainer", self._start)
        for module in (agenda, trainer_role):
            monkeypatch.setattr(module, "fetch", self._fetch)
        self.gangs: list[Gang] = []
        self.view = Events()
        self.news: list[Any] = []  # what it had returned, each time that there were some
        experiment = dataclasses.replace(toy.experiment(max_steps=MAX_STEPS), resources=Resources(hosts=hosts))
        job: Any = mock.MagicMock(run="run")
        within: Any = mock.MagicMock(runs_beside=0)
        self.execution = Execution(experiment, job, logdir, self.view, within)
        self.role = TrainerRole(self.execution, lambda: 0, lambda: self.news.append(self.role.trained))
        self.role.prepare()
        self.role.run()

    def _start(self, workers: Any, _job: Any, resources: Resources, _store: Any) -> Gang:
        actors = [mock.MagicMock() for _ in range(resources.hosts)]
        self.gangs.append(Gang(f"life {len(self.gangs)}", actors, None, workers))
        return self.gangs[-1]

    def _fetch(self, ref: Any) -> Any:
        if isinstance(answer := self._answers.pop(ref), RayError):
            raise answer
        return answer

    def worked(self, step: int) -> None:
        """The present life has said how far it is."""
        self.role.ask_for_news()
        self._hears(self.gangs[-1].leader.status.remote.return_value, status(step))

    def ends(self, end: dict[str, Any] | RayError, *, host: int = 0, step: int | None = None) -> None:
        """A host of the present life has ended. step: what host 0 then says of how far it is; None: it is dead."""
        gang = self.gangs[-1]
        self._answers[gang.leader.status.remote.return_value] = DIED if step is None else status(step)
        self._hears(gang.refs[host], end)
        self._answers.clear()

    def _hears(self, ref: Any, answer: Any) -> None:
        self._answers[ref] = answer
        self.execution.agenda.wait(0.0)

    def due(self, *, hurry: bool = False) -> None:
        self.execution.agenda.do_what_is_due(hurry=hurry)


NewLives = Callable[..., Lives]


@pytest.fixture
def new_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewLives:
    return lambda **how: Lives(tmp_path, monkeypatch, **how)


def returned(step: int, *, preempted: bool = False) -> dict[str, Any]:
    return {"step": step, "preempted": preempted, "status": status(step)}


def test_there_is_news_from_the_first_step_on_and_at_the_end(new_lives: NewLives) -> None:
    lives = new_lives()
    lives.worked(0)
    assert lives.news == []
    lives.worked(1)
    lives.ends(returned(MAX_STEPS))
    assert lives.news == [None, {"step": MAX_STEPS}]
    lives.execution.store.close.remote.assert_called_once_with(MAX_STEPS)


def test_a_new_life_is_told_what_the_last_one_was(new_lives: NewLives) -> None:
    lives = new_lives()
    lives.worked(5)
    lives.role.scale_rate(0.5)
    lives.role.stop("SIGTERM", resumable=True)
    lives.ends(DIED)
    assert len(lives.gangs) == 1
    lives.due()
    first, second = lives.gangs
    for gang in (first, second):
        gang.leader.stop.remote.assert_called_once_with(True)
        assert gang.leader.scale_rate.remote.call_args == mock.call(0.5)
    lives.execution.store.welcome.remote.assert_called_once_with((second.name, second.actors))
    assert lives.view.events[0] == "stopping: SIGTERM"
    assert lives.view.events[1].startswith("the Trainer died; started again (1): ActorDiedError: ")


def test_what_fails_before_the_first_step_is_lost(new_lives: NewLives) -> None:
    lives = new_lives()
    lives.ends(raised(OSError("away")))
    assert lives.role.is_lost
    assert [message for message, _ in lives.execution.failures] == ["the Trainer failed: OSError: away"]


def test_what_fails_twice_at_the_same_step_is_lost(new_lives: NewLives) -> None:
    lives = new_lives()
    lives.ends(raised(OSError("away")), step=5)
    lives.due()
    assert not lives.role.is_lost
    lives.ends(raised(OSError("away")), step=5)
    assert lives.role.is_lost
    again = "the Trainer failed at step 5 again: OSError: away"
    assert lives.view.events == ["the Trainer failed at step 5; started again (1): OSError: away", again]
    assert [message for message, _ in lives.execution.failures] == [again]


def test_a_wrong_request_is_raised(new_lives: NewLives) -> None:
    with pytest.raises(RequestError, match="no such data"):
        new_lives().ends(raised(RequestError("no such data")))


def test_one_that_is_told_to_go_is_started_again_if_there_is_more_to_do(new_lives: NewLives) -> None:
    lives = new_lives()
    lives.ends(returned(5, preempted=True))
    assert lives.view.events == ["the Trainer was told to go (SIGTERM), and has saved step 5; started again"]
    assert (lives.role.preemptions, lives.role.recovery.restarts) == (1, 0)
    lives.ends(returned(MAX_STEPS, preempted=True))
    assert len(lives.gangs) == 2
    assert lives.role.trained == {"step": MAX_STEPS}


def test_one_that_is_told_to_go_with_the_whole_run_is_not_started_again(new_lives: NewLives) -> None:
    """By a signal to the process group, of which the run hears later."""
    lives = new_lives()
    lives.role.stop_request = lambda: "SIGTERM"
    lives.ends(returned(5, preempted=True))
    assert len(lives.gangs) == 1
    assert lives.role.trained == {"step": 5}


def test_a_request_to_interrupt_outranks_a_decision_to_finish(new_lives: NewLives) -> None:
    role = (lives := new_lives()).role
    role.stop("no progress", resumable=False)
    role.stop("SIGINT", resumable=True)
    role.stop("no progress", resumable=False)
    role.stop("SIGTERM", resumable=True)
    assert (role.asked_to_stop, role.resumable) == ("SIGINT", True)
    assert lives.gangs[0].leader.stop.remote.call_args_list == [mock.call(False), mock.call(True)]


@pytest.mark.parametrize("other_tells", [False, True])
def test_of_a_host_that_has_lost_the_others_these_are_listened_to(new_lives: NewLives, other_tells: bool) -> None:
    lives = new_lives(hosts=2)
    lives.worked(5)
    lives.ends(raised(HostsApart("where is the other?")), host=0)
    assert lives.view.events == []
    if other_tells:
        lives.ends(DIED, host=1)
    lives.due(hurry=True)
    (told,) = lives.view.events
    what = "died on host 1 of 2" if other_tells else "lost its other hosts on host 0 of 2"
    assert told.startswith(f"the Trainer {what}; started again (1): ")
    lives.due(hurry=True)
    assert len(lives.gangs) == 2
