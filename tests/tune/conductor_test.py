"""The conductor at the hub: what trials tell of themselves, and those that cannot tell any more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import toy
from running import Events, own_ray

from raylingvo.tune import record
from raylingvo.tune.board import Board
from raylingvo.tune.book import Book
from raylingvo.tune.conductor import Conductor
from raylingvo.tune.hub import Hub
from raylingvo.tune.population import FACTORS, Population
from raylingvo.tune.request import Options, make_request

pytestmark = pytest.mark.ray

RATE = "learner.learning_rate"


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with own_ray(num_cpus=1):
        yield


class Shown(Events, Board):
    def update(self, sweep: record.Sweep, running: Any) -> None:
        pass


@ray.remote(num_cpus=0)
class Process:
    """Where a trial runs."""

    def present(self) -> None:
        pass


class Sweep:
    """One of two trials, without Tune."""

    def __init__(self, directory: Path, halving: Any = None):
        options = Options(scheduler="pbt", samples=2, max_steps=20, grace_steps=5)
        request = make_request(
            toy.experiment(), {RATE: "uniform(0.1, 1)"}, metric="test/loss", mode="min", options=options
        )
        self.shown = Shown()
        self.book = Book(request, 2, directory, self.shown)
        self.book.open()
        self.population = Population(request.space, mode="min", interval=5, seed=0)
        self.reason: str | None = None
        self.conductor = Conductor(request, self.book, lambda: self.reason)
        self.hub = ray.remote(Hub).options(num_cpus=0, max_concurrency=100).remote({})
        self.conductor.open(self.hub, self.population, halving)
        self.trials = [
            SimpleNamespace(config={"trial": number, "params": {RATE: 0.1 * (number + 1)}}, last_result=None)
            for number in range(2)
        ]

    def start(self, number: int) -> Any:
        """The trial runs in a process of its own, which is returned."""
        process = Process.remote()
        self.conductor.on_trial_start(1, [], self.trials[number])  # type: ignore[arg-type]
        self.population.add(number, self.trials[number].config["params"])
        ray.get(self.hub.begin.remote(number, process))
        return process

    def tell(self, number: int, **news: Any) -> None:
        ray.get(self.hub.tell.remote(number, **news))

    def listen(self, until: Callable[[], bool]) -> None:
        for _ in range(1000):
            self.conductor.on_step_end(1, [])
            if until():
                return
            ray.wait([self.hub.news.remote(0)], timeout=0.05)
        raise AssertionError(self.shown.events)


def adopted(step: int, donor: int, rate: float) -> dict[str, Any]:
    return {"step": step, "params": {RATE: rate}, "origin": {"from_trial": donor}}


def test_the_record_has_what_a_trial_knows_of_itself(tmp_path: Path) -> None:
    """Also when it knows less than before: it was killed before that was on disk."""
    sweep = Sweep(tmp_path)
    sweep.start(1)
    for step in (4, 8, 12):
        sweep.book.value(1, step, 1.0)
    first, second = adopted(5, 0, 0.3), adopted(10, 0, 0.4)
    changes: list[Any] = []
    for known in ([first], [first, second], [first], []):
        sweep.tell(1, adopted=known)
        sweep.listen(lambda known=known: len(sweep.book.trials[1].changes) == len(known))
        trial = sweep.book.trials[1]
        assert trial.params == {RATE: [0.2, 0.3, 0.4][len(known)]}
        assert [change["step"] for change in trial.changes] == [5, 10][: len(known)]
        changes = [*trial.changes] if len(known) == 2 else changes
        # Evaluations with what it has forgotten are of weights that are gone.
        assert [step for step, _ in trial.history] == (
            [4, 8, 12] if not changes else [[4], [4, 8], [4, 8, 12]][len(known)]
        )
        # What a donor has is varied: unless it is drawn anew, by these factors.
        sweep.population.judge(1, 100, 1.0)
        exploits = [sweep.population.judge(0, 100, 2.0) for _ in range(50)]
        varied = {exploit.params[RATE] for exploit in exploits if exploit is not None}
        assert {trial.params[RATE] * factor for factor in FACTORS} <= varied
    assert changes == [
        {"step": 5, "from_trial": 0, "params": {RATE: 0.3}, "before": {RATE: 0.2}},
        {"step": 10, "from_trial": 0, "params": {RATE: 0.4}, "before": {RATE: 0.3}},
    ]
    assert [sweep.book.trials[1].params_at(step)[RATE] for step in (4, 20)] == [0.2, 0.2]


def test_a_change_that_takes_the_place_of_one_that_was_forgotten(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.start(1)
    for known in ([adopted(5, 0, 0.3)], [adopted(8, 0, 0.4)]):
        for step in (4, 8, 12):
            sweep.book.value(1, step, 1.0)
        sweep.tell(1, adopted=known)
        sweep.listen(lambda known=known: sweep.book.trials[1].params == {RATE: known[0]["params"][RATE]})
    assert [step for step, _ in sweep.book.trials[1].history] == [4]


@pytest.mark.parametrize("first", ["tune", "death"])
def test_nobody_waits_for_a_trial_that_died_when_tune_was_done_with_it(tmp_path: Path, first: str) -> None:
    sweep = Sweep(tmp_path)
    process = sweep.start(0)
    sweep.trials[0].last_result = {"step": 10}
    if first == "tune":
        sweep.conductor.on_trial_complete(1, [], sweep.trials[0])  # type: ignore[arg-type]
    sweep.reason = "interrupted"
    sweep.listen(sweep.conductor.is_over)
    assert not sweep.conductor.is_quiet()
    ray.kill(process)
    if first == "death":
        sweep.listen(lambda: bool(sweep.conductor._lost))
        assert not sweep.conductor.is_quiet()
        sweep.conductor.on_trial_complete(1, [], sweep.trials[0])  # type: ignore[arg-type]
    sweep.listen(sweep.conductor.is_quiet)
    assert sweep.book.trials[0].status == "stopped"
    assert "trial 0: its process died before its last evaluation" in sweep.shown.events
    sweep.conductor.close()


def test_a_trial_that_tune_starts_again_is_waited_for(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    process = sweep.start(0)
    ray.kill(process)
    sweep.start(0)  # as Tune does
    sweep.reason = "interrupted"
    sweep.listen(sweep.conductor.is_over)
    assert not sweep.conductor.is_quiet()
    sweep.tell(0, ended=("interrupted", 7, "interrupted"), seconds=1.0)
    sweep.listen(sweep.conductor.is_quiet)
    assert sweep.book.trials[0].step == 7
    sweep.conductor.close()


def test_a_trial_that_goes_on_after_a_pause_is_not_over_for_what_is_heard_late(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path)
    sweep.start(0)
    sweep.tell(0, ended=("interrupted", 5, "paused by the scheduler"), seconds=1.0)
    sweep.start(0)
    sweep.listen(lambda: True)
    assert sweep.book.trials[0].status == "running"
    sweep.tell(0, ended=("finished", 20, "reached max_steps 20"), seconds=1.0)
    sweep.conductor.close()
    assert sweep.book.trials[0].status == "finished"


class Halving:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.released: list[int] = []
        self.given_up: list[int] = []

    def release(self, number: int) -> None:
        self.released.append(number)

    def give_up(self, number: int) -> None:
        self.given_up.append(number)


def test_a_trial_that_ends_before_it_is_to_pause_goes_on_to_tell_so(tmp_path: Path) -> None:
    """What Tune has not heard of it would be lost, and it would be stopped as one that waits."""
    halving = Halving()
    sweep = Sweep(tmp_path, halving)
    sweep.start(0)
    sweep.tell(0, ended=("finished", 20, "reached max_steps 20"), seconds=1.0)
    sweep.tell(0, untold=True)
    sweep.listen(lambda: halving.released == [0])
    assert sweep.book.trials[0].status == "paused"
    sweep.start(0)
    sweep.tell(0, ended=("finished", 20, "reached max_steps 20"), seconds=1.0)
    sweep.conductor.close()
    assert (sweep.book.trials[0].status, halving.released) == ("finished", [0])


def test_a_trial_that_fails_while_it_is_to_pause_has_failed(tmp_path: Path) -> None:
    halving = Halving()
    sweep = Sweep(tmp_path, halving)
    sweep.start(0)
    sweep.tell(0, ended=("failed", 5, "OSError: no space left"), seconds=1.0)
    sweep.listen(lambda: halving.given_up == [0])
    sweep.conductor.on_trial_complete(1, [], sweep.trials[0])  # type: ignore[arg-type]
    trial = sweep.book.trials[0]
    assert (trial.status, trial.error) == ("failed", "OSError: no space left")


def test_a_trial_whose_process_has_died_has_to_be_started_again(tmp_path: Path) -> None:
    """If the sweep is interrupted just then, it does not say of it that it runs."""
    sweep = Sweep(tmp_path)
    sweep.start(0)
    sweep.conductor.on_trial_recover(1, [], sweep.trials[0])  # type: ignore[arg-type]
    assert sweep.book.trials[0].status == "pending"
    sweep.reason = "SIGINT"
    sweep.listen(sweep.conductor.is_quiet)
