"""Schedules: Lingvo's values at many steps, and what holds at the steps between."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from raylingvo.config import dump, load
from raylingvo.training import schedules
from raylingvo.training.learner import Learner
from raylingvo.training.schedules import (
    Annealing,
    CombinedMinimum,
    Constant,
    Continuous,
    Cosine,
    Cycle,
    EmaDecay,
    Exponential,
    InverseSigmoid,
    Linear,
    LinearRampupCosine,
    LinearRampupDecay,
    LinearRampupExponentialDecay,
    LinearRampupExponentialDecayScaledByNumSplit,
    LinearRampupPiecewiseConstant,
    LinearRampupSqrtDecay,
    LinearRampupSqrtDecayByBatchSizeAndReplicas,
    Piecewise,
    PiecewiseConstant,
    Polynomial,
    Schedule,
    SqrtDecay,
    SqrtDecayToZero,
    StepwiseExponential,
    Transformer,
    TransformerMLPerf,
    TransformerNoWarmUp,
)


def values(schedule, steps):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.array(steps, jnp.int32)))


def from_lingvo(spec, **changes):
    """Our schedule, and the factor between it and Lingvo's."""
    name, p = spec["class"], {k: tuple(v) if isinstance(v, list) else v for k, v in spec["params"].items()} | changes
    if "schedules" in p:
        p["schedules"] = tuple(from_lingvo(part)[0] for part in p["schedules"])
    match name:
        case "ConstantOne":
            return Constant(), 1.0
        case "ContinuousSchedule":
            factor = p.pop("initial_value", 1.0)
            return Continuous(**p), factor
        case "AnnealingSchedule":
            del p["init"]
            return Annealing(**p), 1.0
        case "LinearRampupExponentialDecay":
            return LinearRampupExponentialDecayScaledByNumSplit(**{"warmup_init": 0.0} | p), 1.0
        case "SqrtDecayToZero":
            return SqrtDecayToZero(**p, compat="lingvo"), 1.0
    return getattr(schedules, name.removesuffix("Schedule").replace("ScheduleNoWarmUp", "NoWarmUp"))(**p), 1.0


@pytest.mark.data
def test_values_of_lingvo(lingvo_vectors):
    seen = set()
    for case, arrays in lingvo_vectors("g_schedules"):
        if case["spec"]["class"] == "DevBasedSchedule":
            continue
        schedule, factor = from_lingvo(case["spec"])
        actual = factor * values(schedule, arrays["steps"])
        np.testing.assert_allclose(actual, arrays["values"], rtol=1e-5, atol=1e-7, err_msg=case["id"])
        if "values_explicit_step" in arrays:
            absolute, _ = from_lingvo(case["spec"], pass_absolute_step=True)
            actual = values(absolute, arrays["steps"])
            np.testing.assert_allclose(actual, arrays["values_explicit_step"], rtol=1e-5, atol=1e-7)
        seen.add(case["spec"]["class"])
    assert len(seen) == 27


@pytest.mark.data
def test_the_plain_ramp_of_lingvo(lingvo_vectors):
    case, arrays = next(pair for pair in lingvo_vectors("g_schedules") if "g32" in pair[0]["id"])
    actual = values(LinearRampupExponentialDecay(**case["spec"]["params"]), arrays["steps"])
    np.testing.assert_allclose(actual, arrays["values"], rtol=1e-5, atol=1e-7)


def test_continuous_of_the_reference():
    schedule = Continuous(start_step=1000, half_life_steps=100, min=0.1)
    steps = [0, 500, 1000, 1100, 1200, 1300, 1400, 5000]
    np.testing.assert_allclose(values(schedule, steps), [1, 1, 1, 0.5, 0.25, 0.125, 0.1, 0.1], rtol=1e-6)


def test_transformer_of_the_reference():
    expected = [1.74693e-07, 1.74867e-4, 3.4956e-4, 5.24253e-4, 6.98684e-4, 6.58735e-4, 6.24937e-4]
    steps = [0, 1000, 2000, 3000, 4000, 4500, 5000]
    np.testing.assert_allclose(values(Transformer(), steps), expected, rtol=1e-5)
    # WmtEnDeTransformerBase: lr 3.0, 40,000 warm-up steps.
    assert 3.0 * values(Transformer(warmup_steps=40_000), [40_000])[0] == pytest.approx(6.63e-4, rel=1e-3)


