"""Alignments are of the best hypothesis, from the words it is of to the source that it was made from."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from raylingvo.data.sequences import Column, Ragged, pad
from raylingvo.data.tokenizers import CharacterTokenizer
from raylingvo.models.mt.rnmt_model import RnmtModel
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
    assert np.ptp(bad.probs) > 1e-3


def test_the_hypotheses_are_read_as_if_they_were_references():
    given = rows()
    long = HYPS["deaf"][0]  # of which the end is not drawn
    expected = pad(COLUMNS, [ragged(SOURCE, ["bad", "", "deaf"]), ragged(TARGET, ["BAD", "FACE", long])], 128)
    inputs = TASK.pictures().inputs([given[0], given[2], given[3]])
    for name, values in inputs.items():
        np.testing.assert_array_equal(values[:2], expected[name][:2, :64], err_msg=name)
        part = slice(None, 64 if name.startswith("src") else 48)
        np.testing.assert_array_equal(values[2, part], expected[name][2, :64][part], err_msg=name)
        np.testing.assert_array_equal(values[3], values[2], err_msg=name)  # to be as many as ever


def test_tokens_and_attention_are_of_the_same_places():
    probs = np.arange(4 * 64 * 64).reshape(4, 64, 64)
    bad, empty, deaf = TASK.pictures().alignments(probs, rows())
    np.testing.assert_array_equal(bad.probs, probs[0, :4, :4])
    np.testing.assert_array_equal(empty.probs, probs[2, :5, :1])
    np.testing.assert_array_equal(deaf.probs, probs[3, :48, :5])


def test_any_network_of_translation_has_them():
    vocabularies = {"source_vocab_size": SOURCE.vocab_size, "target_vocab_size": TARGET.vocab_size}
    model = RnmtModel(**vocabularies, model_dim=8, hidden_dim=8, num_encoder_layers=1, num_decoder_layers=1)
    pictures = Translation(model=model, source_tokenizer=SOURCE, target_tokenizer=TARGET).pictures()
    found = nnx.eval_shape(lambda inputs: pictures.arrays(model.build(nnx.Rngs(0)), inputs), pictures.inputs(rows()))
    assert (found.shape, found.dtype) == ((4, 64, 64), np.float32)


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
