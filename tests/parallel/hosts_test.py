"""Several hosts as one program: two processes of this machine that meet, tell each other, and learn together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
import toy

from raylingvo.errors import HostsApart
from raylingvo.parallel.hosts import ALONE, Host, all_say, join, leave, told_by_leader
from raylingvo.training.pieces import Assembled, Place
from raylingvo.training.state import init_state
from raylingvo.training.step import make_train_step

TOLERANCES = {"float32": 1e-3, "bfloat16": 1e-2}
# Of each of two hosts, with two devices: what it has seen, as JSON.
PROGRAM = """
    import json, sys
    import psutil
    from raylingvo.parallel.hosts import Host, all_say, join, leave, told_by_leader

    index, port = map(int, sys.argv[1:])
    # Addresses that nothing else is at: neither the machine's name nor what is listened at by default leads there.
    host = Host(index=index, count=2, address=f"127.0.0.{2 + index}", coordinator=f"127.0.0.2:{port}")
    join(host, cpu_devices=2)

    import jax
    import numpy as np
    import toy
    from raylingvo.parallel.layout import make_layout
    from raylingvo.parallel.mesh import Mesh
    from raylingvo.training.host_copy import HostCopier, encode
    from raylingvo.training.host_state import HostState
    from raylingvo.training.program import TrainProgram, Wish
    from raylingvo.training.state import Model, init_state

    said = {"leads": host.leads, "process": jax.process_index()}
    said["devices"] = [jax.local_device_count(), jax.device_count()]
    called = []

    def value():
        called.append(index)
        return {"name": "Größe", "values": [1, None, 2.5], "host": index}

    said["told"] = [told_by_leader(host, value), told_by_leader(host, lambda: None), told_by_leader(host, lambda: "")]
    said["called"] = called
    said["all"] = all_say(host, 10**7 + index)

    experiment = toy.experiment(task=toy.Regression(width=8, dtype="bfloat16"))
    layout = make_layout(Mesh(fsdp="data"), lambda: Model(experiment.task).logical_axes)
    said["shard"] = [layout.shard.index, layout.shard.count]
    batches = toy.batches(6)
    mine = [{name: x[layout.shard.rows(8)] for name, x in batch.items()} for batch in batches]
    state = init_state(experiment, batches[0], layout=layout)
    program = TrainProgram(experiment, layout, host)
    program.compile(state, mine[:1])
    wishes = [
        (Wish(), Wish()),
        (Wish(), Wish(stop=2)),
        (Wish(checkpoint=True), Wish()),
        (Wish(stop=1), Wish(stop=2, rate_factor=0.25)),
        (Wish(rate_factor=0.0), Wish(rate_factor=0.0)),
        (Wish(), Wish()),
    ]
    said["agreed"] = []
    for batch, wish in zip(mine, wishes, strict=True):
        state, outcome = program(state, batch, wish[index])
        said["agreed"].append(outcome.agreed())
    said["step"] = int(state.step)

    def bits(tree):
        whole = jax.jit(lambda x: x, out_shardings=layout.everywhere)
        return [x.tolist() for x in encode([np.asarray(whole(x)) for x in jax.tree.leaves(tree)])]

    said["weights"] = bits(state.weights)
    said["dtypes"] = [str(x.dtype) for x in jax.tree.leaves(state.weights)]
    said["split"] = not state.weights.params["hidden"]["kernel"].is_fully_replicated

    copier = HostCopier()

    def given(layout, state):
        # What this host has to give of a state, and what there is of it.
        said = {"weights": bits(state.weights), "rest": bits(state._replace(weights=None))}
        for to_checkpoint in (False, True):
            copy = HostState(copier, host, layout, state, rest=True, to_checkpoint=to_checkpoint)
            said[f"offered {to_checkpoint}"] = [
                ([[str(x.dtype), x.shape, x.tolist()] for x in encode(arrays)], places)
                for arrays, places in map(copy.offered, (0, 1))
            ]
        saved, leaves = jax.tree.leaves(copy.checkpointed()), jax.tree.leaves(state)
        # What is whole is an array of each host's own, of which that of host 0 is written.
        is_split = [not x.is_fully_replicated for x in leaves]
        said["saved as it is"] = [isinstance(x, jax.Array) for x in saved] == is_split
        said["saved whole"] = [x.tolist() for x in encode([x for x in saved if not isinstance(x, jax.Array)])]
        said["saved split"] = bits([x for x in saved if isinstance(x, jax.Array)])
        for kind in (False, True):
            wanted = [x for x, split in zip(leaves, is_split, strict=True) if split == kind]
            said["wanted split" if kind else "wanted whole"] = bits(wanted)
        return said

    # Pieces of which each is on one device; and on one of each host.
    other = make_layout(Mesh(axes={"data": 2, "model": 2}, fsdp="model"), lambda: Model(experiment.task).logical_axes)
    said["given"] = {
        "split over hosts": given(layout, state),
        "split within hosts": given(other, init_state(experiment, batches[0], layout=other)),
    }
    copier.close()
    # Before it leaves: what is open while it trains.
    connections = psutil.Process().net_connections(kind="inet")
    listens = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    said["listens"] = sorted({ip.removeprefix("::ffff:") for ip in listens})  # IPv4 through a socket of IPv6
    assert all_say(host, 0) == [0, 0]  # none has left before the other has looked
    leave(host)
    said["joined"] = jax.distributed.is_initialized()
    print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[dict[str, Any]]]:
    """What each of two hosts has seen."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(i), str(port)], env=environment, **pipes) for i in range(2)]
    try:
        ends = [process.communicate(timeout=500) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ends
    yield [json.loads(stdout.splitlines()[-1]) for stdout, _ in ends]


def test_one_host_asks_itself() -> None:
    asked: list[int] = []
    assert told_by_leader(ALONE, lambda: asked.append(1) or ["x", 1]) == ["x", 1]
    assert asked == [1]
    assert all_say(ALONE, 7) == [7]


def test_one_host_neither_joins_nor_leaves() -> None:
    join(ALONE, cpu_devices=1)
    assert not jax.distributed.is_initialized()
    leave(ALONE)


def test_host_0_leads() -> None:
    assert ALONE.leads and Host(count=2).leads
    assert not Host(index=1, count=2).leads


def test_they_have_all_devices_together(hosts: list[dict[str, Any]]) -> None:
    assert [said["process"] for said in hosts] == [0, 1]
    assert [said["leads"] for said in hosts] == [True, False]
    assert [said["devices"] for said in hosts] == [[2, 4]] * 2


def test_they_are_told_what_host_0_says_and_it_alone_is_asked(hosts: list[dict[str, Any]]) -> None:
    told = [{"name": "Größe", "values": [1, None, 2.5], "host": 0}, None, ""]
    assert [said["told"] for said in hosts] == [told] * 2
    assert [said["called"] for said in hosts] == [[0], []]


def test_all_hear_what_each_says_in_the_order_of_hosts(hosts: list[dict[str, Any]]) -> None:
    assert [said["all"] for said in hosts] == [[10**7, 10**7 + 1]] * 2


def test_they_listen_at_their_addresses_only(hosts: list[dict[str, Any]]) -> None:
    assert [said["listens"] for said in hosts] == [["127.0.0.2"], ["127.0.0.3"]]


def test_each_reads_its_half_of_the_rows(hosts: list[dict[str, Any]]) -> None:
    assert [said["shard"] for said in hosts] == [[0, 2], [1, 2]]


def test_what_one_of_them_wishes_with_a_step_all_know_by_it(hosts: list[dict[str, Any]]) -> None:
    """The strongest wish; a rate only if there is one."""
    agreed = [
        [0, False, None],
        [2, False, None],
        [0, True, None],
        [2, False, 0.25],
        [0, False, 0.0],
        [0, False, None],
    ]
    assert [said["agreed"] for said in hosts] == [agreed] * 2


def test_they_learn_what_one_device_does(hosts: list[dict[str, Any]]) -> None:
    batches = toy.batches(6)
    experiment = toy.experiment(task=toy.Regression(width=8, dtype="bfloat16"))
    step, state = jax.jit(make_train_step(experiment)), init_state(experiment, batches[0])
    for batch in batches:
        state, _ = step(state, batch)
    for said in hosts:
        assert (said["step"], said["split"]) == (6, True)
        for bits, dtype, b in zip(said["weights"], said["dtypes"], jax.tree.leaves(state.weights), strict=True):
            a = np.array(bits, "u2").view(dtype) if dtype == "bfloat16" else np.array(bits, dtype)
            within = TOLERANCES[dtype]
            np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=within, atol=within)
    assert hosts[0]["weights"] == hosts[1]["weights"]


@pytest.mark.parametrize("split", ["split over hosts", "split within hosts"])
@pytest.mark.parametrize("to_checkpoint", [False, True])
def test_what_they_offer_is_the_state_and_no_piece_of_it_twice(
    hosts: list[dict[str, Any]], split: str, to_checkpoint: bool
) -> None:
    for part, whole in enumerate(("weights", "rest")):
        given, seen = [], []
        for said in hosts:
            arrays, places = said["given"][split][f"offered {to_checkpoint}"][part]
            places = [Place(leaf, tuple(start)) for leaf, start in places]
            given.append(([np.array(x, dtype).reshape(shape) for dtype, shape, x in arrays], places))
            seen += places
        assert len({*seen}) == len(seen)
        assert [x.tolist() for x in Assembled(given).leaves()] == hosts[0]["given"][split][whole]


@pytest.mark.parametrize("split", ["split over hosts", "split within hosts"])
def test_each_gives_to_a_checkpoint_what_it_alone_writes(hosts: list[dict[str, Any]], split: str) -> None:
    for said in hosts:
        assert said["given"][split]["saved as it is"]
        assert said["given"][split]["saved split"] == said["given"][split]["wanted split"] != []
    assert hosts[0]["given"][split]["saved whole"] == hosts[0]["given"][split]["wanted whole"] != []


def test_they_leave_together(hosts: list[dict[str, Any]]) -> None:
    assert [said["joined"] for said in hosts] == [False, False]


def test_a_meeting_point_that_is_taken_is_said_before_jax_crashes_of_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        coordinator = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(HostsApart, match=f"^the hosts cannot meet at {coordinator}: Address already in use$"):
            join(Host(index=0, count=2, address="127.0.0.1", coordinator=coordinator), cpu_devices=1)
