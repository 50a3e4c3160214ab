"""A task that lets monitoring_cost.py switch the metrics of its run on and off; in a module that roles can import."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from flax import nnx

from raylingvo.actors import metrics
from raylingvo.models.image.classifier import ImageClassification

# How many times as often as by default metrics are exported, reported and scraped.
TIMES_AS_OFTEN = 10
EXPORT_SECONDS = metrics.SECONDS / TIMES_AS_OFTEN
REPORT_SECONDS = 10.0 / TIMES_AS_OFTEN  # of Ray's processes to its agent
SCRAPE_SECONDS = 10.0 / TIMES_AS_OFTEN  # clusters/dashboards/prometheus.yml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switched(ImageClassification):
    """Classification, in a process that exports metrics only while there is a file at `switch`."""

    switch: str

    def init(self, rngs: nnx.Rngs) -> Any:
        export_while(Path(self.switch))
        return super().init(rngs)


def export_while(switch: Path) -> None:
    """In this process, and more often than by default."""
    metrics.enabled = switch.exists
    metrics.SECONDS = EXPORT_SECONDS
