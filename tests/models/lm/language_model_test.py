"""The language model's losses, metrics and outputs, with networks whose logits are known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from raylingvo.data.sequences import Column, Ragged, pack, pad
from raylingvo.data.tokenizers import VocabFileTokenizer
from raylingvo.errors import RequestError
from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.lm.language_model import LanguageModel, NextTokenModel

V = 9
COLUMN = Column(name="", pad_id=2, sos_id=1)
SENTENCES = [[3, 4, 5, 2], [6, 2], [7, 7, 8, 3, 4, 2], [5, 2]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bigrams(NextTokenModel):
    """Features are rows of a table: what the token before says."""

    vocab_size: int = V

    def build(self, rngs):
        return BigramsModule(rngs)


class BigramsModule(nnx.Module):
    def __init__(self, rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (V, 4)))
        self.softmax = Softmax(4, V, kernel_init=nnx.initializers.normal(1.0), rngs=rngs)

    def __call__(self, batch, *, rng=None):
        noise = 0 if rng is None else 0.1 * jax.random.normal(rng, (*batch["ids"].shape, 4))
        return self.table[...][batch["ids"]] + noise


TASK = LanguageModel(model=Bigrams(), tokens_are_words=True)
evaluate = nnx.jit(TASK.eval_metrics)


@pytest.fixture(scope="module")
def model():
    return TASK.init(nnx.Rngs(0))


def _ragged(sentences):
    return [Ragged(np.concatenate([np.array(s, np.int32) for s in sentences]), np.array([len(s) for s in sentences]))]


def _batch(sentences=SENTENCES, length=6):
    batch = pad([COLUMN], _ragged(sentences), length)
    number = len(sentences)
    return batch | {"weight": np.ones(number, np.float32), "id": np.arange(100, 100 + number)}


def _log_probs(model):
    """f64[V, V]: of the next token, by the token before."""
    logits = np.asarray(model.softmax(model.table[...]), np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_metrics_by_hand(model):
    log_probs = _log_probs(model)
    pairs = [(a, b) for s in SENTENCES for a, b in zip([1, *s], s, strict=False)]
    xent = -np.mean([log_probs[a, b] for a, b in pairs])
    correct = np.mean([log_probs[a].argmax() == b for a, b in pairs])
    metrics = evaluate(model, _batch())
    for name in ("loss", "log_pplx", "log_pplx_per_word"):
        np.testing.assert_allclose(metrics.pop(name), (xent, 14), rtol=1e-5)
    np.testing.assert_allclose(metrics.pop("fraction_of_correct_next_step_preds"), (correct, 14), rtol=1e-6)
    assert metrics == {"num_predictions": (14, 1), "num_words": (14, 1), "num_sentences": (4, 1)}


def test_metrics_of_words_are_only_those_of_words(model):
    tokens = dataclasses.replace(TASK, tokens_are_words=False)
    assert evaluate(model, _batch()).keys() - tokens.eval_metrics(model, _batch()).keys() == {
        "log_pplx_per_word",
        "num_words",
    }


def _same(got, expected):
    assert got.keys() == expected.keys()
    for name, pair in expected.items():
        np.testing.assert_allclose(got[name], pair, rtol=1e-5, err_msg=name)


def test_padding_counts_nowhere(model):
    expected = evaluate(model, _batch())
    padded = _batch([*SENTENCES, [3, 3, 3], [8, 8, 8, 8]], length=9)
    padded["weight"][4:] = 0
    tail = np.random.default_rng(0).integers(0, V, padded["ids"].shape)
    for name in ("ids", "labels"):
        padded[name] = np.where(padded["paddings"] > 0, tail, padded[name]).astype(np.int32)
    _same(evaluate(model, padded), expected)
    decoded = jax.device_get(TASK.decode(model, padded))
    alone = _batch()
    assert TASK.postprocess(decoded, padded)[1]["num_sentences"] == (4.0, 1.0)
    np.testing.assert_allclose(decoded["log_pplx_per_token"][:4, :6], TASK.decode(model, alone)["log_pplx_per_token"])


def test_packed_sentences_have_the_metrics_of_single_ones(model):
    packed = pack([COLUMN], _ragged(SENTENCES), np.array([0, 0, 1, 1]), 3, [8])
    packed["weight"] = np.array([1, 1, 0], np.float32)
    _same(evaluate(model, packed), evaluate(model, _batch()))
    with pytest.raises(RequestError, match="set bucket_bounds instead of packed_lengths"):
        TASK.postprocess(jax.device_get(TASK.decode(model, packed)), packed)


def _loss_and_gradients(task, model, batch=None, seed=0):
    step = nnx.jit(nnx.value_and_grad(task.loss, has_aux=True))
    (loss, metrics), gradients = step(model, batch or _batch(), jax.random.key(seed))
    return loss, metrics, jax.tree.leaves(gradients)


def test_a_sum_over_tokens_is_their_mean_times_their_number(model):
    mean, mean_metrics, mean_gradients = _loss_and_gradients(TASK, model)
    summing = dataclasses.replace(TASK, sum_loss_over_tokens=True)
    total, metrics, gradients = _loss_and_gradients(summing, model)
    np.testing.assert_allclose(total, 14 * mean, rtol=1e-6)
    assert metrics.pop("loss") == (total, 1) and mean_metrics.pop("loss") == (mean, 14)
    _same(metrics, mean_metrics)
    for a, b in zip(gradients, mean_gradients, strict=True):
        np.testing.assert_allclose(a, 14 * b, rtol=1e-5, atol=1e-6)
    # The whole is evaluated as a mean, however it is cut into batches.
    assert summing.eval_metrics(model, _batch())["loss"][1] == 14


def test_the_loss_is_random_in_training_only(model):
    losses = [_loss_and_gradients(TASK, model, seed=seed)[0] for seed in (0, 1)]
    assert losses[0] != losses[1]
    assert evaluate(model, _batch())["loss"] == evaluate(model, _batch())["loss"]


def test_sampling_is_for_training_only(model):
    sampled = dataclasses.replace(TASK, num_sampled=3)
    loss, metrics, gradients = _loss_and_gradients(sampled, model)
    assert metrics["loss"][0] == loss == metrics["log_pplx"][0]
    assert set(evaluate(model, _batch())) - set(metrics) == {"fraction_of_correct_next_step_preds"}
    assert all(jnp.abs(g).max() > 0 for g in gradients)
    assert loss != _loss_and_gradients(sampled, model, seed=1)[0]
    _same(sampled.eval_metrics(model, _batch()), evaluate(model, _batch()))


def test_nearly_all_classes_sampled_is_nearly_the_whole_loss(model):
    """On average; with all of them drawn, each is expected nearly surely."""
    sampled = dataclasses.replace(TASK, num_sampled=V)
    step = nnx.jit(lambda model, key: sampled.loss(model, _batch(), key)[0])
    losses = [float(step(model, jax.random.key(seed))) for seed in range(20)]
    np.testing.assert_allclose(np.mean(losses), evaluate(model, _batch())["loss"][0], rtol=0.05)


@pytest.mark.parametrize("number", [-1, V + 1])
def test_more_samples_than_words_are_refused(number):
    with pytest.raises(ValueError, match=rf"num_sampled must be in \[0, 9\] \(got {number}\)"):
        dataclasses.replace(TASK, num_sampled=number)


@pytest.fixture
def words(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "c", "d", "e", "f"]
    (tmp_path / "vocab.txt").write_text("".join(f"{token}\t{i}\n" for i, token in enumerate(tokens)))
    return dataclasses.replace(TASK, tokenizer=VocabFileTokenizer(token_vocab_filepath="vocab.txt"))


def test_outputs_are_lingvos(model, words):
    batch = _batch()
    outputs, metrics = words.postprocess(jax.device_get(words.decode(model, batch)), batch)
    log_probs = _log_probs(model)
    assert [key for key, _ in outputs] == ["100", "101", "102", "103"]
    for sentence, (_, output) in zip(SENTENCES, outputs, strict=True):
        expected = [-log_probs[a, b] for a, b in zip([1, *sentence], sentence, strict=False)]
        np.testing.assert_allclose(output["log_pplx_per_token"], expected, rtol=1e-5)
        np.testing.assert_allclose(output["log_pplx_per_sample"], sum(expected), rtol=1e-5)
        assert (output["labels"], output["lengths"]) == (sentence, len(sentence))
    assert [output["tokens_from_labels"] for _, output in outputs][:2] == ["a b c </s>", "d </s>"]
    np.testing.assert_allclose(metrics["log_pplx"], evaluate(model, batch)["log_pplx"], rtol=1e-5)
    assert json.loads(json.dumps(outputs)) == [list(pair) for pair in outputs]


def test_lines_of_text_are_sentences(model, words):
    batch = words.encode_lines(["a b c", "zebra d", ""])
    assert batch["ids"].shape == (3, 16)
    np.testing.assert_array_equal(batch["labels"][:, :4], [[3, 4, 5, 2], [0, 6, 2, 2], [2, 2, 2, 2]])
    outputs, metrics = words.postprocess(jax.device_get(words.decode(model, batch)), batch)
    assert [output["num_oovs_per_sample"] for _, output in outputs] == [0, 1, 0]
    assert metrics["num_oovs"] == (1.0, 1.0)
    assert words.encode_lines(["a " * 16])["ids"].shape == (1, 32)
    with pytest.raises(RequestError, match=r"set task\.tokenizer"):
        TASK.encode_lines(["a"])


def test_words_have_the_ids_that_lingvo_gives_them(test_data, monkeypatch):
    """The ids of the three strings of its inference test."""
    monkeypatch.setenv("RAYLINGVO_DATA", str(test_data))
    tokenizer = VocabFileTokenizer(token_vocab_filepath="vocab/small_word_vocab.txt")
    word = dict(line.split("\t")[::-1] for line in (test_data / "vocab/small_word_vocab.txt").read_text().splitlines())
    lines = [f"aaaa {word['21']} {word['35']} bbbb", f"cccc {word['8']}", f"{word['41']} dddd {word['61']}"]
    batch = dataclasses.replace(TASK, tokenizer=tokenizer).encode_lines(lines)
    np.testing.assert_array_equal(batch["ids"][:, :5], [[1, 3, 21, 35, 3], [1, 3, 8, 2, 2], [1, 41, 3, 61, 2]])
    assert (tokenizer.sos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 3)


def test_a_batch_of_padding_only_weighs_nothing(model):
    batch = _batch()
    batch["weight"][:] = 0
    metrics = evaluate(model, batch)
    assert all(np.isfinite(value) for value, _ in metrics.values())
    assert {name for name, (value, weight) in metrics.items() if weight > 0 and value > 0} == set()
    assert TASK.postprocess(jax.device_get(TASK.decode(model, batch)), batch) == (
        [],
        {"log_pplx": (0.0, 0.0), "num_sentences": (0.0, 1.0)},
    )
