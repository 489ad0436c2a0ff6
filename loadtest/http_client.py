"""HTTP/1.1 on bare asyncio, for many clients at once: long-polls, event streams, REST calls.

httptools parses. A `HttpClient` keeps its connections and opens one more whenever all are busy:
how many that can be is the caller's matter, a device asks for at most three things at a time.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import httptools
import orjson

from loadtest.target import Refused, Target, Unreachable

TIMEOUT_S = 10.0
BODY_BYTES_MAX = 256 * 1024 * 1024  # of a whole answer: a snapshot may be large, not endless


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """Raises `ValueError`."""
        return orjson.loads(self.body)


class HttpClient:
    """Calls to one hub. Close it at the end."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def call(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Mapping[str, object] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        """One request; the object that the answer carries.

        Raises `Refused` for any status from 400 on, `Unreachable` where no hub answers in time."""
        answer = await self.request(method, path, token=token, body=body, timeout_s=timeout_s)
        try:
            content = answer.json()
        except orjson.JSONDecodeError:
            content = None
        if not isinstance(content, dict):
            raise Unreachable(f"{self.target} is no hub: {method} {path} answered {answer.status}")
        if answer.status >= 400:
            raise refusal(answer, f"{self.target} answered {method} {path.partition('?')[0]}")
        return content

    async def request(
        self,
        method: str,
        path: str,
        *,
        token: str | None = None,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Answer:
        """One request, whatever its answer. Raises `Unreachable`."""
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connection()
                try:
                    answer = await connection.ask(self._head(method, path, token, body, headers))
                except BaseException:
                    connection.close()  # what would still come is nobody's
                    raise
        except (OSError, httptools.HttpParserError) as error:  # timeouts too
            raise Unreachable(_silence(self.target, error)) from error
        if connection.reusable:
            self._idle.append(connection)
        return answer

    async def stream(
        self, path: str, received: Callable[[bytes], None], *, token: str, timeout_s: float
    ) -> Answer:
        """GET `path` and hand over its body as it comes, until it ends. An answer of another
        status than 200 comes back whole.

        Raises `Unreachable`, also where nothing at all comes for `timeout_s`."""
        connection = None
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                loop = asyncio.get_running_loop()

                def came(data: bytes) -> None:
                    deadline.reschedule(loop.time() + timeout_s)
                    received(data)

                connection = await self._connection()
                headers = {"Accept": "text/event-stream"}
                return await connection.ask(self._head("GET", path, token, None, headers), came)
        except (OSError, httptools.HttpParserError) as error:
            raise Unreachable(_silence(self.target, error)) from error
        finally:
            if connection is not None:
                connection.close()

    def close(self) -> None:
        for connection in list(self._open):
            connection.close()

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        target = self.target
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self._open),
            target.host,
            target.port,
            ssl=target.tls,
        )
        return connection

    def _head(
        self,
        method: str,
        path: str,
        token: str | None,
        body: Mapping[str, object] | None,
        headers: Mapping[str, str] | None,
    ) -> bytes:
        content = b"" if body is None else orjson.dumps(body)
        lines = [f"{method} {self.target.path}{path} HTTP/1.1", f"Host: {self.target.authority}"]
        if body is not None or method in ("POST", "PUT"):
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        return "\r\n".join([*lines, "", ""]).encode() + content


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, open_: set["_Connection"]) -> None:
        self._open = open_
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._received: Callable[[bytes], None] | None = None
        self._parser: Any = None
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._lost = False

    @property
    def reusable(self) -> bool:
        return not self._lost and self._waiting is None and self._keep_alive

    _keep_alive = True

    async def ask(self, request: bytes, received: Callable[[bytes], None] | None = None) -> Answer:
        """Raises `OSError` where the connection ends first."""
        if self._lost or self._transport is None:
            raise ConnectionResetError("the connection was lost")
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body, self._received = {}, bytearray(), received
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting

    def close(self) -> None:
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        if self._waiting is None:
            self.close()  # nobody asked for it
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._open.discard(self)
        self._fail(exc or ConnectionResetError("the connection was closed"))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        if self._received is not None and self._parser.get_status_code() == 200:
            self._received(data)
            return
        self._body += data
        if len(self._body) > BODY_BYTES_MAX:
            self._fail(ConnectionAbortedError("the answer has no end"))
            self.close()

    def on_message_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(
                Answer(self._parser.get_status_code(), self._headers, bytes(self._body))
            )

    def _fail(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_exception(error)


def refusal(answer: Answer, what: str) -> Refused:
    """The error that an answer from 400 on carries; `what` says what was asked."""
    try:
        error = answer.json()["error"]
        code = str(error["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        code = ""
    try:
        after_s = float(answer.headers.get("retry-after", 0))
    except ValueError:
        after_s = 0.0
    return Refused(
        f"{what} with {answer.status} {code}", status=answer.status, code=code, after_s=after_s
    )


def _silence(target: Target, error: Exception) -> str:
    return f"no hub answers at {target}: {error or type(error).__name__}"
