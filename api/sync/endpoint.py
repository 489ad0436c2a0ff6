"""`GET /sync`: the WebSocket endpoint, from the upgrade to a running session.

A raw ASGI application, not a Starlette route: at thousands of idle sockets the request objects
around each would cost more memory than the session itself.
"""

import asyncio
from collections.abc import Callable, Collection
from urllib.parse import parse_qs

import orjson
from starlette.types import Receive, Scope, Send

from api.http.edge import id_of
from api.http.guard import ApiKeys
from api.http.requests import as_uuid, bearer
from api.sync.wire import EXTENSION, AsgiWire
from hub.errors import Code, HubError
from hub.frames import PROTOCOL
from hub.hub import Hub
from hub.ports import Authenticator, Principal
from hub.session import Session

PATH = "/sync"
_VERSIONS = "budget.sync."
_BEARER = "bearer."


class SyncSocket:
    """Made inside the running loop."""

    def __init__(
        self,
        hub: Hub,
        authenticator: Authenticator,
        *,
        keys: ApiKeys,
        origins: Collection[str],
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        self._hub = hub
        self._keys = keys
        self._origins = origins
        self._authenticator = authenticator
        self._now_ms = now_ms
        self._new_id = new_id
        self._later = asyncio.get_running_loop().call_later

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        if scope["path"] != PATH:
            self._hub.measures.refused(Code.NOT_FOUND)
            await _deny(scope, send, Code.NOT_FOUND)
            return
        try:
            principal = await self._upgrading(scope)
            protocol = _spoken(scope["subprotocols"])
            follow = _wanted(scope)
        except HubError as error:
            self._hub.measures.refused(error.code)
            await _deny(scope, send, error.code, error.detail)
            return
        token = _offered_token(scope)
        await send({"type": "websocket.accept", "subprotocol": protocol})
        wire = scope.get("extensions", {}).get(EXTENSION) or AsgiWire(send)
        session = Session(
            self._hub,
            wire,
            self._authenticator,
            connection_id=self._new_id(),
            now_ms=self._now_ms,
            spawn=self._hub.spawn,
            later=self._later,
        )
        session.start(principal, token=token, follow=follow)
        scope.clear()  # an idle connection keeps nothing of its request
        try:
            await wire.run(session, receive)
        except Exception:
            session.close(Code.INTERNAL_SERVER_ERROR)
            raise

    async def _upgrading(self, scope: Scope) -> Principal | None:
        """Whom the request's own header names, None without one. Raises `HubError`.

        Only browsers send an `Origin`; with no list of them, any may come: what signs a socket in
        is a token, which a foreign page does not have."""
        self._keys.check(scope["headers"])
        for name, value in scope["headers"]:
            if name == b"origin" and self._origins and value.decode("latin-1") not in self._origins:
                raise HubError(Code.ORIGIN_NOT_ALLOWED)
        for name, value in scope["headers"]:
            if name == b"authorization":
                token = bearer(value.decode("latin-1"))
                if token is None:
                    raise HubError(Code.NOT_LOGGED_IN)
                return await self._authenticator.authenticate(token)
        return None


def _spoken(offered: Collection[str]) -> str | None:
    """The subprotocol to select; None for a client that names none. Raises `HubError(BAD_REQUEST)`
    where it speaks other versions only: its digests would never be ours."""
    if PROTOCOL in offered:
        return PROTOCOL
    if any(entry.startswith(_VERSIONS) for entry in offered):
        raise HubError(Code.BAD_REQUEST, f"this hub speaks {PROTOCOL}")
    return None


def _offered_token(scope: Scope) -> str | None:
    """The token of a browser, which can set no header: a subprotocol entry `bearer.<token>`."""
    for entry in scope["subprotocols"]:
        if entry.startswith(_BEARER):
            token: str = entry[len(_BEARER) :]
            return token
    return None


def _wanted(scope: Scope) -> tuple[str, int] | None:
    """The subscription that the query string asks for. Raises `HubError(BAD_REQUEST)`."""
    query = parse_qs(scope["query_string"].decode("latin-1"))
    if "budgetId" not in query:
        return None
    key = query.get("key", ["0"])[0]
    if not (key.isascii() and key.isdigit() and len(key) <= 16):
        raise HubError(Code.BAD_REQUEST, "key: an integer")
    return as_uuid(query["budgetId"][0], "budgetId"), int(key)


async def _deny(scope: Scope, send: Send, code: Code, detail: str | None = None) -> None:
    """Answer the upgrade request with an HTTP error instead of a socket."""
    request_id = id_of(scope["headers"])
    await send(
        {
            "type": "websocket.http.response.start",
            "status": code.status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"x-request-id", request_id.encode()),
            ],
        }
    )
    await send(
        {
            "type": "websocket.http.response.body",
            "body": orjson.dumps({"error": {**code.to_json(detail), "requestId": request_id}}),
        }
    )
