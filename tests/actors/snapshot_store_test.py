"""The store's bookkeeping under random histories: who sees what, what is kept, and within what budget."""

import random

import pytest

from raylingvo.actors.snapshot_store import SnapshotStore

POLICIES = {"every a": "every", "every b": "every", "latest a": "latest", "latest b": "latest", "last": "last"}


class History:
    """A store, and a model of what its readers have been given, under random operations."""

    def __init__(self, seed, *, max_bytes, max_count, operations):
        self.rng = random.Random(seed)
        self.store = SnapshotStore(max_bytes, max_count)
        self.published = []
        self.state_step = None
        self.arriving = None  # whether the newest snapshot, which is still on its way, comes with a state
        self.working_on = dict.fromkeys(POLICIES)
        self.done = {name: [] for name in POLICIES}
        for name, policy in POLICIES.items():
            self.store.register(name, policy)
        self.publish()
        for _ in range(operations):
            operation = self.rng.choice(
                [self.publish, self.take, self.take, self.finish, self.finish, self.die, self.lose]
            )
            operation()
            self.spill()
        self.arrive()
        self.store.close(self.published[-1])
        while unfinished := [name for name in POLICIES if not self.store.finished(name)]:
            self.take(self.rng.choice(unfinished))
            self.finish()
            self.spill()

    def publish(self, step=None):
        self.arrive()
        step = step or len(self.published) + 1
        if step not in self.published:
            self.published.append(step)
        state = self.arriving = self.rng.random() < 0.4
        nbytes = {"nbytes": self.rng.randint(1, 9), "state_nbytes": 5 if state else 0}
        self.store.add(step, ("memory", step), time=step / 10, state=("state", step) if state else None, **nbytes)

    def arrive(self):
        """The newest snapshot is whole."""
        if self.arriving is not None:
            self.store.arrived(self.published[-1])
            if self.arriving:
                self.state_step = self.published[-1]
            self.arriving = None

    def take(self, name=None):
        name = name or self.rng.choice(list(POLICIES))
        entry = self.store.take(name)
        assert (entry is not None) or not self.store.has_work(name)
        self.working_on[name] = entry and entry.step
        if entry is not None:
            place = entry.payload if entry.in_memory else entry.place
            assert place == ("memory" if entry.in_memory else "disk", entry.step)
            assert entry.time == entry.step / 10
            assert entry.step not in self.done[name]

    def finish(self):
        busy = [name for name, step in self.working_on.items() if step]
        if busy:
            name = self.rng.choice(busy)
            step, self.working_on[name] = self.working_on[name], None
            self.done[name].append(step)
            self.store.done(name, step)

    def die(self):
        """A reader dies and is started again."""
        name = self.rng.choice(list(POLICIES))
        assert self.store.died(name) == self.working_on[name]
        self.working_on[name] = None

    def lose(self):
        """The Trainer dies while it hands the newest snapshot over, resumes, and publishes it again."""
        newest = self.published[-1]
        if self.arriving is None or self.rng.random() < 0.8 or any(newest in done for done in self.done.values()):
            return
        self.store.lost(newest)
        self.arriving = None
        self.working_on = {name: step if step != newest else None for name, step in self.working_on.items()}
        self.publish(newest)

    def spill(self):
        """Moves what is to move to disk, as the store's actor does."""
        pinned = {step for step in self.working_on.values() if step}
        whole = self.published[:-1] if self.arriving is not None else self.published
        unmovable = {self.published[-1], *whole[-1:], *pinned, self.state_step} - {None}
        overflow = self.store.overflow()
        assert [entry.step for entry in overflow] == sorted(entry.step for entry in overflow)
        for entry in overflow:
            assert entry.step not in unmovable
            self.store.moved_out(entry, ("disk", entry.step))
        status = self.store.status()
        if status["held"] > self.store.max_count or status["bytes"] > self.store.max_bytes:
            assert status["held"] <= len(unmovable)
        assert self.store.newest_state() == (
            self.state_step and (self.state_step, (("memory", self.state_step), ("state", self.state_step)))
        )
        for name, step in self.working_on.items():
            assert status["readers"][name]["working_on"] == step


