"""The alerts: what raises each of them and what does not, on recordings of real hubs
(`troubles.py`); and that everything named by rules, dashboard and runbook exists."""

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from api.telemetry.metrics import METRICS, table
from tests import ROOT
from tests.alerting import EVERY_S, Alert, alerts, runbook
from tests.promql import Labels, Recording, Sample, firing, recorded, selected
from tests.requirements import program
from tests.troubles import ALERTS, HEALTHY_S, INTERVAL_S, RECORDED, TROUBLES

DASHBOARD = ROOT / "infra" / "grafana" / "budget-hub.json"

# What each trouble raises, and nothing else.
RAISED = {
    "healthy": set[str](),
    "deploy": set[str](),
    "redis-killed": {"BudgetHubNodeDeaf", "BudgetHubDeliverySlow"},
    # The other hub hears itself, and gets from the log what the deaf one could not send it.
    "node-deaf": {"BudgetHubNodeDeaf", "BudgetHubDeliverySlow", "BudgetHubSweeperBeatsBus"},
    "two-buses": {"BudgetHubSweeperBeatsBus", "BudgetHubDeliverySlow"},
    "postgres-stopped": {"BudgetHubCommitErrors", "BudgetHubLogUnreadable"},
    # That of requests; the sweeper has connections of its own.
    "pool-exhausted": {"BudgetHubPoolExhausted"},
    "schema-broken": {"BudgetHubStorageDefects"},
    "tokens-refused": {"BudgetHubTokensRefused"},
    "certificates-away": {"BudgetHubTokensUnverifiable"},
    "node-killed": {"BudgetHubDown"},
    "worker-hung": {"BudgetHubWorkerSilent"},
}
# Where only one of the two hubs has the trouble.
SECOND_ONLY = {
    "node-deaf": "BudgetHubNodeDeaf",
    "node-killed": "BudgetHubDown",
    "worker-hung": "BudgetHubWorkerSilent",
}


@cache
def recording_of(trouble: str) -> tuple[Recording, float]:
    return recorded((RECORDED / f"{trouble}.yml").read_text())


@cache
def fired(trouble: str, scraped_every_s: int) -> dict[str, set[Labels]]:
    """The alerts that fired at any time of the recording, and for which series."""
    everything, ends_s = recording_of(trouble)
    times = [float(at_s) for at_s in range(0, int(ends_s) + 1, scraped_every_s)]
    recording = {labels: [*seen(samples, times)] for labels, samples in everything.items()}
    raised: dict[str, set[Labels]] = {}
    for alert in alerts():
        for _, series in firing(alert.expression, alert.for_s, recording, ends_s, EVERY_S):
            if series:
                raised.setdefault(alert.name, set()).update(series)
    return raised


def seen(samples: Sequence[Sample], times: Sequence[float]) -> Iterator[Sample]:
    """What a Prometheus sees that scrapes at these times only."""
    values = {sample.at_s: sample.value for sample in samples}
    before = None
    for at_s in times:
        value = values.get(at_s)
        if value is not None or before is not None:
            yield Sample(at_s, value)
        before = value


def test_there_is_a_recording_of_every_trouble() -> None:
    assert TROUBLES.keys() == RAISED.keys() == {path.stem for path in RECORDED.glob("*.yml")}


@pytest.mark.parametrize("scraped_every_s", [INTERVAL_S, EVERY_S])
@pytest.mark.parametrize("trouble", RAISED)
def test_a_trouble_raises_its_alerts_and_no_other(trouble: str, scraped_every_s: int) -> None:
    assert fired(trouble, scraped_every_s).keys() == RAISED[trouble]


@pytest.mark.parametrize(("trouble", "alert"), SECOND_ONLY.items())
def test_an_alert_names_the_hub_that_has_the_trouble(trouble: str, alert: str) -> None:
    instances = {dict(labels)["instance"] for labels in fired(trouble, EVERY_S)[alert]}
    assert instances == {"hub-2:8000"}


@pytest.mark.parametrize("trouble", RAISED)
def test_no_alert_fires_before_the_trouble_begins(trouble: str) -> None:
    recording, _ = recording_of(trouble)
    for alert in alerts():
        times = firing(alert.expression, alert.for_s, recording, HEALTHY_S, EVERY_S)
        assert not any(series for _, series in times), alert.name


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_every_alert_is_raised_by_a_trouble(alert: Alert) -> None:
    assert any(alert.name in raised for raised in RAISED.values())


