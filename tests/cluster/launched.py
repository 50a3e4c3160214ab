"""What clusters/local.yaml starts on hosts of this machine, and the laptop from which it is used."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from cluster.hosts import SECONDS, SHARED, Bed, Host

ROOT = Path(__file__).parents[2]
FILE = "clusters/local-test.yaml"  # in the laptop's project
_VENV = "raylingvo/venv"  # where clusters/setup.sh installs, in a home
_PROGRAMS = {"python": "", "ray": "-m ray.scripts.scripts", "raylingvo": "-m raylingvo"}
_OBJECT_STORE_BYTES = 300_000_000
_RAY = {
    # Ray (2.60) starts no workers on machines of one's own with the second: it does not find its head among them.
    "RAY_enable_autoscaler_v2": 0,
    # A machine that does not answer is given up after 9 seconds or so, instead of a minute; and so is a head.
    "RAY_health_check_initial_delay_ms": 1000,
    "RAY_health_check_period_ms": 1000,
    "RAY_health_check_timeout_ms": 2000,
    "RAY_health_check_failure_threshold": 4,
    "RAY_gcs_rpc_server_reconnect_timeout_s": 6,
    # How often Ray's launcher looks at its machines, and after how many seconds it starts Ray there again.
    "AUTOSCALER_UPDATE_INTERVAL_S": 1,
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": 15,
    "AUTOSCALER_NODE_SSH_INTERVAL_S": 1,
}


def cluster_file(head: Host, workers: list[Host]) -> dict[str, Any]:
    """clusters/local.yaml, with what a user changes in it, and small sizes."""
    config = yaml.safe_load((ROOT / "clusters/local.yaml").read_text())
    config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    config |= {"min_workers": len(workers), "max_workers": len(workers)}
    variables = " ".join(f"{name}={value}" for name, value in _RAY.items())
    sizes = f"--num-cpus=2 --object-store-memory={_OBJECT_STORE_BYTES}"
    for kind in ("head", "worker"):
        commands = config[f"{kind}_start_ray_commands"]
        commands[-1] = commands[-1].replace("ray start", f"{variables} ray start {sizes}")
    if "--block" not in commands[-1]:
        commands[-1] = _watched(commands[-1])
    return config


def _watched(start: str) -> str:
    """Starts Ray on a worker with somebody who ends what is left of it there when its head is gone.

    On machines of one's own `ray down` (2.60) stops Ray on the head alone. A raylet ends when it has missed its head
    for a minute; of what belongs to it, some ends a minute later, and the log monitor never.
    """
    before, _, after = start.rpartition("; ")
    log = "~/raylingvo/ray.log"
    # 1: a part of it has died. `ray stop`, which comes before it is started again, ends it otherwise.
    start = f"{after.replace('ray start', 'ray start --block')} || [ $? != 1 ] || ray stop"
    failed = f"{{ cat {log}; exit 1; }}"
    return (
        f"{before}; rm -f {log}; nohup sh -c '{start}' >{log} 2>&1 </dev/null & "
        f"until grep -qs 'Ray runtime started' {log}; do kill -0 $! || {failed}; sleep 0.2; done"
    )


def _install(host: Host, compiled: Path) -> None:
    """What clusters/setup.sh would download: a machine that has it installed needs no network for `ray up`."""
    programs = host.home / _VENV / "bin"
    programs.mkdir(parents=True)
    variables = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    exports = "".join(f"export {name}={value}\n" for name, value in variables.items())
    for name, module in _PROGRAMS.items():
        text = f'#!/bin/sh\n[ "$1 $2" = "-m pip" ] && exit\n{exports}exec {sys.executable} {module} "$@"\n'
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)


class Launched:
    """A cluster, of a head and another host, and a laptop that has a project: it is where commands are typed."""

    def __init__(self, bed: Bed):
        self.laptop, self.head, self.other = (bed.hosts[name] for name in ("laptop", "head", "other"))
        self.shared = bed.shared
        for host in bed.hosts.values():
            _install(host, SHARED / "compiled")
        self._project(bed)

    def _project(self, bed: Bed) -> None:
        home = self.laptop.home
        shutil.copy(bed.key, home / ".ssh/id_ed25519")
        (home / ".profile").write_text(
            f"export PATH=~/{_VENV}/bin:$PATH RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1\n"
        )
        project = home / "project"
        (project / "dist").mkdir(parents=True)
        (project / "dist/raylingvo-0-py3-none-any.whl").touch()  # which pip will not be asked to install
        (project / "clusters").mkdir()
        for name in ("constraints.txt", "clusters/run.py", "clusters/setup.sh"):
            shutil.copy(ROOT / name, project / name)
        (project / FILE).write_text(yaml.safe_dump(cluster_file(self.head, [self.other])))
        self.laptop.run("ray get-auth-token --generate")

    def type(self, text: str, *, check: bool = True, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """A command in the laptop's project, to its end."""
        return self.laptop.run(f"cd project; {text}", check=check, seconds=seconds)

    @contextlib.contextmanager
    def typed(self, text: str) -> Iterator[subprocess.Popen[str]]:
        """A command in the laptop's project, and all that it says. It is killed if it has not ended by then."""
        command = self.laptop.command(f"cd project; exec {text}")
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()
