"""How fast the clients of a drained node come back to the others."""

RECONNECT_MS_MIN = 1_000
GENTLE_PER_S = 100
GENTLE_MS_MAX = 4_000
RECONNECTS_PER_S = 500


def reconnect_spread_ms(connections: int) -> float:
    """How long to spread the reconnects of that many clients, in milliseconds.

    Each reconnect costs Postgres a read, and a commit of what its device had kept. A few hundred
    come so slowly that Postgres hardly notices. More come as fast as the other nodes can take them,
    so that no client is away for long."""
    gentle_ms = min(connections * 1000 / GENTLE_PER_S, GENTLE_MS_MAX)
    return max(RECONNECT_MS_MIN, gentle_ms, connections * 1000 / RECONNECTS_PER_S)
