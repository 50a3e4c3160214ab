"""The token store: what it keeps is what was parsed, bad records cost no more than they must, the cache is one."""

import functools
import json
import shutil
import threading

import numpy as np
import pytest

from raylingvo.data.fields import MissingFieldError
from raylingvo.data.records import CorruptRecordError
from raylingvo.data.sequences import Column
from raylingvo.data.token_store import TokenStore, cache_folder, open_token_store
from raylingvo.errors import RequestError

COLUMNS = (Column(name="src", pad_id=0), Column(name="tgt", pad_id=0, sos_id=1))


class Numbers:
    """Records 0, 1, ..; some of them damaged. Counts how often they were read."""

    def __init__(self, number=5000, damaged=(), problems=()):
        self.number, self.damaged, self.problems, self.num_read = number, damaged, list(problems), 0
        self.fingerprint = "numbers"

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


def open_store(records, parse, columns=COLUMNS, *, key="a", max_bad_records=0) -> TokenStore:
    return open_token_store(lambda: key, lambda: records, parse, columns, max_bad_records=max_bad_records)


def check(store, examples):
    taken = store.take(np.array(examples))
    for c, expected in enumerate(clean_parse([int(store.record_N[i]) for i in examples])):
        np.testing.assert_array_equal(taken[c].token_T, np.concatenate(expected))
        np.testing.assert_array_equal(taken[c].length_B, [len(x) for x in expected])


def test_it_keeps_what_was_parsed_and_reads_the_records_once():
    records = Numbers()
    store = open_store(records, clean_parse, COLUMNS, key="a")
    check(store, [4999, 0, 17, 17, 2048])
    assert store.facts == {"num_bad_records": 0}
    again = open_store(records, clean_parse, COLUMNS, key="a")
    check(again, [4999, 0, 17, 17, 2048])
    assert records.num_read == 5000
    open_store(records, clean_parse, COLUMNS, key="b")
    assert records.num_read == 10_000


def test_bad_records_within_the_budget_are_left_out_and_counted():
    records = Numbers(damaged={7, 3000})
    for _ in range(2):  # the second time from the cache
        store = open_store(records, parse, COLUMNS, key="a", max_bad_records=7)
        assert store.facts == {"num_bad_records": 7}
        assert set(range(5000)) - set(store.record_N.tolist()) == {7, 999, 1999, 2999, 3000, 3999, 4999}
        check(store, [6, 7, 998, 4000])
        assert store.problems[:2] == ["numbers: record 7: checksum", "numbers: record 999: no example"]
        assert len(store.problems) == 7
    with pytest.raises(RequestError, match=r"^numbers: record 7: checksum; 7 bad records; max_bad_records is 2$"):
        open_store(records, parse, COLUMNS, key="a", max_bad_records=2)


def test_one_bad_record_too_many_is_named_in_one_line():
    with pytest.raises(RequestError) as error:
        open_store(Numbers(damaged={7}), clean_parse, COLUMNS, key="a")
    assert str(error.value) == "numbers: record 7: checksum; max_bad_records is 0"
    with pytest.raises(RequestError, match=r"^numbers: record 999: no example; max_bad_records is 0$"):
        open_store(Numbers(), parse, COLUMNS, key="a")
    with pytest.raises(RequestError, match=r"^cut off; max_bad_records is 0$"):
        open_store(Numbers(problems=["cut off"]), clean_parse, COLUMNS, key="a")


def test_no_example_at_all_is_an_error():
    with pytest.raises(RequestError, match="there is not one example"):
        open_store(Numbers(number=0), clean_parse, COLUMNS, key="a")


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    records = Numbers()
    for _ in range(2):
        check(open_store(records, clean_parse, COLUMNS, key="a"), [3, 1])
    assert records.num_read == 10_000


def test_two_that_make_it_at_once_do_not_disturb_each_other():
    both = threading.Barrier(2)
    stores = []

    def meet_and_parse(records):
        if records[0] == 0:
            both.wait(60)
        return clean_parse(records)

    def make():
        stores.append(open_store(Numbers(), meet_and_parse, COLUMNS, key="a"))

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for store in stores:
        check(store, [4999, 0])
    assert len(list(cache_folder("tokens").iterdir())) == 1  # nothing half made is left


