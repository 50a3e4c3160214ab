"""How a gang ends: what its hosts return together, and which of their errors is the cause. Nothing is started here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from raylingvo.actors import gang, workers
from raylingvo.actors.gang import Gang, in_words
from raylingvo.actors.workers import Workers
from raylingvo.errors import RequestError


class JaxRuntimeError(RuntimeError):
    """As JAX's: its class is known by its name, since JAX is not imported where this is asked."""


DIED = ActorDiedError()
LOST = RuntimeError("Gloo all-reduce failed: Connection closed by peer")


class Method:
    """Of a fake actor: `remote` notes the arguments and gives an object of its own."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.refs: list[object] = []

    def remote(self, *args: Any) -> object:
        self.calls.append(args)
        self.refs.append(object())
        return self.refs[-1]


class Actor:
    def __init__(self) -> None:
        self.run, self.meeting_point = Method(), Method()


def failed(cause: Exception) -> RayTaskError:
    return RayTaskError("run", "Traceback ..", cause)


def running(count: int) -> Gang:
    made = Gang("life", [Actor() for _ in range(count)], None, Workers())
    made.run()
    return made


def ended(ends: Mapping[int, RayError | dict[str, Any]], *, of: int) -> Gang:
    """A gang of so many, in which these hosts have ended, in this order."""
    made = running(of)
    for index, end in ends.items():
        made.ended(made.refs[index], end)
    return made


def cause(ends: Mapping[int, RayError | dict[str, Any]], *, of: int, crashed: Sequence[int] = ()) -> tuple[int, str]:
    """(the host whose error is the cause, what is known of it)."""
    found = ended(ends, of=of).cause(lambda index: "Fatal Python error" if index in crashed else "")
    assert found.error is ends[found.host]
    return found.host, " ".join(word for word in ("certain", "lost") if getattr(found, word))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    "peer",
    [
        LOST,
        JaxRuntimeError("UNAVAILABLE: The following tasks are unhealthy"),
        JaxRuntimeError("DEADLINE_EXCEEDED: Barrier timed out"),
        JaxRuntimeError("INTERNAL: whatever"),
        JaxRuntimeError("INTERNAL: [external/gloo/transport/tcp] Connection reset by peer"),
        JaxRuntimeError("NCCL operation failed"),
        ValueError("UNKNOWN: Gloo AllGather failed: timed out"),
    ],
)
def test_a_host_that_was_killed_is_why_calls_to_it_failed(order: tuple[int, int], peer: Exception) -> None:
    for killed in order:
        ends = {index: DIED if index == killed else failed(peer) for index in order}
        assert cause(ends, of=3) == (killed, "certain")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_error_that_is_not_of_the_connection_is_the_cause(order: tuple[int, int]) -> None:
    ends = {index: failed(RequestError("no space")) if index else failed(LOST) for index in order}
    assert cause(ends, of=3) == (1, "certain")
    # Connections that are not JAX's are the user's.
    ends = {index: failed(ConnectionResetError("Connection reset by peer") if index else LOST) for index in order}
    assert cause(ends, of=3) == (1, "certain")
    # JAX has ended the other, which says so by a fatal signal.
    ends = {index: failed(OverflowError("too much")) if index else DIED for index in order}
    assert cause(ends, of=3, crashed=[0]) == (1, "certain")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_crash_comes_before_an_error_of_the_connection_but_is_not_certain(order: tuple[int, int]) -> None:
    ends = {index: DIED if index else failed(JaxRuntimeError("UNAVAILABLE")) for index in order}
    assert cause(ends, of=3, crashed=[1]) == (1, "")


def test_a_death_that_left_no_word_comes_before_a_crash() -> None:
    assert cause({0: DIED, 1: DIED}, of=3, crashed=[0]) == (1, "certain")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_went_wrong_in_a_computation_comes_before_the_connections_that_broke_of_it(order: tuple[int, int]) -> None:
    ends = {index: failed(JaxRuntimeError("RESOURCE_EXHAUSTED") if index else LOST) for index in order}
    assert cause(ends, of=3) == (1, "")
    assert cause(ends, of=2) == (1, "certain")


def test_what_may_be_of_another_host_is_certain_when_all_have_ended() -> None:
    lost, crashed = {0: failed(LOST)}, {2: DIED}
    assert cause(lost, of=3) == (0, "lost")
    assert cause(crashed, of=3, crashed=[2]) == (2, "")
    assert cause(lost | crashed, of=3, crashed=[2]) == (2, "")
    assert cause(lost | crashed | {1: failed(LOST)}, of=3, crashed=[2]) == (2, "certain")
    # One that has come to its end is no better to wait for.
    assert cause(lost | {1: {"preempted": False}}, of=2) == (0, "certain lost")


def test_of_errors_that_are_alike_that_of_the_first_host_is_the_cause() -> None:
    assert cause({2: failed(LOST), 1: failed(LOST)}, of=3) == (1, "lost")


def test_what_one_host_alone_fails_of_is_certain_and_no_loss_of_others() -> None:
    for end in (failed(JaxRuntimeError("out of memory")), failed(ValueError("x")), failed(LOST), DIED):
        assert cause({0: end}, of=1, crashed=[0]) == (0, "certain")


def test_the_result_is_that_of_host_0_when_all_have_one() -> None:
    made = running(2)
    assert made.result() is None
    made.ended(made.refs[1], {"step": 12, "preempted": False, "status": 1})
    assert made.result() is None
    made.ended(made.refs[0], {"step": 12, "preempted": False, "status": 0})
    assert made.result() == {"step": 12, "preempted": False, "status": 0}


@pytest.mark.parametrize("preempted", [0, 1])
def test_a_gang_is_preempted_if_any_of_it_is(preempted: int) -> None:
    ends: dict[int, Any] = {index: {"step": 5, "preempted": index == preempted} for index in (1, 0)}
    assert ended(ends, of=2).result() == {"step": 5, "preempted": True}


def test_there_is_no_result_where_a_host_has_failed() -> None:
    assert ended({0: {"step": 12, "preempted": False}, 1: DIED}, of=2).result() is None


def test_several_meet_where_host_0_says() -> None:
    made = running(3)
    (meeting_point,) = made.leader.meeting_point.refs
    assert [actor.run.calls for actor in made.actors] == [[(meeting_point,)]] * 3
    assert made.refs == [actor.run.refs[0] for actor in made.actors]
    assert not any(actor.meeting_point.calls for actor in made.actors[1:])


def test_one_meets_nobody() -> None:
    made = running(1)
    assert made.leader.run.calls == [()]
    assert made.leader.meeting_point.calls == []


def test_all_are_killed_and_their_places_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[Any] = []
    monkeypatch.setattr(workers.ray, "kill", given_back.append)
    monkeypatch.setattr(gang, "remove_placement_group", given_back.append)
    group: Any = object()
    made = Gang("life", [Actor(), Actor()], group, Workers())
    made.release()
    assert given_back == [*made.actors, group]
    given_back.clear()
    Gang("life", made.actors, None, Workers()).release()
    assert given_back == made.actors


def test_places_are_given_back_also_to_a_cluster_that_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Any) -> None:
        raise RayError

    monkeypatch.setattr(workers.ray, "kill", lambda _: None)
    monkeypatch.setattr(gang, "remove_placement_group", gone)
    group: Any = object()
    Gang("life", [Actor()], group, Workers()).release()


def test_what_a_gang_asks_for_in_words() -> None:
    assert in_words({"CPU": 1.0, "TPU": 0.5}, 2) == "2 x {CPU: 1, TPU: 0.5}"
