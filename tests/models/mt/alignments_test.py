"""Alignments are of the best hypothesis, from the words it is of to the source that it was made from."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from raylingvo.data.sequences import Column, Ragged, pad
from raylingvo.data.tokenizers import CharacterTokenizer
from raylingvo.models.mt.transformer_model import TransformerModel
from raylingvo.models.mt.translation import Translation
from raylingvo.models.pictures import DecodedRow

SOURCE, TARGET = CharacterTokenizer(alphabet="abcdefgh"), CharacterTokenizer(alphabet="ABCDEFGHIJ")
TASK = Translation(
    model=TransformerModel(
        source_vocab_size=SOURCE.vocab_size,
        target_vocab_size=TARGET.vocab_size,
        model_dim=8,
        hidden_dim=8,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
    ),
    source_tokenizer=SOURCE,
    target_tokenizer=TARGET,
)
COLUMNS = (Column(name="src", pad_id=SOURCE.pad_id), Column(name="tgt", pad_id=TARGET.pad_id, sos_id=TARGET.sos_id))
# By source: hyps with their ends, "" where there is none; the best first.
HYPS = {"bad": ["BAD", "AB"], "cafe": ["", ""], "": ["", "FACE"], "deaf": ["DEAFHAEDFEBCD" * 5, "B"]}


def ragged(tokenizer, texts):
    rows = tokenizer.encode_ragged(texts)
    return Ragged(np.concatenate(rows), np.array(list(map(len, rows))))


def rows():
    """The examples, in two batches that are padded otherwise, with a row of weight 0."""
    found = []
    for texts, length in ((["bad", "cafe"], 6), (["", "deaf"], 9)):
        batch = pad(COLUMNS[:1], [ragged(SOURCE, [*texts, texts[0]])], length)
        batch |= {"weight": np.array([1.0, 1.0, 0.0], np.float32), "id": np.arange(length, length + 3)}
        lens = np.array([[len(hyp) + 1 if hyp else 0 for hyp in HYPS[text]] for text in texts])
        ids = np.zeros((2, 2, 70), np.int32)
        for i, text in enumerate(texts):
            for k, hyp in enumerate(HYPS[text]):
                ids[i, k, : lens[i, k]] = TARGET.encode_ragged([hyp])[0][: lens[i, k]]
        found += [DecodedRow({"ids": ids, "lens": lens}, batch, row) for row in range(2)]
    return found


@functools.cache
def step():
    graph, state = nnx.split(TASK.init(nnx.Rngs(3)))
    return jax.jit(lambda inputs: TASK.pictures().arrays(nnx.merge(graph, state), inputs))


def alignments(given):
    pictures = TASK.pictures()
    return pictures.alignments(np.asarray(step()(pictures.inputs(given))), given)


def test_the_best_hypothesis_over_its_source():
    bad, empty, deaf = alignments(rows())  # of "cafe" there is none
    assert (bad.title, bad.source, bad.target) == ("example 6", ["b", "a", "d", "</s>"], ["B", "A", "D", "</s>"])
    assert (empty.title, empty.source, empty.target[:2]) == ("example 9", ["</s>"], ["F", "A"])
    assert (len(deaf.source), len(deaf.target), deaf.probs.shape) == (5, 66, (48, 5))
    for found in (bad, empty, deaf):
        np.testing.assert_allclose(found.probs.sum(axis=1), 1.0, atol=1e-5)
    alone = pad(COLUMNS, [ragged(SOURCE, ["bad"]), ragged(TARGET, ["BAD"])], 4)
    np.testing.assert_allclose(bad.probs, step()(alone)[0], atol=1e-6)
    assert np.ptp(bad.probs) > 1e-3


@pytest.mark.parametrize("number", [1, 4])
def test_programs_are_few(number):
    """Of however many and however short examples there are."""
    inputs = TASK.pictures().inputs(rows()[:number])
    assert {x.shape for x in inputs.values()} == {(4, 64 if number == 4 else 32)}


def test_a_png_of_them_and_none_without_hypotheses():
    pictures = TASK.pictures()
    (name, png), *others = pictures.draw(np.full((4, 32, 32), 0.1, np.float32), rows()[:3]).items()
    assert (name, png[:4], others) == ("alignments", b"\x89PNG", [])
    assert pictures.draw(np.zeros((4, 32, 32), np.float32), rows()[1:2]) == {}