def test_records_are_not_opened_for_what_is_in_the_cache():
    open_store(Numbers(), clean_parse)

    def never():
        raise AssertionError("opened")

    check(open_token_store(lambda: "a", never, clean_parse, COLUMNS), [4999, 0])


def test_at_most_twenty_bad_records_are_described():
    records = Numbers(number=60, damaged=range(10, 60))
    for _ in range(2):
        store = open_store(records, clean_parse, max_bad_records=50)
        assert (len(store.problems), store.facts["num_bad_records"]) == (20, 50)


def test_what_changes_meanwhile_is_an_error_and_not_kept():
    states = iter(["before", "after", "after", "after"])
    with pytest.raises(RequestError, match="have changed while tokens were made of them; start again"):
        open_token_store(lambda: next(states), Numbers, clean_parse, COLUMNS)
    assert not cache_folder("tokens").exists()
    check(open_token_store(lambda: next(states), Numbers, clean_parse, COLUMNS), [4999, 0])


FILES = ["length.npy", "record.npy", "token0.npy", "token1.npy", "facts.json"]
BREAKAGES = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-8]),
    "noise": lambda file: file.write_bytes(bytes(range(256))),
    "other": lambda file: file.write_text("[]") if file.suffix == ".json" else np.save(file, np.load(file)[:-1]),
    "kind": lambda file: (
        file.write_text(json.dumps({"facts": {}, "problems": []}))
        if file.suffix == ".json"
        else np.save(file, np.load(file).astype(np.float32))
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_broken_cache_is_made_anew(name, breakage):
    records = Numbers(number=50)
    open_store(records, clean_parse)
    (folder,) = cache_folder("tokens").iterdir()
    BREAKAGES[breakage](folder / name)
    for _ in range(2):
        check(open_store(records, clean_parse), [49, 0, 7])
    assert records.num_read == 100  # it was made once more, and kept
    assert list(cache_folder("tokens").iterdir()) == [folder]


def test_what_is_no_folder_is_replaced():
    records = Numbers(number=50)
    open_store(records, clean_parse)
    (folder,) = cache_folder("tokens").iterdir()
    shutil.rmtree(folder)
    folder.write_text("")
    for _ in range(2):
        check(open_store(records, clean_parse), [49, 0, 7])
    assert records.num_read == 100
    assert list(cache_folder("tokens").iterdir()) == [folder]


@pytest.mark.parametrize("wrong", [-1, 1 << 31, 1 << 40])
def test_an_id_that_is_no_i32_makes_a_bad_record(wrong):
    def far_parse(records):
        first, second = clean_parse(records)
        return [[np.append(x, wrong) if i == 5 else x for i, x in zip(records, first, strict=True)], second]

    with pytest.raises(RequestError, match=rf"^numbers: record 5: an id must be in \[0, 2\^31\) \(got {wrong}\);"):
        open_store(Numbers(number=9), far_parse)
    assert 5 not in open_store(Numbers(number=9), far_parse, max_bad_records=1).record_N


def test_the_largest_id_is_kept():
    store = open_store(Numbers(number=1), lambda records: [[np.array([0, 2**31 - 1])], [np.array([1])]])
    assert store.take(np.array([0]))[0].token_T.tolist() == [0, 2**31 - 1]


def test_a_field_that_the_first_record_lacks_is_a_wrong_setting():
    def lacking(which, records):
        if which in records:
            raise MissingFieldError("there is no field 'x'; it has y")
        return clean_parse(records)

    with pytest.raises(RequestError, match=r"^numbers: record 0: there is no field 'x'; it has y$"):
        open_store(Numbers(), functools.partial(lacking, 0), max_bad_records=9)
    assert open_store(Numbers(), functools.partial(lacking, 1), max_bad_records=9).facts["num_bad_records"] == 1
