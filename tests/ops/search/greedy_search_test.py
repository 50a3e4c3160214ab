"""Greedy search: the argmax of every step, what Lingvo found, and when it stops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raylingvo.ops.search.greedy_search import greedy_search

EOS = 2


def table_decoder(tables, coef):
    """log_prob_fn(prev_ids, step, z) of a Markov chain over rows of tables [n, M, V]; z is the sum of all inputs."""
    A, B, C = coef

    def log_prob_fn(ids, step, z):
        z = z + ids
        row = (A * ids + B * step + C * z) % tables.shape[1]
        return jnp.take_along_axis(tables, row[:, None, None], axis=1)[:, 0], z

    return log_prob_fn


def plain(tables, coef, start_ids, eos_id, max_lens):
    """ids up to the end of each row, and whether it has EOS."""
    found = []
    for table, token, max_len in zip(tables, start_ids, max_lens, strict=True):
        ids, z = [], 0
        while len(ids) < max_len and (not ids or ids[-1] != eos_id):
            z += token
            row = (coef[0] * token + coef[1] * len(ids) + coef[2] * z) % len(table)
            token = int(np.argmax(table[row]))
            ids.append(token)
        found.append((ids, bool(ids) and ids[-1] == eos_id))
    return found


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_rows_are_the_argmax_of_every_step_until_eos_or_their_max_len(seed, max_lens):
    random = np.random.default_rng(seed)
    # Equal scores too: the lower token wins.
    tables = random.integers(0, 5, (3, 7, 6)).astype(np.float32)
    start_ids, coef = random.integers(0, 6, 3), (1, 2, 3)

    @jax.jit
    def search(tables, start_ids, max_lens):
        return greedy_search(
            table_decoder(tables, coef),
            start_ids,
            eos_id=EOS,
            max_steps=9,
            carry=jnp.zeros(3, jnp.int32),
            max_lens=max_lens,
        )

    result = search(tables, start_ids, jnp.array(max_lens, jnp.int32))
    for i, (ids, done) in enumerate(plain(tables, coef, start_ids.tolist(), EOS, max_lens)):
        assert result.ids[i, : result.lens[i]].tolist() == ids
        assert bool(result.done[i]) == done


def test_what_lingvo_finds(lingvo_vectors):
    cases = [(case, arrays) for case, arrays in lingvo_vectors("c_search") if case["kind"] == "greedy"]
    assert cases
    for case, arrays in cases:
        result = greedy_search(
            table_decoder(jnp.asarray(arrays["in_tables"]), case["coef"]),
            arrays["in_start_ids"],
            eos_id=case["eos_id"],
            max_steps=case["T"],
            carry=jnp.zeros(case["b"], jnp.int32),
        )
        for name, value in zip(("ids", "lens", "done"), result, strict=True):
            np.testing.assert_array_equal(value, arrays[f"out_{name}"], err_msg=f"{case['id']} {name}")


def one_hot(*tokens):
    return jax.nn.one_hot(jnp.array(tokens), 5)


def test_it_ends_with_the_last_row():
    steps = []

    def log_prob_fn(ids, step):
        jax.debug.callback(lambda s: steps.append(int(s)), step, ordered=True)
        return jnp.where(step < jnp.array([1, 3])[:, None], one_hot(4, 4), one_hot(EOS, EOS))

    result = greedy_search(lambda ids, step, _: log_prob_fn(ids, step), [1, 1], eos_id=EOS, max_steps=100)
    jax.effects_barrier()
    assert steps == [0, 1, 2, 3]
    assert result.lens.tolist() == [2, 4]
    assert result.done.all()
    # The first row went on with the second.
    assert result.ids[:, :5].tolist() == [[4, 2, 2, 2, 0], [4, 4, 4, 2, 0]]


def test_nan_is_never_chosen_and_a_row_of_nothing_else_is_an_error():
    some = lambda ids, step, carry: one_hot(3, 3).at[0, 4].set(jnp.nan)  # noqa: E731
    assert greedy_search(some, [1, 1], eos_id=EOS, max_steps=2).ids.tolist() == [[3, 3], [3, 3]]
    every = lambda ids, step, carry: one_hot(3, 3).at[0].set(jnp.nan)  # noqa: E731
    search = lambda: greedy_search(every, [1, 1], eos_id=EOS, max_steps=2)  # noqa: E731
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"No entries in TopK.*producing NaNs in the output"):
        search()
    # Inside jit XLA cannot raise.
    result = jax.jit(search)()
    assert result.lens.tolist() == [0, 2]
    assert not result.done.any()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"start_ids": [1.0, 1.0]}, r"start_ids must be integers \[any\] \(got float32\[2\]\)"),
        ({"eos_id": -1}, r"eos_id must be >= 0 \(got -1\)"),
        ({"eos_id": 5}, r"eos_id must be < V = 5 \(got 5\)"),
        ({"max_steps": 0}, r"max_steps must be > 0 \(got 0\)"),
        ({"max_lens": [1]}, r"max_lens must be integers \[2\] \(got int32\[1\]\)"),
        ({"implementation": "c"}, r"implementation must be .* \(got 'c'\)"),
        ({"log_prob_fn": lambda ids, step, carry: jnp.zeros(5)}, r"log_prob_fn must return floats \[n = 2, V\]"),
        ({"log_prob_fn": lambda ids, step, carry: (one_hot(3, 3), 1.0)}, r"log_prob_fn must return a carry like"),
        ({"log_prob_fn": lambda ids, step, carry: (one_hot(3, 3), None, None)}, r"\(got a tuple of 3\)"),
    ],
)
def test_a_wrong_argument_is_named(changed, message):
    arguments = {
        "log_prob_fn": lambda ids, step, carry: one_hot(3, 3),
        "start_ids": [1, 1],
        "eos_id": 2,
        "max_steps": 4,
    }
    arguments |= changed
    with pytest.raises(ValueError, match=message):
        greedy_search(arguments.pop("log_prob_fn"), arguments.pop("start_ids"), **arguments)


def test_there_is_no_c_plus_plus_twin():
    with pytest.raises(RuntimeError, match="greedy_search has no C\\+\\+ twin"):
        greedy_search(lambda ids, step, carry: one_hot(3), [1], eos_id=2, max_steps=4, implementation="cpp")


@pytest.mark.parametrize("V", [6, 5000])
def test_of_two_zeros_the_lower_token_wins(V):
    scores = jnp.full((2, V), -1.0).at[:, jnp.array([3, V - 1])].set(jnp.array([-0.0, 0.0]))
    scores = scores.at[1, 0].set(jnp.nan)
    result = greedy_search(lambda ids, step, carry: (scores, carry), jnp.zeros(2, jnp.int32), eos_id=3, max_steps=2)
    assert result.ids[:, 0].tolist() == [3, 3]