@pytest.mark.parametrize("budget", [(10**9, 10**9), (20, 10**9), (10**9, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("seed", range(25))
def test_random_histories(seed, budget):
    max_bytes, max_count = budget
    history = History(seed, max_bytes=max_bytes, max_count=max_count, operations=200)
    status = history.store.status()
    for name, policy in POLICIES.items():
        seen, counts = history.done[name], status["readers"][name]
        assert history.store.take(name) is None
        assert counts["waiting"] == 0
        if policy == "every":
            assert seen == history.published
        elif policy == "latest":
            assert seen == sorted(set(seen))
            assert seen[-1] == history.published[-1]
            assert len(seen) + counts["skipped"] == len(history.published)
        else:
            assert seen == history.published[-1:]
        if policy != "latest":
            assert counts["skipped"] == 0
    assert (status["held"], status["on_disk"]) == (1, 0)  # the newest


def store_of(*steps, max_bytes=10**9, max_count=10**9, **policies):
    store = SnapshotStore(max_bytes, max_count)
    for name, policy in policies.items():
        store.register(name, policy)
    for step in steps:
        put(store, step, f"weights {step}", 10, 0.0)
    return store


def put(store, step, *arguments, **state):
    """Adds a snapshot that is whole at once."""
    store.add(step, *arguments, **state)
    store.arrived(step)


def test_without_readers_only_the_newest_is_kept():
    assert store_of(1, 2, 3).status()["held"] == 1


def test_what_a_reader_works_on_stays_until_it_is_done():
    store = store_of(1, reader="latest")
    assert store.take("reader").step == 1
    for step in (2, 3):
        put(store, step, "", 10, 0.0)
    assert store.status()["held"] == 2  # 1 and 3
    store.done("reader", 1)
    assert store.status()["held"] == 1
    assert store.take("reader").step == 3


def test_a_reader_that_lags_costs_disk_not_memory():
    store = store_of(*range(1, 7), reader="every", max_count=2)
    assert [entry.step for entry in store.overflow()] == [1, 2, 3, 4]
    store = store_of(*range(1, 7), reader="every", max_bytes=35)
    assert [entry.step for entry in store.overflow()] == [1, 2, 3]


def test_bytes_count_shared_weights_once():
    store = store_of(1, reader="every")
    put(store, 2, "weights", 10, 0.0, state="rest", state_nbytes=7)
    assert store.nbytes == 10 + 10 + 7
    put(store, 3, "weights", 10, 0.0)
    for step in (1, 2):
        assert store.take("reader").step == step
        store.done("reader", step)
    assert store.newest_state() == (2, ("weights", "rest"))
    assert store.nbytes == 10 + 17  # 3, and the state of 2 with its weights


def test_a_reader_does_not_see_what_an_earlier_run_had_finished():
    store = SnapshotStore(10**9, 10**9)
    for policy in ("every", "latest", "last"):
        store.register(policy, policy, done=[5, 10])
    for step in (10, 15, 20):
        put(store, step, "", 1, 0.0)
    assert store.take("latest").step == 20
    assert store.take("every").step == 15
    store.close(20)
    assert store.take("last").step == 20


def test_all_have_finished_when_nothing_new_was_published():
    store = SnapshotStore(10**9, 10**9)
    for policy in ("every", "latest", "last"):
        store.register(policy, policy, done=[5])
    put(store, 5, "", 1, 0.0)
    assert not any(store.finished(name) for name in ("every", "latest", "last"))
    store.close(5)
    assert all(store.finished(name) for name in ("every", "latest", "last"))


def test_an_older_state_does_not_replace_a_newer_one():
    store = SnapshotStore(10**9, 10**9)
    put(store, 6, "weights 6", 1, 0.0, state="rest 6")
    put(store, 3, "weights 3", 1, 0.0, state="rest 3")
    assert store.newest_state() == (6, ("weights 6", "rest 6"))


def test_nothing_is_kept_for_a_reader_that_is_gone():
    store = store_of(1, 2, 3, reader="every", other="latest")
    store.take("reader")
    store.unregister("reader")
    assert store.status()["held"] == 1
    assert store.take("other").step == 3


def test_what_is_read_from_disk_counts_as_memory_again():
    store = store_of(1, 2, reader="every", max_count=1)
    (entry,) = store.overflow()
    store.moved_out(entry, "file")
    assert (store.status()["held"], store.status()["on_disk"], store.nbytes) == (1, 1, 10)
    assert store.take("reader").place == "file"
    store.get(1).payload = "weights"
    assert (store.status()["held"], store.status()["on_disk"], store.nbytes) == (2, 0, 20)
    assert store.overflow() == []  # pinned
    assert store.needed() == ([2], [])  # the file is still there, should the store die


def test_a_snapshot_that_is_lost_on_its_way_leaves_the_one_before():
    store = store_of(1)
    put(store, 10, "weights 10", 1, 0.0, state="rest 10")
    store.register("reader", "latest")
    store.add(20, "weights 20", 1, 0.0, state="rest 20")
    assert store.take("reader").step == 20  # it waits for the object itself
    assert store.newest_state() == (10, ("weights 10", "rest 10"))
    store.lost(20)
    assert store.newest_state() == (10, ("weights 10", "rest 10"))
    assert store.take("reader").step == 10


def test_readers_do_not_end_before_the_last_snapshot_is_announced():
    store = store_of(10, reader="latest")
    store.take("reader")
    store.done("reader", 10)
    store.close(20)
    assert not store.finished("reader")
    put(store, 20, "", 1, 0.0)
    assert store.take("reader").step == 20
    store.done("reader", 20)
    assert store.finished("reader")


def test_what_lies_on_disk_is_deleted_when_nobody_will_read_it():
    deleted = []
    store = SnapshotStore(10**9, 1, delete=deleted.append)
    store.register("reader", "every")
    for step in (1, 2, 3):
        put(store, step, step, 1, 0.0)
    for entry in store.overflow():
        store.moved_out(entry, f"file {entry.step}")
    put(store, 1, "again", 1, 0.0)
    assert deleted == ["file 1"]
    store.unregister("reader")
    assert deleted == ["file 1", "file 2"]


def test_a_last_snapshot_that_is_lost_is_waited_for():
    store = store_of(10, reader="last")
    store.close(10)
    assert store.has_work("reader")
    store.lost(10)
    assert not store.finished("reader")
    put(store, 10, "again", 1, 0.0)
    assert store.take("reader").payload == "again"


def test_what_was_tried_in_vain_is_not_what_came_since():
    store = SnapshotStore(10**9, 10**9)
    put(store, 10, "old", 1, 0.0, state="rest")
    put(store, 10, "new", 1, 0.0, state="rest")
    store.lost(10, "old")
    assert store.newest_state() == (10, ("new", "rest"))
    store.lost(10, "new")
    assert store.newest_state() is None
    assert store.get(10) is None


def test_what_is_moved_to_disk_is_not_what_replaced_it():
    deleted = []
    store = SnapshotStore(10**9, 1, delete=deleted.append)
    store.register("reader", "every")
    for step in (1, 2):
        put(store, step, f"weights {step}", 1, 0.0)
    (old,) = store.overflow()
    put(store, 1, "weights again", 1, 0.0)  # while the old ones are being written
    store.moved_out(old, "file")
    assert deleted == ["file"]
    assert store.get(1).payload == "weights again"


def test_a_step_that_is_set_aside_is_not_given_again():
    store = store_of(10, 20, reader="every")
    assert store.take("reader").step == 10
    assert store.died("reader") == 10
    assert store.take("reader").step == 10
    store.died("reader")
    store.set_aside("reader", 10)
    assert store.take("reader").step == 20


def test_what_an_earlier_store_left_on_disk_is_read():
    deleted = []
    store = SnapshotStore(10**9, 10**9, delete=deleted.append)
    store.register("reader", "every", done=[10])
    for step in (10, 20):
        store.add_from_disk(step, f"file {step}", 10, step / 10)
    put(store, 30, "weights 30", 1, 0.0)
    assert deleted == ["file 10"]
    entry = store.take("reader")
    assert (entry.step, entry.place, entry.time, entry.in_memory) == (20, "file 20", 2.0, False)
    assert store.needed() == ([30], [])
    assert [entry.step for entry in store.whole()] == [30]
