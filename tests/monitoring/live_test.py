"""A run as it is watched from outside: by a real Prometheus, and by a browser that opens Ray's dashboard."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gates
import psutil
import pytest
import toy
import toy_run
import yaml
from monitoring import browser
from monitoring.words import TOKENS_PER_EXAMPLE, Words

from raylingvo.experiment import Checkpoints, Experiment, Reading, Snapshots
from raylingvo.monitor.metrics_log import read_metrics

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clusters" / "dashboards"
PICTURE = ROOT / "docs" / "pictures" / "ray_dashboard.png"
SECONDS = 300  # nothing here takes so long unless it hangs
PEAK = 1e9


class Live(NamedTuple):
    """A run that goes on, and stands still at its 40th batch."""

    run: str
    logdir: Path
    dashboard: str
    session: Path  # of Ray


def _experiment(folder: Path, train: gates.Gate, test: gates.Gate) -> Experiment:
    plain = toy.experiment(
        task=Words(),
        reading=Reading(batch_size=20),
        max_steps=60,
        report_every_steps=7,
        snapshots=Snapshots(every_steps=10),
        checkpoints=Checkpoints(every_steps=10),
    )
    gated = {
        "train": gates.GatedNumbers(gate=str(train.folder), at_call=40),
        "test": gates.GatedNumbers(size=20, gate=str(test.folder), at_call=1),
        "dev": toy.Numbers(size=20),
    }
    return dataclasses.replace(plain, datasets=gated, decode={"dev": Reading(batch_size=20)})


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One Evaler of it has been killed, and has been started again."""
    folder = tmp_path_factory.mktemp("live")
    environment = {
        **os.environ,
        "RAY_metrics_report_interval_ms": "5000",  # for the test to be short; by default 10 s
        "RAYLINGVO_PEAK_FLOPS": str(PEAK),
    }
    with contextlib.ExitStack() as opened:
        train, test = (
            opened.enter_context(contextlib.closing(gates.Gate(folder / name))) for name in ("train", "test")
        )
        wanted = _experiment(folder, train, test)
        process = opened.enter_context(toy_run.started(wanted, folder, environment=environment))
        lines = _Lines(process.stderr)
        os.kill(test.wait(), signal.SIGKILL)  # the Evaler, in its first evaluation
        lines.wait_for("Evaler(test) died; started again")
        train.wait()
        test.wait()
        test.open()
        info = json.loads((folder / "run" / "run.json").read_text())
        yield Live(info["id"], folder / "run", f"http://{info['dashboard']}", _session(process.pid))
        train.open()
        process.stdout.read()  # until it ends
        assert process.wait(SECONDS) == 0, lines


class _Lines:
    """Reads a stream, so that its writer never waits."""

    def __init__(self, stream: Any) -> None:
        self._lines: list[str] = []
        self._changed = threading.Condition()
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def __str__(self) -> str:
        return "".join(self._lines)

    def _read(self, stream: Any) -> None:
        for line in stream:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()

    def wait_for(self, part: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(part in line for line in self._lines), SECONDS), str(self)


def _session(pid: int) -> Path:
    """The folder of the Ray that a process has started. (`session_latest` may be another test's.)"""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if found := re.search(r"(/\S*?/session_[\w-]+)/", " ".join(process.cmdline())):
                return Path(found[1])
    raise AssertionError("no process of Ray names its session")


class Prometheus:
    """A server of our own."""

    def __init__(self, folder: Path, discovery: Path) -> None:
        """discovery: Ray's file, in place of the one of the last Ray on this machine."""
        settings = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        (files,) = (config["file_sd_configs"][0] for config in settings["scrape_configs"])
        assert Path(files["files"][0]).name == discovery.name
        files.update(files=[str(discovery)], refresh_interval="1s")
        settings["global"].update(scrape_interval="1s", evaluation_interval="1s")
        settings["rule_files"] = [str(FOLDER / name) for name in settings["rule_files"]]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [f"--config.file={folder / 'prometheus.yml'}", f"--web.listen-address={address}"]
        self._log = (folder / "log").open("w")
        self._process = subprocess.Popen(
            ["prometheus", *command, f"--storage.tsdb.path={folder / 'data'}"], stderr=self._log
        )
        self._url = f"http://{address}/api/v1/"

    def get(self, path: str, **parameters: str) -> Any:
        url = f"{self._url}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            answer = json.load(reply)
        assert answer["status"] == "success", answer
        return answer["data"]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        self._log.close()


@pytest.fixture(scope="module")
def prometheus(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("there is no prometheus (a Debian package of that name)")
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), live.session / "prom_metrics_service_discovery.json")
    with contextlib.closing(server):
        yield server


