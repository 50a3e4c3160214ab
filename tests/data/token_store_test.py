"""The token store: what it keeps is what was parsed, bad records cost no more than they must, the cache is one."""

import threading

import numpy as np
import pytest

from raylingvo.data.records import CorruptRecordError
from raylingvo.data.sequences import Column
from raylingvo.data.token_store import cache_folder, open_token_store
from raylingvo.errors import RequestError

COLUMNS = (Column(name="src", pad_id=0), Column(name="tgt", pad_id=0, sos_id=1))


class Numbers:
    """Records 0, 1, ..; some of them damaged. Counts how often they were read."""

    fingerprint = "numbers"

    def __init__(self, number=5000, damaged=(), problems=()):
        self.number, self.damaged, self.problems, self.num_read = number, damaged, list(problems), 0

    def __len__(self):
        return self.number

    def read(self, indices):
        self.num_read += len(indices)
        for i in indices:
            if i in self.damaged:
                raise CorruptRecordError(int(i), f"{self.where(int(i))}: checksum")
        return indices.tolist()

    def where(self, index):
        return f"numbers: record {index}"

    def close(self):
        pass


def parse(records):
    if any(i % 1000 == 999 for i in records):
        raise ValueError("no example")
    return [[np.arange(i % 5) + i for i in records], [np.arange(i % 3 + 1) + 2 * i for i in records]]


def clean_parse(records):
    return [[np.arange(i % 5) + i for i in records], [np.arange(i % 3 + 1) + 2 * i for i in records]]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check(store, examples):
    taken = store.take(np.array(examples))
    for c, expected in enumerate(clean_parse([int(store.record_N[i]) for i in examples])):
        np.testing.assert_array_equal(taken[c].token_T, np.concatenate(expected))
        np.testing.assert_array_equal(taken[c].length_B, [len(x) for x in expected])


def test_it_keeps_what_was_parsed_and_reads_the_records_once():
    records = Numbers()
    store = open_token_store(records, clean_parse, COLUMNS, key="a")
    check(store, [4999, 0, 17, 17, 2048])
    assert store.facts == {"num_bad_records": 0}
    again = open_token_store(records, clean_parse, COLUMNS, key="a")
    check(again, [4999, 0, 17, 17, 2048])
    assert records.num_read == 5000
    open_token_store(records, clean_parse, COLUMNS, key="b")
    assert records.num_read == 10_000


def test_bad_records_within_the_budget_are_left_out_and_counted():
    records = Numbers(damaged={7, 3000})
    for _ in range(2):  # the second time from the cache
        store = open_token_store(records, parse, COLUMNS, key="a", max_bad_records=7)
        assert store.facts == {"num_bad_records": 7}
        assert set(range(5000)) - set(store.record_N.tolist()) == {7, 999, 1999, 2999, 3000, 3999, 4999}
        check(store, [6, 7, 998, 4000])
    with pytest.raises(RequestError, match="7 bad records; max_bad_records is 2"):
        open_token_store(records, parse, COLUMNS, key="a", max_bad_records=2)


def test_one_bad_record_too_many_is_named_in_one_line():
    with pytest.raises(RequestError) as error:
        open_token_store(Numbers(damaged={7}), clean_parse, COLUMNS, key="a")
    assert str(error.value) == "numbers: record 7: checksum; max_bad_records is 0"
    with pytest.raises(RequestError, match=r"^numbers: record 999: no example; max_bad_records is 0$"):
        open_token_store(Numbers(), parse, COLUMNS, key="a")
    with pytest.raises(RequestError, match=r"^cut off; max_bad_records is 0$"):
        open_token_store(Numbers(problems=["cut off"]), clean_parse, COLUMNS, key="a")


def test_no_example_at_all_is_an_error():
    with pytest.raises(RequestError, match="there is not one example"):
        open_token_store(Numbers(number=0), clean_parse, COLUMNS, key="a")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    records = Numbers()
    for _ in range(2):
        check(open_token_store(records, clean_parse, COLUMNS, key="a"), [3, 1])
    assert records.num_read == 10_000


def test_two_that_make_it_at_once_do_not_disturb_each_other():
    both = threading.Barrier(2)
    stores = []

    def meet_and_parse(records):
        if records[0] == 0:
            both.wait(60)
        return clean_parse(records)

    def make():
        stores.append(open_token_store(Numbers(), meet_and_parse, COLUMNS, key="a"))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for store in stores:
        check(store, [4999, 0])
    assert len(list(cache_folder("tokens").iterdir())) == 1  # nothing half made is left
