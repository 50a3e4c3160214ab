"""The beam search step in C++: the same as in pure JAX, whatever the threads do, and in place."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from raylingvo.ops import _native
from raylingvo.ops.search.beam_search_state import BeamSearchState
from raylingvo.ops.search.beam_search_step import beam_search_step
from raylingvo.ops.search.top_k_hyps import top_k_hyps

pytestmark = pytest.mark.skipif(bool(_native.why_unavailable()), reason=f"no C++ ops: {_native.why_unavailable()}")

# (b, k, V, T, S): one beam's rows in parts, by several threads; rows of several beams; rows of blocks; beams by several
# threads; tiny ones.
ROWS = (3, 4, 17_000, 2, 2)
LARGE, BLOCKS, BEAMS, TINY = (1, 3, 33_000, 3, 2), (2, 4, 1100, 4, 0), (9, 2, 1250, 3, 3), (2, 4, 5, 6, 3)
ALL = [
    (TINY, jnp.float32, {"eos_id": 2, "valid_eos_max_logit_delta": 1.5, "beam_size": 0.5}),
    (TINY, jnp.bfloat16, {"eos_id": 4, "force_eos_in_last_step": True, "local_eos_threshold": -1.5}),
    (TINY, jnp.float32, {"eos_id": 2, "beam_independence": True, "ensure_full_beam": True, "beam_size": 0.1}),
    (TINY, jnp.float32, {"eos_id": 2, "eoc_id": 0, "merge_paths": True, "allow_empty_terminated_hyp": False}),
    (TINY, jnp.float32, {"eos_id": 2, "eoc_id": 0, "merge_paths": True, "compat": "lingvo"}),
    (
        TINY,
        jnp.float32,
        {"eos_id": 2, "eoc_id": 0, "merge_paths": True, "merged_topk_buffer_size_factor": 3, "compat": "lingvo"},
    ),
    (LARGE, jnp.float32, {"eos_id": 2, "force_eos_in_top_k": True}),
    (LARGE, jnp.bfloat16, {"eos_id": 32_999, "force_eos_in_last_step": True}),
    (ROWS, jnp.float32, {"eos_id": 2, "beam_independence": True, "valid_eos_max_logit_delta": 1.0}),
    (BLOCKS, jnp.bfloat16, {"eos_id": 2, "eoc_id": 7, "force_last_chunk_eoc_in_top_k": True}),
    (BLOCKS, jnp.float32, {"eos_id": 400, "force_eos_in_last_step": True, "compat": "lingvo", "last_steps": (2, 3)}),
    (BEAMS, jnp.float32, {"eos_id": 2, "eoc_id": 7, "force_eos_in_top_k": True, "merge_paths": True}),
    (BEAMS, jnp.bfloat16, {"eos_id": 2, "beam_size": 0.0}),
]


@functools.cache
def searcher(implementation, k, attributes):
    """f(state, log_probs [T, N, V], atten_probs [T, N, S], is_last_chunk [T, N]) -> the state after T steps."""

    def one_step(state, row):
        step = functools.partial(beam_search_step, num_hyps_per_beam=k, implementation=implementation)
        t, log_probs, atten_probs, is_last_chunk = row
        return step(log_probs, atten_probs, state, t, is_last_chunk, **dict(attributes)), None

    def search(state, *rows):
        return lax.scan(one_step, state, (jnp.arange(len(rows[0])), *rows))[0]

    return jax.jit(search)


def inputs(seed, sizes, dtype=jnp.float32, levels=0, holes=0.0):
    """A new state, and what a search of T steps reads. levels: of scores, 0 for any. holes: share of masked ones."""
    b, k, V, T, S = sizes
    N = b * k
    random = np.random.default_rng(seed)
    log_probs = random.standard_normal((T, N, V), np.float32) - 2
    if levels:
        log_probs = np.round(log_probs * levels) / np.float32(levels)
    bad = random.choice(np.float32([np.nan, -np.inf, -1e30, np.finfo(np.float32).min]), log_probs.shape)
    log_probs = np.where(random.random(log_probs.shape) < holes, bad, log_probs)
    log_probs[:, :, random.integers(V)] = -1.0  # never nothing at all
    atten_probs = random.random((T, N, S), np.float32)
    is_last_chunk = random.random((T, N)) < 0.5
    return BeamSearchState.create(b, k, T, S), jnp.asarray(log_probs, dtype), atten_probs, is_last_chunk


def check_same(got, want):
    for name in want._fields:
        x, y = np.asarray(getattr(got, name)), np.asarray(getattr(want, name))
        if x.dtype == np.float32:
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)


@pytest.mark.parametrize(("sizes", "dtype", "attributes"), ALL, ids=lambda x: "_".join(x) if type(x) is dict else None)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([0, 4]), holes=st.sampled_from([0.0, 0.3, 0.9]))
def test_it_equals_the_one_in_jax(sizes, dtype, attributes, seed, levels, holes):
    if "merge_paths" in attributes:
        levels = 0  # sums of merged hyps are not equal to the bit, so ties would be broken by rounding
    rows = inputs(seed, sizes, dtype, levels, holes)
    got, want = (searcher(name, sizes[1], tuple(attributes.items()))(*rows) for name in ("cpp", "xla"))
    check_same(got, want)
    # Phantoms of compat="lingvo", which continue another beam's hyps, included.
    best = functools.partial(top_k_hyps, k=3, length_normalization=0.6, compat=attributes.get("compat"))
    found, wanted = best(want, implementation="cpp"), best(want, implementation="xla")
    check_same(found, wanted)


@pytest.mark.parametrize("sizes", [TINY, (12, 3, 20, 8, 5)])
@pytest.mark.parametrize("compat", [None, "lingvo"])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**32 - 1), penalty=st.sampled_from([0.2, 1.0]), ratio=st.sampled_from([0.5, 1.0]))
def test_the_n_best_with_coverage_are_those_of_the_one_in_jax(sizes, compat, seed, penalty, ratio):
    rows = inputs(seed, sizes, holes=0.5)
    attributes = (("eos_id", 2), ("valid_eos_max_logit_delta", 2.0), ("compat", compat))
    state = searcher("cpp", sizes[1], attributes)(*rows)
    lengths = np.random.default_rng(seed).integers(0, sizes[4] + 3, sizes[0])
    best = functools.partial(
        top_k_hyps,
        state,
        5,
        length_normalization=0.4,
        coverage_penalty=penalty,
        target_seq_length_ratio=ratio,
        src_lengths=lengths,
        compat=compat,
    )
    got, want = best(implementation="cpp"), best(implementation="xla")
    np.testing.assert_allclose(got.scores, want.scores, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got.lens, want.lens)
    np.testing.assert_array_equal(got.ids, want.ids)


@pytest.mark.parametrize("sizes", [LARGE, ROWS, BEAMS, BLOCKS])
def test_threads_never_change_a_bit(sizes):
    rows = inputs(0, sizes, levels=4)
    attributes = (("eos_id", 2), ("eoc_id", 5), ("merge_paths", True), ("force_eos_in_top_k", True))
    search = searcher("cpp", sizes[1], attributes)
    first = [np.asarray(x).tobytes() for x in search(*rows)]
    for _ in range(50):
        assert [np.asarray(x).tobytes() for x in search(*rows)] == first


def best_first(scores, k):
    """Tokens by falling score, then rising token; what is no score left out."""
    falling = np.argsort(-scores, kind="stable")
    return [token for token in falling.tolist() if scores[token] > np.finfo(np.float32).min][:k]


@pytest.mark.parametrize("V", [1, 16, 127, 128, 129, 1000, 1280, 1281, 20_000])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_best_tokens_are_found_wherever_they_are(V, k):
    random = np.random.default_rng(V)
    rows = {
        "random": random.standard_normal(V),
        "equal": np.zeros(V),
        "rising": np.arange(V) / 8,
        "falling": -np.arange(V) / 8,
        "few_levels": random.integers(0, 3, V),
        "late": np.where(np.arange(V) == V - 1, 1.0, -np.arange(V) % 7),
        "mostly_nan": np.where(random.random(V) < 0.99, np.nan, random.standard_normal(V)),
        "mostly_masked": np.where(random.random(V) < 0.99, -np.inf, random.standard_normal(V)),
        "greatest": np.where(np.arange(V) % 2, np.inf, 0.0),
    }
    for name, row in rows.items():
        for dtype in (jnp.float32, jnp.bfloat16):
            row = np.array(row, dtype)
            row[-1] = 0.25 if np.isnan(row[-1]) else row[-1]
            state = BeamSearchState.create(1, k, 1, 0)
            # EOS is dropped from the entries, so it may be any token: C = k + 1 are looked at.
            log_probs = jnp.asarray(np.broadcast_to(row, (k, V)))
            new = beam_search_step(
                log_probs, jnp.zeros((k, 0)), state, 0, eos_id=0, num_hyps_per_beam=k, implementation="cpp"
            )
            want = [token for token in best_first(row.astype(np.float32), k + 1) if token != 0][:k]
            live = np.asarray(new.cumulative_scores) > -1e30
            assert np.asarray(new.hyps)[0][live].tolist() == want, (name, dtype)
            np.testing.assert_array_equal(new.cumulative_scores[live], row[want].astype(np.float32))


@pytest.mark.parametrize("sizes", [LARGE, BEAMS, TINY])
def test_a_row_of_nans_fails(sizes):
    b, k, *_ = sizes
    state, log_probs, atten_probs, is_last_chunk = inputs(0, sizes)
    bad = log_probs.at[1, b * k - 1].set(jnp.nan)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"No entries in TopK.*model is producing NaNs in the output"):
        jax.block_until_ready(searcher("cpp", k, (("eos_id", 2),))(state, bad, atten_probs, is_last_chunk))
    unused = log_probs.at[0, b * k - 1].set(jnp.nan)  # only hyp 0 is expanded in the first step
    searcher("cpp", k, (("eos_id", 2),))(state, unused, atten_probs, is_last_chunk)


def test_a_step_beyond_the_histories_fails():
    state, log_probs, atten_probs, _ = inputs(0, TINY)
    step = jax.jit(functools.partial(beam_search_step, eos_id=2, num_hyps_per_beam=4, implementation="cpp"))
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match=r"cur_step must be in \[0, T = 6\) \(got 6\)"):
        step(log_probs[0], atten_probs[0], state, jnp.int32(6))


def test_a_donated_state_is_written_in_place():
    state, log_probs, atten_probs, _ = inputs(0, (2, 4, 50, 64, 32))
    step = functools.partial(beam_search_step, eos_id=2, num_hyps_per_beam=4, implementation="cpp")
    donating = jax.jit(step, donate_argnames="state")
    places = [x.unsafe_buffer_pointer() for x in state]
    for t in range(3):
        state = donating(log_probs[t], atten_probs[t], state, jnp.int32(t))
    assert [x.unsafe_buffer_pointer() for x in state] == places

    def search(state):
        rows = (jnp.arange(64), log_probs, atten_probs)
        return lax.scan(lambda state, row: (step(row[1], row[2], state, row[0]), None), state, rows)[0]

    as_users_do = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}  # not as other tests
    program = jax.jit(search, donate_argnums=0).lower(state).compile(as_users_do).as_text()
    assert "RaylingvoBeamSearchStep" in program
    copied = [line for line in program.splitlines() if " copy(" in line and "[64,8" in line]
    assert not copied


def test_a_state_that_is_not_donated_stays():
    state, log_probs, atten_probs, _ = inputs(0, TINY)
    before = [np.array(x) for x in state]
    beam_search_step(log_probs[0], atten_probs[0], state, 0, eos_id=2, num_hyps_per_beam=4, implementation="cpp")
    for x, y in zip(state, before, strict=True):
        np.testing.assert_array_equal(x, y)
