"""Patterns: prefixes, commas, globs and shards name exactly the files they say, each once, in the order of names."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raylingvo.data.records.patterns import expand, shards, split_prefix
from raylingvo.errors import RequestError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("text:a.txt", ("text", "a.txt")),
        ("a.txt", ("", "a.txt")),
        ("tfrecord_gzip:gs://bucket/a*", ("tfrecord_gzip", "gs://bucket/a*")),
        ("gs://bucket/a:b", ("", "gs://bucket/a:b")),
        ("simplecache::gs://bucket/a", ("", "simplecache::gs://bucket/a")),
        ("dir/a:b", ("", "dir/a:b")),
        ("a,text:b", ("", "a,text:b")),
        ("iota:", ("iota", "")),
    ],
)
def test_prefixes_end_at_the_first_colon_unless_a_slash_is_before_it(pattern, expected):
    assert split_prefix(pattern) == expected


def test_unknown_prefixes_are_refused():
    with pytest.raises(RequestError, match=r"no record format 'sstable' \(in 'sstable:a'\); there are text, jsonl"):
        split_prefix("sstable:a")


@pytest.mark.parametrize(
    ("name", "glob"),
    [
        ("train@8", "train-?????-of-00008"),
        ("train@*", "train-?????-of-?????"),
        ("a/train@512.gz", "a/train-?????-of-00512.gz"),
        ("gs://b/train@10.tfrecord", "gs://b/train-?????-of-00010.tfrecord"),
        ("user@host/train", "user@host/train"),
        ("a@2/b@3", "a@2/b-?????-of-00003"),
        ("train@", "train@"),
        ("train@x", "train@x"),
    ],
)
def test_sharded_names(name, glob):
    assert shards(name) == glob


@pytest.mark.parametrize("count", ["0", "100000"])
def test_numbers_of_shards_have_five_digits(count):
    with pytest.raises(RequestError, match=rf"the number of shards must be 1 to 99999 \(got {count} in 'a@{count}'\)"):
        shards(f"a@{count}")


@pytest.fixture
def names(root):
    for name in ["b.txt", "a.txt", "s-00000-of-00002", "s-00001-of-00002", "s-00000-of-00003", "c/d.txt", "odd[1].txt"]:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    return lambda pattern: [file.path.removeprefix(f"{root}/") for file in expand(pattern)[1]]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.txt", ["a.txt"]),
        ("b.txt,a.txt", ["a.txt", "b.txt"]),
        ("b.txt, a.txt", ["a.txt", "b.txt"]),
        ("[ab].txt,a.txt", ["a.txt", "b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "c/d.txt", "odd[1].txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("s@2", ["s-00000-of-00002", "s-00001-of-00002"]),
        ("s@*", ["s-00000-of-00002", "s-00000-of-00003", "s-00001-of-00002"]),
        ("odd[1].txt", ["odd[1].txt"]),
        ("text:a.txt,text:b.txt", ["a.txt", "b.txt"]),
        ("*", ["a.txt", "b.txt", "odd[1].txt", "s-00000-of-00002", "s-00000-of-00003", "s-00001-of-00002"]),
    ],
)
def test_files_of_patterns(names, pattern, expected):
    assert names(pattern) == expected


def test_the_prefix_holds_for_the_whole_list(names):
    assert expand("text:a.txt,b.txt")[0] == "text"
    assert expand("a.txt,b.txt")[0] == ""
    for pattern in ("text:a.txt,jsonl:b.txt", "a.txt,jsonl:b.txt"):
        with pytest.raises(RequestError, match="mixes the formats"):
            expand(pattern)


def test_absolute_and_home_paths_do_not_depend_on_the_root(names, root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    monkeypatch.setenv("RAYLINGVO_DATA", "/nowhere")
    assert names(f"{root}/a.txt") == names("~/a.txt") == names(f"file://{root}/a.txt") == ["a.txt"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none.txt", r"none.txt not found under RAYLINGVO_DATA=.*; put it there"),
        ("none*", r"no file matches .*none\*; RAYLINGVO_DATA="),
        ("none@3", r"no file matches .*none-\?\?\?\?\?-of-00003"),
        ("", r"a pattern must name files \(got ''\)"),
        ("a.txt,", r"a pattern must name files \(got 'a.txt,'\)"),
        ("text:", r"a pattern must name files \(got 'text:'\)"),
        ("c", r"c is a folder; name its files: .*c/\*"),
        ("a.txt,none.txt", "none.txt not found"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(names, pattern, message):
    with pytest.raises(RequestError, match=message) as error:
        expand(pattern)
    assert "\n" not in str(error.value)


@given(pattern=st.text("ab*?[]@,:.1 ~", max_size=12))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pattern_gives_files_or_a_request_error(names, pattern):
    try:
        found = names(pattern)
    except RequestError as e:
        assert "\n" not in str(e)
    else:
        assert found == sorted(set(found)) and found
