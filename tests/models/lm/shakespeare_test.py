"""The small Transformers of characters read their text, and learn from it."""

import jax
import pytest

import raylingvo as rl
from raylingvo.data.prepare import prepare
from raylingvo.metrics.means import to_means
from raylingvo.models.lm.shakespeare import TOKENIZER
from raylingvo.training.state import Model, init_state
from raylingvo.training.step import make_train_step

SMALL = {
    "task.model.stack.num_layers": 2,
    "task.model.stack.attention.model_dim": 32,
    "task.model.stack.feed_forward.hidden_dim": 64,
    "learner.schedule.warmup_steps": 1,
}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("CharTransformer", {}),
        pytest.param("CharTransformerLong", {}, marks=pytest.mark.slow),
        pytest.param("CharMoe", {"task.model.stack.moe.hidden_dim": 64}, marks=pytest.mark.slow),
    ],
)
def test_it_learns(tmp_path, monkeypatch, name, more):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    text = tmp_path / "input.txt"
    text.write_text("To be, or not to be, that is the question:\n" * 40)
    prepare("tinyshakespeare", text)
    experiment = rl.override(rl.get(f"lm.shakespeare.{name}"), SMALL | more)
    batches = experiment.datasets["train"].train_batches(experiment.train.batch_size, 0)
    state = init_state(experiment, batches[0])
    step = jax.jit(make_train_step(experiment), donate_argnums=0)
    losses = []
    for k in range(12):
        before = to_means(jax.device_get(state.totals)).get("log_pplx", 0.0) * k
        state, _ = step(state, batches[k])
        losses.append(to_means(jax.device_get(state.totals))["log_pplx"] * (k + 1) - before)
    assert losses[-1] < losses[0] - 0.5
    dev = experiment.datasets["dev"].eval_batches(4)[0]
    evaluate = jax.jit(experiment.task.eval_metrics)
    metrics = evaluate(Model(experiment.task).merge(state.weights), dev)
    assert metrics["log_pplx"][0] < losses[0]


def test_the_tokenizer_knows_the_text():
    assert TOKENIZER.vocab_size == 68
    assert TOKENIZER.encode_ragged(["Zounds!\n"])[0].min() > TOKENIZER.unk_id
