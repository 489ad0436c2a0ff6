"""The events that a client may send: the shapes that check them, as one type."""

from typing import Annotated, Any, Union

from pydantic import Field
from typing_extensions import TypeAliasType

from hub.budget.events import CLIENT_EVENTS

# mypy cannot know a union made of values.
_Any: Any = Union[tuple(shape.schema for shape in CLIENT_EVENTS.values())]  # noqa: UP007

ClientEvent = TypeAliasType("ClientEvent", Annotated[_Any, Field(discriminator="eventType")])
