import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from raylingvo.models.image.lenet import LeNet5, standardize

evaluate = nnx.jit(lambda model, images: model(images))
train = nnx.jit(lambda model, images, rng: model(images, rng=rng))


def _images(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return nnx.jit(lambda: LeNet5().build(nnx.Rngs(0)))()


def test_variables_and_their_number():
    abstract = nnx.eval_shape(lambda: LeNet5().build(nnx.Rngs(0)))
    shapes = {".".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(abstract))}
    assert shapes == {
        "conv1.kernel": (5, 5, 1, 20),
        "conv2.kernel": (5, 5, 20, 50),
        "hidden.kernel": (2450, 300),
        "hidden.bias": (300,),
        "softmax.kernel": (300, 10),
        "softmax.bias": (10,),
    }
    assert sum(map(np.prod, shapes.values())) == 763_810


def test_biases_start_at_zero_and_kernels_within_xavier_limits(model):
    assert not model.hidden.bias[...].any() and not model.softmax.bias[...].any()
    for layer, fan_in, fan_out in ((model.hidden, 2450, 300), (model.softmax, 300, 10)):
        limit = np.sqrt(6 / (fan_in + fan_out))
        assert 0.95 * limit < jnp.abs(layer.kernel[...]).max() <= limit


def test_standardize_is_tensorflows_formula():
    images = _images(3)
    images[2] = 7  # flat: std 0, so the lower bound counts
    x = images.astype(np.float64)
    std = np.maximum(x.std((1, 2, 3), keepdims=True), 1 / 28)
    np.testing.assert_allclose(
        standardize(jnp.asarray(images)), (x - x.mean((1, 2, 3), keepdims=True)) / std, atol=1e-4
    )


def test_standardize_ignores_brightness_and_contrast():
    images = _images(2).astype(np.float32)
    np.testing.assert_allclose(standardize(jnp.asarray(images)), standardize(jnp.asarray(images * 0.5 + 9)), atol=1e-4)


def test_logits_of_an_image_do_not_depend_on_its_batch(model):
    images = _images(4)
    np.testing.assert_allclose(evaluate(model, images)[2:3], evaluate(model, images[2:3]), rtol=1e-4, atol=1e-4)


def test_evaluation_is_deterministic_and_training_follows_its_key(model):
    images = _images(4)
    evaluated, trained = evaluate(model, images), train(model, images, jax.random.key(1))
    np.testing.assert_array_equal(evaluated, evaluate(model, images))
    np.testing.assert_array_equal(trained, train(model, images, jax.random.key(1)))
    assert jnp.abs(trained - train(model, images, jax.random.key(2))).max() > 1e-3
    assert jnp.abs(trained - evaluated).max() > 1e-3


@pytest.mark.parametrize("fields", [{"dropout": 1.0}, {"dropout": -0.1}, {"num_classes": 1}])
def test_bad_fields_are_refused_by_name(fields):
    (name, value), *_ = fields.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value}"):
        LeNet5(**fields)
