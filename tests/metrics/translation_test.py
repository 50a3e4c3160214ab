"""sacreBLEU and chrF are those that the sacrebleu library gives; with what they are told apart by."""

import logging
import math

import pytest
import sacrebleu

from raylingvo.metrics.bleu import corpus_bleu
from raylingvo.metrics.translation import translation_scores

VERSION = f"version:{sacrebleu.__version__}"


def test_numbers_by_hand():
    found = translation_scores(["The cat sat on it.", "a"], ["The cat sat on the mat.", "a"])
    # 13a parts the full stop: 6 of 7 tokens, 3 of 5 pairs, 2 of 4 triples, 1 of 3; 8 tokens of the reference.
    precision = (6 / 7 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert found.metrics["sacrebleu"] == pytest.approx(100 * precision * math.exp(1 - 8 / 7))
    # Lingvo does not: 5 of 6 words, 3 of 4, 2 of 3, 1 of 2; 7 words of the reference.
    words = (5 / 6 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert found.metrics["corpus_bleu"] == pytest.approx(words * math.exp(1 - 7 / 6))
    # One of two characters is right: chrF of the first order only.
    assert translation_scores(["ab"], ["ac"]).metrics["chrf"] == pytest.approx(100 * (1 / 2 + 0) / 2)


def test_the_variants_are_told():
    assert translation_scores(["a"], ["a"]).signatures == {
        "sacrebleu": f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|{VERSION}",
        "chrf": f"nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|{VERSION}",
    }


@pytest.mark.data
def test_the_library_says_the_same_of_real_sentences(test_data):
    lines = (test_data / "wmt" / "bleu_sm18.tsv").read_text().splitlines()[:200]
    hypotheses, references = zip(*(line.split("\t") for line in lines), strict=True)
    assert translation_scores(hypotheses, references).metrics == {
        "corpus_bleu": corpus_bleu(hypotheses, references),
        "sacrebleu": sacrebleu.corpus_bleu(hypotheses, [references], tokenize="13a", force=True).score,
        "chrf": sacrebleu.corpus_chrf(hypotheses, [references]).score,
    }


def test_nothing_to_say_of_tokenized_hypotheses(caplog):
    with caplog.at_level(logging.DEBUG):
        translation_scores(["a ."] * 200, ["a ."] * 200)
    assert caplog.text == ""


def test_empty_lines_count_and_no_lines_have_no_score():
    assert translation_scores(["", "a"], ["", "a"]).metrics["corpus_bleu"] == 1.0
    assert translation_scores([""], ["a b"]).metrics == {"corpus_bleu": 0.0, "sacrebleu": 0.0, "chrf": 0.0}
    assert translation_scores([], []) == ({}, {})


def test_every_hypothesis_needs_its_reference():
    with pytest.raises(ValueError, match=r"references must be as many as hypotheses, 2 \(got 1\)"):
        translation_scores(["a", "b"], ["a"])
