"""Verdicts: what became of a submitted event, the same object on every transport (design 3.2)."""

from typing import Any, Literal, NamedTuple, TypeAlias

import orjson

from hub.errors import Code

Status: TypeAlias = Literal["accepted", "conflict", "rejected"]


class Verdict(NamedTuple):
    """`record` is JSON text: the record after an accepted change, the current one of a conflict."""

    event_id: str
    event_type: str | None
    budget_id: str | None
    record_id: str | None
    status: Status
    sequence: int | None = None
    version: int | None = None
    record: bytes | None = None
    duplicate: bool = False
    error: Code | None = None
    detail: str | None = None

    @property
    def settled(self) -> bool:
        """Whether a `stop` batch goes on after this verdict (a replayed acceptance counts)."""
        return self.status == "accepted"

    def encode(self) -> bytes:
        """As JSON text for the socket, the commonest case put together by hand: the same text as
        `orjson.dumps(verdict.to_wire())` gives."""
        if self.record is None or self.version is None or self.sequence is None or self.duplicate:
            return orjson.dumps(self.to_wire())
        assert self.event_type and self.budget_id and self.record_id
        return (
            b'{"eventId":"%b","eventType":"%b","budgetId":"%b","recordId":"%b",'
            b'"status":"accepted","sequence":%d,"version":%d,"record":%b}'
        ) % (
            self.event_id.encode(),
            self.event_type.encode(),
            self.budget_id.encode(),
            self.record_id.encode(),
            self.sequence,
            self.version,
            self.record,
        )

    def to_wire(self, *, legacy_event: bool = False) -> dict[str, Any]:
        """For orjson. `legacy_event` repeats the type under `event` (REST, design 3.4)."""
        wire: dict[str, Any] = {"eventId": self.event_id}
        if self.event_type is not None:
            wire["eventType"] = self.event_type
            if legacy_event:
                wire["event"] = self.event_type
        if self.budget_id is not None:
            wire["budgetId"] = self.budget_id
        if self.record_id is not None:
            wire["recordId"] = self.record_id
        wire["status"] = self.status
        if self.status == "accepted":
            wire["sequence"] = self.sequence
            if self.version is not None:
                wire["version"] = self.version
            if self.record is not None:
                wire["record"] = orjson.Fragment(self.record)
            if self.duplicate:
                wire["duplicate"] = True
        elif self.status == "conflict":
            assert self.record is not None
            wire["currentRecord"] = orjson.Fragment(self.record)
        else:
            assert self.error is not None
            wire["error"] = self.error.to_wire(self.detail)
        return wire
