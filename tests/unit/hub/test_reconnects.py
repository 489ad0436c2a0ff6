"""How long the clients of a drained node stay away (P11)."""

import pytest

from hub.reconnects import reconnect_spread_ms


@pytest.mark.parametrize(
    ("connections", "spread_ms"),
    [(0, 1_000), (41, 1_000), (250, 2_500), (500, 4_000), (2_000, 4_000), (9_000, 18_000)],
)
def test_p11_few_come_back_slowly_and_many_soon(connections: int, spread_ms: float) -> None:
    assert reconnect_spread_ms(connections) == spread_ms
