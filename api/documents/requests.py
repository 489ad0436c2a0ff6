"""Requests whose events the hub checks one by one, with the events spelled out."""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from hub.budget.events import (
    CLIENT_EVENTS,
    EVENTS_PER_FRAME_MAX,
    EVENTS_PER_REQUEST_MAX,
    ClientEvent,
)
from hub.budget.scalars import Uuid
from hub.budget.shapes.records import shape
from hub.frames import client


class Events(client.Events):
    """Submit 1 to 100 events. `mode` says whether the first that is not accepted ends the batch."""

    events: Annotated[list[ClientEvent], Field(min_length=1, max_length=EVENTS_PER_FRAME_MAX)]


class EventsRequest(BaseModel):
    """Taken in this order."""

    events: Annotated[list[ClientEvent], Field(min_length=1, max_length=EVENTS_PER_REQUEST_MAX)]


_created: dict[str, Any] = CLIENT_EVENTS["budget.create"].schema.__annotations__
BudgetRequest = shape(
    "BudgetRequest",
    "A `budget.create` event; `id` is the new budget's.",
    {"id": Uuid, **{n: t for n, t in _created.items() if n not in ("eventType", "budgetId")}},
)
