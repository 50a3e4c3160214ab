"""The files for Ray's launcher, as the launcher reads them: schema, defaults, and what its providers make of them."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from ray.autoscaler._private import util
from ray.autoscaler._private.local.node_provider import LocalNodeProvider

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "clusters"
FILES = sorted(CLUSTERS.glob("*.yaml"))


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> mock.MagicMock:
    """Google's API, as Ray's provider asks it: a project with one network, the service account, and a key."""
    for name in ("google_auth_httplib2", "httplib2", "googleapiclient", "googleapiclient.http"):
        monkeypatch.setitem(sys.modules, name, mock.MagicMock())
    errors = types.SimpleNamespace(HttpError=type("HttpError", (Exception,), {}))
    discovery = mock.MagicMock()
    for name, module in (("discovery", discovery), ("errors", errors)):
        setattr(sys.modules["googleapiclient"], name, module)
        monkeypatch.setitem(sys.modules, f"googleapiclient.{name}", module)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "ray.autoscaler._private.gcp.config", raising=False)
    api = discovery.build.return_value
    projects = api.projects.return_value
    projects.get.return_value.execute.return_value = {
        "projectId": "YOUR-PROJECT",
        "name": "YOUR-PROJECT",
        "lifecycleState": "ACTIVE",
        "commonInstanceMetadata": {"items": []},
    }
    account = {"email": "ray@project", "projectId": "YOUR-PROJECT"}
    projects.serviceAccounts.return_value.get.return_value.execute.return_value = account
    projects.getIamPolicy.return_value.execute.return_value = {"bindings": []}
    projects.setCommonInstanceMetadata.return_value.execute.return_value = {"name": "operation"}
    api.globalOperations.return_value.get.return_value.execute.return_value = {"status": "DONE"}
    api.subnetworks.return_value.list.return_value.execute.return_value = {"items": [{"selfLink": "the network"}]}
    return api


def prepared(path: Path) -> dict[str, Any]:
    config = util.prepare_config(read(path))
    util.validate_config(config)
    return config


def test_there_are_files() -> None:
    assert [path.name for path in FILES] == ["gcp.yaml", "local.yaml"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_launcher_takes_it(path: Path) -> None:
    config = prepared(path)
    # Lists are not merged with the provider's defaults, but take their place.
    assert config["head_start_ray_commands"] == read(path)["head_start_ray_commands"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_misspelt_key_would_be_found(path: Path) -> None:
    config = read(path)
    config["file_mount"] = config.pop("file_mounts")
    with pytest.raises(Exception, match="file_mount"):
        util.validate_config(util.prepare_config(config))


def test_googles_provider_fills_in_what_is_missing(
    google: mock.MagicMock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    from ray.autoscaler._private.gcp import config as gcp

    config = gcp.bootstrap_gcp(prepared(CLUSTERS / "gcp.yaml"))
    assert config["provider"][gcp.HAS_TPU_PROVIDER_FIELD] is True
    types = {name: node["node_config"] for name, node in config["available_node_types"].items()}
    assert {name: gcp.get_node_type(node).value for name, node in types.items()} == {
        "head": "compute",
        "gpu": "compute",
        "tpu": "tpu",
    }
    assert gcp._is_single_host_tpu(types["tpu"])
    assert gcp._get_num_tpu_chips(types["tpu"]) == config["available_node_types"]["tpu"]["resources"]["TPU"]
    assert all(node["networkInterfaces"][0]["subnetwork"] == "the network" for node in types.values())
    assert Path(config["auth"]["ssh_private_key"]).stat().st_mode & 0o77 == 0
    assert gcp._is_head_node_a_tpu(config) is False


def test_googles_api_has_the_fields_of_the_machines() -> None:
    """By Google's own description of its API, which its client package has."""
    client = pytest.importorskip("googleapiclient", reason="google-api-python-client is not installed")
    documents = Path(client.__file__).parent / "discovery_cache" / "documents"
    nodes = {name: node["node_config"] for name, node in read(CLUSTERS / "gcp.yaml")["available_node_types"].items()}
    for document, schema, names in (("compute.v1", "Instance", ("head", "gpu")), ("tpu.v2", "Node", ("tpu",))):
        schemas = json.loads((documents / f"{document}.json").read_text())["schemas"]
        for name in names:
            check_fields(nodes[name], schemas[schema], schemas, name)


