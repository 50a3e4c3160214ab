"""What is computed of all outputs of a dataset together, and is no mean of what its batches give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class CorpusScores(NamedTuple):
    """Metrics, and for those of a published definition the signature that says which variant it is.

    signatures: by the metric's name, such as `nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0`.
    """

    metrics: Mapping[str, float] = {}
    signatures: Mapping[str, str] = {}
