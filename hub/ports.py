"""What the hub needs from outside: log and bus (`storage`), wires, tokens and spans (`api`)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol, Self, TypeAlias

from hub.budget.records import BudgetId, UserId
from hub.budget.state import BudgetState, Want
from hub.frames.events import Frame

NodeId: TypeAlias = bytes  # one process, for as long as it runs


class Transaction(Protocol):
    """One READ COMMITTED transaction: lock, then load, then write (design 4)."""

    async def lock(self, budget_ids: Collection[BudgetId], *, wait: bool) -> set[BudgetId]:
        """Lock the budgets' rows in id order; return those that another transaction holds.

        With `wait` there are none: raises `Held` after the lock timeout. What does not exist is not
        locked; if it turns up in `load`, another node has just created it.
        """
        ...

    async def load(self, want: Want) -> dict[BudgetId, BudgetState]:
        """A state for every wanted budget, read by statements begun after `lock` returned: read in
        the same statement, records would be older than the lock, and a stale edit would win.

        Raises `LostRace` for a budget that exists and was not locked."""
        ...

    async def write(self, states: Sequence[BudgetState]) -> None:
        """Write what was applied to the states. Raises `LostRace` if a new budget's id was taken
        meanwhile."""
        ...


class LogEvent(NamedTuple):
    """A row of the log as a reader needs it. `event` is the stream event, JSON text;
    `written_at_ms` is by the database's clock (epoch milliseconds)."""

    sequence: int
    event_type: str
    record_id: str
    event: bytes
    written_at_ms: int | None = None


class Page(NamedTuple):
    """Some of a budget's log, and how the budget stood in the same instant.

    `member` is None for someone who never took part, False for a former participant.
    """

    head: int
    deleted: bool
    member: bool | None
    events: Sequence[LogEvent]


class EventLog(Protocol):
    """The log in Postgres. All methods raise `Disconnected` while it is out of reach, all that read
    `Held` where no turn comes; `StatementFailed` is a defect."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Commit on leaving, roll back on an exception. Raises `LostRace`, `Held`, `BadData`,
        `StatementFailed` or `Disconnected`; the last may leave a commit's outcome unknown."""
        ...

    async def page(
        self, budget_id: BudgetId, user_id: UserId | None, after: int, up_to: int, limit: int
    ) -> Page | None:
        """At most `limit` events with `after` < sequence <= `up_to`; None if there is no budget.

        Membership is checked in the same statement: someone who does not take part at that
        instant gets no events (P9). `user_id` None reads on behalf of the feed itself.
        """
        ...

    async def behind(self, positions: Mapping[BudgetId, int]) -> dict[BudgetId, int]:
        """The heads of those budgets whose log is longer than the given position."""
        ...

    async def recent(self, seconds: float) -> dict[BudgetId, int]:
        """The budgets with events accepted in the last `seconds`, by the database's clock, and the
        highest sequence among these."""
        ...


class Bus(Protocol):
    """Carries frames between nodes. Never the truth: anything may be lost (P7)."""

    @property
    def connected(self) -> bool: ...

    def publish(self, frames: Sequence[Frame]) -> None:
        """Hand frames over without waiting; dropped if the bus is away or its buffer full."""
        ...

    def announce(self, budget_id: BudgetId, here: Mapping[UserId, int], *, asks: bool) -> None:
        """Tell the other nodes which users are here, and ask for the same; dropped likewise."""
        ...

    async def subscribe(self, budget_id: BudgetId) -> None:
        """Begin to receive the budget's frames; returns once the bus has confirmed, or at once
        while the bus is away (it subscribes when it is back, and the sweeper covers until then)."""
        ...

    def unsubscribe(self, budget_id: BudgetId) -> None: ...


class BusListener(Protocol):
    """What a bus tells the feeds."""

    def received(self, frame: Frame) -> None:
        """A frame of another node."""
        ...

    def attending(
        self, budget_id: BudgetId, node_id: NodeId, users: Mapping[UserId, int], *, asks: bool
    ) -> None:
        """Another node tells which users it has, and may ask for the same."""
        ...

    def silent(self, node_id: NodeId) -> None:
        """Nothing was heard of that node for so long that it counts as gone."""
        ...

    async def restored(self) -> None:
        """Every channel is subscribed (again): what was published before may be lost."""
        ...


class Span(Protocol):
    """One step on the way of an event, from its beginning to `end`; as a context it ends itself."""

    @property
    def context(self) -> str | None:
        """What names it to other nodes and spans: a W3C `traceparent`; None if nobody traces it."""
        ...

    def link(self, context: str) -> None:
        """That other span has to do with this one."""
        ...

    def end(self, failure: str | None = None) -> None:
        """It is over, or failed for that reason: a word of ours, never what a client wrote. It ends
        once; what comes later counts no more."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...


class Tracer(Protocol):
    """Keeps a record of spans. It never waits, and drops what is too much."""

    def begin(
        self,
        name: str,
        *,
        parent: str | None = None,
        links: Sequence[str] = (),
        attributes: Mapping[str, str | int] = {},
    ) -> Span | None:
        """A new span under `parent`, or the first of a new trace; None where it is not to be
        recorded."""
        ...


class Wire(Protocol):
    """One connection, as a session sees it. It calls the session's `received`, `full`, `drained`
    and `lost`."""

    @property
    def full(self) -> bool:
        """Whether more was written than the peer takes at the moment."""
        ...

    def write(self, data: bytes) -> None:
        """Send ready-made text frames (`hub.frames.framed`), in order, without waiting; nothing
        happens on a closed wire."""
        ...

    def write_soon(self, data: bytes) -> None:
        """The same at the end of this turn of the loop, or before anything that `write` or `close`
        sends: many small frames leave as one. What `write_open` sends may overtake it."""
        ...

    @property
    def write_open(self) -> Callable[[bytes], None]:
        """The transport's own `write`, unchecked. Valid until `Session.lost`."""
        ...

    def pause_reading(self) -> None:
        """Stop calling `received`, even with data that was read before."""
        ...

    def resume_reading(self) -> None: ...

    def signed_in(self, user_id: UserId) -> None:
        """The user of the peer is known, and may send more and larger frames than a stranger. What
        they do not read counts as theirs."""
        ...

    def close(self, code: int, reason: str = "") -> None:
        """Close after what was written; further writes are ignored."""
        ...


class Principal(NamedTuple):
    """A signed-in user, by one token. What it says itself is in epoch milliseconds: when it
    expires, as its client is told, and when it was issued. Here it counts until `ends_at_s` of the
    steady clock, which was as far away as its end when it was verified: a clock that is set neither
    ends nor prolongs it."""

    user_id: UserId
    expires_at_ms: int
    issued_at_ms: int
    ends_at_s: float


class Authenticator(Protocol):
    """Turns a bearer token into its user."""

    async def authenticate(self, token: str, address: str = "") -> Principal:
        """The token's user. `token` may be any text a client can send; `address` is where it comes
        from: while nobody knows whose it is, callers take turns by that.

        Raises `HubError`: `NOT_LOGGED_IN` for whatever is not a token of ours that counts now;
        `UNAVAILABLE` or `BUSY` while that cannot be told, and the same token may be good later.
        """
        ...
