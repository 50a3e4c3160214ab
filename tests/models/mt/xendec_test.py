"""XEnDec: what is crossed with nothing is the pair, and with everything the other; noise that keeps what it says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from flax import nnx

from raylingvo.data.sequences import Column, Ragged, pad
from raylingvo.data.tokenizers import CharacterTokenizer, WpmTokenizer
from raylingvo.data.translation_examples import DoubleExamples
from raylingvo.errors import RequestError
from raylingvo.experiment import Experiment, Train
from raylingvo.metrics.means import to_means, zeros_like_metrics
from raylingvo.models.layers.losses import weighted_mean
from raylingvo.models.mt.decoding import Decoding
from raylingvo.models.mt.transformer_model import TransformerModel
from raylingvo.models.mt.translation import Translation
from raylingvo.models.mt.xendec import XEnDec, XEnDecModel
from raylingvo.models.mt.xendec.crossover import Parent, cross_sources, input_shares, label_shares, sharpen
from raylingvo.models.mt.xendec.noise import corrupt, draw_positions, inner_positions, shuffle_words, word_starts
from raylingvo.registry import get
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Adam
from raylingvo.training.state import Model, init_state, num_params
from raylingvo.training.step import make_train_step

TOKENIZER = CharacterTokenizer(alphabet="abcdefghijkl")
V = TOKENIZER.vocab_size
COLUMNS = tuple(
    Column(name=f"{other}{side}", pad_id=TOKENIZER.pad_id, sos_id=TOKENIZER.sos_id if side == "tgt" else None)
    for other in ("", "other_")
    for side in ("src", "tgt")
)
MODEL = XEnDecModel(
    source_vocab_size=V,
    target_vocab_size=V,
    model_dim=16,
    hidden_dim=32,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    input_dropout=0.0,
    residual_dropout=0.0,
)
TASK = XEnDec(
    model=MODEL,
    source_tokenizer=TOKENIZER,
    target_tokenizer=TOKENIZER,
    decoding=Decoding(num_hyps_per_beam=2, max_steps=6),
    curriculum_steps=10,
)
NOTHING = dataclasses.replace(TASK, source_mask_ratio=0.0)
EVERYTHING = dataclasses.replace(TASK, source_mask_ratio=1.0)
LOSSES = ("clean_loss", "other_loss", "mix_loss")


def batch(length=9):
    """Four pairs and others of all lengths, the last row being padding."""
    random = np.random.default_rng(0)
    sides = []
    for lengths in ((3, 8, 5, 4), (6, 3, 4, 5), (5, 4, 9, 3), (4, 7, 5, 6)):
        rows = [np.r_[random.integers(6, V, n - 1), TOKENIZER.eos_id] for n in lengths]
        sides.append(Ragged(np.concatenate(rows).astype(np.int32), np.array(lengths)))
    return pad(COLUMNS, sides, length) | {"weight": np.array([1, 1, 1, 0], np.float32)}


def network():
    return filled(lambda: MODEL.build(nnx.Rngs(0)), scale=0.3)


@functools.cache
def compiled(task):
    """(trained steps, key, batch) -> metrics, trained steps after."""
    graph, state = nnx.split(network())

    @jax.jit
    def run(steps, key, batch):
        module = nnx.merge(graph, state, copy=True)
        module.trained_steps[...] = steps
        _, metrics = task.loss(module, batch, key)
        return metrics, module.trained_steps[...]

    return run


def losses(task, *, steps=0, seed=0, inputs=None):
    inputs = batch() if inputs is None else inputs
    metrics, _ = compiled(task)(jnp.int32(steps), jax.random.key(seed), inputs)
    return {name: float(metrics[name][0]) for name in metrics}


def variant(**fields):
    return dataclasses.replace(TASK, **fields)


def paddings(*lengths, width=6):
    return np.asarray(np.arange(width) >= np.array(lengths)[:, None], np.float32)


@jax.jit
def cross(mask, first, second, probs):
    """The sources, and the shares of labels and of what is read."""
    crossed = cross_sources(mask, first, second)
    labels = label_shares(crossed, *probs)
    return crossed, labels, input_shares(crossed, labels)


# Noise.


def test_so_many_positions_are_drawn_and_any_of_them():
    draw = jax.jit(draw_positions)
    allowed = jax.jit(inner_positions)(paddings(6, 4, 1, 0))
    np.testing.assert_array_equal(allowed.sum(axis=1), [5, 3, 0, 0])
    for ratio, counts in ((0.0, [0, 0]), (0.1, [1, 1]), (0.5, [2, 1]), (1.0, [5, 3])):
        drawn = np.asarray(draw(jax.random.key(1), allowed, np.full(4, ratio, np.float32)))
        np.testing.assert_array_equal(drawn.sum(axis=1), [*counts, 0, 0])
        assert not (drawn & ~np.asarray(allowed)).any()
    many = np.asarray(draw(jax.random.key(0), np.tile(allowed[:2], (1_000, 1)), np.full(2_000, 0.4, np.float32)))
    np.testing.assert_allclose(many[::2].mean(axis=0), [0.4] * 5 + [0], atol=0.05)
    np.testing.assert_allclose(many[1::2].mean(axis=0), [1 / 3] * 3 + [0] * 3, atol=0.05)


SHUFFLE = jax.jit(shuffle_words)


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_words_move_less_than_the_distance_and_stay_whole(distance):
    B, S = 200, 12
    starts = np.random.default_rng(0).random((B, S)) < 0.6
    starts[:, 0] = True
    movable = np.arange(S) < np.repeat([[S - 1], [8]], B // 2, axis=0)
    # Ids say which word of the sentence it is, and which of its pieces.
    word = np.cumsum(starts, axis=1) - 1
    piece = np.array([[s - np.flatnonzero(row[: s + 1])[-1] for s in range(S)] for row in starts])
    ids = 100 * word + piece
    found = np.asarray(SHUFFLE(jax.random.key(0), ids, movable, starts, distance))
    np.testing.assert_array_equal(found[~movable], ids[~movable])
    moved = 0
    for row in range(B):
        before, after = ids[row][movable[row]], found[row][movable[row]]
        assert sorted(before) == sorted(after)
        order = list(dict.fromkeys((after // 100).tolist()))
        assert after.tolist() == sorted(after, key=lambda id_: order.index(id_ // 100))
        steps = [abs(place - number) for place, number in enumerate(order)]
        assert max(steps) < distance
        moved += sum(steps) > 0
    assert moved == 0 if distance == 1 else moved > B / 2


def test_half_of_the_ids_are_masked_whatever_their_order():
    ids = np.tile(np.arange(10, 22, dtype=np.int32), (3, 1))
    pads = paddings(12, 7, 2, width=12)
    settings = {"starts_V": np.ones(30, bool), "mask_id": 5}
    noise = jax.jit(functools.partial(corrupt, **settings, distance=3, mask_ratio=0.5))
    found = np.asarray(noise(jax.random.key(0), ids, pads))
    np.testing.assert_array_equal((found == 5).sum(axis=1), [5, 3, 1])
    for row, length in enumerate((12, 7, 2)):
        assert found[row, length - 1] == ids[row, length - 1]
        kept = np.setdiff1d(found[row, :length], [5])
        assert set(kept.tolist()) <= set(range(10, 10 + length))
        assert len(kept) == length - (found[row] == 5).sum()
    np.testing.assert_array_equal(found, noise(jax.random.key(0), ids, pads))
    assert (found != noise(jax.random.key(1), ids, pads)).any()
    none = jax.jit(functools.partial(corrupt, **settings, distance=0, mask_ratio=0.0))
    np.testing.assert_array_equal(none(jax.random.key(0), ids, pads), ids)


def test_words_begin_where_the_vocabulary_says(tmp_path):
    (tmp_path / "wpm").write_text("<unk>\n<s>\n</s>\n\u2581\na\nb\n\u2581a\n")
    starts = word_starts(WpmTokenizer(vocab_filepath=str(tmp_path / "wpm")))
    np.testing.assert_array_equal(np.flatnonzero(starts), [3, 6])
    assert word_starts(TOKENIZER).all()


# Crossing.


def test_a_crossing_by_hand():
    # The pair has 3 words and </s>, the other 4 and </s>; targets of 1 and 3 words. The second row is of no account.
    first, second = Parent(paddings(4, 4), paddings(2, 2)), Parent(paddings(5, 5), paddings(4, 4))
    mask = np.array([[0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]], bool)
    probs = np.random.default_rng(0).dirichlet(np.ones(6), (2, 2, 6)).astype(np.float32)
    crossed, labels, read = jax.device_get(cross(mask, first, second, probs))
    np.testing.assert_array_equal(crossed.source.first[0], [1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(crossed.source.second[0], [0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(crossed.source_paddings, paddings(5, 5))
    a, b = probs[0, 0][:, [0, 2, 3]].sum(axis=1), probs[1, 0][:, 1]
    np.testing.assert_allclose(labels.first[0, :2], (a / (a + b))[:2], rtol=1e-5)
    np.testing.assert_array_equal(labels.first[0, 2:], 0)
    np.testing.assert_allclose(labels.first + labels.second, 1 - second.target, rtol=1e-6)
    np.testing.assert_allclose(read.first[0], [1, labels.first[0, 0], 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(read.second[0], [0, *labels.second[0, :3], 0, 0], rtol=1e-6)


def test_who_has_no_word_in_the_child_has_no_target_in_it():
    first, second = Parent(paddings(4, 4), paddings(5, 5)), Parent(paddings(6, 2), paddings(2, 3))
    probs = np.full((2, 2, 6, 6), 1 / 6, np.float32)
    # A word that would be where the other has ended is not replaced.
    late = jax.device_get(cross(np.arange(6) == np.array([[2], [2]]), first, second, probs)[0])
    np.testing.assert_array_equal(late.second.source.min(axis=1), [0, 1])
    np.testing.assert_array_equal(late.source.first[1], 1 - first.source[1])
    for mask, parent, rest in ((np.zeros((2, 6), bool), 0, 1), (np.arange(6) < np.array([[3], [3]]), 1, 0)):
        crossed, labels, read = jax.device_get(cross(mask, first, second, probs))
        there = (first, second)[parent]
        np.testing.assert_array_equal(crossed.source_paddings, there.source)
        np.testing.assert_array_equal(crossed.source[parent], 1 - there.source)
        for shares in (labels, read):
            np.testing.assert_array_equal(shares[parent], 1 - there.target)
            np.testing.assert_array_equal(shares[rest], np.zeros((2, 6)))


SHARPEN = jax.jit(sharpen)


def test_attention_is_sharpened():
    probs, pads = np.array([[[0.5, 0.3, 0.2, 0.0]]], np.float32), paddings(3, width=4)
    for exponent, expected in ((0.0, [1 / 3] * 3), (1.0, [0.5, 0.3, 0.2]), (2.0, np.array([25, 9, 4]) / 38)):
        found = SHARPEN(probs, pads, np.float32(exponent))
        np.testing.assert_allclose(found[0, 0], [*expected, 0.0], atol=1e-5)


# The task.


@pytest.mark.slow
def test_crossed_with_nothing_it_is_the_pair_and_with_everything_the_other():
    for seed in range(2):
        found = losses(NOTHING, seed=seed)
        assert abs(found["mix_loss"] - found["clean_loss"]) < 1e-6
        found = losses(EVERYTHING, seed=seed)
        assert abs(found["mix_loss"] - found["other_loss"]) < 1e-6
    assert abs(found["clean_loss"] - found["other_loss"]) > 1e-3
    # The losses of the parents do not depend on the crossing; the sum is of all three.
    drawn = losses(TASK, seed=1)
    np.testing.assert_allclose([drawn[x] for x in LOSSES[:2]], [found[x] for x in LOSSES[:2]], rtol=1e-6)
    assert min(abs(drawn["mix_loss"] - drawn[x]) for x in LOSSES[:2]) > 1e-3
    np.testing.assert_allclose(drawn["loss"], sum(drawn[x] for x in LOSSES), rtol=1e-6)


def test_the_pairs_have_the_loss_of_translation_and_padding_rows_do_not_count():
    given = batch()
    plain = Translation(model=MODEL, source_tokenizer=TOKENIZER, target_tokenizer=TOKENIZER)
    graph, state = nnx.split(network())
    evaluate = jax.jit(lambda batch: [task.eval_metrics(nnx.merge(graph, state), batch) for task in (plain, TASK)])
    expected, own = evaluate(given)
    found = losses(TASK)
    for name, (value, weight) in expected.items():
        assert own[name] == (value, weight)
        np.testing.assert_allclose(found["clean_loss" if name == "loss" else name], value, rtol=1e-5, err_msg=name)
    # The last row's other sentence belongs to the first pair: without it, that pair is crossed with nothing.
    changed = batch() | {"tgt_labels": np.where(given["weight"][:, None] > 0, given["tgt_labels"], 7)}
    changed["other_tgt_labels"] = np.where(given["weight"][:, None] > 0, given["other_tgt_labels"], 7)
    assert losses(TASK, inputs=changed) == found


def test_labels_become_what_the_model_predicts():
    given = batch()
    graph, state = nnx.split(network())

    @jax.jit
    def entropy(given):
        net = nnx.merge(graph, state)
        log_probs = jax.nn.log_softmax(net.softmax(net(given).features))
        counts = (1 - given["tgt_paddings"]) * given["weight"][:, None]
        return weighted_mean(-(jnp.exp(log_probs) * log_probs).sum(axis=-1), counts)[0]

    first, halfway, last, after = (losses(NOTHING, steps=steps) for steps in (0, 5, 10, 1_000))
    np.testing.assert_allclose(last["mix_loss"], entropy(given), rtol=1e-5)
    assert after["mix_loss"] == last["mix_loss"]
    np.testing.assert_allclose(halfway["mix_loss"], (first["mix_loss"] + last["mix_loss"]) / 2, rtol=1e-5)
    assert first["clean_loss"] == last["clean_loss"]
    _, after = compiled(NOTHING)(jnp.int32(7), jax.random.key(0), given)
    assert after == 8


def test_gradients_of_crossings_reach_the_words_of_both_parents():
    dropping = dataclasses.replace(MODEL, input_dropout=0.1, residual_dropout=0.1)
    task = variant(model=dropping, loss_clean_weight=0.0, loss_mono_weight=0.0, source_mask_ratio=0.5)
    given = jax.tree.map(jnp.asarray, batch())
    # Each side has ids of its own.
    for name, low in (("src_ids", 6), ("other_src_ids", 8), ("tgt_ids", 10), ("other_tgt_ids", 12)):
        given[name] = jnp.where(given[name] > 5, low + given[name] % 2, given[name])
    graph, params, rest = nnx.split(network(), nnx.Param, ...)

    def loss(params, key):
        return task.loss(nnx.merge(graph, params, rest, copy=True), given, key)[0]

    find = jax.jit(jax.grad(loss))
    grads, again, another = (find(params, jax.random.key(seed)) for seed in (0, 0, 1))
    source, target = (
        np.abs(grads[side]["table"][...]).max(axis=1) for side in ("source_embedding", "target_embedding")
    )
    # The other source keeps words that are not masked, and the masks are words too.
    assert min(source[[6, 7]]) > 1e-5
    assert max(source[[8, 9]]) > 1e-5
    assert source[TASK.mask_word_id] > 1e-5
    assert min(target[[10, 11, 12, 13]]) > 1e-5
    assert max(source[10:]) == max(target[6:10]) == 0
    # All that is drawn is drawn from the key.
    for one, two, three in zip(*map(jax.tree.leaves, (grads, again, another)), strict=True):
        np.testing.assert_array_equal(one, two)
        assert (one != three).any() or one.size == 1


def test_it_decodes():
    graph, state = nnx.split(network())
    inputs = TASK.encode_lines(["abc", "lkj"])
    decode = jax.jit(lambda batch: TASK.decode(nnx.merge(graph, state), batch))
    decoded = jax.device_get(decode(inputs))
    outputs, metrics = TASK.postprocess(decoded, inputs)
    assert [output["source"] for _, output in outputs] == ["abc", "lkj"]
    assert metrics["num_samples_in_batch"] == (2, 1)


def test_what_is_refused():
    net = nnx.eval_shape(lambda: MODEL.build(nnx.Rngs(0)))
    given = batch()
    with pytest.raises(RequestError, match=r"use TextDoubles or DoubleExamples"):
        TASK.loss(net, {x: given[x] for x in given if not x.startswith("other")}, jax.random.key(0))
    with pytest.raises(RequestError, match=r"set bucket_bounds instead of packed_lengths"):
        TASK.loss(net, given | {"src_segment_ids": given["src_ids"]}, jax.random.key(0))
    for fields, message in (
        ({"mask_word_id": V}, rf"mask_word_id must be in \[0, {V}\), the vocabulary \(got {V}\)"),
        ({"source_mask_ratio": 1.5}, r"source_mask_ratio must be in \[0, 1\] \(got 1.5\)"),
        ({"source_mask_ratio_beta": (0.0, 6.0)}, r"source_mask_ratio_beta must be > 0"),
        ({"loss_mix_weight": -1.0}, r"loss_mix_weight must be >= 0 \(got -1.0\)"),
        ({"curriculum_steps": 0}, r"curriculum_steps must be >= 1 \(got 0\)"),
        ({"atten_drop": 1.0}, r"atten_drop must be in \[0, 1\) \(got 1.0\)"),
        ({"target_tokenizer": CharacterTokenizer(alphabet="abc")}, r"target_tokenizer must be source_tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            variant(**fields)


# The experiments.


def test_it_has_the_weights_of_the_base_but_for_the_scales_of_attention():
    there, back = (get(f"mt.xendec.wmt14_en_de.{name}") for name in ("WmtEnDeXEnDec", "WmtDeEnXEnDec"))
    base = TransformerModel(source_vocab_size=32_000, target_vocab_size=32_000)
    counts = [num_params(Model(_Only(model=model)).abstract) for model in (there.task.model, base)]
    # A scale of 64 for each of 6 attentions of the encoder and 12 of the decoder.
    assert counts[1] - counts[0] == 18 * 64
    swapped = dataclasses.replace(back.datasets["train"], source="en", target="de")
    assert swapped == there.datasets["train"]
    assert back.task == there.task
    assert there.datasets["train"].bucket_bounds[-1] == 256
    assert there.datasets["dev"].bucket_bounds[-1] == 300


@dataclasses.dataclass(frozen=True)
class _Only:
    """Of a task no more than its model, which needs no vocabulary."""

    model: TransformerModel

    def init(self, rngs):
        return self.model.build(rngs)


@pytest.mark.slow
@pytest.mark.data
def test_three_losses_fall_on_real_text(test_data, tmp_path):
    """The shortest pairs of Lingvo's file, in a vocabulary of what they have."""
    vocabulary = test_data / "vocab/wmt14_ende_wpm_32k_test.vocab"
    records = f"tfrecord:{test_data}/wmt/wmt14_ende_wpm_32k_doublebatch_test-000-001"
    whole = WpmTokenizer(vocab_filepath=str(vocabulary))
    source = DoubleExamples(records=records, tokenizer=whole, bucket_bounds=(64,)).open()
    shortest = np.argsort(source.length_NxC.max(axis=1), kind="stable")[:16]
    sides = source.take(shortest)
    used = np.unique(np.concatenate([side.token_T for side in sides]))
    used = used[used > 3]
    new_ids = np.zeros(whole.vocab_size, np.int32)
    new_ids[:4] = np.arange(4)
    new_ids[used] = np.arange(6, 6 + len(used))
    pieces = ["<unk>", "<s>", "</s>", "\u2581", "<pad>", "<mask>", *whole.pieces(used)]
    (tmp_path / "wpm").write_text("".join(f"{piece}\n" for piece in pieces))
    tokenizer = WpmTokenizer(vocab_filepath=str(tmp_path / "wpm"))
    assert 200 < tokenizer.vocab_size < 600
    columns = tuple(dataclasses.replace(column, pad_id=4) for column in COLUMNS)
    given = pad(columns, [Ragged(new_ids[side.token_T], side.length_B) for side in sides], 24)
    given["weight"] = np.ones(16, np.float32)

    size = tokenizer.vocab_size
    task = XEnDec(
        model=dataclasses.replace(MODEL, source_vocab_size=size, target_vocab_size=size),
        source_tokenizer=tokenizer,
        target_tokenizer=tokenizer,
        curriculum_steps=60,
    )
    experiment = Experiment(
        task=task,
        datasets={"train": DoubleExamples(records=records, tokenizer=tokenizer, bucket_bounds=(24,))},
        learner=Learner(learning_rate=0.01, optimizer=Adam(beta2=0.98)),
        train=Train(batch_size=16, max_steps=60),
    )
    state = init_state(experiment, given)
    step = jax.jit(make_train_step(experiment))
    found = []
    for _ in range(3):
        state = state._replace(totals=zeros_like_metrics(state.totals))
        for _ in range(20):
            state, _ = step(state, given)
        found.append(to_means(jax.device_get(state.totals)))
    assert int(state.weights.extra["trained_steps"]) == 60
    for name in ("loss", *LOSSES):
        assert found[0][name] > found[1][name] > found[2][name] > 0, name
    assert found[2]["num_skipped_updates"] == 0
