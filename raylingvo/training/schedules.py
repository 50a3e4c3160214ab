"""Learning-rate schedules: multipliers that are pure functions of the step (Lingvo: core/schedule.py).

Its DevBasedSchedule depends on evaluations instead: it is `Train.dev_based` (training/dev_based.py).
"""

from typing import Literal as Literal  # where annotations of the classes below are resolved

from raylingvo.training._schedules.base import Constant as Constant
from raylingvo.training._schedules.base import Schedule as Schedule
from raylingvo.training._schedules.curves import Annealing as Annealing
from raylingvo.training._schedules.curves import Continuous as Continuous
from raylingvo.training._schedules.curves import Cosine as Cosine
from raylingvo.training._schedules.curves import EmaDecay as EmaDecay
from raylingvo.training._schedules.curves import Exponential as Exponential
from raylingvo.training._schedules.curves import InverseSigmoid as InverseSigmoid
from raylingvo.training._schedules.curves import Linear as Linear
from raylingvo.training._schedules.curves import Polynomial as Polynomial
from raylingvo.training._schedules.curves import SqrtDecay as SqrtDecay
from raylingvo.training._schedules.curves import SqrtDecayToZero as SqrtDecayToZero
from raylingvo.training._schedules.curves import StepwiseExponential as StepwiseExponential
from raylingvo.training._schedules.pieces import CombinedMinimum as CombinedMinimum
from raylingvo.training._schedules.pieces import Cycle as Cycle
from raylingvo.training._schedules.pieces import Piecewise as Piecewise
from raylingvo.training._schedules.pieces import PiecewiseConstant as PiecewiseConstant
from raylingvo.training._schedules.ramps import LinearRampupCosine as LinearRampupCosine
from raylingvo.training._schedules.ramps import LinearRampupDecay as LinearRampupDecay
from raylingvo.training._schedules.ramps import LinearRampupExponentialDecay as LinearRampupExponentialDecay
from raylingvo.training._schedules.ramps import (
    LinearRampupExponentialDecayScaledByNumSplit as LinearRampupExponentialDecayScaledByNumSplit,
)
from raylingvo.training._schedules.ramps import LinearRampupPiecewiseConstant as LinearRampupPiecewiseConstant
from raylingvo.training._schedules.ramps import LinearRampupSqrtDecay as LinearRampupSqrtDecay
from raylingvo.training._schedules.ramps import (
    LinearRampupSqrtDecayByBatchSizeAndReplicas as LinearRampupSqrtDecayByBatchSizeAndReplicas,
)
from raylingvo.training._schedules.transformer import Transformer as Transformer
from raylingvo.training._schedules.transformer import TransformerMLPerf as TransformerMLPerf
from raylingvo.training._schedules.transformer import TransformerNoWarmUp as TransformerNoWarmUp

# Configs name a class by its module: by this one, so that files can be arranged without touching what runs recorded.
for _class in [value for value in globals().values() if isinstance(value, type) and issubclass(value, Schedule)]:
    _class.__module__ = __name__
