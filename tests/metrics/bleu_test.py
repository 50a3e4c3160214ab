"""Lingvo's corpus BLEU: its own numbers, and that parts add up to the whole."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylingvo.metrics.bleu import BleuCounts, corpus_bleu

SENTENCE = st.lists(st.sampled_from("abc"), max_size=7).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCE, SENTENCE), max_size=6)


def score(pairs):
    return corpus_bleu([hypothesis for hypothesis, _ in pairs], [reference for _, reference in pairs])


def counts(pairs):
    total = BleuCounts()
    for pair in pairs:
        total = total.plus(BleuCounts.of(*pair))
    return total


OBVIOUS = "It is obvious that this will have a certain influence ."


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(OBVIOUS.replace("obvious", "clear"), OBVIOUS)], 0.74194467),
        ([("1 2 3 4 -2", "1 2 3 4 5")], 0.6687403),
        ([("1 2 3 4", "1 2 3 4 5")], 0.7788008),  # the brevity penalty alone
        ([("hyp matches ref str",) * 2, ("almost write", "almost right")], (5 / 6 * 3 / 4) ** (1 / 4)),
        ([("a b c d",) * 2, ("wrong", "a")], (4 / 5) ** (1 / 4)),
        ([("a", "a")], 1.0),  # no orders but the first
        ([("a x b", "a b")], 2 / 3),  # no match of the second: left out
        ([("a a a a", "a a b")], math.sqrt(2 / 4 * 1 / 3)),  # clipped
        ([(" a\tb\n", "a b")], 1.0),  # any white space
        ([("A", "a")], 0.0),
        ([("", "a")], 0.0),
        ([("", "a"), ("a b", "a b")], math.exp(1 - 3 / 2)),
        ([], 0.0),
    ],
)
def test_numbers_by_hand(pairs, expected):
    assert score(pairs) == pytest.approx(expected, abs=1e-7)


@pytest.mark.data
def test_the_number_of_lingvo_on_three_thousand_sentences(test_data):
    lines = (test_data / "wmt" / "bleu_sm18.tsv").read_text().splitlines()
    assert len(lines) == 3003
    assert score([line.split("\t") for line in lines]) == pytest.approx(0.313776, abs=5e-7)


@given(PAIRS, st.data())
def test_parts_add_up_to_the_same_number_in_any_order(pairs, data):
    shuffled = data.draw(st.permutations(pairs))
    middle = data.draw(st.integers(0, len(pairs)))
    parts = counts(shuffled[:middle]).plus(counts(shuffled[middle:]))
    assert parts == counts(pairs)
    assert parts.score() == score(pairs)


@given(PAIRS)
def test_it_is_between_0_and_1_and_1_for_what_was_wanted(pairs):
    assert 0 <= score(pairs) <= 1
    assert score([(reference, reference) for _, reference in pairs]) == float(any(ref for _, ref in pairs))


def test_every_hypothesis_needs_its_reference():
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is shorter"):
        corpus_bleu(["a", "b"], ["a"])
