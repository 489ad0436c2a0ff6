"""An S3 API over HTTP for the tests: moto's server, and in front of it what moto does not do.

`S3Front` answers as S3 does to a request whose signature is missing, wrong or too old, which the
hub's policy does not allow, or which copies on a condition that does not hold; it forwards the
rest. The signature (AWS Signature Version 4) is computed here from its specification, not by the
library that made it. As a program (`python -m tests.s3`) this module is moto's server, until it is
told to stop.
"""

import asyncio
import hashlib
import hmac
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote

import httpx2
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tests import ROOT
from tests.cluster import REST_S, Process

ACCESS_KEY_ID = "the-access-key-of-the-tests"
SECRET_ACCESS_KEY = "the-secret-key-of-the-tests"
REGION = "eu-west-1"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY_ID,
    "AWS_SECRET_ACCESS_KEY": SECRET_ACCESS_KEY,
    # No file of this machine, and nobody is asked for a role.
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# moto asks only that there is something of the kind.
ANYBODY = f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY_ID}/20260101/{REGION}/s3/aws4_request"
CLOCK_SKEW = timedelta(minutes=15)


class Refusal(Exception):
    """What S3 answers with 403."""


class Asked(NamedTuple):
    """A request as it came: the path still encoded, names of headers in lower case."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: Mapping[str, str]


class Permission(NamedTuple):
    """An action on what lies in a folder of the bucket; the bucket itself is no folder."""

    action: str
    folder: str


def granted(policy: str) -> set[Permission]:
    """What the statements of a policy document in Terraform's language allow."""
    found = set()
    for statement in policy.split("statement {")[1:]:
        actions, resources = re.findall(
            r"(?:actions|resources)\s*=\s*\[(.*?)\]", statement, re.DOTALL
        )
        folder = re.search(r"/(\w+)/\*", resources)
        for action in re.findall(r'"(s3:\w+)"', actions):
            found.add(Permission(action, folder[1] if folder else ""))
    return found


def needed_for(asked: Asked) -> set[Permission]:
    """What IAM would ask for."""
    _, _, object = asked.path.strip("/").partition("/")
    if not object:
        return {Permission("s3:ListBucket", "")}
    actions = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "DELETE": "s3:DeleteObject"}
    needed = {Permission(actions.get(asked.method, "s3:PutObject"), object.split("/")[0])}
    if source := asked.headers.get("x-amz-copy-source"):
        needed.add(Permission("s3:GetObject", source.strip("/").split("/")[1]))
    return needed


POLICY = granted((ROOT / "infra" / "terraform" / "hub.tf").read_text())


