"""RNMT+: its weights, and the same outputs step by step, packed, padded and of several hyps."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import filled
from flax import nnx

from raylingvo.data.sequences import Column, Ragged, pack, pad
from raylingvo.models.layers.variables import logical_axes
from raylingvo.models.mt.rnmt_model import RnmtModel

MODEL = RnmtModel(
    source_vocab_size=11,
    target_vocab_size=13,
    model_dim=6,
    hidden_dim=5,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    residual_start=1,
)
COLUMNS = [Column(name="src", pad_id=0), Column(name="tgt", pad_id=0, sos_id=1)]
SOURCE_LENGTHS, TARGET_LENGTHS = np.array([4, 2, 6, 3]), np.array([3, 5, 1, 4])
RAGGED = [
    Ragged(np.random.default_rng(i).integers(3, 11, lengths.sum()).astype(np.int32), lengths)
    for i, lengths in enumerate((SOURCE_LENGTHS, TARGET_LENGTHS))
]
BATCH = pad(COLUMNS, RAGGED, 6)
forward = nnx.jit(lambda module, batch, rng=None: module(batch, rng=rng))


@pytest.fixture(scope="module")
def module():
    return filled(lambda: MODEL.build(nnx.Rngs(0)))


def real(found, lengths=TARGET_LENGTHS):
    """Features and attention at positions that are not padded, pair after pair."""
    real_BxT = np.arange(found.features.shape[1]) < lengths[:, None]
    return np.asarray(found.features)[real_BxT], np.asarray(found.source_probs)[real_BxT][:, :6]


def assert_close(one, other, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def with_weights_of(module, **changes):
    other = nnx.eval_shape(lambda: dataclasses.replace(MODEL, **changes).build(nnx.Rngs(0)))
    nnx.update(other, nnx.state(module))
    return other


def test_the_default_has_379_million_weights():
    # Embeddings: 2 of 32,000 x 1,024 (2 x 32,768,000). An LSTM of I inputs: (I + 1,024) x 4,096, and 2 x 4,096 of norms
    # and biases. The encoder's: 2 x (8,388,608 + 8,192) with 1,024 inputs, 5 x 2 x (12,582,912 + 8,192) with 2,048, and
    # the projection 2,048 x 1,024 + 1,024. The decoder's: 8 x (12,582,912 + 8,192). Attention: 2 x (1,024 x 1,024 +
    # 1,024), 2 x 256 x 256, 256. Softmax: 2,048 x 32,000 + 32,000.
    expected = {
        "source_embedding": 32_768_000,
        "encoder": 142_704_640,
        "encoder_projection": 2_098_176,
        "target_embedding": 32_768_000,
        "decoder_first": 12_591_104 + 2_230_528,
        "decoder_upper": 7 * 12_591_104,
        "softmax": 65_568_000,
    }
    module = nnx.eval_shape(lambda: RnmtModel(source_vocab_size=32_000, target_vocab_size=32_000).build(nnx.Rngs(0)))
    found = dict.fromkeys(expected, 0)
    for path, variable in nnx.to_flat_state(nnx.state(module)):
        found[str(path[0])] += math.prod(variable.shape)
    assert found == expected
    assert sum(found.values()) == 378_866_176


def test_variables_have_readable_names(module):
    names = set(logical_axes(module))
    assert {
        "source_embedding/table",
        "encoder/layers/1/backward/cell/kernel",
        "encoder_projection/bias",
        "decoder_first/cell/scale",
        "decoder_first/attention/query_kernel",
        "decoder_first/attention/additive_hidden",
        "decoder_upper/0/cell/bias",
        "softmax/kernel",
    } <= names
    assert not [name for name in names if "output" in name or "context" in name]


def test_step_by_step_as_all_at_once_for_each_of_several_hyps(module):
    # Slot i is of source i % 2: the hyps of source 0 are targets 0 and 2.
    sources = {name: x[:2] for name, x in BATCH.items() if name.startswith("src")}
    both = {name: np.tile(x, (2, 1)) for name, x in sources.items()}
    expected = forward(module, {name: x for name, x in BATCH.items() if name.startswith("tgt")} | both)

    @nnx.jit
    def steps(module):
        source = module.encode(sources)

        def step(cache, ids_N):
            features, probs, cache = module.step(ids_N, source, cache)
            return cache, (features, probs)

        cache, found = jax.lax.scan(step, module.init_cache(source, 2, 6), jnp.asarray(BATCH["tgt_ids"]).T)
        assert {x.shape[module.cache_axes] for x in jax.tree.leaves(cache)} == {4}
        return type(expected)(*(x.swapaxes(0, 1) for x in found))

    found = steps(module)
    assert_close(real(found), real(expected))
    np.testing.assert_allclose(found.source_probs.sum(axis=-1), 1, atol=1e-6)


def test_packed_pairs_are_as_good_as_pairs_in_rows_of_their_own(module):
    features, probs = real(forward(module, BATCH))
    batch = pack(COLUMNS, RAGGED, np.array([0, 0, 1, 1]), 2, [10, 9])
    found = forward(module, {name: x for name, x in batch.items() if "paddings" not in name})
    ids = batch["tgt_segment_ids"]
    np.testing.assert_allclose(found.features[ids > 0], features, atol=1e-5)
    row_N, example_N = np.repeat([0, 0, 1, 1], TARGET_LENGTHS), np.repeat(np.arange(4), TARGET_LENGTHS)
    packed_probs = np.asarray(found.source_probs[ids > 0])
    for probs_S, packed_S, row, example in zip(probs, packed_probs, row_N, example_N, strict=True):
        own_S = batch["src_segment_ids"][row] == example % 2 + 1
        np.testing.assert_allclose(packed_S[own_S], probs_S[: SOURCE_LENGTHS[example]], atol=1e-5)
        assert (packed_S[~own_S] == 0).all()


def test_padding_does_not_leak(module):
    expected = real(forward(module, BATCH))
    assert (expected[1][:3, 4:] == 0).all()
    other = dict(BATCH)
    for side in ("src", "tgt"):
        other[f"{side}_ids"] = np.where(BATCH[f"{side}_paddings"] > 0, 7, BATCH[f"{side}_ids"])
    assert_close(real(forward(module, other)), expected, atol=0)
    assert_close(real(forward(module, pad(COLUMNS, RAGGED, 9))), expected)


def test_a_word_depends_on_those_before_it_and_on_the_source(module):
    features = forward(module, BATCH).features
    changed = BATCH | {"tgt_ids": np.where(np.arange(6) == 3, 12, BATCH["tgt_ids"])}
    later = np.abs(forward(module, changed).features - features).max(axis=-1)
    assert (later[:, :3] == 0).all()
    assert (later[:, 3:] > 0).all()
    changed = BATCH | {"src_ids": np.where(np.arange(6) == 1, 3, BATCH["src_ids"])}
    touched_B = (changed["src_ids"] != BATCH["src_ids"]).any(axis=1)
    earlier = np.abs(forward(module, changed).features - features).max(axis=-1)
    assert ((earlier > 0) == touched_B[:, None]).all()


@pytest.mark.parametrize("name", [pytest.param("dropout", marks=pytest.mark.slow), "attention_dropout"])
def test_dropout_is_for_training(module, name):
    other = with_weights_of(module, **({"dropout": 0.0, "attention_dropout": 0.0} | {name: 0.5}))
    once, again, different = (forward(other, BATCH, jax.random.key(i)).features for i in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    assert not np.allclose(once, different)
    assert not np.allclose(once, forward(module, BATCH).features)


def test_every_weight_has_a_finite_gradient(module):
    definition, params = nnx.split(with_weights_of(module, recompute=True))

    @jax.jit
    @jax.grad
    def gradients(params):
        module = nnx.merge(definition, params)
        scores = module.softmax.scores(module(BATCH, rng=jax.random.key(0)).features, jnp.asarray(BATCH["tgt_labels"]))
        return ((scores.log_z - scores.label_logit) * (1 - BATCH["tgt_paddings"])).sum()

    for path, grad in nnx.to_flat_state(gradients(params)):
        assert np.isfinite(grad[...]).all(), path
        assert np.abs(grad[...]).max() > 0, path


def test_bfloat16_is_near_float32(module):
    half = with_weights_of(module, compute_dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(half))} == {jnp.dtype(jnp.float32)}
    found = forward(half, BATCH)
    assert (found.features.dtype, found.source_probs.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(found.features.astype(jnp.float32), forward(module, BATCH).features, atol=0.1)
    source = nnx.eval_shape(lambda: half.encode(BATCH))
    cache = nnx.eval_shape(lambda source: half.init_cache(source, 1, 6), source)
    features, _, after = nnx.eval_shape(
        lambda *args: half.step(*args), jnp.asarray(BATCH["tgt_ids"][:, 0]), source, cache
    )
    assert features.dtype == jnp.bfloat16
    assert after == cache


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_dim": 7}, r"model_dim must be > 0 and divisible by 2 heads \(got 7\)"),
        ({"hidden_dim": 0}, r"hidden_dim must be >= 1 \(got 0\)"),
        ({"residual_start": 0}, r"residual_start must be >= 1 \(got 0\)"),
        ({"attention_dropout": 1.0}, r"attention_dropout must be in \[0, 1\) \(got 1.0\)"),
        ({"init_scale": 0.0}, r"init_scale must be > 0 \(got 0.0\)"),
        ({"source_vocab_size": 1}, r"source_vocab_size must be >= 2 \(got 1\)"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MODEL, **change)