@pytest.mark.parametrize("trouble", RAISED)
def test_recordings_hold_what_the_alerts_read(trouble: str) -> None:
    recording, _ = recording_of(trouble)
    there = {dict(labels)["__name__"] for labels in recording}
    assert there == {name for alert in alerts() for name, _ in selected(alert.expression)}


def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", str(ALERTS))


@pytest.mark.parametrize("trouble", RAISED)
def test_promtool_sees_the_same_alerts_at_the_end_of_each_recording(
    trouble: str, tmp_path: Path
) -> None:
    raw = yaml.safe_load((RECORDED / f"{trouble}.yml").read_text())
    recording, ends_s = recording_of(trouble)
    last_s = ends_s - ends_s % EVERY_S
    expected = [
        {"labels": series({**dict(labels), "alertname": alert.name}), "value": 1}
        for alert in alerts()
        for labels in dict(firing(alert.expression, alert.for_s, recording, ends_s, EVERY_S))[
            last_s
        ]
    ]
    case = {
        **raw,
        "promql_expr_test": [
            {
                "expr": 'max without (alertstate, severity) (ALERTS{alertstate="firing"})',
                "eval_time": f"{last_s:.0f}s",
                "exp_samples": expected,
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(ALERTS)],
                "evaluation_interval": f"{EVERY_S}s",
                "tests": [case],
            }
        )
    )
    promtool("test", "rules", str(file))


def promtool(*arguments: str) -> None:
    command = [program("promtool", "prometheus"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def series(labels: dict[str, str]) -> str:
    return "{" + ", ".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"


# What is named exists.


def expressions() -> Iterator[Any]:
    for alert in alerts():
        yield pytest.param(alert.expression, id=alert.name)
    for panel in panels():
        for target in panel["targets"]:
            yield pytest.param(asked(target), id=f"panel {panel['title']}")


def asked(target: dict[str, Any]) -> str:
    """What a panel asks, its variables filled in."""
    expression: str = target["expr"]
    return expression.replace("$__rate_interval", "1m").replace("$instance", "x")


def panels() -> list[dict[str, Any]]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("expression", [*expressions()])
def test_rules_and_dashboard_name_metrics_and_labels_that_exist(expression: str) -> None:
    known: dict[str, set[str]] = {"up": set()}
    for metric in METRICS:
        labels = {"worker", *metric.labels}
        endings = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        for ending in endings:
            known[metric.series + ending] = labels | ({"le"} if ending == "_bucket" else set())
    assert selected(expression)
    for name, compared in selected(expression):
        assert name in known
        assert compared.keys() <= known[name] | {"job", "instance"}


def test_the_first_row_of_the_dashboard_answers_its_question() -> None:
    first = json.loads(DASHBOARD.read_text())["panels"]
    assert first[0]["type"] == "row"
    assert first[0]["title"] == "Are devices getting their events, and how fast?"
    below = [panel for panel in panels() if panel["gridPos"]["y"] < 9]
    read = {
        name
        for panel in below
        for target in panel["targets"]
        for name, _ in selected(asked(target))
    }
    assert "budget_hub_delivery_seconds_bucket" in read
    assert "budget_hub_bus_connected" in read


def test_every_alert_has_an_entry_in_the_runbook_and_every_entry_an_alert() -> None:
    entries = runbook()
    assert entries.keys() == {alert.name for alert in alerts()}
    for name, entry in entries.items():
        for part in ("**Means.**", "**Look at.**", "**Do.**"):
            assert part in entry, name
        for named in re.findall(r"`(budget_hub_\w+)", entry):
            assert any(named.startswith(metric.series) for metric in METRICS), named
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]:
        assert rule["annotations"]["runbook"] == f"infra/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_metrics_table_in_infra_readme_is_generated_from_the_code() -> None:
    text = (ROOT / "infra" / "README.md").read_text()
    begin = text.index("\n", text.index("<!-- metrics:")) + 1
    assert text[begin : text.index("<!-- /metrics -->")] == table()


def test_names_follow_the_conventions_of_prometheus() -> None:
    names = [metric.series for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"budget_hub_[a-z]+(_[a-z]+)*", metric.series)
        assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket"))
        if metric.kind == "histogram":
            assert metric.name.endswith(("_seconds", "_events"))
