"""GShard's losses and metrics: against formulas in NumPy, for a network that sees one token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from raylingvo.models.layers.embedding import Embedding
from raylingvo.models.layers.softmax import Softmax
from raylingvo.models.lm.language_model import NextTokenModel
from raylingvo.models.lm.packed_language_model import MaskedLanguageModel, PackedLanguageModel

V, D, AUX = 12, 4, 0.75


class BigramModule(nnx.Module):
    """Features are those of the token itself; positions and segments do not matter."""

    def __init__(self, rngs):
        self.embedding = Embedding(V, D, rngs=rngs)
        self.softmax = Softmax(D, V, bias=False, rngs=rngs)

    def with_aux_loss(self, batch, *, rng=None):
        return self.embedding(batch["ids"]), jnp.float32(AUX)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bigram(NextTokenModel):
    vocab_size: int = V
    is_causal: bool = True

    def build(self, rngs):
        return BigramModule(rngs)


BOTH_WAYS = Bigram(is_causal=False)
MODULE = BigramModule(nnx.Rngs(0))
BATCH = {
    "ids": jnp.array([[1, 5, 6, 1, 7, 0], [1, 8, 9, 10, 11, 3], [4, 4, 4, 4, 4, 4]]),
    "labels": jnp.array([[5, 6, 2, 7, 0, 0], [8, 9, 10, 11, 3, 2], [4, 4, 4, 4, 4, 4]]),
    "segment_ids": jnp.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]),
    "segment_pos": jnp.zeros((3, 6), jnp.int32),
    "weight": jnp.array([1.0, 1.0, 0.0]),
}
WEIGHTS = np.array([[1, 1, 1, 1, 0, 0], [1] * 6, [0] * 6], float)  # a label of 0 does not count


def log_probs():
    logits = np.asarray(MODULE.softmax(MODULE.embedding(BATCH["ids"])), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    return logits - log_z[..., None], log_z


def mean(values):
    return (values * WEIGHTS).sum() / WEIGHTS.sum()


@pytest.mark.parametrize("denominator", ["tokens", "slots"])
def test_losses_are_gshards(denominator):
    task = PackedLanguageModel(
        model=Bigram(),
        label_smoothing=0.1,
        z_loss=0.01,
        aux_loss=0.5,
        loss_denominator=denominator,
        tokens_are_words=True,
    )
    loss, metrics = task.loss(MODULE, BATCH, jax.random.key(0))
    log_p, log_z = log_probs()
    target = np.full((3, 6, V), 0.1 / V)
    np.put_along_axis(target, np.asarray(BATCH["labels"])[..., None], 0.9 + 0.1 / V, -1)
    soft, z = -(target * log_p).sum(-1), 0.01 * log_z**2
    xent = -np.take_along_axis(log_p, np.asarray(BATCH["labels"])[..., None], -1)[..., 0]
    share = WEIGHTS.sum() / 12 if denominator == "slots" else 1  # of the two rows that count
    np.testing.assert_allclose(loss, (mean(soft) + mean(z)) * share + 0.5 * AUX, rtol=1e-5)
    number = 12 if denominator == "slots" else 10
    expected = {
        "loss": (loss, number),
        "mean_xent": (mean(xent), 10),
        "log_pplx": (mean(xent), 10),
        "soft_labels_xent": (mean(soft), 10),
        "acc1": (mean(log_p.argmax(-1) == BATCH["labels"]), 10),
        "avg_z_loss_increment": (mean(z) * share, number),
        "aux_loss": (0.5 * AUX, 1),
        "weight": (10, 1),
        "batch_utilized_ratio": (11 / 12, 12),
        "num_packed_examples": (3, 1),
        "num_words": (10, 1),
        "log_pplx_per_word": (mean(xent), 10),
    }
    whole = metrics.pop("whole_tgt_accuracy")
    assert metrics.keys() == expected.keys()
    for name, pair in expected.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5, err_msg=name)
    assert whole[1] == 2
    assert task.eval_metrics(MODULE, BATCH)["loss"] == metrics["loss"]


def test_a_row_is_right_if_all_that_counts_is():
    best = MODULE.softmax.scores(MODULE.embedding(BATCH["ids"]), BATCH["labels"]).best
    labels = jnp.where(BATCH["labels"] > 0, jnp.maximum(best, 1), 0).at[1, 3].set((best[1, 3] + 1) % (V - 1) + 1)
    metrics = PackedLanguageModel(model=Bigram()).eval_metrics(MODULE, {**BATCH, "labels": labels})
    assert metrics["whole_tgt_accuracy"] == ((best[0, :4] >= 1).all() * 0.5, 2)


def test_decoding_says_how_likely_rows_are():
    task = PackedLanguageModel(model=Bigram())
    decoded = jax.device_get(task.decode(MODULE, BATCH))
    outputs, metrics = task.postprocess(decoded, jax.device_get(BATCH))
    assert [key for key, _ in outputs] == ["0", "1"]
    assert [output["num_tokens"] for _, output in outputs] == [4, 6]
    for name in ("mean_xent", "acc1"):
        np.testing.assert_allclose(metrics[name], task.eval_metrics(MODULE, BATCH)[name], rtol=1e-6)


MASKED = MaskedLanguageModel(
    model=Bigram(vocab_size=1000, is_causal=False),
    mask_id=3,
    first_maskable_id=5,
    masked=0.12,
    replaced=0.015,
    kept=0.015,
)


def test_the_shares_of_masked_tokens():
    ids = jax.random.randint(jax.random.key(1), (200, 500), 0, 1000)
    segments = jnp.ones_like(ids).at[:, 400:].set(0)
    batch = {"ids": ids, "segment_ids": segments, "weight": jnp.ones(200)}
    targets = MASKED._targets(batch, jax.random.key(2))
    seen, chosen = targets.inputs["ids"], targets.weights > 0
    maskable = (ids >= 5) & (segments > 0)
    assert not (chosen & ~maskable).any()
    assert (seen == ids)[~chosen].all()
    assert (targets.labels == ids).all()
    share = {
        "masked": chosen & (seen == 3),
        "replaced": chosen & (seen != 3) & (seen != ids),
        "kept": chosen & (seen == ids),
    }
    for name, expected in {"masked": 0.12, "replaced": 0.015, "kept": 0.015}.items():
        assert abs(float(share[name].sum() / maskable.sum()) - expected) < 0.003


def test_masks_are_drawn_anew_in_training_and_alike_in_evaluation():
    task = MaskedLanguageModel(model=BOTH_WAYS, mask_id=3, first_maskable_id=4, masked=0.5)
    losses = {float(task.loss(MODULE, BATCH, jax.random.key(i))[0]) for i in range(3)}
    assert len(losses) == 3
    metrics = [task.eval_metrics(MODULE, BATCH) for _ in range(2)]
    assert metrics[0] == metrics[1]
    # A row is masked alike wherever it stands.
    turned = {name: jnp.flip(x, axis=0) for name, x in BATCH.items()}
    for one, other in zip(task._targets(BATCH, None), task._targets(turned, None), strict=True):
        if isinstance(one, jax.Array):
            np.testing.assert_array_equal(one, jnp.flip(other, axis=0))
    assert (task._targets(BATCH, None).inputs["ids"][0] != task._targets(BATCH, None).inputs["ids"][1]).any()
    assert metrics[0]["num_total_tokens"] == (11, 1)
    assert 0 < metrics[0]["num_masked_tokens"][0] < 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"masked": 0.0, "replaced": 0.0, "kept": 0.0}, r"together in \(0, 1\]"),
        ({"mask_id": V}, r"mask_id must be in \[0, 12\) \(got 12\)"),
        ({"z_loss": -1}, r"z_loss must be >= 0 \(got -1\)"),
        ({"label_smoothing": 1}, r"label_smoothing must be in \[0, 1\) \(got 1\)"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        MaskedLanguageModel(model=BOTH_WAYS, **{"mask_id": 3, "first_maskable_id": 4, **settings})


def test_models_look_the_way_that_tasks_need():
    with pytest.raises(ValueError, match="model must be causal"):
        PackedLanguageModel(model=BOTH_WAYS)
    with pytest.raises(ValueError, match="model must not be causal"):
        MaskedLanguageModel(model=Bigram(), mask_id=3, first_maskable_id=4)
