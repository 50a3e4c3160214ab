"""Optimizers as configuration, each building the optax transformation that gives the decrements of the weights.

Of Lingvo's (core/optimizer.py) those of TPU embeddings are not here.
"""

from collections.abc import Mapping as Mapping  # where annotations of the classes below are resolved

from raylingvo.training._optimizers.accumulated import Accumulator as Accumulator
from raylingvo.training._optimizers.accumulated import DynamicAccumulator as DynamicAccumulator
from raylingvo.training._optimizers.accumulated import accumulates as accumulates
from raylingvo.training._optimizers.adafactor import Adafactor as Adafactor
from raylingvo.training._optimizers.base import Optimizer as Optimizer
from raylingvo.training._optimizers.base import every as every
from raylingvo.training._optimizers.composed import AdaGraft as AdaGraft
from raylingvo.training._optimizers.composed import Composite as Composite
from raylingvo.training._optimizers.composed import Part as Part
from raylingvo.training._optimizers.composed import patterns as patterns
from raylingvo.training._optimizers.egdd import EGDD as EGDD
from raylingvo.training._optimizers.elementwise import AdaDelta as AdaDelta
from raylingvo.training._optimizers.elementwise import Adagrad as Adagrad
from raylingvo.training._optimizers.elementwise import Adam as Adam
from raylingvo.training._optimizers.elementwise import Momentum as Momentum
from raylingvo.training._optimizers.elementwise import RMSProp as RMSProp
from raylingvo.training._optimizers.elementwise import Sgd as Sgd
from raylingvo.training._optimizers.shampoo import DistributedShampoo as DistributedShampoo

# Configs name a class by its module: by this one, so that files can be arranged without touching what runs recorded.
for _class in (Optimizer, Accumulator, AdaGraft, Composite, DynamicAccumulator, Part):
    _class.__module__ = __name__
for _class in (AdaDelta, Adafactor, Adagrad, Adam, DistributedShampoo, EGDD, Momentum, RMSProp, Sgd):
    _class.__module__ = __name__