def _poll(get: Any, enough: Any) -> Any:
    """What `get` gives, when it is enough or time is up."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            found = get()
        except OSError:  # it is not up yet
            found = None
        if (found is not None and enough(found)) or time.monotonic() > end:
            return found
        time.sleep(0.2)


def test_every_query_of_the_dashboard_has_data(live: Live, prometheus: Prometheus) -> None:
    dashboard = json.loads((FOLDER / "grafana.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    (variable,) = (v for v in dashboard["templating"]["list"] if v["name"] == "run")
    metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()

    def answers() -> dict[str, Any]:
        return {query: prometheus.get("query", query=query.replace("$run", live.run))["result"] for query in queries}

    found = _poll(answers, lambda found: all(found.values()))
    assert [query for query in queries if not found[query]] == []
    assert len(queries) > 30
    assert prometheus.get(f"label/{label}/values", **{"match[]": metric}) == [live.run]


def test_the_values_are_those_of_the_run(live: Live, prometheus: Prometheus) -> None:
    def value(query: str) -> float:
        """`loss@evaler(test) / step@..` is of the metrics of this run."""
        pattern = r"(\w+)@(\w+)(?:\((\w+)\))?"
        full = re.sub(pattern, rf'ray_raylingvo_\1{{run="{live.run}", role="\2", dataset="\3"}}', query)
        result = _poll(lambda: prometheus.get("query", query=full)["result"], bool)
        assert len(result) == 1, (full, result)
        return float(result[0]["value"][1])

    assert value("max_steps@trainer(train)") == 60
    assert 30 <= value("step@trainer(train)") <= 40
    assert value("skipped_updates@trainer(train)") == 0
    assert value("learning_rate@trainer(train)") == pytest.approx(0.05)
    assert value("examples_per_second@trainer(train) / steps_per_second@trainer(train)") == pytest.approx(8)
    tokens = value("tokens_per_second@trainer(train) / steps_per_second@trainer(train)")
    assert tokens == pytest.approx(8 * TOKENS_PER_EXAMPLE)
    # 4 inputs, 6 hidden units, 1 output: forward, the gradients of the weights, and that of the hidden units.
    flops = 2 * 8 * (4 * 6 + 6) + 2 * 8 * (4 * 6 + 6) + 2 * 8 * 6
    assert value("flops_per_second@trainer(train) / steps_per_second@trainer(train)") == pytest.approx(flops)
    assert value("flops_per_second@trainer(train) / mfu@trainer(train)") == pytest.approx(PEAK)
    assert value("restarts_total@evaler(test)") == 1
    assert value('sum(ray_raylingvo_restarts_total{cause="died"})') == 1
    assert value("store_bytes@store") > 0
    for role, dataset, folder in (("evaler", "test", "eval_test"), ("decoder", "dev", "decode_dev")):
        # Until the newest snapshot has been read too, and that has been scraped.
        lag = f"eval_lag_steps@{role}({dataset})"
        assert _poll(lambda lag=lag: value(lag), lambda steps: steps == 0) == 0
        *_, record = read_metrics(live.logdir / folder)
        last = record["step"]
        assert _poll(lambda of=f"step@{role}({dataset})": value(of), lambda step, last=last: step == last) == last
        assert value(f"eval_lag_seconds@{role}({dataset})") == pytest.approx(record["lag_seconds"])


def test_the_rules_are_loaded_and_nothing_is_wrong(live: Live, prometheus: Prometheus) -> None:
    groups = _poll(lambda: prometheus.get("rules")["groups"], lambda groups: all(g["evaluationTime"] for g in groups))
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == 5
    assert {(rule["name"], rule["health"], rule["state"]) for rule in rules} == {
        (rule["name"], "ok", "inactive") for rule in rules
    }


def test_ray_tells_others_where_it_can_be_asked(live: Live) -> None:
    """As docs/monitoring.md lets a Prometheus on another machine find it."""
    wanted = urllib.request.Request(f"{live.dashboard}/api/prometheus/sd")
    if token := _token():
        wanted.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(wanted, timeout=SECONDS) as reply:
        found = json.load(reply)
    assert found == json.loads((live.session / "prom_metrics_service_discovery.json").read_text())


def test_the_dashboard_of_ray_shows_the_roles(live: Live, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if browser.CHROMIUM is None:
        pytest.skip("there is no chromium (a Debian package of that name)")
    roles = [
        f"Trainer({live.run})",
        f"Evaler({live.run}, test)",
        f"Decoder({live.run}, dev)",
        f"SnapshotStore({live.run})",
    ]

    async def look() -> bytes:
        async with browser.open_page(tmp_path / "profile", 1700, 920) as page:
            token = _token()
            if token:  # what a user types into the field that the dashboard shows
                await page.call("Network.setCookie", name="ray-authentication-token", value=token, url=live.dashboard)
            await page.call("Page.navigate", url=f"{live.dashboard}/#/actors")
            await page.wait_for(*roles)
            return await page.screenshot()

    picture = asyncio.run(look())
    assert picture.startswith(b"\x89PNG")
    assert len(picture) < 300_000
    (tmp_path / PICTURE.name).write_bytes(picture)
    if request.config.getoption("--update-golden"):
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_bytes(picture)
    assert PICTURE.exists()


def _token() -> str:
    file = Path.home() / ".ray" / "auth_token"
    return file.read_text().strip() if file.exists() else ""
