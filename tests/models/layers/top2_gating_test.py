"""Top-2 gating: Lingvo's values and gradients, capacity, policies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from filled import normal

from raylingvo.models.layers.top2_gating import expert_capacity, top2_gating


def test_lingvo(lingvo_vectors):
    cases = [c for c in lingvo_vectors("i_layers") if c[0]["layer"] == "gshard_layers.Top2GatingOnLogits"]
    assert cases
    for case, arrays in cases:
        params = case["params"]
        given = {f"{n}_GxS": jnp.asarray(arrays[f"in_{n}"]) for n in ("paddings", "importance") if f"in_{n}" in arrays}

        def loss(logits, params=params, given=given, arrays=arrays):
            capacity = expert_capacity(
                logits.shape[1], params["experts_dim"], params["capacity_factor"], params["expert_capacity_dim"]
            )
            gating = top2_gating(
                logits,
                capacity=capacity,
                second_expert=params["second_expert_policy"],
                legacy_mtf=params["legacy_mtf_behavior"],
                **given,
            )
            total = gating.aux_loss * arrays["fix_aux_loss"] + jnp.sum(gating.combine * arrays["fix_combine"])
            return total, gating

        got, gating = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(arrays["in_logits"]))
        np.testing.assert_allclose(gating.combine, arrays["out_combine"], atol=2e-5, err_msg=case["id"])
        np.testing.assert_array_equal(gating.dispatch, arrays["out_dispatch"] != 0, err_msg=case["id"])
        np.testing.assert_allclose(gating.aux_loss, arrays["out_aux_loss"], atol=2e-5, err_msg=case["id"])
        expected = arrays["gin_logits"]
        np.testing.assert_allclose(got, expected, atol=3e-5 * max(1, np.abs(expected).max()), err_msg=case["id"])


def test_exactly_as_many_tokens_as_an_expert_takes():
    logits = jnp.zeros((1, 16, 4)).at[..., 2].set(9.0).at[..., 1].set(5.0)
    capacity = expert_capacity(16, 4, 2.0)
    assert capacity == 8
    dispatch = np.asarray(top2_gating(logits, capacity=capacity).dispatch)
    np.testing.assert_array_equal(dispatch.sum((0, 1, 3)), [0, 8, 8, 0])
    # The first tokens, each at its own place.
    np.testing.assert_array_equal(dispatch[0, :8, 2], np.eye(8, dtype=bool))
    assert not dispatch[0, 8:].any()


def test_aux_loss_of_an_even_router_is_one():
    # Each expert is the best of as many tokens, and on average all gates are alike.
    even = 3.0 * jnp.eye(4)[None, jnp.arange(16) % 4]
    np.testing.assert_allclose(top2_gating(even, capacity=8).aux_loss, 1.0, rtol=1e-5)
    always = jnp.zeros((1, 16, 4)).at[..., 0].set(50.0)
    np.testing.assert_allclose(top2_gating(always, capacity=8).aux_loss, 4.0, rtol=1e-5)


@pytest.mark.parametrize("legacy_mtf", [False, True])
def test_gates_sum_to_one_below_capacity_and_padding_goes_nowhere(legacy_mtf):
    paddings = jnp.zeros((2, 8)).at[:, 6:].set(1)
    gating = top2_gating(normal(2, 8, 4), capacity=16, paddings_GxS=paddings, legacy_mtf=legacy_mtf)
    np.testing.assert_allclose(gating.combine.sum((2, 3)), 1 - paddings, atol=1e-5)
    np.testing.assert_array_equal(gating.dispatch.sum((2, 3)), 2 * (1 - paddings))


def test_second_expert_policies():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.6, 0.1, 0.3])), (1, 4000, 3))
    keys = jax.random.key(0)

    def second(policy, rng, threshold=0.0):
        gating = top2_gating(
            logits, capacity=4000, second_expert=policy, second_expert_threshold=threshold, legacy_mtf=False, rng=rng
        )
        return np.asarray(gating.dispatch.any(-1).mean((0, 1)))

    np.testing.assert_allclose(second("all", keys), [1, 0, 1])
    np.testing.assert_allclose(second("sampling", keys), [1, 0.25, 0.75], atol=0.03)
    np.testing.assert_allclose(second("random", keys, 0.6), [1, 0, 0.5], atol=0.03)
    np.testing.assert_allclose(second("random", keys, 0.2), [1, 0, 1])
    # Evaluation draws nothing.
    np.testing.assert_allclose(second("sampling", None), [1, 0, 1])


def test_capacity():
    assert expert_capacity(8, 4, 2.0) == 4 and expert_capacity(2, 4, 1.0) == 4 and expert_capacity(18, 4, 2.0) == 12
    assert (
        expert_capacity(2, 8, 1.0, 2) == 4
        and expert_capacity(8, 4, None, 3) == 3
        and expert_capacity(8, 4, 2.0, 6) == 6
    )
    with pytest.raises(ValueError, match="minimum capacity must be > 0"):
        expert_capacity(8, 4, None)
    with pytest.raises(ValueError, match="second_expert must be one of"):
        top2_gating(normal(1, 2, 2), capacity=1, second_expert="x")
    with pytest.raises(ValueError, match="capacity must be > 0"):
        top2_gating(normal(1, 2, 2), capacity=0)
