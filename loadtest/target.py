"""The address of a hub, and the two ways in which it may not answer as it should."""

import ssl
from functools import cache
from typing import NamedTuple
from urllib.parse import urlsplit


class Unreachable(Exception):
    """Nothing answers at the target, or something that is no hub."""


class Refused(Exception):
    """The hub answered, but not with what was asked for.

    `status` is HTTP's, or 0; `code` one of the table of errors, or nothing; `after_s` how long to
    wait before asking again, where the hub said so."""

    def __init__(
        self, message: str, *, status: int = 0, code: str = "", after_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.after_s = after_s

    @property
    def retryable(self) -> bool:
        return self.status in (429, 503)


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
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.path}"

    @property
    def socket_url(self) -> str:
        return f"{'wss' if self.secure else 'ws'}://{self.authority}{self.path}/sync"

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What a connection to it needs."""
        return _tls() if self.secure else None

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()  # reads all authorities: tens of milliseconds
