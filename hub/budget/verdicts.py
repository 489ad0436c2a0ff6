"""Verdicts: what became of a submitted event, the same object on every transport (design 3.2)."""

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import orjson

from hub.budget.shapes import verdicts as shapes
from hub.errors import Code
from hub.json_text import written

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

    def to_json(self, *, legacy_event: bool = False) -> shapes.Verdict:
        """For orjson. `legacy_event` repeats the type under `event` (REST, design 3.4)."""
        if self.status == "rejected":
            verdict: shapes.Verdict = self._rejected()
        elif self.status == "conflict":
            verdict = self._conflict()
        else:
            verdict = self._accepted()
        if not legacy_event:
            verdict.pop("event", None)
        return verdict

    def _accepted(self) -> shapes.Accepted:
        assert self.event_type and self.budget_id and self.record_id and self.sequence is not None
        accepted: shapes.Accepted = {
            "eventId": self.event_id,
            "eventType": self.event_type,
            "event": self.event_type,
            "budgetId": self.budget_id,
            "recordId": self.record_id,
            "status": "accepted",
            "sequence": self.sequence,
            "version": self.version or 0,
            "record": written(self.record or b"null"),
        }
        if self.version is None:  # of a membership event, which the server made: no client gets it
            del accepted["version"], accepted["record"]
        if self.duplicate:
            accepted["duplicate"] = True
        return accepted

    def _conflict(self) -> shapes.Conflict:
        assert self.event_type and self.budget_id and self.record_id and self.record is not None
        return {
            "eventId": self.event_id,
            "eventType": self.event_type,
            "event": self.event_type,
            "budgetId": self.budget_id,
            "recordId": self.record_id,
            "status": "conflict",
            "currentRecord": written(self.record),
        }

    def _rejected(self) -> shapes.Rejected:
        assert self.error is not None
        named: shapes.Named = {}
        if self.event_type is not None:
            named["eventType"] = named["event"] = self.event_type
        if self.budget_id is not None:
            named["budgetId"] = self.budget_id
        if self.record_id is not None:
            named["recordId"] = self.record_id
        error = self.error.to_json(self.detail)
        return {"eventId": self.event_id, **named, "status": "rejected", "error": error}
