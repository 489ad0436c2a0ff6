"""The names of uvicorn and websockets that `api/http/protocol.py`, `api/sync/` and
`api/process/server.py` use, and that a new version may change.

If a test fails after an upgrade, read the change in the library and adapt these modules."""

import inspect
from importlib.metadata import requires, version

import pytest
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import Server, ServerState
from websockets.frames import Close, Frame
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

PINNED = {"httptools": "0.9.0", "uvicorn": "0.54.0", "websockets": "17.4"}


@pytest.mark.parametrize("library", PINNED)
def test_exactly_this_version(library: str) -> None:
    """The project pins it too, so that no installation gets another version."""
    assert version(library) == PINNED[library]
    required = [each.replace(" ", "") for each in requires("budget-hub") or ()]
    assert f"{library}=={PINNED[library]}" in required


# uvicorn documents the class of its HTTP protocol in its source only.


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (HttpToolsProtocol.connection_made, ["self", "transport"]),
        (HttpToolsProtocol.connection_lost, ["self", "exc"]),
        (HttpToolsProtocol.data_received, ["self", "data"]),
        (HttpToolsProtocol._unset_keepalive_if_required, ["self"]),
        (HttpToolsProtocol._should_upgrade, ["self"]),
        (HttpToolsProtocol.handle_websocket_upgrade, ["self"]),
        (HttpToolsProtocol.on_message_begin, ["self"]),
        (HttpToolsProtocol.on_url, ["self", "url"]),
        (HttpToolsProtocol.on_header, ["self", "name", "value"]),
        (HttpToolsProtocol.on_headers_complete, ["self"]),
        (HttpToolsProtocol.on_message_complete, ["self"]),
        (HttpToolsProtocol.on_response_complete, ["self"]),
        (HttpToolsProtocol._start_asgi_task, ["self", "cycle", "app"]),
        (HttpToolsProtocol.shutdown, ["self"]),
        (HttpToolsProtocol.timeout_keep_alive_handler, ["self"]),
        (HttpToolsProtocol.pause_writing, ["self"]),
        (HttpToolsProtocol.resume_writing, ["self"]),
        (Server.startup, ["self", "sockets"]),
        (Server.shutdown, ["self", "sockets"]),
        (Server.handle_exit, ["self", "sig", "frame"]),
        (ServerProtocol.accept, ["self", "request"]),
        (ServerProtocol.receive_data, ["self", "data"]),
        (ServerProtocol.events_received, ["self"]),
        (Close.parse, ["data"]),
        (Close.serialize, ["self"]),
        (Frame.serialize, ["self", "mask", "extensions"]),
        (Response.serialize, ["self"]),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_functions_take_what_they_took(function: object, parameters: list[str]) -> None:
    assert callable(function)
    assert list(inspect.signature(function).parameters) == parameters


@pytest.mark.parametrize(
    ("made_in", "names"),
    [
        (
            HttpToolsProtocol.__init__,
            [
                "cycle",
                "flow",
                "headers",
                "loop",
                "parser",
                "pipeline",
                "scope",
                "timeout_keep_alive",
                "timeout_keep_alive_task",
                "transport",
            ],
        ),
        (
            RequestResponseCycle.__init__,
            [
                "disconnected",
                "keep_alive",
                "message_event",
                "more_body",
                "response_complete",
                "response_started",
            ],
        ),
        (ServerState.__init__, ["connections", "tasks"]),
        (ServerProtocol.__init__, ["accept_called"]),
    ],
    ids=["http", "cycle", "state", "websockets"],
)
def test_attributes_are_there(made_in: object, names: list[str]) -> None:
    source = inspect.getsource(made_in)  # type: ignore[arg-type]
    assert [name for name in names if f"self.{name}" not in source] == []


def test_uvicorn_parses_and_upgrades_as_our_copy_does() -> None:
    """`HttpProtocol._parse` stands in for it."""
    source = inspect.getsource(HttpToolsProtocol.data_received)
    for line in (
        "self._unset_keepalive_if_required()",
        "self.parser.feed_data(data)",
        "except httptools.HttpParserError:",
        "except httptools.HttpParserUpgrade:",
        "if self._should_upgrade():",
        "self.handle_websocket_upgrade()",
    ):
        assert line in source
    begun = inspect.getsource(HttpToolsProtocol.on_message_begin)
    assert "self.url" in begun
    assert '"state": self.app_state.copy()' in begun
    made = inspect.getsource(HttpToolsProtocol.__init__)
    assert "set_dangerous_leniencies(lenient_data_after_close=True)" in made


def test_uvicorn_makes_our_socket_with_three_arguments_and_gives_it_the_whole_head() -> None:
    source = inspect.getsource(HttpToolsProtocol.handle_websocket_upgrade)
    for line in (
        "config=self.config,",
        "server_state=self.server_state,",
        "app_state=self.app_state,",
        "protocol.connection_made(self.transport)",
        'protocol.data_received(b"".join(output))',
        "self.transport.set_protocol(protocol)",
    ):
        assert line in source
    assert "connection.shutdown()" in inspect.getsource(Server.shutdown)
    assert "self.ws_protocol_class = self.ws" in inspect.getsource(Config.load)


def test_a_request_of_websockets_has_path_and_headers() -> None:
    assert {"path", "headers", "method", "protocol"} <= set(Request.__dataclass_fields__)
    assert {"status_code", "headers"} <= set(Response.__dataclass_fields__)
