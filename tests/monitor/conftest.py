"""Made-up runs (logdirs of finished ones, the status of a running one), and a reader of TensorBoard events."""

import copy
import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from raylingvo.monitor.metrics_log import MetricsLog

STATUS = {
    "run": "ab12",
    "experiment": "image.digits.LeNet5",
    "dashboard": "http://127.0.0.1:8265",
    "elapsed": 83.2,
    "trainer": {
        "state": "training",
        "step": 205,
        "max_steps": 2000,
        "steps_per_second": 11.64,
        "examples_per_second": 2980.11,
        "loss": 0.25747,
        "input_wait_fraction": 0.01,
        "bad_records": 0,
        "skipped_updates": 0,
        "rollbacks": 0,
        "restarts": 0,
        "preemptions": 0,
    },
    "readers": [
        {
            "name": "Evaler(test)",
            "role": "evaler",
            "dataset": "test",
            "policy": "latest",
            "state": "working",
            "step": 150,
            "lag_steps": 0,
            "lag_seconds": 0.31,
            "done": 12,
            "skipped": 3,
            "waiting": 0,
            "metrics": {"loss": 0.2012, "accuracy": 0.9415, "acc5": 0.9978, "num_preds": 360.0},
            "restarts": 0,
            "set_aside": 0,
        },
        {
            "name": "Decoder(test)",
            "role": "decoder",
            "dataset": "test",
            "policy": "last",
            "state": "waiting",
            "step": None,
            "lag_steps": None,
            "lag_seconds": None,
            "done": 0,
            "skipped": 0,
            "waiting": 2,
            "metrics": {},
            "restarts": 1,
            "set_aside": 0,
        },
    ],
    "store": {"held": 4, "bytes": 37_000_000, "max_bytes": 2_000_000_000, "on_disk": 1},
}


@pytest.fixture
def status():
    """A status to change at will."""
    return copy.deepcopy(STATUS)


@pytest.fixture
def make_logdir(tmp_path):
    """make_logdir(name, learning_rate=...) writes a logdir of 100 steps and returns its path."""

    def make(name, *, learning_rate=0.001, experiment="image.digits.LeNet5", extra_config="", scale=1.0):
        logdir = tmp_path / name
        logdir.mkdir(parents=True)
        info = {
            "id": f"id-{logdir.name}",
            "experiment": experiment,
            "status": "finished",
            "command": ["raylingvo", "run"],
        }
        info |= {"git_sha": "abc", "versions": {"jax": "1.2"}, "seed": 7, "started": 1000.0, "ended": 1083.0}
        info |= {"stop_reason": "max_steps", "step": 100}
        (logdir / "run.json").write_text(json.dumps(info))
        config = (
            f"name: {experiment}\nlearner:\n  learning_rate: {learning_rate}\n  clip: null\neval: {{}}\n{extra_config}"
        )
        (logdir / "config.yaml").write_text(config)
        with MetricsLog(logdir / "train") as train, MetricsLog(logdir / "eval_test") as test:
            for step in range(10, 101, 10):
                loss = scale / step
                rate = {"learning_rate": learning_rate, "num_preds": 256}
                train.write(step, {"loss": loss, **rate}, time=1000.0 + step / 2)
                # The best evaluation, at step 80, is not the last.
                test.write(step, {"accuracy": 0.9 - abs(80 - step) / 1000, "loss": 2 * loss}, time=1001.0 + step / 2)
        with MetricsLog(logdir / "decode_test") as decode:
            decode.write(100, {"accuracy": 0.88}, time=1060.0)
        return logdir

    return make


def _read_events(directory):
    """All events of all files in the order in which TensorBoard reads them; checks the TFRecord checksums."""
    events = []
    for path in sorted(
        directory.glob("events.out.tfevents.*"), key=lambda p: (p.name.split(".")[3], p.stat().st_mtime_ns)
    ):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            assert struct.unpack_from("<I", content, at + 8)[0] == masked_crc32c(content[at : at + 8])
            data = content[at + 12 : at + 12 + length]
            assert struct.unpack_from("<I", content, at + 12 + length)[0] == masked_crc32c(data)
            events.append(Event.FromString(data))
            at += 16 + length
    return events


def _shown_by_tensorboard(directory):
    """{step: {metric: value}} after restarts have taken back what came before them."""
    shown = {}
    for event in _read_events(directory):
        if event.session_log.status == SessionLog.START:
            shown = {step: values for step, values in shown.items() if step < event.step}
        elif event.summary.value:
            shown[event.step] = {value.tag: value.simple_value for value in event.summary.value}
    return shown


@pytest.fixture
def read_events():
    return _read_events


@pytest.fixture
def shown_by_tensorboard():
    return _shown_by_tensorboard
