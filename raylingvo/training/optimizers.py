"""Optimizers as configuration, each building the optax transformation that gives the decrements of the weights.

Of Lingvo's (core/optimizer.py) there are not: DistributedShampoo, DynamicAccumulator, those of TPU embeddings.
"""

from collections.abc import Mapping as Mapping  # where annotations of the classes below are resolved

from raylingvo.training._optimizers.adafactor import Adafactor as Adafactor
from raylingvo.training._optimizers.base import Optimizer as Optimizer
from raylingvo.training._optimizers.composed import Accumulator as Accumulator
from raylingvo.training._optimizers.composed import AdaGraft as AdaGraft
from raylingvo.training._optimizers.composed import Composite as Composite
from raylingvo.training._optimizers.composed import Part as Part
from raylingvo.training._optimizers.composed import accumulates as accumulates
from raylingvo.training._optimizers.composed import patterns as patterns
from raylingvo.training._optimizers.egdd import EGDD as EGDD
from raylingvo.training._optimizers.elementwise import AdaDelta as AdaDelta
from raylingvo.training._optimizers.elementwise import Adagrad as Adagrad
from raylingvo.training._optimizers.elementwise import Adam as Adam
from raylingvo.training._optimizers.elementwise import Momentum as Momentum
from raylingvo.training._optimizers.elementwise import RMSProp as RMSProp
from raylingvo.training._optimizers.elementwise import Sgd as Sgd

# Configs name a class by its module: by this one, so that files can be arranged without touching what runs recorded.
for _class in (Adafactor, Optimizer, Accumulator, AdaGraft, Composite, Part):
    _class.__module__ = __name__
for _class in (AdaDelta, Adagrad, Adam, EGDD, Momentum, RMSProp, Sgd):
    _class.__module__ = __name__
