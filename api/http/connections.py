"""How many connections each address has at a time.

| behind              | a connection counts for   | from                | until              |
|---------------------|---------------------------|---------------------|--------------------|
| no proxy of our own | the other end             | it is made          | it ends            |
| `TRUSTED_PROXIES`   | the sender of its request | the request's head  | the response's end |
|                     |                           | an upgrade's head   | it ends            |

A proxy's own connections are those of all its clients, and carry one request after the other.
"""

from asyncio import BaseTransport
from collections.abc import Sequence

from api.http.addresses import peer_of, sender
from hub.limits import Places


class Connections:
    """`per_address` 0: any number."""

    def __init__(self, per_address: int = 0, trusted_proxies: int = 0) -> None:
        self._places = Places(per_address)
        self._trusted_proxies = trusted_proxies

    def made(self, transport: BaseTransport) -> bool:
        """Whether there was a place for a new connection."""
        return bool(self._trusted_proxies) or self._take(transport, ())

    def asked(self, transport: BaseTransport, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether there was a place for a request."""
        return not self._trusted_proxies or self._take(transport, headers)

    def answered(self, transport: BaseTransport) -> None:
        """The response to the last request is complete."""
        if self._trusted_proxies:
            self._places.give_back(transport)

    def ended(self, transport: BaseTransport) -> None:
        """The connection is over; again changes nothing."""
        self._places.give_back(transport)

    def _take(self, transport: BaseTransport, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        address = sender(peer_of(transport), headers, self._trusted_proxies)
        return self._places.take(transport, address)
