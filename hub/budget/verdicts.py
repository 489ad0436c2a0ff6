"""Verdicts: what became of a submitted event, the same object on every transport (design 3.2)."""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import orjson

from hub.errors import Code

if TYPE_CHECKING:
    from hub.budget.events import Decidable, Invalid

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

    @classmethod
    def of(
        cls,
        event: "Decidable | Invalid",
        status: Status,
        *,
        record: bytes | None = None,
        error: Code | None = None,
        detail: str | None = None,
    ) -> "Verdict":
        """Of an event that is not accepted."""
        ids = event.event_id, event.event_type, event.budget_id, event.record_id
        return cls(*ids, status, record=record, error=error, detail=detail)

    @property
    def accepted(self) -> bool:
        """Whether a `stop` batch goes on after this verdict (a replayed acceptance counts)."""
        return self.status == "accepted"

    def encode(self) -> bytes:
        """As JSON text for the socket, the commonest case put together by hand: the same text as
        `orjson.dumps(verdict.to_json())` gives."""
        if self.record is None or self.version is None or self.sequence is None or self.duplicate:
            return orjson.dumps(self.to_json())
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

    def to_json(self, *, legacy_event: bool = False) -> dict[str, Any]:
        """For orjson. `legacy_event` repeats the type under `event` (REST, design 3.4)."""
        json: dict[str, Any] = {"eventId": self.event_id}
        if self.event_type is not None:
            json["eventType"] = self.event_type
            if legacy_event:
                json["event"] = self.event_type
        if self.budget_id is not None:
            json["budgetId"] = self.budget_id
        if self.record_id is not None:
            json["recordId"] = self.record_id
        json["status"] = self.status
        if self.status == "accepted":
            json["sequence"] = self.sequence
            if self.version is not None:
                json["version"] = self.version
            if self.record is not None:
                json["record"] = orjson.Fragment(self.record)
            if self.duplicate:
                json["duplicate"] = True
        elif self.status == "conflict":
            assert self.record is not None
            json["currentRecord"] = orjson.Fragment(self.record)
        else:
            assert self.error is not None
            json["error"] = self.error.to_json(self.detail)
        return json
