"""The edge of REST, around an application that has every defect."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from httpx2 import ASGITransport, AsyncClient, RemoteProtocolError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from structlog.contextvars import get_contextvars
from structlog.testing import capture_logs
from structlog.typing import EventDict

from api.http.answers import respond
from api.http.edge import Edge
from api.http.errors import ERROR_HANDLERS
from api.http.requests import json_body
from hub.errors import BadData, Code, Disconnected, Held, HubError, LostRace
from tests.acceptance.rest.test_rest import refused

SECRET = "what-only-the-defect-knows"
RAISED = {
    "defect": RuntimeError(SECRET),
    "data": BadData(SECRET),
    "held": Held(SECRET),
    "race": LostRace(SECRET),
    "away": Disconnected("ConnectionRefusedError"),
    "busy": HubError(Code.BUSY),
    "wait": HubError(Code.RATE_LIMITED, retry_after_s=1.2),
    "blank": NotImplementedError(),
}


async def fail(request: Request) -> Response:
    raise RAISED[request.path_params["how"]]


async def read(request: Request) -> Response:
    return respond({"read": await json_body(request)})


async def break_off(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"the beginning"
        raise RuntimeError(SECRET)

    return StreamingResponse(chunks())


async def fail_afterwards(request: Request) -> Response:
    def defect() -> None:
        raise RuntimeError(SECRET)

    return Response(b"", background=BackgroundTask(defect))


async def own(request: Request) -> Response:
    policy = {"Content-Security-Policy": "default-src 'self'", "Cache-Control": "max-age=60"}
    return Response(b"", headers=policy)


APP = Starlette(
    routes=[
        Route("/fail/{how}", fail),
        Route("/read", read, methods=["POST"]),
        Route("/break", break_off),
        Route("/afterwards", fail_afterwards),
        Route("/own", own),
    ],
    exception_handlers=ERROR_HANDLERS,
)


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(Edge(APP)), base_url="http://hub") as client:
        yield client


@pytest.fixture
def logged() -> Iterator[list[EventDict]]:
    with capture_logs() as logged:
        yield logged


@pytest.mark.parametrize("how", ["defect", "data", "blank"])
async def test_a_defect_is_500_and_one_line_in_the_log(
    client: AsyncClient, logged: list[EventDict], how: str
) -> None:
    response = await client.get(f"/fail/{how}")
    refused(response, 500, "INTERNAL_SERVER_ERROR")
    assert SECRET not in response.text
    assert "Traceback" not in response.text
    [line] = logged
    assert (line["event"], line["log_level"]) == ("request failed", "error")
    assert line["exc_info"] is RAISED[how]
    assert (line["method"], line["route"], line["status"]) == ("GET", "/fail/{how}", 500)


@pytest.mark.parametrize(
    ("how", "code"),
    [("held", "BUSY"), ("race", "BUSY"), ("busy", "BUSY"), ("away", "UNAVAILABLE")],
)
async def test_what_may_be_tried_again_is_503(
    client: AsyncClient, logged: list[EventDict], how: str, code: str
) -> None:
    refused(await client.get(f"/fail/{how}"), 503, code)
    [line] = logged
    assert (line["event"], line["log_level"], line["code"]) == ("request failed", "warning", code)


async def test_a_refused_request_is_told_when_to_come_back(client: AsyncClient) -> None:
    response = await client.get("/fail/wait")
    assert (response.status_code, response.headers["Retry-After"]) == (429, "2")


async def test_an_answer_that_breaks_off_ends_the_connection(
    client: AsyncClient, logged: list[EventDict]
) -> None:
    """Its status was sent already; swallowed, the defect would look like the whole answer."""
    with pytest.raises(RuntimeError):
        await client.get("/break")
    assert logged == []  # uvicorn logs what it is given


async def test_a_defect_after_a_good_answer_is_not_swallowed(client: AsyncClient) -> None:
    with pytest.raises(RuntimeError):  # uvicorn logs what it is given
        await client.get("/afterwards")


async def test_what_uvicorn_logs_has_the_request_id() -> None:
    said: list[tuple[str, object]] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append((record.getMessage(), get_contextvars().get("request_id")))

    ear = Ear(logging.ERROR)
    logging.getLogger("uvicorn.error").addHandler(ear)
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(Edge(APP), log_config=None, lifespan="off"))
    serving = asyncio.create_task(server._serve([listening]))  # without its signal handlers
    try:
        async with AsyncClient(base_url=url, trust_env=False, timeout=60) as client:
            with pytest.raises(RemoteProtocolError):
                await client.get("/break", headers={"X-Request-Id": "broken-1"})
            refused(await client.get("/fail/defect"), 500, "INTERNAL_SERVER_ERROR")
    finally:
        server.should_exit = True
        await serving
        logging.getLogger("uvicorn.error").removeHandler(ear)
        listening.close()
    [(message, request_id)] = said
    assert message.startswith("Exception in ASGI application")
    assert request_id == "broken-1"


async def test_what_the_client_writes_stays_out_of_the_log(
    client: AsyncClient, logged: list[EventDict]
) -> None:
    await client.get("/nowhere/ada@example.org?password=horse", headers={"X-Request-Id": "r-1"})
    await client.post("/read", content=b"ada@example.org")
    assert [(line["route"], line["code"]) for line in logged] == [
        (None, "NOT_FOUND"),
        ("/read", "BAD_REQUEST"),
    ]
    assert "ada" not in str(logged)
    assert "horse" not in str(logged)


async def test_what_goes_well_is_not_logged(client: AsyncClient, logged: list[EventDict]) -> None:
    assert (await client.post("/read", content=b"[]")).status_code == 200
    assert logged == []


async def test_a_route_may_set_its_own_policy(client: AsyncClient) -> None:
    response = await client.get("/own")
    assert response.headers.get_list("Content-Security-Policy") == ["default-src 'self'"]
    assert response.headers.get_list("Cache-Control") == ["max-age=60"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
