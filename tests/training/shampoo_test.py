"""Shampoo, against its formulas in float64 with roots by eigenvalues; and the roots by themselves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.training._optimizers.inverse_root import inverse_root
from raylingvo.training.optimizers import DistributedShampoo


def power(matrix, exponent):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * values**exponent) @ vectors.T


def test_roots_of_matrices_of_any_scale():
    rng = np.random.default_rng(0)
    bases = [np.linalg.qr(rng.normal(size=(9, 9)))[0] for _ in range(3)]
    matrices = [scale * (q * np.geomspace(1e-3, 1, 9)) @ q.T for q, scale in zip(bases, (1e-4, 1.0, 1e6), strict=True)]
    roots, errors = jax.jit(inverse_root, static_argnums=1)(jnp.asarray(np.stack(matrices), jnp.float32), 6)
    assert (errors < 1e-4).all()
    for matrix, root in zip(matrices, roots, strict=True):
        expected = power(matrix, -1 / 6)
        np.testing.assert_allclose(root / np.abs(expected).max(), expected / np.abs(expected).max(), atol=2e-4)


def test_what_has_no_root_is_told():
    matrices = np.stack([np.diag([1.0, -0.5]), np.diag([1.0, np.nan]), np.diag([4.0, 16.0])])
    roots, errors = jax.jit(inverse_root, static_argnums=1)(jnp.asarray(matrices, jnp.float32), 2)
    assert not (errors[:2] < 0.05).any()
    np.testing.assert_allclose(roots[2], np.diag([0.5, 0.25]), atol=1e-6)


class Oracle:
    """One variable: the weights after each update."""

    def __init__(self, settings, shape):
        self.s, self.shape = settings, shape
        self.diagonal = len(shape) < 2 or max(shape) > settings.max_any_dim or max(shape) == 1
        size, limit = settings.block_size, settings.block_partition_threshold_size
        cuts = [np.split(np.arange(n), np.arange(size, n, size)) if n > limit else [np.arange(n)] for n in shape]
        self.blocks = [np.ix_(*cut) for cut in itertools.product(*cuts)]
        self.accumulator = np.full(shape, settings.initial_accumulator_value)
        self.length, self.direction = np.zeros(shape), np.zeros(shape)
        self.moments = [[np.zeros((n, n)) for n in block] for block in self.sizes()]
        self.roots = [[np.zeros((n, n)) for n in block] for block in self.sizes()]

    def sizes(self):
        return [tuple(index.size for index in block) for block in self.blocks]

    def step(self, t, g):
        s = self.s
        self.accumulator = self.accumulator + g**2
        adagrad = g / np.sqrt(self.accumulator)
        self.length = s.momentum * self.length + (1 - s.momentum) * adagrad
        if self.diagonal:
            return self.length
        preconditioned = np.zeros_like(g)
        for block, sizes, moments, roots in zip(self.blocks, self.sizes(), self.moments, self.roots, strict=True):
            part = g[block]
            axes = [axis for axis, n in enumerate(sizes) if 1 < n <= s.fallback_to_diagonal_dim]
            for axis in axes:
                part = np.moveaxis(np.tensordot(part, roots[axis], axes=(axis, 0)), -1, axis)
            preconditioned[block] = part
            for axis in axes:
                flat = np.moveaxis(g[block], axis, 0).reshape(sizes[axis], -1)
                average = s.second_moment_averaging
                if t % s.statistics_computation_frequency == 0:
                    new = (1.0 if average == 1 else 1 - average) * flat @ flat.T
                    moments[axis] = average * moments[axis] + new
                if (t + 1) % s.preconditioning_frequency == 0:
                    damping = max(s.matrix_epsilon, 1e-6 * np.linalg.norm(moments[axis]))
                    roots[axis] = power(moments[axis] + damping * np.eye(sizes[axis]), -1 / (2 * len(axes)))
        self.direction = s.momentum * self.direction + (1 - s.momentum) * preconditioned
        norm = np.linalg.norm(self.direction)
        grafted = self.direction * (np.linalg.norm(self.length) / norm if norm else 0.0)
        start = s.start_preconditioning_steps
        share = np.clip((t - start) / start, 0, 1) if start else 1.0
        return share * grafted + (1 - share) * self.length


@pytest.mark.parametrize(
    ("shapes", "settings"),
    [
        # The directions that gradients do not have are so far from 0 that float32 tells.
        (
            {"matrix": (4, 3), "one": (1, 1)},
            {"momentum": 0.0, "start_preconditioning_steps": 0, "preconditioning_frequency": 1, "matrix_epsilon": 1e-3},
        ),
        (
            {"matrix": (5, 3), "long": (3, 7)},
            {
                "start_preconditioning_steps": 3,
                "preconditioning_frequency": 2,
                "statistics_computation_frequency": 3,
                "initial_accumulator_value": 0.1,
                "block_partition_threshold_size": 3,
                "block_size": 4,
                "max_any_dim": 6,
                "second_moment_averaging": 0.7,
                "matrix_epsilon": 1e-3,
            },
        ),
        (
            {"cube": (2, 3, 4), "row": (1, 4), "vector": (6,)},
            {"start_preconditioning_steps": 2, "preconditioning_frequency": 3, "fallback_to_diagonal_dim": 3},
        ),
    ],
    ids=["every step", "blocks", "some axes"],
)
def test_steps(shapes, settings):
    optimizer = DistributedShampoo(**settings)
    built = optimizer.build()
    update = jax.jit(built.update)
    rng = np.random.default_rng(1)
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    state, oracles = built.init(params), {name: Oracle(optimizer, shape) for name, shape in shapes.items()}
    for t in range(7):
        grads = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        decrements, state = update(grads, state, params, rate=0.1)
        for name, oracle in oracles.items():
            expected = 0.1 * oracle.step(t, grads[name].astype(np.float64))
            np.testing.assert_allclose(decrements[name], expected, rtol=2e-3, atol=2e-4, err_msg=f"{name} {t}")


def test_a_root_that_fails_leaves_the_former_one():
    optimizer = DistributedShampoo(start_preconditioning_steps=0, preconditioning_frequency=1)
    built = optimizer.build()
    params = {"w": jnp.zeros((2, 3))}
    grads = {"w": jnp.arange(6.0).reshape(2, 3)}
    update = jax.jit(built.update)
    _, good = update(grads, built.init(params), params)
    bad = jax.tree.map(lambda x: -10 * x, good.statistics)
    _, after = update(grads, good._replace(statistics=bad), params)
    jax.tree.map(np.testing.assert_array_equal, after.preconditioners, good.preconditioners)
    assert all(np.abs(root).max() > 0 for root in jax.tree.leaves(good.preconditioners))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\) \(got 1.0\)"),
        ({"matrix_epsilon": 0.0}, r"matrix_epsilon must be > 0 \(got 0.0\)"),
        ({"second_moment_averaging": 1.5}, r"second_moment_averaging must be in \(0, 1\] \(got 1.5\)"),
        ({"start_preconditioning_steps": -1}, r"start_preconditioning_steps must be >= 0 \(got -1\)"),
        ({"block_size": 0}, r"block_size must be >= 1 \(got 0\)"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DistributedShampoo(**settings)
