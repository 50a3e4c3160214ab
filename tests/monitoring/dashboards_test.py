"""The table of metrics, the dashboard, the alerts and the page about them say the same. Without a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from raylingvo.monitor import exported

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "clusters" / "dashboards"
DASHBOARD = json.loads((FOLDER / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
DOCUMENT = (ROOT / "docs" / "monitoring.md").read_text()
ROLES = {metric.prometheus_name: metric.roles for metric in exported.EXPORTED}
NAMES = ROLES.keys()
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool (Debian: prometheus)")


def _named(text: str) -> set[str]:
    return set(re.findall(r"ray_raylingvo_\w+", text))


def _shown(query: str) -> set[tuple[str, str]]:
    """(metric, role) of what a query shows."""
    shown = set()
    for name, selector in re.findall(r"(ray_raylingvo_\w+)\{([^}]*)\}", query):
        role = re.search(r'role="(\w+)"', selector)
        roles = [role[1]] if role else ROLES[name]
        assert len(roles) == 1 or re.match(r"(max|sum) by \([^)]*\brole\b", query), f"{query} mixes {roles}"
        shown |= {(name, of) for of in roles}
    return shown


def test_every_metric_of_every_role_is_on_the_dashboard_and_no_other() -> None:
    exported_pairs = {(name, role) for name, roles in ROLES.items() for role in roles}
    assert {pair for query in QUERIES for pair in _shown(query)} == exported_pairs


def test_alerts_and_settings_name_metrics_that_there_are() -> None:
    for name in ("rules.yml", "prometheus.yml"):
        assert _named((FOLDER / name).read_text()) <= NAMES
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert _named(variables["run"]["definition"]) <= NAMES
    assert variables.keys() == {"datasource", "run"}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']}")
def test_a_panel_shows_the_runs_that_are_chosen(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["datasource"]["uid"] == "$datasource"
    for target in panel["targets"]:
        metrics = re.findall(r"ray_raylingvo_\w+(\{[^}]*\})?", target["expr"])
        assert metrics
        assert all('run=~"$run"' in selector for selector in metrics)
        # Series come and go with their processes.
        assert re.match(r"(max|sum) by \(run\b", target["expr"])


def test_there_is_a_row_for_each_role_and_panels_do_not_overlap() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Run", "Trainer", "Evalers", "Decoders", "SnapshotStore"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_the_page_has_the_table_and_the_alerts() -> None:
    assert exported.table() in DOCUMENT
    for cause, meaning in exported.CAUSES.items():
        assert f"| `{cause}` | {meaning} |" in DOCUMENT
    alerts = re.findall(r"alert: (\w+)", (FOLDER / "rules.yml").read_text())
    assert re.findall(r"^\| `(Raylingvo\w+)`", DOCUMENT, re.M) == alerts


def test_tags_are_bounded() -> None:
    for metric in exported.EXPORTED:
        assert metric.tags[:3] == ("run", "role", "dataset")
        assert set(metric.tags[3:]) <= {"cause"}
        assert set(metric.roles) <= set(exported.ROLES)


@promtool
def test_prometheus_takes_the_settings_and_the_rules() -> None:
    subprocess.run(["promtool", "check", "config", FOLDER / "prometheus.yml"], check=True, timeout=60)


@promtool
def test_each_alert_fires_when_it_should() -> None:
    tests = Path(__file__).with_name("rules_test.yml")
    for alert in re.findall(r"alert: (\w+)", (FOLDER / "rules.yml").read_text()):
        assert f"alertname: {alert}" in tests.read_text()
    done = subprocess.run(["promtool", "test", "rules", tests], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
