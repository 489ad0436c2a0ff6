"""What a client may send: pydantic models told apart by `type`; unknown fields are ignored."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.alias_generators import to_camel

from hub import json_text
from hub.budget.events import EVENTS_PER_FRAME_MAX, describe
from hub.budget.scalars import Uuid, Whole

RequestId: TypeAlias = int | str | None


class _ClientFrame(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, extra="ignore", frozen=True, hide_input_in_errors=True
    )
    id: Annotated[
        Whole | Annotated[str, Field(strict=True, max_length=64)] | None,
        Field(union_mode="left_to_right"),
    ] = None


class Auth(_ClientFrame):
    """First frame of a connection without a token in its headers; later, renews the session."""

    type: Literal["auth"]
    token: Annotated[str, Field(strict=True, min_length=1, max_length=8192)]


class Subscribe(_ClientFrame):
    """Follow a budget. `key` is the last sequence the client has; 0 is from the start."""

    type: Literal["subscribe"]
    budget_id: Uuid
    key: Whole = 0


class Unsubscribe(_ClientFrame):
    """No longer follow a budget."""

    type: Literal["unsubscribe"]
    budget_id: Uuid


# Something to search for that a client chose: no name, address or text of anybody fits in.
CORRELATION_ID = r"^[A-Za-z0-9._-]{1,64}$"


class Events(_ClientFrame):
    """Submit 1 to 100 events; each is checked on its own (`hub.budget.events.parse_batch`)."""

    type: Literal["events"]
    events: list[Any]
    mode: Literal["stop", "each"] = "stop"
    correlation_id: Annotated[
        Annotated[str, StringConstraints(strict=True, pattern=CORRELATION_ID)] | None,
        Field(description="Goes with the events to every log line about them and to who gets them"),
    ] = None


class Ping(_ClientFrame):
    """Ask for a `pong`."""

    type: Literal["ping"]


ClientFrame: TypeAlias = Auth | Subscribe | Unsubscribe | Events | Ping
_MODELS: Mapping[str, type[ClientFrame]] = {
    "auth": Auth,
    "subscribe": Subscribe,
    "unsubscribe": Unsubscribe,
    "events": Events,
    "ping": Ping,
}


class BadFrame(Exception):
    """What arrived is no frame (`fatal`: the connection ends with 4400), or a frame of a known type
    with wrong fields (an `error` frame answers it). It may name `events` all the same: so many."""

    def __init__(
        self, detail: str, *, request_id: RequestId = None, fatal: bool, events: int = 0
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.request_id = request_id
        self.fatal = fatal
        self.events = events


def parse(text: bytes | str) -> ClientFrame:
    """One client frame. Raises `BadFrame`."""
    try:
        raw = json_text.decode(text)
    except ValueError:
        raise BadFrame("not JSON", fatal=True) from None
    if not isinstance(raw, dict):
        raise BadFrame("not an object", fatal=True)
    kind = raw.get("type")
    model = _MODELS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise BadFrame("unknown type", request_id=_request_id(raw), fatal=True)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        named = raw.get("events")
        raise BadFrame(
            describe(error),
            request_id=_request_id(raw),
            fatal=False,
            events=min(len(named), EVENTS_PER_FRAME_MAX) if isinstance(named, list) else 0,
        ) from None


def _request_id(raw: Mapping[str, object]) -> RequestId:
    value = raw.get("id")
    if (type(value) is int and 0 <= value <= 2**53 - 1) or (
        isinstance(value, str) and len(value) <= 64 and value.isprintable()
    ):
        return value
    return None
