"""Every error a client can meet, in one table: code, HTTP status, close code, retryable, meaning.

The code travels as `message` (the name legacy clients read). `retryable` says *undecided*: the same
event may be sent again unchanged (promise P4). Expected outcomes of an event are verdicts, never
exceptions; `HubError` is for what a caller cannot go on from.
"""

from enum import Enum, unique
from typing import Annotated, NamedTuple

from pydantic import Field
from typing_extensions import TypeAliasType, TypedDict


class _Row(NamedTuple):
    status: int
    close: int | None
    retryable: bool
    meaning: str


@unique
class Code(Enum):
    """The stable codes. `Code.X.name` is the text on the wire."""

    # What was sent is wrong.
    BAD_REQUEST = _Row(400, None, False, "The request is not of the documented shape.")
    BAD_FRAME = _Row(400, 4400, False, "This is not a frame of budget.sync.v2.")
    INVALID_EVENT = _Row(400, None, False, "The event is not of the documented shape.")
    PAYLOAD_TOO_LARGE = _Row(
        413, 1009, False, "A body or frame is at most 256 KiB; 16 KiB before signing in."
    )
    HEAD_TOO_LARGE = _Row(431, None, False, "A request's head is at most 32 KiB and 128 fields.")
    PHOTO_TOO_BIG = _Row(400, None, False, "A photo is at most 5 MiB.")
    PHOTO_NOT_VALID = _Row(
        400, None, False, "What was uploaded is not a photo of the size and type announced."
    )
    NOT_FOUND = _Row(404, None, False, "There is no such path.")
    METHOD_NOT_ALLOWED = _Row(405, None, False, "The path does not know this method.")

    # Who sent it.
    NOT_LOGGED_IN = _Row(401, 4401, False, "The token is missing, bad or expired.")
    BAD_CREDENTIALS = _Row(401, None, False, "E-mail or password is wrong.")
    EMAIL_TAKEN = _Row(409, None, False, "An account with this e-mail exists.")
    NOT_PARTICIPANT = _Row(403, None, False, "You no longer take part in this budget.")
    NOT_OWNER = _Row(403, None, False, "Only the owner of the budget may do this.")
    QUOTA_EXCEEDED = _Row(
        403, 4429, False, "A user, an address or a budget has no more room for this."
    )

    ORIGIN_NOT_ALLOWED = _Row(403, None, False, "This web origin may not connect.")
    INCORRECT_API_KEY = _Row(403, None, False, "The x-api-key header is missing or wrong.")
    UPLOAD_NOT_SIGNED = _Row(
        403, None, False, "The upload URL has run out, or was not made for this upload."
    )

    # What it names.
    BUDGET_NOT_EXISTS = _Row(404, None, False, "There is no such budget.")
    CATEGORY_NOT_EXISTS = _Row(404, None, False, "The budget has no such category.")
    EXPENSE_NOT_EXISTS = _Row(404, None, False, "The budget has no such expense.")
    USER_NOT_FOUND = _Row(404, None, False, "There is no such user.")
    PARTICIPANT_NOT_EXISTS = _Row(404, None, False, "The budget has no such participant.")
    PHOTO_NOT_FOUND = _Row(404, None, False, "There is no such photo, or nothing was uploaded.")
    BUDGET_EXISTS = _Row(409, None, False, "This budget id is taken.")
    CATEGORY_EXISTS = _Row(409, None, False, "This category id is taken.")
    EXPENSE_EXISTS = _Row(409, None, False, "This expense id is taken.")
    ALREADY_PARTICIPANT = _Row(409, None, False, "The user takes part in this budget already.")
    ALREADY_LEFT = _Row(409, None, False, "The user no longer takes part in this budget.")
    PARTICIPANT_LIMIT_REACHED = _Row(403, None, False, "The budget has no room for another one.")
    OWNER_CANNOT_LEAVE = _Row(409, None, False, "The owner may not leave while others take part.")
    EVENT_ID_REUSED = _Row(409, None, False, "This eventId names another event.")
    INVITE_NOT_VALID = _Row(410, None, False, "The invite has run out or was revoked.")
    INVITE_NOT_EXISTS = _Row(404, None, False, "The budget has no such invite.")
    BUDGET_DELETED = _Row(404, None, False, "The budget was deleted.")
    CURSOR_AHEAD = _Row(409, None, False, "The cursor is ahead of the budget: take a snapshot.")

    # Not now.
    REQUEST_TIMEOUT = _Row(408, None, True, "The request did not arrive in time: send it again.")
    RATE_LIMITED = _Row(429, 4429, True, "Too much at once: slow down.")
    BUSY = _Row(503, 1011, True, "The hub has more work than it can queue: send it again.")
    UNAVAILABLE = _Row(503, 1011, True, "What this needs is out of reach: send it again.")
    PHOTOS_UNAVAILABLE = _Row(
        503, None, True, "The store of photos is out of reach: send it again."
    )
    INTERNAL_SERVER_ERROR = _Row(500, 1011, False, "The hub failed.")

    @property
    def status(self) -> int:
        """HTTP status."""
        return self.value.status

    @property
    def close(self) -> int | None:
        """WebSocket close code, where the connection ends with the error."""
        return self.value.close

    @property
    def retryable(self) -> bool:
        return self.value.retryable

    @property
    def meaning(self) -> str:
        """For people."""
        return self.value.meaning

    @classmethod
    def table(cls) -> str:
        """All codes as a Markdown table, as hub/protocol.md shows them."""
        lines = ["| code | status | close | retryable | meaning |", "|---|---|---|---|---|"]
        for code in cls:
            retryable = "yes" if code.retryable else ""
            close = code.close or ""
            lines.append(
                f"| `{code.name}` | {code.status} | {close} | {retryable} | {code.meaning} |"
            )
        return "\n".join(lines) + "\n"

    def to_json(self, detail: str | None = None) -> "Error":
        """The `error` object of design 3.2 to 3.4, without the request id."""
        return {
            "statusCode": self.status,
            "message": self.name,
            "detail": detail or self.meaning,
            "retryable": self.retryable,
        }


