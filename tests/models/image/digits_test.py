import jax
import numpy as np
import optax
from flax import nnx

from raylingvo import registry


def test_the_experiment_learns_its_digits():
    """30 steps of its own recipe, at a smaller batch: enough to be far from guessing on held-out images."""
    experiment = registry.get("image.digits.LeNet5")
    task, learner = experiment.task, experiment.learner
    train, test = (experiment.datasets[name].open() for name in ("train", "test"))
    graphdef, params = nnx.split(nnx.jit(lambda: task.init(nnx.Rngs(0)))())
    optimizer = optax.chain(learner.build(), optax.scale(-learner.learning_rate))

    @jax.jit
    def step(params, opt_state, batch, rng):
        grads = jax.grad(lambda p: task.loss(nnx.merge(graphdef, p, copy=True), batch, rng)[0])(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    opt_state, order = optimizer.init(params), np.random.default_rng(0)
    for rng in jax.random.split(jax.random.key(0), 30):
        batch = train.take(order.integers(len(train), size=32)) | {"weight": np.ones(32, np.float32)}
        params, opt_state = step(params, opt_state, batch, rng)

    held_out = test.take(np.arange(len(test))) | {"weight": np.ones(len(test), np.float32)}
    metrics = jax.jit(lambda p, batch: task.eval_metrics(nnx.merge(graphdef, p), batch))(params, held_out)
    assert metrics["accuracy"][0] > 0.6
    assert metrics["num_preds"][0] == 360
