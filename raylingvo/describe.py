"""What an experiment is, without running it: its model's variables and its datasets, as plain data."""

from __future__ import annotations

from typing import Any

from raylingvo.experiment import Experiment


def model(experiment: Experiment) -> dict[str, Any]:
    """{"lines": a line per variable and the total, "num_params"}; nothing is computed or allocated."""
    from raylingvo.training.state import Model, num_params, variable_lines

    model = Model(experiment.task)
    return {"lines": variable_lines(model.abstract, model.logical_axes), "num_params": num_params(model.abstract)}


def datasets(experiment: Experiment) -> list[dict[str, Any]]:
    """For each dataset its name, class, uses, number of examples, and the fields of a batch. Opens the data.

    Raises RequestError if data are missing.
    """
    from raylingvo.data.host_fields import device_fields

    rows = []
    for name, dataset in experiment.datasets.items():
        batches = dataset.eval_batches(1)
        sample = device_fields(next(batches.samples(), {}))
        uses = [use for use in ("eval", "decode") if name in getattr(experiment, use)]
        rows.append(
            {
                "name": name,
                "class": type(dataset).__name__,
                "used_by": ["train"] * (name == experiment.train.dataset) + uses,
                "num_examples": batches.num_examples,
                "fields": {key: f"{x.dtype}{list(x.shape[1:])}" for key, x in sample.items() if key != "weight"},
            }
        )
    return rows
