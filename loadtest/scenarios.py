"""The scenarios: what a fleet is made of and what befalls it. Data only; one code path runs all of
them (`loadtest.generator`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadtest.wire import Transport
from loadtest.workload import CONTESTED, EVERYDAY, RECENT, Mix


@dataclass(frozen=True)
class Scenario:
    """`devices` to `duration_s` are defaults of the options of the same names. Times below them
    that are a share are of the run's duration, so that a short run shows the same as a long one."""

    name: str
    about: str
    devices: int
    budgets: int
    rate_per_s: float
    duration_s: float
    mix: Mix = field(default_factory=lambda: EVERYDAY)
    recent: int = RECENT  # records of a budget that people still change
    transports: Mapping[Transport, int] = field(default_factory=lambda: {Transport.SOCKET: 100})
    offline_share: float = 0.0  # of the devices are people who go in and out of reach
    offline_for: float = 0.0  # share of the duration, on average; then online for as long
    storms: int = 0  # so often, evenly over the run, all connections break at one moment
    slow_share: float = 0.0  # of the devices stop reading from time to time
    slow_for: float = 0.0  # share of the duration, on average; then they read for as long
    note_chars: int = 0  # of each expense's note, of four bytes each; 0: short ones, or none
    reconnect_s: float | None = None  # each device comes anew after that time, on average
    budgets_per_device: int = 1
    members: int = 1  # users of a budget, its owner included
    day: bool = False  # the rate follows a day: quiet at night, most in the evening
    ramp: bool = False  # the rate grows until the hub no longer keeps p99 under the bound
    judged: bool = True  # figures count, so a generator that was the limit spoils the run


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "smoke",
            "does everything arrive, once, in order, everywhere? A few devices for a few seconds",
            devices=6,
            budgets=2,
            rate_per_s=50,
            duration_s=5,
            judged=False,
        ),
        Scenario(
            "steady",
            "an open loop at a fixed rate",
            devices=1000,
            budgets=300,
            rate_per_s=100,
            duration_s=60,
        ),
        Scenario(
            "ramp",
            "the highest rate that keeps p99 under a bound",
            devices=400,
            budgets=100,
            rate_per_s=200,
            duration_s=300,
            ramp=True,
        ),
        Scenario(
            "hot-budget",
            "everybody on one budget",
            devices=1000,
            budgets=1,
            rate_per_s=20,
            duration_s=60,
        ),
        Scenario(
            "offline",
            "people out of reach for long, whose edits meet when they come back",
            devices=200,
            budgets=50,
            rate_per_s=40,
            duration_s=60,
            mix=CONTESTED,
            recent=8,
            members=2,
            offline_share=0.7,
            offline_for=0.15,
        ),
        Scenario(
            "storm",
            "all connections break at once, again and again",
            devices=1000,
            budgets=300,
            rate_per_s=50,
            duration_s=60,
            storms=3,
        ),
        Scenario(
            "slow-readers",
            "some devices stop reading, and must cost nobody anything",
            # So much for each device that no kernel keeps it for one that does not read.
            devices=100,
            budgets=2,
            rate_per_s=60,
            duration_s=60,
            note_chars=2000,
            slow_share=0.2,
            slow_for=0.3,
        ),
        Scenario(
            "legacy",
            "clients that know only REST: long-poll",
            devices=300,
            budgets=100,
            rate_per_s=20,
            duration_s=60,
            transports={Transport.LONG_POLL: 100},
        ),
        Scenario(
            "mixed",
            "a day of a fleet of households, in a few minutes",
            devices=600,
            budgets=150,
            rate_per_s=60,
            duration_s=180,
            transports={
                Transport.SOCKET: 75,
                Transport.EVENT_STREAM: 10,
                Transport.LONG_POLL: 15,
            },
            offline_share=0.4,
            offline_for=0.1,
            slow_share=0.03,
            slow_for=0.05,
            reconnect_s=60,
            budgets_per_device=2,
            members=2,
            day=True,
        ),
        Scenario(
            "soak",
            "for hours: tokens end, devices come and go, and nothing may grow",
            devices=500,
            budgets=150,
            rate_per_s=20,
            duration_s=3600,
            members=2,
            offline_share=0.1,
            offline_for=0.02,
            reconnect_s=600,
        ),
    )
}

# Events per hour of a day, as a share of the busiest hour.
DAY = (
    0.05, 0.03, 0.02, 0.02, 0.03, 0.08, 0.20, 0.45, 0.50, 0.40, 0.40, 0.50,
    0.65, 0.60, 0.45, 0.40, 0.50, 0.75, 0.95, 1.00, 0.90, 0.65, 0.35, 0.15,
)  # fmt: skip