def test_rampup_and_decay():
    schedule = LinearRampupExponentialDecay(warmup=100, decay_start=1000, decay_end=3000, min=0.01, max=4.0)
    # Half of the decay is the geometric mean of both ends.
    steps = [0, 25, 100, 1000, 2000, 3000, 10**6]
    np.testing.assert_allclose(values(schedule, steps), [0, 1, 4, 4, 0.2, 0.01, 0.01], rtol=1e-5)


def test_no_warmup_starts_at_the_maximum():
    """Lingvo's ..ScaledByNumSplitSchedule on one split, as in its LeNet5 recipe."""
    schedule = LinearRampupExponentialDecay(warmup=0, decay_start=100_000, decay_end=1_000_000, min=0.1)
    steps = [0, 1, 50, 100, 100_000, 550_000, 1_000_000, 4_000_000]
    expected = [1, 1, 1, 1, 1, 0.1**0.5, 0.1, 0.1]
    np.testing.assert_allclose(values(schedule, steps), expected, rtol=1e-5)
    of_lingvo = LinearRampupExponentialDecayScaledByNumSplit(warmup=100, decay_start=100_000, decay_end=10**6, min=0.1)
    np.testing.assert_allclose(values(of_lingvo, steps), expected, rtol=1e-5)


def test_more_splits_ramp_higher_and_decay_sooner():
    schedule = LinearRampupExponentialDecayScaledByNumSplit(
        warmup=5, decay_start=200, decay_end=400, min=0.1, max=3.0, num_splits=4
    )
    # From 1 to 4 in 20 steps, capped at 3, from step 50 down to the absolute 0.1 at step 100.
    np.testing.assert_allclose(values(schedule, [0, 10, 20, 50, 100, 500]), [1, 2.5, 3, 3, 0.1, 0.1], rtol=1e-5)


def test_the_half_wave_and_the_whole_one():
    steps = [0, 5, 10, 15, 20, 30]
    np.testing.assert_allclose(values(Cosine(total_steps=10), steps), [1, 0.5, 0, 0, 0, 0], atol=1e-6)
    again = Cosine(total_steps=10, cyclical=True)
    np.testing.assert_allclose(values(again, steps), [1, 0.5, 1, 0.5, 1, 1], atol=1e-6)
    whole = Cosine(total_steps=10, cyclical=True, half_cycle=False)
    np.testing.assert_allclose(values(whole, steps), [1, 0.5, 0, 0.5, 1, 0], atol=1e-6)


def test_piecewise_begins_each_part_anew_and_cycle_does_not():
    ramp = Linear(start=(0, 0.0), limit=(10, 1.0))
    piecewise = Piecewise(boundaries=(4,), schedules=(ramp, ramp))
    np.testing.assert_allclose(values(piecewise, [0, 3, 4, 5, 14]), [0, 0.3, 0, 0.1, 1], atol=1e-6)
    absolute = Piecewise(boundaries=(4,), schedules=(Constant(), ramp), pass_absolute_step=True)
    np.testing.assert_allclose(values(absolute, [3, 4, 5]), [1, 0.4, 0.5], atol=1e-6)
    cycle = Cycle(schedules=(Constant(value=9.0), ramp), steps=(2, 3))
    np.testing.assert_allclose(values(cycle, [0, 1, 2, 4, 5, 7]), [9, 9, 0.2, 0.4, 9, 0.7], atol=1e-6)
    relative = Cycle(schedules=(Constant(value=9.0), ramp), steps=(2, 3), pass_absolute_step=False)
    np.testing.assert_allclose(values(relative, [0, 2, 4, 5, 7]), [9, 0.2, 0.4, 9, 0.2], atol=1e-6)


def test_a_transformer_cycle_warms_up_again_and_an_end_holds():
    plain = values(Transformer(warmup_steps=3, model_dim=4), range(20))
    cyclical = values(Transformer(warmup_steps=3, model_dim=4, cyclical_step=7), range(20))
    np.testing.assert_array_equal(cyclical, np.tile(plain[:7], 3)[:20])
    ended = values(Transformer(warmup_steps=3, model_dim=4, decay_end=9), range(20))
    np.testing.assert_array_equal(ended, np.minimum(np.arange(20), 9).choose(plain[:10]))


def test_the_square_root_reaches_zero():
    fixed, lingvo = (
        SqrtDecayToZero(warmup_steps=100, starting_lr=0.1, final_steps=400, compat=c) for c in (None, "lingvo")
    )
    # a (1 / sqrt(t) - 1 / 20), a = 2: 0.1 at step 100.
    np.testing.assert_allclose(values(fixed, [0, 100, 225, 400, 900]), [0.1, 0.1, 2 / 15 - 0.1, 0, 0], atol=1e-7)
    np.testing.assert_allclose(values(lingvo, [900])[0], 2 / 30 - 0.1, rtol=1e-5)


