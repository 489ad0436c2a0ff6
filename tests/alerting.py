"""The alert rules, their runbook, and a small Prometheus that evaluates them while hubs run."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import promql_parser as parser
import yaml

from tests import ROOT
from tests.cluster import Node
from tests.promql import LOOKBACK_S, Labels, Pending, Sample
from tests.troubles import ALERTS, of_alerts, scrape

RUNBOOK = ROOT / "infra" / "runbook.md"
EVERY_S = 15  # how often Prometheus scrapes and evaluates, in the setup that is recommended


class Alert(NamedTuple):
    name: str
    expression: str
    for_s: float


def alerts() -> list[Alert]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return [
        Alert(rule["alert"], rule["expr"], parser.parse_duration(rule["for"]).total_seconds())
        for rule in group["rules"]
    ]


def runbook() -> Mapping[str, str]:
    """Its entries, by the alert's name."""
    text = RUNBOOK.read_text()
    found = re.findall(r"^## (BudgetHub\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return dict(found)


class Prometheus:
    """Scrapes the `targets` there are now, and evaluates all alerts, whenever it is told to.
    It believes that it was told every `EVERY_S` seconds: its clock is as fast as that."""

    def __init__(self, targets: Callable[[], Sequence[Node]]) -> None:
        self._targets = targets
        self._alerts = {alert.name: Pending(alert.expression, alert.for_s) for alert in alerts()}
        self._read = of_alerts()
        self._samples: dict[Labels, list[Sample]] = {}
        self.at_s = 0.0  # of the last scrape, on its own clock

    async def look(self) -> dict[str, set[str]]:
        """Scrape once; the alerts that fire then, and for which instances."""
        self.at_s += EVERY_S
        self._keep(await scrape(self._targets()))
        firing = {
            name: {dict(labels)["instance"] for labels in alert.look(self._samples, self.at_s)}
            for name, alert in self._alerts.items()
        }
        return {name: instances for name, instances in firing.items() if instances}

    def _keep(self, moment: Mapping[Labels, float]) -> None:
        for labels, value in moment.items():
            if dict(labels)["__name__"] in self._read:
                self._samples.setdefault(labels, []).append(Sample(self.at_s, value))
        for labels, samples in self._samples.items():
            if labels not in moment and samples[-1].value is not None:
                samples.append(Sample(self.at_s, None))  # the series has ended
        # No alert looks further back.
        since_s = self.at_s - LOOKBACK_S - EVERY_S
        recent = {
            labels: [sample for sample in samples if sample.at_s >= since_s]
            for labels, samples in self._samples.items()
        }
        self._samples = {labels: samples for labels, samples in recent.items() if samples}
