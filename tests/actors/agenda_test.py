"""What is called when, of what a run waits for. Nothing is started here."""

from __future__ import annotations

from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayError

from raylingvo.actors import agenda
from raylingvo.actors.agenda import Agenda, ignored

Answers = dict[Any, Any]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Reference -> what is there."""
    there: Answers = {}

    def wait(refs: list[Any], **_how: Any) -> tuple[list[Any], list[Any]]:
        return [ref for ref in refs if ref in there][:1], []

    def fetch(ref: Any) -> Any:
        if isinstance(there[ref], RayError):
            raise there[ref]
        return there[ref]

    monkeypatch.setattr(agenda.ray, "wait", wait)
    monkeypatch.setattr(agenda, "fetch", fetch)
    return there


def test_each_answer_goes_once_to_whom_it_is_for(answers: Answers) -> None:
    todo, heard = Agenda(), []
    for ref in ("a", "b", "c"):
        todo.watch(ref, lambda answer, ref=ref: heard.append((ref, answer)), lambda error: heard.append(error))
    answers |= {"b": 1, "c": (died := ActorDiedError())}
    for _ in range(4):
        todo.wait(0.0)
    assert heard == [("b", 1), died]


def test_an_error_is_raised_if_nobody_deals_with_it(answers: Answers) -> None:
    todo, heard = Agenda(), []
    todo.watch("a", heard.append, ignored)
    todo.watch("b", heard.append)
    answers |= {"a": ActorDiedError(), "b": ActorDiedError()}
    todo.wait(0.0)
    with pytest.raises(ActorDiedError):
        todo.wait(0.0)
    assert heard == []


def test_what_is_forgotten_or_dropped_does_not_come(answers: Answers) -> None:
    todo, heard, others = Agenda(), [], []
    todo.watch("a", heard.append)
    todo.watch("b", others.append)
    todo.watch("c", others.append)
    assert todo.asked(others.append)
    todo.forget(others.append)
    assert todo.asked(heard.append)
    assert not todo.asked(others.append)
    todo.drop(["a", "unknown"])
    answers |= dict.fromkeys("abc", 0)
    for _ in range(3):
        todo.wait(0.0)
    assert heard == others == []


def test_what_is_later_comes_once_when_its_time_has_come_or_in_a_hurry() -> None:
    todo, done = Agenda(), []
    todo.later(3600.0, lambda: done.append("in an hour"))
    todo.later(0.0, lambda: done.append("now"))
    for _ in range(2):
        todo.do_what_is_due(hurry=False)
    assert done == ["now"]
    for _ in range(2):
        todo.do_what_is_due(hurry=True)
    assert done == ["now", "in an hour"]
