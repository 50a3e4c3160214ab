"""Experiments on MNIST (`raylingvo data prepare mnist`)."""

from __future__ import annotations

from raylingvo.data.images import ParquetImages
from raylingvo.experiment import Checkpoints, Experiment, Reading, Snapshots, Train
from raylingvo.models.image.classifier import ImageClassification
from raylingvo.models.image.lenet import LeNet5
from raylingvo.registry import register
from raylingvo.training.learner import Learner
from raylingvo.training.schedules import LinearRampupExponentialDecay


def _images(split: str) -> ParquetImages:
    return ParquetImages(path=f"mnist/{split}.parquet", height=28, width=28, prepare="mnist")


@register("image.mnist.LeNet5")
def mnist_lenet5() -> Experiment:
    """LeNet-5 on MNIST, Lingvo's recipe: Adam 1e-4, batch 256."""
    return Experiment(
        task=ImageClassification(model=LeNet5()),
        datasets={"train": _images("train"), "test": _images("test")},
        learner=Learner(
            learning_rate=1e-4,
            # Lingvo ramps from 1 to the number of devices over 100 steps: on one device there is no ramp.
            schedule=LinearRampupExponentialDecay(warmup=0, decay_start=100_000, decay_end=1_000_000, min=0.1),
        ),
        train=Train(
            batch_size=256,
            # 8.5 epochs. Lingvo's default of 4,000,000 steps is a limit for jobs that somebody watches, not a length.
            max_steps=2_000,
            report_every_steps=50,
            snapshots=Snapshots(every_steps=50),
            checkpoints=Checkpoints(every_seconds=10.0),
        ),
        eval={"test": Reading(policy="latest")},
        decode={"test": Reading(policy="last")},
    )