def test_a_cyclical_cosine_after_a_ramp():
    schedule = LinearRampupCosine(warmup_init=0.2, warmup_steps=9, total_steps=21, num_splits=2, cyclical=True)
    # Twice the values in half of the steps, rounded down: a ramp from 0.4 to 2 in 4 steps, waves of 10 steps.
    wave = 1 + np.cos(np.pi * np.arange(10) / 10)
    expected = np.minimum([0.4, 0.8, 1.2, 1.6] + [2.0] * 18, np.tile(wave, 3)[:22])
    np.testing.assert_allclose(values(schedule, range(22)), expected, rtol=1e-5)


def test_defaults_are_lingvos():
    t = np.array([0, 1, 3999, 4000, 4001, 20_000, 100_000])
    at_least_one = np.maximum(t, 1)
    root = np.minimum(at_least_one / 4000, np.sqrt(4000 / at_least_one))
    np.testing.assert_allclose(values(LinearRampupSqrtDecay(), t), root, rtol=1e-5)
    np.testing.assert_allclose(values(EmaDecay(), t), np.minimum(0.9999, (1 + t) / (10 + t)), rtol=1e-6)
    np.testing.assert_array_equal(values(LinearRampupDecay(), [0, 1, 2, 3]), [0, 1, 0, 0])
    np.testing.assert_allclose(values(SqrtDecayToZero(), [0, 10_000, 100_000]), [0.01, 0.01, 0], atol=1e-9)


EVERY = [
    Constant(value=0.3),
    Continuous(start_step=10, half_life_steps=7, min=0.2),
    LinearRampupExponentialDecay(warmup=0, decay_start=5, decay_end=30, min=0.1),
    LinearRampupExponentialDecayScaledByNumSplit(decay_start=500, num_splits=2),
    LinearRampupSqrtDecay(peak=0.7, warmup_steps=50),
    LinearRampupSqrtDecayByBatchSizeAndReplicas(batch_size=8, warmup_examples=80),
    LinearRampupPiecewiseConstant(boundaries=(4, 9), lrs=(1.0, 0.1), num_splits=2),
    LinearRampupCosine(warmup_steps=5, total_steps=30),
    LinearRampupDecay(start=3, peak=9, end=20),
    Polynomial(start=(0, 1.0), limit=(30, 0.2), power=2.0, origin="limit"),
    Linear(start=(5, 0.7), limit=(9, 0.1)),
    Exponential(start=(5, 0.7), limit=(9, 0.1)),
    Annealing(factor=0.9, lower_bound=0.1),
    StepwiseExponential(decay=0.5, num_steps_per_decay=7),
    Cosine(total_steps=30),
    SqrtDecay(warmup_steps=9, multiplier=2.0, offset=3.0),
    SqrtDecayToZero(warmup_steps=9, final_steps=80),
    InverseSigmoid(k=10.0),
    EmaDecay(ema_decay=0.9),
    Transformer(warmup_steps=10),
    TransformerMLPerf(warmup_steps=10, warmup_init_fraction=0.5),
    TransformerNoWarmUp(decay_start=10, decay_end=20),
    PiecewiseConstant(boundaries=(3, 9), values=(1.0, 0.5, 0.2)),
    Piecewise(boundaries=(3,), schedules=(Constant(), Cosine(total_steps=9))),
    Cycle(schedules=(Constant(), Cosine(total_steps=9)), steps=(3, 4)),
    CombinedMinimum(schedules=(Constant(value=0.5), Cosine(total_steps=9))),
]


def test_every_schedule_is_here():
    def concrete(cls):
        return [cls, *(found for child in cls.__subclasses__() for found in concrete(child))]

    ours = {cls for cls in concrete(Schedule)[1:] if cls.__module__ == schedules.__name__}
    assert {type(schedule) for schedule in EVERY} == ours
    assert all(getattr(schedules, cls.__name__) is cls for cls in ours)


@pytest.mark.parametrize("schedule", EVERY, ids=lambda schedule: type(schedule).__name__)
def test_a_schedule_gives_a_float32_scalar_and_is_plain_data(schedule):
    value = jax.eval_shape(schedule, jnp.int32(3))
    assert (value.dtype, value.shape) == (jnp.float32, ())
    assert hash(schedule) == hash(schedule)
    learner = Learner(learning_rate=0.1, schedule=schedule)
    assert load(dump(learner), Learner) == learner


