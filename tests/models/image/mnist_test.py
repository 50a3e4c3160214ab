import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo import registry
from raylingvo.errors import RequestError
from raylingvo.training.optimizers import Adam


def test_the_recipe_is_lingvos():
    experiment = registry.get("image.mnist.LeNet5")
    assert experiment.train.batch_size == 256
    assert experiment.learner.learning_rate == 1e-4
    assert experiment.learner.optimizer == Adam(beta1=0.9, beta2=0.999, epsilon=1e-6)
    schedule = [float(experiment.learner.schedule(jnp.int32(step))) for step in (0, 100_000, 550_000, 1_000_000)]
    np.testing.assert_allclose(schedule, [1, 1, np.sqrt(0.1), 0.1], rtol=1e-5)


def test_without_the_data_the_fix_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYLINGVO_DATA", str(tmp_path))
    for dataset in registry.get("image.mnist.LeNet5").datasets.values():
        with pytest.raises(RequestError, match="raylingvo data prepare mnist"):
            dataset.check()
