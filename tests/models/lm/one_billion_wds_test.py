import jax
import numpy as np
import pytest

import raylingvo as rl
from raylingvo import registry
from raylingvo.data.records import write_records
from raylingvo.data.vocabulary import train_vocab
from raylingvo.errors import RequestError
from raylingvo.models.lm.one_billion_wds import VOCAB_SIZE
from raylingvo.training.optimizers import Adagrad
from raylingvo.training.state import Model, init_state, num_params
from raylingvo.training.step import make_train_step

BIG = "lm.one_billion_wds.WordLevelOneBwdsSimpleSampledSoftmax"
WPM = "lm.one_billion_wds.OneBWdsGPipeTransformerWPM"
NAMES = [BIG, f"{BIG}Tiny", "lm.one_billion_wds.WordLevelSmall", WPM]


def test_the_big_model_has_as_many_weights_as_by_hand():
    shapes = {
        "embedding": VOCAB_SIZE * 1024,
        "LSTMs": 2 * ((1024 + 1024) * 4 * 8192 + 4 * 8192 + 8192 * 1024),
        "softmax": 1024 * VOCAB_SIZE + VOCAB_SIZE,
    }
    total = num_params(Model(registry.get(BIG).task).abstract)
    assert total == sum(shapes.values()) == 1_776_884_608


def test_the_transformer_has_as_many_weights_as_by_hand():
    d, ff, V = 2048, 8192, 32_000
    layer = {
        "attention": 4 * (d * d + d) + d // 16,  # a trained scale for each feature of a head
        "norms": 2 * 2 * d,
        "feed-forward": d * ff + ff + ff * d + d,
    }
    total = num_params(Model(registry.get(WPM).task).abstract)
    assert total == 32 * sum(layer.values()) + V * d + (V * d + V) == 1_742_572_800


def test_the_recipe_of_the_transformer_is_lingvos():
    experiment = registry.get(WPM)
    learner = experiment.learner
    # 0.5 of the Transformer's schedule: at the end of the warm-up 0.5 / sqrt(2048 * 40000), and half of that before.
    peak = 0.5 / np.sqrt(2048 * 40_000)
    for step, share in ((39_999, 1), (19_999, 0.5), (159_999, 0.5)):
        np.testing.assert_allclose(learner.learning_rate * learner.schedule(step), share * peak, rtol=1e-5)
    assert learner.clip_gradient_norm_to_value == 0
    assert experiment.datasets["train"].bucket_batch_sizes == (experiment.train.batch_size,) == (32,)
    # Lingvo's softmax has 128 Mi logits at a time.
    assert experiment.task.model.tokens_per_chunk == 4194


def test_the_recipe_is_lingvos():
    experiment = registry.get(BIG)
    assert experiment.learner.optimizer == Adagrad(initial_accumulator_value=1.0)
    assert experiment.learner.learning_rate == 0.2
    assert experiment.learner.clip_gradient_norm_to_value == 0
    task = experiment.task
    assert (task.num_sampled, task.sum_loss_over_tokens) == (8192, True)
    assert (task.model.max_lstm_gradient_norm, task.model.residual_start) == (16, None)
    # U(-8 sqrt(3 / n), ..) of n = V / 8 rows, Lingvo's UniformUnitScaling(8) of a shard
    np.testing.assert_allclose(task.model.softmax_init, 8 * np.sqrt(3 / (VOCAB_SIZE / 8)))
    tiny = registry.get(f"{BIG}Tiny").task
    assert (tiny.model.features, tiny.model.hidden_features, tiny.num_sampled) == (7, 32, 8)
    assert tiny.model.embedding_init < tiny.model.softmax_init == task.model.softmax_init


def test_without_the_data_the_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    for dataset in registry.get(BIG).datasets.values():
        with pytest.raises(RequestError, match=r"lm1b/"):
            dataset.check()


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Sentences of 40 words, most of them of few, as `data prepare lm1b` and `data vocab` leave them."""
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for split, number in (("train", 60), ("dev", 12), ("test", 12)):
        lines = [" ".join(f"w{k}" for k in 40 * rng.random(rng.integers(1, 9)) ** 3 // 1) for _ in range(number)]
        write_records(f"lm1b/{split}.parquet", [{"text": line} for line in lines])
        for name in ("vocab.txt", "vocab-4k.txt") if split == "train" else ():
            train_vocab("words", lines, 43, tmp_path / "data" / "lm1b" / name)
        if split == "train":
            train_vocab("wpm", lines, 43, tmp_path / "data" / "lm1b" / "wpm-32k.txt")


SMALLER = {
    BIG: {
        "task.model.vocab_size": 43,
        "task.model.features": 8,
        "task.model.hidden_features": 16,
        "task.model.classes_per_chunk": 20,
        "task.num_sampled": 8,
    },
    f"{BIG}Tiny": {"task.model.vocab_size": 43},
    "lm.one_billion_wds.WordLevelSmall": {"task.model.vocab_size": 43, "task.num_sampled": 16},
    WPM: {
        "task.model.vocab_size": 43,
        "task.model.stack.num_layers": 2,
        "task.model.stack.attention.model_dim": 16,
        "task.model.stack.attention.num_heads": 2,
        "task.model.stack.feed_forward.hidden_dim": 32,
        "task.model.tokens_per_chunk": 100,
        "learner.schedule.warmup_steps": 20,
        **{f"datasets.{split}.bucket_bounds": (32,) for split in ("train", "dev", "test")},
    },
}


@pytest.mark.parametrize(
    "name", [NAMES[2], *(pytest.param(name, marks=pytest.mark.slow) for name in (NAMES[1], BIG, WPM))]
)
def test_it_learns_from_its_datasets(name, data):
    """A vocabulary of 43, and for the big one a small network: all else is the experiment's own."""
    experiment = rl.override(rl.get(name), SMALLER[name])
    batch = experiment.datasets["train"].train_batches(experiment.train.batch_size, seed=0)[0]
    state = init_state(experiment, batch)
    step = jax.jit(make_train_step(experiment), donate_argnums=0)
    model = Model(experiment.task)
    evaluate = jax.jit(lambda weights: experiment.task.eval_metrics(model.merge(weights), batch))
    before = evaluate(state.weights)
    for _ in range(50):
        state, bad = step(state, batch)
        assert bad == 0
    after = evaluate(state.weights)
    assert abs(before["log_pplx"][0] - np.log(43)) < 1
    assert after["log_pplx"][0] < before["log_pplx"][0] - 0.1
    assert after["num_sentences"][0] == (batch["weight"] > 0).sum()
    assert experiment.datasets["test"].eval_batches(16)[0]["weight"].sum() == 12
    if name != WPM:
        assert after["log_pplx_per_word"] == after["log_pplx"]
