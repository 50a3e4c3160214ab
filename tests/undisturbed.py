"""What a run comes to that nothing happens to, without Ray: for tests of runs to which something does happen."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from unittest import mock

from trainers import Store, train

from raylingvo.actors import memory
from raylingvo.actors.decoder import Decoder
from raylingvo.actors.evaler import Evaler
from raylingvo.actors.logdir import Logdir
from raylingvo.actors.reader import Arrival
from raylingvo.experiment import Experiment


def undisturbed(experiment: Experiment, logdir: Path) -> Path:
    """The logdir of its Trainer, and then of its Evalers and Decoders on each snapshot, all in this process."""
    store = Store()
    with contextlib.closing(Logdir(logdir, experiment)) as home, mock.patch.dict(os.environ, memory.KEEP):
        home.begin(["raylingvo"])
        train(experiment, logdir, store)
        for role, datasets in ((Evaler, experiment.eval), (Decoder, experiment.decode)):
            for dataset in datasets:
                with contextlib.closing(role(experiment, dataset, logdir)) as reader:
                    for step, snapshot in sorted(store.states.items()):
                        reader.process(Arrival(step, time.time(), snapshot.weights))
    return logdir