@pytest.mark.parametrize("schedule", [*EVERY[:3], *EVERY[11:18]], ids=lambda schedule: type(schedule).__name__)
def test_without_warmup_the_rate_never_rises(schedule):
    rates = values(schedule, range(60))
    assert (np.diff(rates) <= 0).all()
    assert (rates >= 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Continuous(half_life_steps=0), r"half_life_steps must be > 0 \(got 0\)"),
        (
            lambda: LinearRampupExponentialDecay(warmup=9, decay_start=5, decay_end=30, min=0.1),
            r"expected 0 <= warmup <= decay_start < decay_end \(got 9, 5, 30\)",
        ),
        (
            lambda: LinearRampupExponentialDecay(warmup=0, decay_start=5, decay_end=5, min=0.1),
            r"expected 0 <= warmup <= decay_start < decay_end \(got 0, 5, 5\)",
        ),
        (
            lambda: LinearRampupExponentialDecay(warmup=0, decay_start=5, decay_end=6, min=0.0),
            r"expected 0 < min <= max \(got 0.0, 1.0\)",
        ),
        (
            lambda: Linear(start=(5, 1.0), limit=(5, 0.0)),
            r"start must be at an earlier step than limit \(got 5, 5\)",
        ),
        (lambda: Exponential(limit=(5, 0.0)), r"start and limit must have multipliers > 0 \(got 1.0, 0.0\)"),
        (lambda: Polynomial(power=0.0), r"power must be > 0 \(got 0.0\)"),
        (lambda: Annealing(factor=1.5, lower_bound=0.1), r"factor must be in \(0, 1\] \(got 1.5\)"),
        (lambda: StepwiseExponential(decay=0.0), r"decay must be > 0 \(got 0.0\)"),
        (lambda: Cosine(total_steps=0), r"total_steps must be > 0 \(got 0\)"),
        (lambda: SqrtDecay(warmup_steps=0), r"warmup_steps must be > 0 \(got 0\)"),
        (lambda: SqrtDecayToZero(final_steps=9), r"final_steps must be > warmup_steps \(got 9, 10000\)"),
        (lambda: InverseSigmoid(k=0.5), r"k must be >= 1 \(got 0.5\)"),
        (lambda: EmaDecay(ema_decay=1.0), r"ema_decay must be in \(0, 1\) \(got 1.0\)"),
        (lambda: Transformer(decay_factor=0.5), r"decay_factor must be <= 0 \(got 0.5\)"),
        (lambda: Transformer(model_dim=0), r"model_dim must be >= 1 \(got 0\)"),
        (lambda: TransformerMLPerf(warmup_init_fraction=2.0), r"warmup_init_fraction must be in \[0, 1\] \(got 2.0\)"),
        (lambda: TransformerNoWarmUp(decay_start=0), r"decay_start must be > 0 \(got 0\)"),
        (
            lambda: PiecewiseConstant(boundaries=(3,), values=(1.0,)),
            r"values must be one more than boundaries \(got 1\)",
        ),
        (
            lambda: PiecewiseConstant(boundaries=(3, 2), values=(1.0, 2.0, 3.0)),
            r"boundaries must be ascending and >= 0 \(got \[3, 2\]\)",
        ),
        (lambda: Piecewise(boundaries=(), schedules=()), r"schedules must be one more than boundaries \(got 0\)"),
        (
            lambda: Cycle(schedules=(Constant(),), steps=()),
            r"steps must have one number for each of schedules \(got 0\)",
        ),
        (lambda: Cycle(schedules=(Constant(),), steps=(0,)), r"steps must be >= 0 and not all 0 \(got \[0\]\)"),
        (lambda: CombinedMinimum(schedules=()), r"schedules must have at least one \(got none\)"),
        (lambda: LinearRampupDecay(peak=9, end=5), r"expected 0 <= start < peak < end \(got 0, 9, 5\)"),
        (
            lambda: LinearRampupPiecewiseConstant(boundaries=(0, 1), lrs=(1.0, 0.1)),
            r"boundaries must be > 0 and ascending \(got \[0, 1\]\)",
        ),
        (
            lambda: LinearRampupPiecewiseConstant(boundaries=(1,), lrs=()),
            r"lrs must have one value for each of boundaries \(got 0\)",
        ),
        (lambda: LinearRampupCosine(total_steps=0), r"total_steps must be >= num_splits \(got 0, 1\)"),
        (lambda: LinearRampupSqrtDecay(peak=0.0), r"peak must be > 0 \(got 0.0\)"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
