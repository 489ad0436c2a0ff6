"""The outermost layer of REST: what every answer has, and one line in the log for each failure."""

import re
import uuid
from collections import Counter
from collections.abc import Collection, Iterable

import structlog
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub.tracing import Correlation

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CONTENT_SECURITY_POLICY = (
    b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Where the route has not said otherwise. What it answers is data: nothing of it may be run, framed,
# guessed or kept.
SECURITY_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", CONTENT_SECURITY_POLICY),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=63072000"),
    (b"x-content-type-options", b"nosniff"),
)

_log = structlog.get_logger()


class Edge:
    """ASGI middleware, outside of Starlette, because Starlette answers defects outside of all of
    its own.

    Every request has an id, its own (`X-Request-Id`) or one made here; it is in the answer's
    header, in errors and in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.refusals: Counter[str] = Counter()  # answers from 400 on, by code

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = given_id(scope["headers"])
        request_id = given or uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["correlation"] = Correlation(request_id, shared=given is not None)
        # For the rest of the request's task, which is uvicorn's, and logs after us.
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status, complete = 0, False

        async def send_all(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                said = {name for name, _ in headers}
                headers.append((b"x-request-id", request_id.encode()))
                headers += [header for header in SECURITY_HEADERS if header[0] not in said]
                message = {**message, "headers": headers}
            else:
                complete = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, send_all)
        except Exception as error:
            if not complete or status < 500:
                raise  # uvicorn logs it and ends the connection
            state["defect"] = error
        finally:
            if (backlog := state.get("backlog")) is not None:
                backlog.release()
        if status >= 400:
            self.refusals[state.get("code") or "none"] += 1
            _log_failure(scope, status)


def cors(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """The app, for pages of these origins too."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST", "PUT", "DELETE"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "X-API-Key",
            "X-Request-Id",
            "If-None-Match",
            "Last-Event-ID",
        ],
        expose_headers=["ETag", "Retry-After", "X-Request-Id"],
    )


def id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The request's own id, or a new one where it has none that could be repeated."""
    return given_id(headers) or uuid.uuid4().hex


def given_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The request's own id, if it could be repeated."""
    request_id = dict(headers).get(b"x-request-id", b"").decode("latin-1")
    return request_id if REQUEST_ID.fullmatch(request_id) else None


def _log_failure(scope: Scope, status: int) -> None:
    """The route is told, not the path: clients write all kinds of things into that."""
    state = scope["state"]
    described = {
        "method": scope["method"],
        "route": getattr(scope.get("route"), "path", None),
        "status": status,
        "code": state.get("code"),
    }
    if status == 429:
        _log.debug("request refused", **described)  # a flood must not fill the log
    elif status < 500:
        _log.info("request refused", **described)
    elif (defect := state.get("defect")) is not None:
        _log.error("request failed", **described, exc_info=defect)
    else:
        _log.warning("request failed", **described, cause=state.get("cause"))
