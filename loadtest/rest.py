"""The few REST calls around a run: signing in, creating budgets, taking snapshots.

The standard library's blocking client in a thread, a new connection per call: nothing here is on a
measured path, and a load script should not need an HTTP library.
"""

import asyncio
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

TIMEOUT_S = 10.0


class Unreachable(Exception):
    """Nothing answers at the target, or something that is no hub."""


class Refused(Exception):
    """The hub answered, but not with what was asked for."""


class Target(NamedTuple):
    """The address of one hub."""

    secure: bool
    host: str
    port: int
    path: str  # what stands before the hub's own paths; mostly empty

    @classmethod
    def parse(cls, url: str) -> "Target":
        """Raises `ValueError` for anything but `http(s)://host[:port][/path]`."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not an address such as http://127.0.0.1:8000")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(f"{url!r} has more than a host, a port and a path")
        secure = parts.scheme == "https"
        try:
            port = parts.port
        except ValueError:
            raise ValueError(f"{url!r} has no valid port") from None
        if port is None:
            port = 443 if secure else 80
        return cls(secure, parts.hostname, port, parts.path.rstrip("/"))

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self._authority}{self.path}"

    @property
    def socket_url(self) -> str:
        return f"{'wss' if self.secure else 'ws'}://{self._authority}{self.path}/sync"

    @property
    def _authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


async def call(
    target: Target,
    method: str,
    path: str,
    *,
    body: dict[str, object] | None = None,
    token: str | None = None,
) -> dict[str, Any]:
    """One request; the object that the answer carries.

    Raises `Refused` for any status from 400 on, `Unreachable` where no hub answers in `TIMEOUT_S`.
    """
    return await asyncio.to_thread(_call, target, method, path, body, token)


def _call(
    target: Target, method: str, path: str, body: dict[str, object] | None, token: str | None
) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    kind = HTTPSConnection if target.secure else HTTPConnection
    connection = kind(target.host, target.port, timeout=TIMEOUT_S)
    try:
        content = None if body is None else orjson.dumps(body)
        connection.request(method, target.path + path, content, headers)
        response = connection.getresponse()
        text = response.read()
    except (OSError, HTTPException) as error:
        raise Unreachable(f"no hub answers at {target}: {error or type(error).__name__}") from error
    finally:
        connection.close()
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError:
        answer = None
    if not isinstance(answer, dict):
        raise Unreachable(f"{target} is no hub: {method} {path} answered {response.status}")
    if response.status >= 400:
        raise Refused(f"{target} answered {method} {path} with {response.status} {_code(answer)}")
    return answer


def _code(answer: dict[str, Any]) -> str:
    error = answer.get("error")
    return str(error.get("message")) if isinstance(error, dict) else ""