def check_fields(value: Any, schema: dict[str, Any], schemas: dict[str, Any], where: str) -> None:
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kinds = {"string": str, "boolean": bool, "integer": int, "array": list, "object": dict}
    # 64-bit integers are strings in JSON, and taken as numbers too.
    assert isinstance(value, (int, str) if schema.get("format") == "int64" else kinds[schema["type"]]), where
    assert value in schema.get("enum", [value]), where
    for index, item in enumerate(value if isinstance(value, list) else ()):
        check_fields(item, schema["items"], schemas, f"{where}[{index}]")
    for key, item in value.items() if isinstance(value, dict) else ():
        assert key in schema["properties"], f"{where} has no {key}"
        check_fields(item, schema["properties"][key], schemas, f"{where}.{key}")


def test_the_local_provider_takes_all_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    config = LocalNodeProvider.bootstrap_config(prepared(CLUSTERS / "local.yaml"))
    (node_type,) = config["available_node_types"].values()
    machines = read(CLUSTERS / "local.yaml")["provider"]["worker_ips"]
    assert (node_type["min_workers"], node_type["max_workers"]) == (len(machines), len(machines))
    provider = LocalNodeProvider(config["provider"], config["cluster_name"])
    assert provider.internal_ip(config["provider"]["head_ip"]) == config["provider"]["head_ip"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_token_reaches_every_machine_and_is_asked_for(path: Path) -> None:
    config = prepared(path)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "export RAY_AUTH_MODE=token" in (CLUSTERS / "setup.sh").read_text()
    for kind in ("head", "worker"):
        (*_, start) = config[f"{kind}_start_ray_commands"]
        assert start.startswith(". ~/.raylingvo.env; ")
    # The head gives workers what it has been given itself.
    assert not any(local.startswith("/") for local in config["file_mounts"].values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_dashboard_is_for_its_own_machine(path: Path) -> None:
    (start,) = [command for command in prepared(path)["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1 --dashboard-port=8265" in start
    assert "0.0.0.0" not in start
    assert "--disable-usage-stats" in start


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_machine_installs_raylingvo(path: Path) -> None:
    config = prepared(path)
    commands = [config["head_setup_commands"], config["worker_setup_commands"]]
    commands += [
        node["worker_setup_commands"]
        for node in config["available_node_types"].values()
        if "worker_setup_commands" in node
    ]
    for setup in commands:
        assert any("bash ~/raylingvo/setup.sh" in command for command in setup)
    mounted = config["file_mounts"]
    assert all((ROOT / mounted[f"~/raylingvo/{name}"]).exists() for name in ("setup.sh", "constraints.txt"))
    assert mounted["~/raylingvo/dist"] == "dist"  # which the command in the file's head makes


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_installed_by_a_list_of_packages_from_when_the_image_was_made(path: Path) -> None:
    config = prepared(path)
    setups = [config, *config["available_node_types"].values()]
    commands = [command for setup in setups for command in setup.get("worker_setup_commands", ())]
    for command in [*commands, *config["head_setup_commands"]]:
        before, installs, _ = command.partition("apt-get install")
        assert not installs or "apt-get update" in before


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_head_is_where_a_store_may_be_bound_to(path: Path) -> None:
    config = prepared(path)
    nodes = copy.deepcopy(config["available_node_types"])
    if path.name == "local.yaml":
        start = config["head_start_ray_commands"][-1]
        assert "--resources='{\"stays\": 1000}'" in start
        assert "stays" not in config["worker_start_ray_commands"][-1]
        assert "RAY_enable_autoscaler_v2=0 ray start" in start  # the head counts as one of its type's machines there
        assert read(path)["min_workers"] == read(path)["max_workers"] == len(config["provider"]["worker_ips"])
    else:
        head = nodes.pop(config["head_node_type"])
        assert head["resources"]["stays"] > 0
        assert head["max_workers"] == 0
        assert not any("stays" in node["resources"] for node in nodes.values())


def test_what_comes_and_goes_has_the_accelerators() -> None:
    nodes = prepared(CLUSTERS / "gcp.yaml")["available_node_types"]
    assert {name for name, node in nodes.items() if {"GPU", "TPU"} & node["resources"].keys()} == {"gpu", "tpu"}
    assert nodes["gpu"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert nodes["tpu"]["node_config"]["schedulingConfig"]["spot"] is True
    assert [nodes[name]["min_workers"] for name in ("gpu", "tpu")] == [0, 0]  # an idle cluster is its head


def test_nothing_in_these_files_is_somebodys() -> None:
    allowed = r"https://cloud\.google\.com/|http://127\.0\.0\.1:8265"
    for path in CLUSTERS.rglob("*"):
        if path.is_file() and path.suffix != ".pyc":
            text = path.read_text()
            assert [url for url in re.findall(r"https?://\S+", text) if not re.match(allowed, url)] == [], path
            assert not re.search(r"/(home|root|Users)/", text), path


def fake_python(folder: Path) -> Path:
    """A folder with python and python3, which only note what they are asked for, in `said` beside it."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("python", "python3"):
        (programs / name).write_text(
            f'#!/usr/bin/env bash\necho "$@" >>{folder / "said"}\n'
            'if [[ $1 == -m && $2 == venv ]]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi\n'
        )
        (programs / name).chmod(0o755)
    return programs


def make_wheels(folder: Path) -> Path:
    """Several, of which the last by name is not the newest; that one."""
    folder.mkdir(parents=True)
    for version in ("0.2.0", "0.9.1", "0.10.0"):
        newest = folder / f"raylingvo-{version}-py3-none-linux_x86_64.whl"
        newest.touch()
    return newest


def test_the_image_has_the_newest_wheel(tmp_path: Path) -> None:
    programs, there = fake_python(tmp_path), tmp_path / "there"
    wheel = make_wheels(there)
    _, command = (CLUSTERS / "kuberay" / "Dockerfile").read_text().split("\nRUN ")
    command = command.replace("/tmp/raylingvo", str(there))
    environment = {"PATH": f"{programs}:/usr/bin:/bin", "ACCELERATOR": "tpu"}
    subprocess.run(["sh", "-euc", command], env=environment, check=True, timeout=60)
    installed = f"-m pip install --no-cache-dir -c {there}/constraints.txt {wheel} jax[tpu]\n"
    assert (tmp_path / "said").read_text() == installed


def test_setup_makes_the_environment_and_installs_the_newest_wheel(tmp_path: Path) -> None:
    programs, said, home = fake_python(tmp_path), tmp_path / "said", tmp_path / "home"
    wheel = make_wheels(home / "raylingvo/dist")
    (home / ".ray").mkdir()
    token = home / ".ray/auth_token"
    token.write_text("secret")
    token.chmod(0o644)
    environment = {"HOME": str(home), "PATH": f"{programs}:/usr/bin:/bin"}

    for _ in range(2):  # `ray up` repeats it
        command = ["bash", str(CLUSTERS / "setup.sh"), "tpu", "/mnt/data"]
        subprocess.run(command, env=environment, check=True, timeout=60)
    calls = said.read_text().splitlines()
    assert sum(call.startswith("-m venv") for call in calls) == 1
    assert sum(f"-c {home}/raylingvo/constraints.txt {wheel} jax[tpu]" in call for call in calls) == 2
    assert sum(call.endswith(f"--force-reinstall {wheel}") for call in calls) == 2
    assert token.stat().st_mode & 0o777 == 0o600
    for name in (".profile", ".bashrc"):
        assert (home / name).read_text() == ". ~/.raylingvo.env\n"
    shown = subprocess.run(
        ["bash", "--login", "-c", 'echo "$RAY_AUTH_MODE $RAYLINGVO_DATA $(command -v python)"'],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.stdout == f"token /mnt/data {home}/raylingvo/venv/bin/python\n"
