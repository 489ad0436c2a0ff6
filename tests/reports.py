"""Made-up reports of the load script."""

import math
from typing import Any


def report(**changes: Any) -> dict[str, Any]:
    """A run of a minute in which all was well: steady, 500 events a second."""
    percentiles = {"p50": 3.1, "p90": 6.0, "p99": 21.5, "p999": 80.0, "max": 143.0}
    made: dict[str, Any] = {
        "version": 1,
        "scenario": "steady",
        "seed": 7,
        "options": {"devices": 1500, "budgets": 500, "rate_per_s": 500.0, "duration_s": 60.0},
        "startedAt": 1795000000000,
        "durationS": 60.0,
        "machine": {"cores": 2, "cpu": "x86_64", "python": "3.11.7", "system": "Linux"},
        "commit": "e12ceba",
        "targets": ["http://127.0.0.1:8000"],
        "valid": True,
        "invalidBecause": [],
        "generator": {"processes": 2, "cpuShare": 0.41, "lagP99Ms": 1.9},
        "totals": {
            "sent": 30_000, "accepted": 29_900, "duplicates": 0, "conflicts": 100, "rejected": 0,
            "retryable": 0, "unknown": 0, "deliveries": 59_800, "reconnects": 0, "errors": 0,
        },
        "latency": {
            "ackMs": {**percentiles, "count": 30_000},
            "deliveryMs": {**percentiles, "p50": 3.4, "count": 59_800},
        },
        "histograms": {
            "ackMs": [[2.0, 9_000], [4.0, 15_000], [8.0, 5_000], [143.0, 1_000]],
            "deliveryMs": [[2.0, 8_000], [4.0, 40_000], [8.0, 11_000], [143.0, 800]],
        },
        "series": [second(t) for t in range(60)],
        "proof": {"passed": True, "checked": {"acknowledged": 29_900}, "violation": None},
        "resources": {"hubCpuUsPerEvent": 610.0, "hubRssKiBPerDevice": 18.4},
    }  # fmt: skip
    return made | changes


def second(t: int, *, scale: float = 1.0, rate: float = 500.0, **changes: Any) -> dict[str, Any]:
    """One second of it; latencies sway, as they do, around `scale` times their mean."""
    sway = scale * (1 + 0.1 * math.sin(t * 2.4))
    made = {
        "t": float(t), "connected": 1500, "offline": 0, "accepted": round(rate),
        "deliveries": round(2 * rate), "conflicts": 2, "reconnects": 0, "errors": 0,
        "ackP50Ms": 3.1 * sway, "ackP99Ms": 20 * sway, "deliveryP50Ms": 3.4 * sway,
        "deliveryP99Ms": 21 * sway, "generatorCpu": 0.4, "generatorLagMs": 1.0,
    }  # fmt: skip
    return made | changes
