"""The hub of a sweep: an actor through which its driver commands trials, and they tell how they stand."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
from ray.exceptions import ActorUnavailableError, RayError

from raylingvo.actors.calls import PAYLOAD_SECONDS, POLL_SECONDS, fetch
from raylingvo.actors.within import Command

_PRESENT_SECONDS = 1.0  # how often it is asked whether a process that waits between two steps is there


class Greeting(NamedTuple):
    """What a trial is told when it begins, or goes on."""

    life: int  # how often the trial had begun before
    reported: int  # the last step whose metric it has reported to this sweep; -1 if none
    interrupted: str | None  # why the sweep does not want it to begin


class Hub:
    """Commands are for the time until a trial ends or pauses. Trials are known by their numbers.

    What leads to weights only travels as references inside lists.
    """

    def __init__(self, reported: Mapping[int, int]) -> None:
        """reported: steps up to which trials need not report again what an earlier sweep has heard."""
        self._commands: defaultdict[int, deque[Command]] = defaultdict(deque)
        self._stores: dict[int, Any] = {}  # of the trials that run
        self._states: dict[int, Mapping[str, Any]] = {}  # of those that do not, as their stores would give them
        self._reported = dict(reported)
        self._lives: defaultdict[int, int] = defaultdict(int)
        self._begun: set[int] = set()  # and not ended
        self._interrupted: str | None = None
        self._news: deque[Mapping[str, Any]] = deque()
        self._num_heard = 0  # news that the driver has, and that are forgotten
        self._changed = asyncio.Condition()
        self._watches: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return "SweepHub"

    # -- for trials ----------------------------------------------------------------------------------------------------

    async def begin(self, trial: int, actor: Any) -> Greeting:
        """Trial `trial` is about to run in the process of a TrialActor, whose death will be told."""
        self._begun.add(trial)
        self._lives[trial] += 1
        self._commands[trial].clear()  # they were for the life before
        watch = asyncio.create_task(self._watch(trial, self._lives[trial], actor))
        self._watches.add(watch)  # asyncio itself keeps only weak references
        watch.add_done_callback(self._watches.discard)
        await self.tell(trial, began=True)
        return Greeting(self._lives[trial], self._reported.get(trial, -1), self._interrupted)

    async def here(self, trial: int, store: Any) -> None:
        """Its SnapshotStore, which others may take weights from while it runs."""
        self._stores[trial] = store
        self._states.pop(trial, None)

    async def leaves(self, trial: int, *, keep_state: bool) -> None:
        """Its store is about to end. keep_state: others may want the weights it has now."""
        store = self._stores.pop(trial, None)
        if store is not None and keep_state and (newest := await _newest_state(store)) is not None:
            # What the store owned would end with it.
            copied = await asyncio.to_thread(_copied, newest)
            if copied is not None and trial not in self._stores:
                self._states[trial] = copied

    async def tell(self, trial: int, **news: Any) -> None:
        """How it stands: whatever the driver is to know."""
        if "reported" in news:
            self._reported[trial] = news["reported"]
        if "ended" in news:
            self._begun.discard(trial)
            self._commands[trial].clear()  # they keep the weights of others
        if news.keys() != {"reported"}:
            self._news.append({"trial": trial, **news})
            await self._wake()

    async def next(self, trial: int, life: int) -> Command | None:
        """Long poll: the next command for it, or None if there was none for a while, or it has begun again since."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._commands[trial] or self._lives[trial] != life)
        queue = self._commands[trial]
        return queue.popleft() if queue and self._lives[trial] == life else None

    # -- for the driver ------------------------------------------------------------------------------------------------

    async def command(self, trial: int, command: Command) -> None:
        self._commands[trial].append(command)
        await self._wake()

    async def interrupt(self, reason: str) -> None:
        """All trials that run are to pause, and none is to begin."""
        self._interrupted = reason
        for trial in self._begun:
            self._commands[trial].append(Command("pause", reason=reason, hurry=True))
        await self._wake()

    async def exploit(self, trial: int, donor: int, command: Command) -> bool:
        """Trial `trial` is to go on with the newest train state of `donor`; whether there is one."""
        state = self._states.get(donor)
        if donor in self._stores:
            state = await _newest_state(self._stores[donor])
        if state is None:
            return False
        await self.command(trial, command._replace(state=state))
        return True

    async def news(self, seen: int) -> list[Mapping[str, Any]]:
        """Long poll: what trials have told, after the first `seen`, which are forgotten."""
        while self._num_heard < seen:
            self._news.popleft()
            self._num_heard += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS), self._changed:
                await self._changed.wait_for(lambda: self._news)
        return list(self._news)

    async def _watch(self, trial: int, life: int, actor: Any) -> None:
        """Tells when a process has died, as long as its trial is in it."""
        while trial in self._begun and self._lives[trial] == life:
            try:
                await actor.present.remote()  # answered between two steps of the actor
            except ActorUnavailableError:  # for the moment: it may turn out to be dead
                pass
            except RayError:
                if trial in self._begun and self._lives[trial] == life:
                    self._begun.discard(trial)
                    await self.tell(trial, lost=True)
                return
            await asyncio.sleep(_PRESENT_SECONDS)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()


async def _newest_state(store: Any) -> Mapping[str, Any] | None:
    try:
        return await store.newest_state.remote()
    except RayError:  # it has died: the trial will be started again
        return None


def _copied(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same, owned by this process."""
    try:
        return {
            **state,
            **{part: [ray.put(fetch(ref, PAYLOAD_SECONDS)) for ref in state[part]] for part in ("weights", "rest")},
        }
    except RayError:  # its owner was faster
        return None
