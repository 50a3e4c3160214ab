"""An Evaler on a second host beside one on the Trainer's: its speed, and what 256 MiB of weights take to get there.

The hosts are those of tests/cluster: namespaces of this machine, which share its cores, so that both Evalers compute on
the same ones and only the way differs. Needs root. `ray up` starts Ray on them and `ray submit` each run; the store is
on the head, with the Trainer.
`evaluation`: samples/s that the Evaler reports, the median over its snapshots; goal: 0.9 of what it does on the head.
`handover_seconds`, from the end of a step to its weights on the Evaler's device, are those of snapshot_handover.py.
The link's speed is what one TCP connection carries of as many bytes, received into a warm buffer: the best of five,
before and after. With --gbits the hosts' ports let no more through; without it the link is the kernel's memory.
`share`: the bytes over handover_seconds, by the link's speed. It has the two copies on the Trainer's host in it, and
`share_of_way` has not: from its seconds, those of a hand-over on the head are subtracted.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import snapshot_handover
from _compare import median, report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from cluster.hosts import SHARED, Bed, Host, missing
from cluster.launched import FILE, Launched

import raylingvo as rl
from raylingvo import config
from raylingvo.experiment import Experiment, Reading, RoleResources, Snapshots
from raylingvo.monitor.metrics_log import read_metrics

BYTES = snapshot_handover.MEBIBYTES << 20
_RECEIVE = """
import socket, time
server = socket.create_server(("", 5001))
print("listening", flush=True)
buffer = bytearray(1 << 20)
for _ in range(6):
    connection, _ = server.accept()
    received, start = 0, time.perf_counter()
    while count := connection.recv_into(buffer):
        received += count
    print(received / (time.perf_counter() - start), flush=True)
"""
_SEND = """
import socket
piece = bytes(1 << 20)
for _ in range(6):
    with socket.create_connection(("{address}", 5001)) as connection:
        for _ in range({mebibytes}):
            connection.sendall(piece)
"""


def on(host: Host) -> RoleResources:
    return RoleResources(custom={f"node:{host.address}": 0.001})


def evaluated(cluster: Launched, name: str, experiment: Experiment, evaler: Host) -> list[dict[str, Any]]:
    """What the Evaler has recorded of a run with itself on a host, and all else on the head."""
    resources = dataclasses.replace(
        experiment.resources, trainer=on(cluster.head), store=on(cluster.head), evaler=on(evaler)
    )
    experiment = dataclasses.replace(experiment, resources=resources, decode={})
    name = f"{name}-{evaler.name}"
    print(name, file=sys.stderr)
    (cluster.shared / f"{name}.yaml").write_text(config.dump(experiment))
    arguments = f"run --config {SHARED / name}.yaml --logdir {SHARED / name}"
    cluster.type(f"ray submit {FILE} clusters/run.py -- {arguments}", seconds=600)
    return read_metrics(cluster.shared / name / "eval_test")


def digits(steps: int) -> Experiment:
    plain = rl.get("image.digits.LeNet5")
    train = dataclasses.replace(plain.train, max_steps=steps, snapshots=Snapshots(every_steps=5))
    return dataclasses.replace(plain, train=train, eval={"test": Reading(policy="every")})


def link_bytes_per_second(cluster: Launched) -> float:
    """What one connection from the head to the other host carries; the first, which warms up, is left out."""
    (cluster.shared / "receive.py").write_text(_RECEIVE)
    (cluster.shared / "send.py").write_text(_SEND.format(address=cluster.other.address, mebibytes=BYTES >> 20))
    python = sys.executable
    with cluster.other.typed(f"exec {python} {SHARED}/receive.py") as receiver:
        assert receiver.stdout is not None
        receiver.stdout.readline()
        cluster.head.run(f"{python} {SHARED}/send.py")
        return max(float(line) for line in receiver.stdout.readlines()[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gbits", type=float, help="of each host's port, per second; all that it takes if not given")
    parser.add_argument("--snapshots", type=int, default=15)
    parser.add_argument("--warmup", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200, help="of the run whose evaluations are timed")
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(f"no hosts can be made here: {reason}")
    with Bed("laptop", "head", "other", shm_bytes=4 << 30) as bed:
        cluster = Launched(bed, object_store_bytes=3 << 30, paths=[Path(__file__).parent])
        cluster.type(f"ray up -y {FILE}")
        if arguments.gbits:
            for host in (cluster.head, cluster.other):
                bed.throttle(host.name, arguments.gbits)
        links = [link_bytes_per_second(cluster)]
        every = 20
        weights = snapshot_handover.experiment("float32", arguments.snapshots * every, every)
        rates, seconds = [], []
        for host in (cluster.head, cluster.other):
            records = evaluated(cluster, "digits", digits(arguments.steps), host)[2:]
            rates.append(median([record["examples_per_second"] for record in records]))
            records = evaluated(cluster, "weights", weights, host)[arguments.warmup : -1]
            seconds.append(median([record["handover_seconds"] for record in records]))
        links.append(link_bytes_per_second(cluster))
    link = max(links)
    report(
        "two_hosts",
        goals={"evaluation_of_local": 0.9},
        evaluation={"local": rates[0], "other_host": rates[1]},
        evaluation_of_local=rates[1] / rates[0],
        mebibytes=BYTES >> 20,
        handover_seconds={"local": seconds[0], "other_host": seconds[1]},
        link_gbits_per_second=8e-9 * link,
        share=BYTES / seconds[1] / link,
        share_of_way=BYTES / (seconds[1] - seconds[0]) / link,
    )


if __name__ == "__main__":
    main()
