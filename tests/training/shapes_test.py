"""A step for several shapes: compiled for each of them once and beforehand, and for no other."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.training.shapes import StepForShapes

W = np.float32(3)


def scaled_sum(w, batch):
    return w * batch["x"].sum() + batch["y"].sum()


def batch_of(size, fill=1.0):
    return {"x": np.full((size, 2), fill, np.float32), "y": np.zeros(size, np.float32)}


def step_for(*sizes):
    step = StepForShapes(scaled_sum)
    lowered = step.compile(W, (batch_of(size) for size in sizes))
    return step, lowered


def test_each_sample_has_its_program_before_the_first_call():
    step, _ = step_for(3, 5)
    with mock.patch.object(jax.stages.Lowered, "compile", side_effect=AssertionError):
        for size in (5, 3, 5):
            assert step(W, batch_of(size, fill=2.0)) == 3 * size * 2 * 2


def test_the_program_of_the_first_sample_comes_back():
    _, lowered = step_for(3, 5)
    assert "tensor<3x2xf32>" in lowered.as_text()
    assert lowered.out_info.shape == ()


def test_a_shape_that_comes_again_is_compiled_once():
    """Two datasets that are mixed may have the same buckets."""
    with mock.patch.object(jax.stages.Lowered, "compile", autospec=True, side_effect=jax.stages.Lowered.compile) as c:
        step_for(3, 5, 3, 5, 5)
    assert c.call_count == 2


def test_the_order_of_fields_does_not_matter():
    step, _ = step_for(3)
    assert step(W, dict(reversed(batch_of(3).items()))) == 18


def test_shapes_without_values_are_enough():
    step = StepForShapes(scaled_sum)
    step.compile(W, [{name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch_of(4).items()}])
    assert step(W, batch_of(4)) == 24


@pytest.mark.parametrize(
    "batch", [batch_of(4), batch_of(3) | {"z": np.zeros(3)}, batch_of(3) | {"x": np.ones((3, 2), np.int32)}], ids=str
)
def test_another_shape_is_an_error_that_says_it(batch):
    step, _ = step_for(3)
    shape = f"x: {batch['x'].dtype}\\[{len(batch['x'])}, 2\\], y: float32"
    with pytest.raises(ValueError, match=rf"batch must be of a shape that Batches.samples\(\) gives \(got {shape}"):
        step(W, batch)


def test_no_sample_is_an_error():
    with pytest.raises(ValueError, match=r"at least one batch \(got none\)"):
        step_for()


def test_arguments_of_jit_are_passed_on():
    step = StepForShapes(lambda state, batch: state + batch["y"].sum(), donate_argnums=0)
    step.compile(jnp.zeros(4), [batch_of(3)])
    state = jnp.zeros(4)
    step(state, batch_of(3))
    assert state.is_deleted()
