"""From the end of a train step to its weights on the Evaler's device: 256 MiB on one node, warm, counted in memcpys.

Both roles are the real ones, in a real run; `handover_seconds` and `snapshot_seconds` are what they record. Unit:
one copy of as many bytes between two warm buffers, by one thread, measured in this process before and after the run.
The way has two copies: out of the live weights, which the next step will overwrite (training stands still for it), and
into the object store; the Evaler's device then aliases the store's memory. That is the bound; goals: <= 6 (3), <= 2.
Bytes written to disk are those of all processes of the run while snapshots pass, as the kernel counts them: metrics,
TensorBoard events and Ray's logs. No weights: they would be 268,435,456 for each snapshot.
The first snapshots, before the store's memory has been touched, are left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import handover_task
import psutil
from _compare import median, report
from _machine import memcpy_seconds, written_bytes

import raylingvo as rl
from raylingvo.experiment import Checkpoints, Experiment, Reading, Snapshots, Train
from raylingvo.monitor.live import View
from raylingvo.monitor.metrics_log import read_metrics
from raylingvo.training.learner import Learner
from raylingvo.training.optimizers import Sgd

MEBIBYTES = 256


def experiment(dtype: str, steps: int, every: int) -> Experiment:
    data = {"train": handover_task.Nothing(), "test": handover_task.Nothing()}
    return Experiment(
        name="handover_task.OnlyWeights",
        task=handover_task.OnlyWeights(mebibytes=MEBIBYTES, dtype=dtype),  # type: ignore[arg-type]
        datasets=data,
        learner=Learner(learning_rate=1e-3, optimizer=Sgd()),
        train=Train(
            batch_size=1,
            max_steps=steps,
            report_every_steps=every,
            snapshots=Snapshots(every_steps=every),
            checkpoints=Checkpoints(every_seconds=None),
        ),
        eval={"test": Reading(policy="latest")},
    )


class DiskWatch(View):
    """Notes the bytes that the run's processes have written to disk, from the first evaluation to the last step."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []  # (evaluations done, bytes)

    def update(self, status: Any) -> None:
        reader = status["readers"][0]
        if reader["done"] and status["trainer"]["state"] == "training":
            self.written.append((reader["done"], written_bytes(psutil.Process().children(recursive=True))))

    def bytes_per_snapshot(self) -> float | None:
        """None if the run was too short to be looked at before and after a snapshot."""
        if not self.written or self.written[0][0] == self.written[-1][0]:
            return None
        (first, before), (last, after) = self.written[0], self.written[-1]
        return (after - before) / (last - first)

    def event(self, text: str) -> None:
        print(text, file=sys.stderr)

    def close(self) -> None:
        pass


def measure(dtype: str, snapshots: int, warmup: int) -> dict[str, Any]:
    every = 20
    copies = [memcpy_seconds(MEBIBYTES)]
    watch = DiskWatch()
    with tempfile.TemporaryDirectory() as folder:
        rl.run(experiment(dtype, snapshots * every, every), folder, view=watch)
        evals = read_metrics(Path(folder) / "eval_test")[warmup:-1]
        train = read_metrics(Path(folder) / "train")[warmup:-1]
    if not evals:
        sys.exit("the Evaler saw too few snapshots after its start and the warm-up: raise --snapshots")
    copies.append(memcpy_seconds(MEBIBYTES))
    memcpy = median(copies)
    handover = [record["handover_seconds"] for record in evals]
    blocked = [record["snapshot_seconds"] for record in train]
    return {
        "handover_memcpys": median(handover) / memcpy,
        "blocked_memcpys": median(blocked) / memcpy,
        "handover_seconds": median(handover),
        "blocked_seconds": median(blocked),
        "memcpy_seconds": memcpy,
        "snapshots": len(handover),
        "bytes_to_disk_per_snapshot": watch.bytes_per_snapshot(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--snapshots", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=5)
    arguments = parser.parse_args()
    results = {dtype: measure(dtype, arguments.snapshots, arguments.warmup) for dtype in ("float32", "bfloat16")}
    report("snapshot_handover", mebibytes=MEBIBYTES, goals={"handover_memcpys": 6, "blocked_memcpys": 2}, **results)


if __name__ == "__main__":
    main()
