"""The contract between a model family and the roles: `Task`."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raylingvo.errors import RequestError
from raylingvo.metrics.corpus_scores import CorpusScores

if TYPE_CHECKING:
    import jax
    import numpy as np
    from flax import nnx

    from raylingvo.models.pictures import Pictures

# A batch on the host (numpy) or on the device (jax): field name -> array whose first axis is the batch.
Batch = Mapping[str, Any]
# Metric name -> (value, weight), both scalars. A mean over batches is sum(value * weight) / sum(weight).
# A name that starts with `num_` is a count instead: its total is sum(value * weight).
WeightedMetrics = dict[str, tuple[Any, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """Model, loss, metrics and decoding for one problem: configuration as fields, behaviour as pure functions.

    The functions of (model, batch) are traced by jit: they must not change the task, and everything random
    comes from `rng`. Every batch has a field `weight`, f32[B]; rows of weight 0 are padding and must not
    count in any loss, metric or output.
    """

    @abc.abstractmethod
    def init(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model with freshly initialised variables.

        None of them may be a random key (RequestError): make `nnx.Dropout(rate)` without `rngs`, and call it with
        `rngs=rng`, the argument of `loss`.
        """

    @abc.abstractmethod
    def loss(self, model: nnx.Module, batch: Batch, rng: jax.Array) -> tuple[jax.Array, WeightedMetrics]:
        """The scalar f32[] to minimise, in training mode, and the metrics of the batch."""

    @abc.abstractmethod
    def eval_metrics(self, model: nnx.Module, batch: Batch) -> WeightedMetrics:
        """The metrics of a batch in evaluation mode (no dropout, nothing random)."""

    @abc.abstractmethod
    def decode(self, model: nnx.Module, batch: Batch) -> Any:
        """Outputs of a batch: a pytree of arrays, computed on the device."""

    @abc.abstractmethod
    def postprocess(
        self, decoded: Any, batch: Mapping[str, np.ndarray]
    ) -> tuple[list[tuple[str, dict[str, Any]]], WeightedMetrics]:
        """On the host: `decode`'s result as numpy, and its batch -> a (key, JSON dict) per real example, metrics.

        The batch may have texts, fields of strings (data/host_fields.py) which `decode` does not get.
        """

    def corpus_scores(self, outputs: Sequence[Mapping[str, Any]]) -> CorpusScores:
        """On the host: what there is to say of all outputs of a dataset together, such as BLEU.

        outputs: the dicts that `postprocess` gave, in the order in which they are written. The metrics are recorded
        beside the means of `postprocess`'s own, and must have other names.
        """
        del outputs
        return CorpusScores()

    def pictures(self) -> Pictures | None:
        """How the first outputs of a dataset are drawn; None: they are not."""
        return None

    def trains(self, path: str, batch: Batch) -> bool:
        """Whether a step on such a batch may change the variable of this path, such as "layers/0/kernel".

        Told by the fields of the batch, not by their values. What a step may not change keeps slots and averages.
        """
        del path, batch
        return True

    def adjust_gradients(self, grads: Mapping[str, jax.Array], batch: Batch) -> Mapping[str, jax.Array]:
        """The gradients of a learner by the paths of its variables -> what to clip and apply, of the same shapes.

        Regularisers are in them. Called within the train step, after `grad_norm/all` is taken (by which the global norm
        is clipped) and before anything is clipped. Lingvo: BaseTask.AdjustGradients.
        """
        del batch
        return grads

    def encode_lines(self, lines: Sequence[str]) -> dict[str, np.ndarray]:
        """On the host: a batch for `decode`, one row for each line of text, with a field `weight`.

        Raises RequestError if the task decodes no text, or not such text.
        """
        raise RequestError(f"{type(self).__name__} does not decode lines of text")
