import jax
import numpy as np
from flax import nnx

from raylingvo import registry
from raylingvo.models.image.digits import digits_lenet5


def test_the_parts_fit_together():
    """The task takes the batches of both datasets. That it learns them is for the run's own tests."""
    experiment = registry.get("image.digits.LeNet5")
    task = experiment.task
    model = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
    graphdef, variables = nnx.split(model)
    sizes = {}
    for name, dataset in experiment.datasets.items():
        source = dataset.open()
        batch = source.take(np.arange(8)) | {"weight": np.ones(8, np.float32)}
        loss, _ = jax.eval_shape(
            lambda v, b: task.loss(nnx.merge(graphdef, v, copy=True), b, jax.random.key(0)), variables, batch
        )
        assert loss.shape == ()
        sizes[name] = len(source)
    assert sizes == {"train": 1437, "test": 360}


def test_it_ends_where_its_schedule_does():
    experiment = digits_lenet5()
    schedule = experiment.learner.schedule
    first, last = (float(schedule(np.int32(step))) for step in (0, experiment.train.max_steps))
    np.testing.assert_allclose([first, last], [1.0, 0.05], rtol=1e-5)