ErrorCode = TypeAliasType(
    "ErrorCode",
    Annotated[
        str,
        Field(
            json_schema_extra={"x-extensible-enum": [code.name for code in Code]},
            description="The stable code, for programs. More may come: what to do with one that is"
            " not known, `statusCode` and `retryable` say.",
        ),
    ],
)


class Error(TypedDict):
    """Why an event was rejected."""

    statusCode: Annotated[int, Field(ge=400, le=599, description="As HTTP has it")]
    message: ErrorCode
    detail: Annotated[str, Field(description="For people; may change")]
    retryable: Annotated[
        bool, Field(description="True: undecided, the same may be sent again unchanged")
    ]


class HubError(Exception):
    """A request that cannot be served; `code` says why, `detail` is for people, `retry_after_s`
    when it could be, where that is known."""

    def __init__(
        self, code: Code, detail: str | None = None, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(code.name if detail is None else f"{code.name}: {detail}")
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s


class StorageError(Exception):
    """What storage tells, mostly as one of those below. Vendor errors end there (design 7)."""


class LostRace(StorageError):
    """Another transaction was first; roll back and decide afresh. Never a verdict by itself."""


class Held(StorageError):
    """A budget row stayed locked by another transaction for longer than the lock timeout, or no
    turn to read came."""


class BadData(StorageError):
    """The database refused a value: one event of the batch is poison."""


class Disconnected(StorageError):
    """The connection was lost or refused; if it was lost in COMMIT the outcome is unknown."""


class ReadOnly(Disconnected):
    """The server takes no writes: a standby, or the primary before a failover, or one that somebody
    made read-only. The connection stays so, and is of no use to anybody."""


class StatementFailed(StorageError):
    """Postgres refused a statement for a reason nobody foresaw: a defect, of ours or of the
    database. It decides nothing about an event, and is not answered as what will pass."""

    def __init__(self, sqlstate: str, said: str) -> None:
        super().__init__(said)
        self.sqlstate = sqlstate


class StoreDown(StorageError):
    """The photo store did not do what was asked; the message, for the log, says why."""
