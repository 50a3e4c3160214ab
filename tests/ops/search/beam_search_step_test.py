"""A beam search step: its rules one by one, wide beams against every hyp there is, and what Lingvo printed."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from ops.search import beam_oracle

from raylingvo.ops.search.beam_search_state import BeamSearchState
from raylingvo.ops.search.beam_search_step import beam_search_step
from raylingvo.ops.search.top_k_hyps import top_k_hyps

both = pytest.mark.parametrize("implementation", beam_oracle.implementations())
seeds = st.integers(0, 2**32 - 1)


@functools.cache
def searcher(implementation, **attributes):
    """f(state, log_probs [n, N, V], atten_probs [n, N, S], is_last_chunk [n, N]) -> the state at the end, and
    (best_scores, cumulative_scores, beam_done, all_done) after each step."""

    def one_step(state, row):
        t, log_probs, atten_probs, is_last_chunk = row
        state = beam_search_step(
            log_probs, atten_probs, state, t, is_last_chunk, implementation=implementation, **attributes
        )
        return state, (state.best_scores, state.cumulative_scores, state.beam_done, state.all_done)

    def search(state, log_probs, atten_probs, is_last_chunk):
        return lax.scan(one_step, state, (jnp.arange(len(log_probs)), log_probs, atten_probs, is_last_chunk))

    return jax.jit(search)


@functools.cache
def stepper(implementation, **attributes):
    """`beam_search_step` inside jit."""
    step = functools.partial(beam_search_step, implementation=implementation, **attributes)
    return jax.jit(step)


def check_states(got, want, atol=1e-5):
    for name, x, y in zip(BeamSearchState._fields, got, want, strict=True):
        if np.asarray(y).dtype == np.float32:
            np.testing.assert_allclose(x, y, atol=atol, rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=name)


def run(log_probs, k, attributes, implementation, *, T=None, dtype=jnp.float32, eager=False):
    """All steps of log_probs [n, N, V], one by one, without attention."""
    n, N, _ = np.shape(log_probs)
    attributes = {"num_hyps_per_beam": k, "implementation": implementation, **attributes}
    step = functools.partial(beam_search_step, **attributes) if eager else stepper(**attributes)
    state = BeamSearchState.create(N // k, k, T or n, 0)
    for t in range(n):
        state = step(jnp.asarray(log_probs[t], dtype), jnp.zeros((N, 0)), state, t)
    return state


NARROW = [
    (3, 6, {"eos_id": 2}),
    (3, 6, {"eos_id": 5, "valid_eos_max_logit_delta": 0.5, "local_eos_threshold": -2.0, "beam_size": 0.5}),
    (3, 6, {"eos_id": 2, "beam_size": 0.0, "beam_independence": True}),
    (2, 6, {"eos_id": 1, "beam_size": 0.5, "ensure_full_beam": True, "beam_independence": True}),
    (2, 6, {"eos_id": 5, "valid_eos_max_logit_delta": 0.1, "force_eos_in_last_step": True}),
    (2, 6, {"eos_id": 4, "valid_eos_max_logit_delta": 9.0, "force_eos_in_top_k": True}),
    (2, 6, {"eos_id": 5, "valid_eos_max_logit_delta": 0.1, "force_eos_in_last_step": True, "last_steps": (2, 9)}),
    (4, 3, {"eos_id": 0, "force_eos_in_last_step": True}),  # more hyps than tokens
    (1, 6, {"eos_id": 2}),
    (2, 6, {"eos_id": 2, "eoc_id": 0}),
    (2, 6, {"eos_id": 2, "eoc_id": 0, "allow_empty_terminated_hyp": False, "beam_independence": True}),
    (2, 6, {"eos_id": 2, "eoc_id": 5, "valid_eos_max_logit_delta": 9.0, "force_last_chunk_eoc_in_top_k": True}),
    (1, 6, {"eos_id": 2, "eoc_id": 5, "force_last_chunk_eoc_in_top_k": True, "force_eos_in_last_step": True}),
    (2, 6, {"eos_id": 2, "eoc_id": 5, "force_last_chunk_eoc_in_top_k": True, "force_eos_in_last_step": True,
            "last_steps": (3, 1)}),
    (3, 6, {"eos_id": 2, "eoc_id": 0, "merge_paths": True}),
    (4, 4, {"eos_id": 2, "eoc_id": 3, "merge_paths": True, "allow_empty_terminated_hyp": False}),
]  # fmt: skip


@both
@pytest.mark.parametrize(("k", "V", "attributes"), NARROW, ids=lambda x: None if isinstance(x, int) else "_".join(x))
@settings(max_examples=15)
@given(seed=seeds, levels=st.sampled_from([2, 5, 0]), holes=st.sampled_from([0.0, 0.2]))
def test_a_step_follows_the_rules(implementation, k, V, attributes, seed, levels, holes):
    b, T, S = 2, 5, 2
    random = np.random.default_rng(seed)
    log_probs = random.normal(size=(T, b * k, V)).astype(np.float32) - 1
    if levels and "merge_paths" not in attributes:  # sums of merged hyps are not equal to the bit
        log_probs = np.round(log_probs * levels) / np.float32(levels)
    bad = random.choice(np.float32([np.nan, -np.inf, -1e30]), log_probs.shape)
    log_probs = np.where(random.random(log_probs.shape) < holes, bad, log_probs)
    log_probs[:, :, random.integers(V)] = -1.0  # never nothing at all
    atten_probs = random.random((T, b * k, S)).astype(np.float32)
    is_last_chunk = random.random((T, b * k)) < 0.5
    attributes = {**attributes, "num_hyps_per_beam": k}

    start = BeamSearchState.create(b, k, T, S)
    got, of_steps = searcher(implementation, **attributes)(start, log_probs, atten_probs, is_last_chunk)
    want, wanted_of_steps = start, []
    for t in range(T):
        want = beam_oracle.step(log_probs[t], atten_probs[t], want, t, is_last_chunk[t], **attributes)
        wanted_of_steps.append((want.best_scores, want.cumulative_scores, want.beam_done, want.all_done))
    check_states(got, want)
    for x, y in zip(of_steps, zip(*wanted_of_steps, strict=True), strict=True):
        np.testing.assert_allclose(x, np.stack(y), atol=1e-5, rtol=1e-5)


WIDE = [
    {},
    {"valid_eos_max_logit_delta": 0.7},
    {"local_eos_threshold": -1.2, "force_eos_in_top_k": True},
    {"force_eos_in_last_step": True, "ensure_full_beam": True, "beam_size": 0.1},
    {"eoc_id": 3},
    {"eoc_id": 3, "allow_empty_terminated_hyp": False, "force_last_chunk_eoc_in_top_k": True},
    {"eoc_id": 3, "merge_paths": True},
]


def every_hyp(table_TxVxV, first_last_chunk, attributes):
    """{ids: raw score} of all hyps that end; scores depend on the last label. Merged: all ways to spell one are one."""
    a = {"valid_eos_max_logit_delta": 5.0, "local_eos_threshold": -100.0, "eoc_id": -1} | attributes
    T = len(table_TxVxV)
    ended, active = {}, {(): 0.0}
    for t in range(T):
        longer = {}
        for ids, cum in active.items():
            labels = tuple(v for v in ids if v != a["eoc_id"])
            local = table_TxVxV[t, labels[-1] if labels else 0]
            for v, score in enumerate(local.tolist()):
                is_good = score > local.max() - a["valid_eos_max_logit_delta"] and score > a["local_eos_threshold"]
                if v == 0:
                    if is_good or (a.get("force_eos_in_last_step") and t == T - 1):
                        ended.setdefault(ids, []).append((score, cum + score, (*ids, v)))
                elif v == a["eoc_id"] and t >= first_last_chunk:
                    if is_good and (labels or a.get("allow_empty_terminated_hyp", True)):
                        ended.setdefault(ids, []).append((score, cum + score, (*ids, v)))
                else:
                    longer[*ids, v] = cum + score
        active = longer
        if a.get("merge_paths"):
            groups = {}
            for ids, cum in active.items():
                groups.setdefault(tuple(v for v in ids if v != a["eoc_id"]), []).append((cum, ids))
            active = {max(group)[1]: math.log(sum(math.exp(cum) for cum, _ in group)) for group in groups.values()}
    # Of EOS and EOC behind the same hyp the lower stays.
    return {min(ends)[2]: min(ends)[1] for ends in ended.values()}


@both
@pytest.mark.parametrize("attributes", WIDE, ids=lambda attributes: "_".join(attributes) or "defaults")
@settings(max_examples=4)
@given(seed=seeds)
def test_a_wide_beam_finds_every_hyp(implementation, attributes, seed):
    V, T, k, first_last_chunk = 4, 4, 27, 2
    table_TxVxV = np.random.default_rng(seed).normal(size=(T, V, V)).astype(np.float32) - 1
    step = stepper(implementation, eos_id=0, num_hyps_per_beam=k, **attributes)
    state = BeamSearchState.create(1, k, T, 0)
    for t in range(T):
        labels = [[v for v in beam_oracle.tokens(state, i, t - 1) if v != attributes.get("eoc_id")] for i in range(k)]
        log_probs = table_TxVxV[t, [label[-1] if label else 0 for label in labels]]
        state = step(log_probs, np.zeros((k, 0), np.float32), state, t, np.full(k, t >= first_last_chunk))
        state = jax.tree.map(np.asarray, state)
    want = sorted(every_hyp(table_TxVxV, first_last_chunk, attributes).items(), key=lambda hyp: -hyp[1])
    ids, lens, scores = top_k_hyps(state, 60, implementation="xla")
    num_hyps = int((lens[0] > 0).sum())
    assert num_hyps == len(want) > 0
    assert [tuple(ids[0, i, : lens[0, i]].tolist()) for i in range(num_hyps)] == [hyp for hyp, _ in want]
    np.testing.assert_allclose(scores[0, :num_hyps], [score for _, score in want], atol=1e-5)


@both
def test_one_hyp_is_greedy_search(implementation):
    log_probs = np.random.default_rng(1).normal(size=(6, 4, 9)).astype(np.float32)
    state = run(log_probs, 1, {"eos_id": 3, "valid_eos_max_logit_delta": 1.0}, implementation, eager=True)
    others = np.delete(log_probs, 3, axis=2)
    np.testing.assert_array_equal(state.hyps, np.delete(np.arange(9), 3)[others.argmax(-1)])
    np.testing.assert_allclose(state.cumulative_scores, others.max(-1).sum(0), rtol=1e-5)
    is_second_best = (others > log_probs[:, :, 3:4]).sum(-1) <= 1
    np.testing.assert_array_equal(state.done_hyps, is_second_best & (log_probs[:, :, 3] > log_probs.max(-1) - 1.0))


@both
def test_equal_scores_go_to_the_lower_token_then_to_the_lower_slot(implementation):
    state = run(np.zeros((2, 6, 8)), 3, {"eos_id": 2}, implementation)
    np.testing.assert_array_equal(state.hyps, [[0, 0, 1, 1, 3, 3], [0] * 6])
    np.testing.assert_array_equal(state.prev_hyps, [[0, 1, 0, 1, 0, 1], [0, 1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(state.done_hyps, [[True, True, False, False, False, False], [True] * 6])


@both
def test_scores_are_summed_in_float32(implementation):
    log_probs = jnp.asarray(np.random.default_rng(2).normal(size=(4, 4, 9)) - 5, jnp.bfloat16)
    got = run(log_probs, 2, {"eos_id": 3}, implementation, dtype=jnp.bfloat16)
    check_states(got, run(log_probs.astype(jnp.float32), 2, {"eos_id": 3}, implementation), atol=0)


SMALL = np.log(np.float32([[[0.5, 0.3, 0.2]] * 4] * 3))


@both
def test_a_slot_without_a_hyp_is_empty(implementation):
    state = run(SMALL[:1], 4, {"eos_id": 2, "valid_eos_max_logit_delta": 0.1}, implementation, T=3)
    np.testing.assert_allclose(state.cumulative_scores, [-0.693147, -1.203973, -1e30, -1e30], rtol=1e-5)
    two_beams = np.repeat(SMALL, 2, axis=1)
    state = run(two_beams, 4, {"eos_id": 2, "force_eos_in_last_step": True}, implementation)
    np.testing.assert_array_equal(state.prev_hyps[0], [0, 1] * 4)
    # Two hyps of each beam are real after the first step, four after the second.
    np.testing.assert_array_equal(state.done_hyps.reshape(3, 4, 2).sum(1), [[1, 1], [2, 2], [4, 4]])
    assert (state.cumulative_scores > -10).all()


@both
def test_a_slot_without_a_hyp_in_lingvo(implementation):
    attributes = {"eos_id": 2, "valid_eos_max_logit_delta": 0.1, "compat": "lingvo"}
    state = run(np.repeat(SMALL[:1], 2, axis=1), 4, attributes, implementation)
    np.testing.assert_allclose(state.cumulative_scores[1::2], [-0.693147, -1.203973, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(state.prev_hyps[0], [0, 1, 0, 1, 0, 0, 0, 0])


@both
@pytest.mark.parametrize(("eos_id", "is_forced_in_lingvo"), [(5, True), (6, False), (15, False)])
def test_the_last_step_ends_every_hyp(implementation, eos_id, is_forced_in_lingvo):
    log_probs = np.full((1, 2, 16), -1.0, np.float32)
    log_probs[:, :, eos_id] = -50.0
    attributes = {"eos_id": eos_id, "force_eos_in_last_step": True}
    state = run(log_probs, 2, attributes, implementation)
    np.testing.assert_array_equal(state.done_hyps, [[True, False]])
    assert state.eos_global_scores[0, 0] == state.best_scores[0] == -50
    state = run(log_probs, 2, attributes | {"compat": "lingvo"}, implementation)
    np.testing.assert_array_equal(state.done_hyps, [[is_forced_in_lingvo, False]])


@both
@pytest.mark.parametrize("compat", [None, "lingvo"])
def test_hyps_that_spell_the_same_become_one(implementation, compat):
    # k = 2, epsilon 0: after "a" and "" (epsilon), "a" comes about as "a" + epsilon and as "" + "a".
    log_probs = np.full((2, 2, 4), -20.0, np.float32)
    log_probs[0, 0, [0, 1]] = [-0.5, -1.0]
    log_probs[1, 0, [0, 1, 2]] = [-3.0, -1.0, -2.0]  # of the hyp epsilon, which is the better one
    log_probs[1, 1, [0, 1]] = [-0.25, -9.0]
    state = run(log_probs, 2, {"eos_id": 3, "eoc_id": 0, "merge_paths": True, "compat": compat}, implementation)
    merged = np.logaddexp(-0.5 - 1.0, -1.0 - 0.25)
    np.testing.assert_allclose(state.cumulative_scores, [merged, -2.5], rtol=1e-5)
    # The better one, "a" + epsilon, gives its name.
    np.testing.assert_array_equal(state.hyps[1], [0, 2])
    np.testing.assert_array_equal(state.prev_hyps[1], [1, 0])


NAN_ROW = np.array([[[np.nan] * 5] + [[-1.0] * 5] * 3], np.float32)  # slot 0 of 2 beams of 2


@both
def test_a_row_of_nan_is_an_error(implementation):
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"No entries in TopK.*producing NaNs in the output"):
        jax.block_until_ready(run(NAN_ROW, 2, {"eos_id": 2}, implementation, eager=True))
    # It is not looked at at the first step.
    later = NAN_ROW[:, [3, 3, 0, 3]]
    assert not np.isnan(run(later, 2, {"eos_id": 2}, implementation, eager=True).cumulative_scores).any()


def test_a_row_of_nan_in_jit_makes_the_beam_nan():
    start = BeamSearchState.create(2, 2, 3, 0)
    search = searcher("xla", eos_id=2, num_hyps_per_beam=2)
    state, _ = search(start, np.repeat(NAN_ROW, 3, axis=0), np.zeros((3, 4, 0), np.float32), np.zeros((3, 4), bool))
    np.testing.assert_array_equal(np.isnan(state.best_scores), [True, False])
    np.testing.assert_array_equal(np.isnan(state.cumulative_scores), [True, False, True, False])


@both
def test_the_whole_search_in_one_loop(implementation):
    b, k, V, T = 2, 3, 7, 6
    table_VxV = np.random.default_rng(4).normal(size=(V, V)).astype(np.float32)

    @jax.jit
    def search():
        def one_step(carry):
            t, ids, state = carry
            state = beam_search_step(
                jnp.asarray(table_VxV)[ids],
                jnp.zeros((b * k, 0)),
                state,
                t,
                eos_id=2,
                num_hyps_per_beam=k,
                beam_size=0.1,
                implementation=implementation,
            )
            return t + 1, state.hyps[t], state

        start = (0, jnp.zeros(b * k, jnp.int32), BeamSearchState.create(b, k, T, 0))
        return lax.while_loop(lambda carry: (carry[0] < T) & ~carry[2].all_done, one_step, start)

    t, _, state = search()
    want, ids = BeamSearchState.create(b, k, T, 0), np.zeros(b * k, int)
    for i in range(int(t)):
        assert not want.all_done
        want = beam_oracle.step(
            table_VxV[ids], np.zeros((b * k, 0)), want, i, None, eos_id=2, num_hyps_per_beam=k, beam_size=0.1
        )
        ids = want.hyps[i]
    assert want.all_done
    check_states(state, want)


def test_xla_does_not_sort_the_vocabulary():
    state, log_probs = BeamSearchState.create(1, 2, 3, 0), np.zeros((2, 1000), np.float32)
    step = functools.partial(beam_search_step, eos_id=2, num_hyps_per_beam=2, implementation="xla")
    program = jax.jit(step).lower(log_probs, np.zeros((2, 0), np.float32), state, 1).compile()
    sorts = [line for line in program.as_text().splitlines() if " sort(" in line]
    assert sorts and not any("1000" in line for line in sorts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_probs": np.zeros((5, 7), np.float32)}, r"log_probs must have b \* num_hyps_per_beam .* \(got 5\)"),
        ({"log_probs": np.zeros((4, 7), int)}, r"log_probs must be float32 or bfloat16 \[N, V\] \(got int32\[4, 7\]\)"),
        ({"log_probs": np.zeros((6, 7), np.float32)}, r"state must be of N = 6 slots and 3 beams"),
        ({"atten_probs": np.zeros((4, 3), np.float32)}, r"atten_probs must be floats \[N, S\] = \[4, 0\]"),
        ({"cur_step": 3}, r"cur_step must be a scalar in \[0, T = 3\) \(got 3\)"),
        ({"is_last_chunk": np.zeros(2, bool)}, r"is_last_chunk must be bool\[N = 4\] \(got bool\[2\]\)"),
        ({"eos_id": 7}, r"eos_id 7 and eoc_id -1 must be < V = 7"),
        ({"eoc_id": 2}, r"eoc_id must differ from eos_id \(both are 2\)"),
        ({"merge_paths": True}, r"merge_paths needs .* set eoc_id \(got -1\)"),
        ({"num_hyps_per_beam": 0}, r"num_hyps_per_beam must be > 0 \(got 0\)"),
        ({"merged_topk_buffer_size_factor": 1}, r"merged_topk_buffer_size_factor must be > 1 \(got 1\)"),
        ({"beam_size": math.nan}, r"beam_size must be a number \(got nan\)"),
        ({"last_steps": [1, 2, 3]}, r"last_steps must be integers \[b = 2\] \(got int32\[3\]\)"),
        ({"last_steps": [1.0, 2.0]}, r"last_steps must be integers \[b = 2\] \(got float32\[2\]\)"),
        ({"compat": "tf"}, r"compat must be None or 'lingvo' \(got 'tf'\)"),
        ({"state": BeamSearchState.create(2, 2, 3, 0)._replace(beam_done=np.zeros(4))}, r"state.beam_done .*\[2\]"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else None,
)  # fmt: skip
def test_a_wrong_argument_is_named(changes, message):
    arguments = {
        "log_probs": np.zeros((4, 7), np.float32),
        "atten_probs": np.zeros((4, 0), np.float32),
        "state": BeamSearchState.create(2, 2, 3, 0),
        "cur_step": 0,
        "eos_id": 2,
        "num_hyps_per_beam": 2,
    }
    with pytest.raises(ValueError, match=message):
        beam_search_step(**(arguments | changes))


@both
def test_lingvos_searches(lingvo_vectors, implementation):
    """In XLA each case is a program of its own to compile: a third of them here."""
    check_searches(lingvo_vectors("a_beam_search")[:: 3 if implementation == "xla" else 1], implementation)


@pytest.mark.slow
def test_all_of_lingvos_searches_in_xla(lingvo_vectors):
    check_searches(lingvo_vectors("a_beam_search"), "xla")


def check_searches(cases, implementation):
    assert cases
    names = {"eos_global_scores": "eos_global"}
    for case, arrays in cases:
        attributes = {n: v for n, v in case["attrs"].items() if n != "atten_vecs_in_hypothesis_protos"}
        compat = "lingvo" if "lossy_differs" in case["tags"] else None
        n, N, _ = arrays["in_log_probs"].shape
        start = BeamSearchState.create(case["b"], case["k"], case["T"], case["S"])
        is_last_chunk = arrays.get("in_is_last_chunk", np.zeros((n, N), bool))
        state, of_steps = searcher(implementation, compat=compat, **attributes)(
            start, arrays["in_log_probs"], arrays["in_atten_probs"], is_last_chunk
        )
        steps = ("best_scores", "cumulative_scores", "beam_done", "all_done")
        got = {f"out_step_{name}": x for name, x in zip(steps, of_steps, strict=True)}
        got |= {f"out_{names.get(name, name)}": x for name, x in state._asdict().items() if name not in steps}
        for name, x in got.items():
            if arrays[name].dtype == np.float32:
                atol = 1e-4 if attributes["merge_paths"] else 1e-5
                np.testing.assert_allclose(x, arrays[name], atol=atol, rtol=1e-5, err_msg=f"{case['id']} {name}")
            else:
                np.testing.assert_array_equal(x, arrays[name], err_msg=f"{case['id']} {name}")


@both
def test_lingvos_defects_change_nothing_where_there_are_none(lingvo_vectors, implementation):
    groups = ("core", "force_topk", "indep", "mixed", "eoc")
    # One of each, as each is compiled.
    cases = {case["group"]: (case, arrays) for case, arrays in lingvo_vectors("a_beam_search")}
    for case, arrays in [cases[group] for group in groups]:
        attributes = {n: v for n, v in case["attrs"].items() if n != "atten_vecs_in_hypothesis_protos"}
        n, N, _ = arrays["in_log_probs"].shape
        start = BeamSearchState.create(case["b"], case["k"], case["T"], case["S"])
        is_last_chunk = arrays.get("in_is_last_chunk", np.zeros((n, N), bool))
        state, _ = searcher(implementation, compat="lingvo", **attributes)(
            start, arrays["in_log_probs"], arrays["in_atten_probs"], is_last_chunk
        )
        np.testing.assert_array_equal(state.hyps, arrays["out_hyps"], err_msg=case["id"])
        np.testing.assert_array_equal(state.prev_hyps, arrays["out_prev_hyps"], err_msg=case["id"])
        np.testing.assert_array_equal(state.done_hyps, arrays["out_done_hyps"], err_msg=case["id"])
