"""Variables by path: what is selected and put back is what was there."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylingvo.errors import RequestError
from raylingvo.training.paths import check_found, check_pattern, matches, merge, names, select, with_values

TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from(["a", "b", 0, 1]), inner, max_size=3), max_leaves=9
).filter(lambda tree: isinstance(tree, dict))


def test_names():
    assert list(names({"layers": {0: {"kernel": 1}}, "bias": 2})) == [("layers/0/kernel", 1), ("bias", 2)]


@given(TREES, st.sampled_from(["a", "b$", "^0", "1/a", ""]))
def test_a_part_holds_what_matches_and_merges_back(tree, pattern):
    part = select(tree, matches(pattern))
    assert dict(names(part)) == {name: x for name, x in names(tree) if re.search(pattern, name)}
    assert merge(tree, part) == tree
    other = select(tree, lambda name: not matches(pattern)(name))
    assert dict(names(part)) | dict(names(other)) == dict(names(tree))


def test_merge_replaces_only_what_the_part_holds():
    tree = {"a": {"x": 1, "y": 2}, "b": 3}
    assert merge(tree, {"a": {"y": 9}}) == {"a": {"x": 1, "y": 9}, "b": 3}
    assert tree == {"a": {"x": 1, "y": 2}, "b": 3}


def test_values_take_their_places():
    tree = {"a": {0: 1, "y": 2}, "b": 3}
    assert with_values(tree, {"a/0": 9, "b": 8, "c": 7}) == {"a": {0: 9, "y": 2}, "b": 8}


def test_a_pattern_that_finds_nothing_is_told_with_some_paths():
    paths = [f"layers/{i}/kernel" for i in range(9)]
    check_found("key", None, paths)
    check_found("key", "/8/", paths)
    with pytest.raises(RequestError) as error:
        check_found("key", "bias", paths)
    assert str(error.value) == f"key: 'bias' matches no weight; there are {', '.join(paths[:5])}, .. (9 in all)"


def test_no_pattern_matches_nothing():
    assert not matches(None)("a")
    assert select({"a": {"b": 1}}, matches(None)) == {}


def test_a_bad_pattern_is_refused():
    check_pattern("bprop_variable_filter", None)
    with pytest.raises(ValueError, match=r"bprop_variable_filter must be a regular expression: .* \(got '\['\)"):
        check_pattern("bprop_variable_filter", "[")


def test_a_replacement_must_fit_the_pattern():
    check_pattern("rules", r"old/(.*)/(?P<last>\w+)", r"new/\1/\g<last>")
    for replacement in (r"\2", r"\g<last>"):
        with pytest.raises(ValueError, match=r"^rules: '.*' does not fit 'old/\(\.\*\)': "):
            check_pattern("rules", "old/(.*)", replacement)
