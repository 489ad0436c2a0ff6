"""All devices come back to a hub that has just started: each token is verified once.

The long form also measures how late the hub's loop was meanwhile, with the devices coming as fast
as a hub that drains tells them to. All at once they hold the loop for seconds whoever signs them
in: 5,000 handshakes are seconds of work.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from math import inf
from pathlib import Path

import pytest

from hub.reconnects import RECONNECTS_PER_S
from tests import ROOT
from tests.cluster import Cluster
from tests.crowd import Crowd, Spectator, open_spectator
from tests.google import FIREBASE_HUB, Google, encoded, running

LAG_P99_S_MAX = 0.05

_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def google() -> Iterator[Google]:
    with running() as google:
        yield google


@pytest.fixture(scope="module")
def program() -> Sequence[str]:
    return FIREBASE_HUB


@pytest.mark.parametrize(
    ("sockets", "tokens", "per_s", "lag_p99_s_max"),
    [
        pytest.param(500, 100, inf, None, id="500-sockets"),
        pytest.param(
            5000, 1000, RECONNECTS_PER_S, LAG_P99_S_MAX, id="5000-sockets", marks=pytest.mark.faults
        ),
    ],
)
async def test_a_reconnect_storm_costs_one_verification_a_token(
    cluster: Cluster,
    google: Google,
    tmp_path: Path,
    sockets: int,
    tokens: int,
    per_s: float,
    lag_p99_s_max: float | None,
) -> None:
    verifications, lags = tmp_path / "verifications", tmp_path / "lags"
    node = await cluster.start(
        PYTHONPATH=str(ROOT),
        GOOGLE_URL=google.url,
        AUTH_MODE="firebase",
        FIREBASE_SERVICE_ACCOUNT_BASE64=encoded(google.service_account()),
        VERIFICATIONS=str(verifications),
        LOOP_LAG=str(lags),
    )
    fetches, lookups = google.key_fetches, len(google.lookups)
    issued = [google.signer.token(f"user-{n}", name=f"User {n}") for n in range(tokens)]
    calm = len(lags.read_text().splitlines())

    async def come(number: int) -> Spectator:
        await asyncio.sleep(number / per_s)
        return await open_spectator(node.url, issued[number % tokens])

    for _ in range(2):  # the second time they are all known
        with Crowd() as crowd:
            assert len(await crowd.join(*map(come, range(sockets)))) == sockets
            for spectator in crowd.all:
                spectator.check()
        assert verifications.stat().st_size == tokens
        assert google.key_fetches == fetches + 1
    late_s = sorted(float(line) for line in lags.read_text().splitlines()[calm:])
    p99_s = late_s[len(late_s) * 99 // 100]
    _log.info(
        "%d sockets, %d tokens: %d look-ups; loop late by p50 %.1f, p99 %.1f, at most %.1f ms",
        sockets,
        tokens,
        len(google.lookups) - lookups,
        late_s[len(late_s) // 2] * 1000,
        p99_s * 1000,
        late_s[-1] * 1000,
    )
    if lag_p99_s_max is not None:
        assert p99_s < lag_p99_s_max
