"""What clusters/local.yaml starts on hosts of this machine, and the laptop from which it is used."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from cluster.hosts import SECONDS, SHARED, Bed, Host

ROOT = Path(__file__).parents[2]
FILE = "clusters/local-test.yaml"  # in the laptop's project
_VENV = "raylingvo/venv"  # where clusters/setup.sh installs, in a home
_PROGRAMS = {"python": "", "ray": "-m ray.scripts.scripts", "raylingvo": "-m raylingvo"}
_RAY = {
    # A machine that does not answer is given up after 9 seconds or so, instead of a minute; and so is a head.
    "RAY_health_check_initial_delay_ms": 1000,
    "RAY_health_check_period_ms": 1000,
    "RAY_health_check_timeout_ms": 2000,
    "RAY_health_check_failure_threshold": 3,
    "RAY_gcs_rpc_server_reconnect_timeout_s": 5,
    # How often Ray's launcher looks at its machines, and after how many seconds it starts Ray there again.
    "AUTOSCALER_UPDATE_INTERVAL_S": 1,
    "AUTOSCALER_HEARTBEAT_TIMEOUT_S": 5,
    "AUTOSCALER_NODE_SSH_INTERVAL_S": 1,
}


def cluster_file(head: Host, workers: list[Host], object_store_bytes: int) -> dict[str, Any]:
    """clusters/local.yaml, with what a user changes in it, and small sizes."""
    config = yaml.safe_load((ROOT / "clusters/local.yaml").read_text())
    config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address for worker in workers]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id_ed25519"}
    config |= {"min_workers": len(workers), "max_workers": len(workers)}
    variables = " ".join(f"{name}={value}" for name, value in _RAY.items())
    sizes = f"--num-cpus=2 --object-store-memory={object_store_bytes}"
    for kind in ("head", "worker"):
        commands = config[f"{kind}_start_ray_commands"]
        commands[-1] = commands[-1].replace("ray start", f"{variables} ray start {sizes}")
    return config


def _install(host: Host, paths: Sequence[Path]) -> None:
    """What clusters/setup.sh would download: a machine that has it installed needs no network for `ray up`."""
    programs = host.home / _VENV / "bin"
    programs.mkdir(parents=True)
    variables = {
        "PYTHONPATH": ":".join(map(str, (ROOT, ROOT / "tests", *paths))),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(SHARED / "compiled"),
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

    def __init__(self, bed: Bed, *, object_store_bytes: int = 300_000_000, paths: Sequence[Path] = ()):
        """object_store_bytes: of each host. paths: where Python finds modules there, besides those of the tests."""
        self.laptop, self.head, self.other = (bed.hosts[name] for name in ("laptop", "head", "other"))
        self.shared = bed.shared
        for host in bed.hosts.values():
            _install(host, paths)
        self._project(bed, object_store_bytes)

    def _project(self, bed: Bed, object_store_bytes: int) -> None:
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
        (project / FILE).write_text(yaml.safe_dump(cluster_file(self.head, [self.other], object_store_bytes)))
        self.laptop.run("ray get-auth-token --generate")

    def type(self, text: str, *, check: bool = True, seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
        """A command in the laptop's project, to its end. An error tells how the cluster stands."""
        try:
            return self.laptop.run(f"cd project; {text}", check=check, seconds=seconds)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            error.add_note(self._state())
            if isinstance(error, subprocess.TimeoutExpired):
                error.add_note(f"it had said: {error.output}")
            raise

    def _state(self) -> str:
        """What runs on each host, and the last lines of Ray's logs that tell of hosts that come and go."""
        logs = [
            *self.head.tmp.glob("ray/session_2*/logs/monitor.*"),
            *self.head.tmp.glob("ray/session_2*/logs/gcs_server.out"),
            *self.other.home.glob("raylingvo/ray.log"),
        ]
        told = [f"{host.name}: {line[:150]}" for host in (self.head, self.other) for line in host.processes()]
        for log in logs:
            told += [f"-- {log}", *log.read_text(errors="replace").splitlines()[-40:]]
        return "\n".join(told)

    def typed(self, text: str) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        """A command in the laptop's project, that runs meanwhile."""
        return self.laptop.typed(f"cd project; exec {text}")
