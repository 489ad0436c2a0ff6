"""`GET /sync`: which requests become sockets, and the session behind each."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from urllib.parse import parse_qs, unquote

from websockets.http11 import Request

from api.http.connections import Connections
from api.http.guard import ApiKeys, FromAddress, RequestLimits
from api.http.requests import as_uuid, bearer
from api.http.unread import Unread
from api.sync.wire import Admitted, SocketWire, raw_headers
from api.timeouts import AppTimeouts
from hub.budget.records import UserId
from hub.errors import Code, HubError
from hub.frames.websocket import FRAME_BYTES_MAX, PROTOCOL, UNSIGNED_FRAME_BYTES_MAX
from hub.hub import Hub
from hub.limits import Bucket
from hub.ports import Authenticator, Principal
from hub.session import Session

PATH = "/sync"
_VERSIONS = "budget.sync."
_BEARER = "bearer."


class SyncDoor:
    """The `api.sync.wire.Door` of the hub. Made inside the running loop."""

    def __init__(
        self,
        hub: Hub,
        authenticator: Authenticator,
        *,
        keys: ApiKeys,
        limits: RequestLimits,
        connections: Connections,
        unread: Unread,
        origins: Collection[str],
        now_ms: Callable[[], int],
        now_s: Callable[[], float],
        new_id: Callable[[], str],
        timeouts: AppTimeouts,
    ) -> None:
        self._hub = hub
        self._keys = keys
        self._limits = limits
        self.connections = connections
        self.unread = unread
        self._origins = origins
        self._authenticator = authenticator
        self._now_ms = now_ms
        self._now_s = now_s
        self._new_id = new_id
        self._later = asyncio.get_running_loop().call_later
        self.timeouts = timeouts

    async def admit(self, peer: tuple[str, int] | None, request: Request) -> Admitted:
        """Raises `HubError`."""
        address = self._limits.address(peer, raw_headers(request))
        await self._limits.from_address(address)
        path, _, query = request.path.partition("?")
        if unquote(path) != PATH:
            raise HubError(Code.NOT_FOUND)
        authenticator = FromAddress(self._authenticator, address)
        principal = await self._upgrading(request, authenticator)
        offered = [
            entry.strip()
            for value in request.headers.get_all("Sec-WebSocket-Protocol")
            for entry in value.split(",")
        ]
        protocol, token, follow = _spoken(offered), _offered_token(offered), _wanted(query)

        def begin(wire: SocketWire) -> Session:
            session = Session(
                self._hub,
                wire,
                authenticator,
                connection_id=self._new_id(),
                now_ms=self._now_ms,
                now_s=self._now_s,
                spawn=self._hub.spawn,
                later=self._later,
            )
            session.start(principal, token=token, follow=follow)
            return session

        return Admitted(protocol, begin)

    def refused(self, code: Code) -> None:
        self._hub.measures.refused(code)

    def ended(self, transport: asyncio.Transport) -> None:
        self.connections.ended(transport)

    def message_bytes_max(self, *, signed_in: bool) -> int:
        return FRAME_BYTES_MAX if signed_in else UNSIGNED_FRAME_BYTES_MAX

    def pace(self, now_s: float, user_id: UserId | None) -> Sequence[Bucket]:
        return self._hub.rates.of_frames(now_s, user_id)

    async def _upgrading(self, request: Request, authenticator: Authenticator) -> Principal | None:
        """Whom the request's own header names, None without one. Raises `HubError`.

        Only browsers send an `Origin`; with no list of them, any may come: what signs a socket in
        is a token, which a foreign page does not have."""
        self._keys.check(raw_headers(request))
        if self._origins and not set(request.headers.get_all("Origin")) <= set(self._origins):
            raise HubError(Code.ORIGIN_NOT_ALLOWED)
        for value in request.headers.get_all("Authorization"):
            token = bearer(value)
            if token is None:
                raise HubError(Code.NOT_LOGGED_IN)
            principal = await authenticator.authenticate(token)
            self._hub.room_for(principal.user_id)
            return principal
        return None


def _spoken(offered: Collection[str]) -> str | None:
    """The subprotocol to select; None for a client that names none. Raises `HubError(BAD_REQUEST)`
    where it speaks other versions only: its digests would never be ours."""
    if PROTOCOL in offered:
        return PROTOCOL
    if any(entry.startswith(_VERSIONS) for entry in offered):
        raise HubError(Code.BAD_REQUEST, f"this hub speaks {PROTOCOL}")
    return None


def _offered_token(offered: Sequence[str]) -> str | None:
    """The token of a browser, which can set no header: a subprotocol entry `bearer.<token>`."""
    for entry in offered:
        if entry.startswith(_BEARER):
            return entry[len(_BEARER) :]
    return None


def _wanted(query: str) -> tuple[str, int] | None:
    """The subscription that the query string asks for. Raises `HubError(BAD_REQUEST)`."""
    asked = parse_qs(query)
    if "budgetId" not in asked:
        return None
    key = asked.get("key", ["0"])[0]
    if not (key.isascii() and key.isdigit() and len(key) <= 16):
        raise HubError(Code.BAD_REQUEST, "key: an integer")
    return as_uuid(asked["budgetId"][0], "budgetId"), int(key)