class S3Front:
    """`url` is the service's. Its clock is `ahead_s` seconds ahead of the real one. `used` are the
    permissions that requests needed; they have those of `infra/terraform/hub.tf`, and no other."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.url = ""
        self.ahead_s = 0.0
        self.used: set[Permission] = set()
        self._holds: Callable[[Asked], bool] = lambda _: False
        self._released = asyncio.Event()
        self._client = httpx2.AsyncClient(base_url=upstream, trust_env=False, timeout=REST_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        asked = Asked(
            request.method,
            scope["raw_path"].decode("ascii"),
            parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True),
            {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]},
        )
        body = await request.body()
        try:
            check(asked, body, datetime.now(UTC) + timedelta(seconds=self.ahead_s))
            needed = needed_for(asked)
            if not needed <= POLICY:
                raise Refusal(f"not allowed: {needed - POLICY}")
            self.used |= needed
        except Refusal as refusal:
            await _error(403, "AccessDenied", str(refusal))(scope, receive, send)
            return
        if self._holds(asked):
            await self._released.wait()
        if await self._copies_what_has_changed(asked):
            response = _error(412, "PreconditionFailed")
        else:
            response = await self._forward(asked, body)
        await response(scope, receive, send)

    def hold(self, which: Callable[[Asked], bool]) -> None:
        """Let these wait until `release`."""
        self._holds = which
        self._released.clear()

    def release(self) -> None:
        self._holds = lambda _: False
        self._released.set()

    async def make_bucket(self, bucket: str) -> None:
        where = f"<LocationConstraint>{REGION}</LocationConstraint>"
        body = f"<CreateBucketConfiguration>{where}</CreateBucketConfiguration>"
        answer = await self.direct("PUT", f"/{bucket}", content=body)
        assert answer.status_code == 200, answer.text

    async def direct(self, method: str, path: str, **how: Any) -> httpx2.Response:
        """Past the checks, as whoever runs the bucket may."""
        headers = {"Authorization": ANYBODY}
        return await self._client.request(method, path, headers=headers, **how)

    async def objects(self, bucket: str) -> set[str]:
        """The keys of all objects."""
        listed = (await self.direct("GET", f"/{bucket}?list-type=2")).text
        return {part.partition("</Key>")[0] for part in listed.split("<Key>")[1:]}

    async def close(self) -> None:
        await self._client.aclose()

    async def _copies_what_has_changed(self, asked: Asked) -> bool:
        wanted = asked.headers.get("x-amz-copy-source-if-match")
        if wanted is None:
            return False
        source = "/" + asked.headers["x-amz-copy-source"].lstrip("/")
        return (await self.direct("HEAD", source)).headers.get("etag") != wanted

    async def _forward(self, asked: Asked, body: bytes) -> Response:
        """Without the signature: there is nothing that moto could make of it."""
        query = [(name, value) for name, value in asked.query if not name.startswith("X-Amz-")]
        headers = {"authorization": ANYBODY} | {
            name: value
            for name, value in asked.headers.items()
            if name not in ("host", "content-length", "connection", "transfer-encoding", "expect")
        }
        url = httpx2.URL(self.upstream).copy_with(
            raw_path=(asked.path + ("?" + _canonical(query) if query else "")).encode()
        )
        answer = await self._client.request(asked.method, url, content=body, headers=headers)
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name.lower() not in ("connection", "transfer-encoding", "date", "server")
        }
        return Response(answer.content, answer.status_code, kept)


def _error(status: int, code: str, message: str = "") -> Response:
    xml = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Response(xml, status, media_type="application/xml")


def check(asked: Asked, body: bytes, now: datetime) -> None:
    """Raises `Refusal`."""
    query = dict(asked.query)
    authorization = asked.headers.get("authorization", "")
    try:
        if "X-Amz-Signature" in query:
            _check_query(asked, query, now)
        elif authorization.startswith("AWS4-HMAC-SHA256 "):
            _check_header(asked, authorization, body, now)
        else:
            raise Refusal("Anonymous access")
    except (KeyError, ValueError):
        raise Refusal("AuthorizationQueryParametersError") from None


def _check_query(asked: Asked, query: Mapping[str, str], now: datetime) -> None:
    if query.get("X-Amz-Algorithm") != "AWS4-HMAC-SHA256":
        raise Refusal("Unsupported algorithm")
    at = _time(query["X-Amz-Date"])
    if not at - CLOCK_SKEW <= now < at + timedelta(seconds=int(query["X-Amz-Expires"])):
        raise Refusal("Request has expired")
    rest = [(name, value) for name, value in asked.query if name != "X-Amz-Signature"]
    signed = query["X-Amz-SignedHeaders"].split(";")
    expected = signature(
        asked._replace(query=rest), signed, query["X-Amz-Credential"], at, "UNSIGNED-PAYLOAD"
    )
    _compare(expected, query["X-Amz-Signature"])


def _check_header(asked: Asked, authorization: str, body: bytes, now: datetime) -> None:
    parts = dict(part.strip().split("=", 1) for part in authorization.split(" ", 1)[1].split(","))
    at = _time(asked.headers["x-amz-date"])
    if abs(now - at) > CLOCK_SKEW:
        raise Refusal("RequestTimeTooSkewed")
    payload = asked.headers["x-amz-content-sha256"]
    if payload not in ("UNSIGNED-PAYLOAD", hashlib.sha256(body).hexdigest()):
        raise Refusal("XAmzContentSHA256Mismatch")
    signed = parts["SignedHeaders"].split(";")
    _compare(signature(asked, signed, parts["Credential"], at, payload), parts["Signature"])


def signature(asked: Asked, signed: list[str], credential: str, at: datetime, payload: str) -> str:
    """AWS Signature Version 4 of the request, over the headers `signed`. Raises `Refusal`."""
    key_id, _, scope = credential.partition("/")
    if key_id != ACCESS_KEY_ID:
        raise Refusal("InvalidAccessKeyId")
    if scope != f"{at:%Y%m%d}/{REGION}/s3/aws4_request":
        raise Refusal("AuthorizationQueryParametersError")
    unsigned = {name for name in asked.headers if name.startswith("x-amz-")} - set(signed)
    if "host" not in signed or unsigned:
        raise Refusal("AccessDenied: there were headers present which were not signed")
    lines = [f"{name}:{' '.join(asked.headers.get(name, '').split())}\n" for name in signed]
    canonical = "\n".join(
        (
            asked.method,
            quote(unquote(asked.path), safe="/"),
            _canonical(sorted(asked.query)),
            "".join(lines),
            ";".join(signed),
            payload,
        )
    )
    hashed = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = f"AWS4-HMAC-SHA256\n{at:%Y%m%dT%H%M%SZ}\n{scope}\n{hashed}"
    key = b"AWS4" + SECRET_ACCESS_KEY.encode()
    for step in scope.split("/"):
        key = hmac.digest(key, step.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


def _canonical(query: list[tuple[str, str]]) -> str:
    return "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in query
    )


def _compare(expected: str, given: str) -> None:
    if not hmac.compare_digest(expected, given):
        raise Refusal("SignatureDoesNotMatch")


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)


@asynccontextmanager
async def s3_service(folder: Path) -> AsyncIterator[S3Front]:
    """moto in a process of its own, and the front in this one."""
    program = [sys.executable, "-m", "tests.s3"]
    moto = Process(folder, "moto", [], {"PYTHONPATH": str(ROOT), **CREDENTIALS}, program=program)
    try:
        front = S3Front(await moto.serving())
        listening = socket.create_server(("127.0.0.1", 0))
        front.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            front, lifespan="off", log_config=None, access_log=False, server_header=False
        )
        server = uvicorn.Server(config)
        config.load()  # and not `serve`, which would take the signals
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listening])
        try:
            yield front
        finally:
            await server.shutdown(sockets=[listening])
            listening.close()
            await front.close()
    finally:
        await moto.close()


def _serve() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before there are threads

    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"serving on http://{host}:{port}", flush=True)  # noqa: T201
    signal.sigwait({signal.SIGTERM})
    server.stop()


if __name__ == "__main__":
    _serve()
