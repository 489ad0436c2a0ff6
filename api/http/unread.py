"""How many bytes were answered and not taken yet, and what follows when that is too much.

| of                         | at most           | what is beyond it meets                         |
|----------------------------|-------------------|-------------------------------------------------|
| one connection             | its high-water    | is not made: a stream and a subscription lag,   |
|                            | mark, one answer  | the next response waits, a socket is not read   |
| one user, in this process  | `USER_BYTES_MAX`, | a further request gets 429 `RATE_LIMITED` and   |
|                            | one answer        | does nothing; a GET also once it has its        |
|                            |                   | answer, since many may be under way             |
| everybody, in this process | `ALL_BYTES_MAX`   | of the user who has most, the connection that   |
|                            |                   | has most is dropped, but not the newcomer       |

An answer counts from when its handler holds it, whole, to when the kernel has taken it. What is
below the high-water mark of a transport is not counted; the number of connections bounds it. What
nobody signed in for (documents, photos) counts as one user's.

The caller says when a transport begins and ceases to be full. In between, its buffer is measured
when it matters.
"""

from collections import Counter
from collections.abc import Callable

import structlog

from hub.budget.records import UserId
from hub.errors import Code, HubError

USER_BYTES_MAX = 16 * 2**20
ALL_BYTES_MAX = 96 * 2**20
RETRY_S = 5.0
_DETAIL = "too much was answered and not read: read it first"

_log = structlog.get_logger()


class Unread:
    """Of one process."""

    def __init__(
        self, user_bytes_max: int = USER_BYTES_MAX, all_bytes_max: int = ALL_BYTES_MAX
    ) -> None:
        self._user_bytes_max = user_bytes_max
        self._all_bytes_max = all_bytes_max
        self._backlogs: dict[UserId | None, dict[Backlog, None]] = {}  # those that are not empty
        self._bytes: Counter[UserId | None] = Counter()
        self.bytes = 0  # of everybody, as last measured

    def backlog(self, unsent: Callable[[], int], drop: Callable[[], object]) -> "Backlog":
        """Of a new connection. `unsent` measures the buffer of its transport, `drop` ends it in
        the next turn of the loop: it is called while somebody writes."""
        return Backlog(self, unsent, drop)

    def of(self, user_id: UserId | None) -> int:
        """How many bytes of the user's, now."""
        for backlog in list(self._backlogs.get(user_id, ())):
            backlog.measure()
        return self._bytes[user_id]

    def check(self, user_id: UserId) -> None:
        """Raises `HubError(RATE_LIMITED)` for a user who may have no further answer."""
        if self._bytes[user_id] < self._user_bytes_max:  # what is written later is told at once
            return
        if self.of(user_id) >= self._user_bytes_max:
            raise HubError(Code.RATE_LIMITED, _DETAIL, retry_after_s=RETRY_S)

    def count(self, backlog: "Backlog", more: int) -> None:
        """A backlog tells by how much it has grown, or shrunk."""
        user_id = backlog.user_id
        self.bytes += more
        self._bytes[user_id] += more
        if backlog.bytes:
            self._backlogs.setdefault(user_id, {})[backlog] = None
        else:
            self._forget(backlog)
        if more > 0 and self.bytes > self._all_bytes_max:
            self._shed(backlog)

    def _forget(self, backlog: "Backlog") -> None:
        of_user = self._backlogs.get(backlog.user_id, {})
        of_user.pop(backlog, None)
        if not of_user:
            self._backlogs.pop(backlog.user_id, None)
            del self._bytes[backlog.user_id]

    def _shed(self, newest: "Backlog") -> None:
        """Drop what is too much. The newest comes last: its peer may be about to read."""
        for user_id in list(self._backlogs):
            self.of(user_id)
        while self.bytes > self._all_bytes_max:
            most = self._most_but(newest)
            _log.warning("connection dropped: unread", user_id=most.user_id, bytes=most.bytes)
            most.drop()

    def _most_but(self, newest: "Backlog") -> "Backlog":
        """Of the user who has most, the one that has most."""
        others = self._bytes.copy()
        others[newest.user_id] -= newest.bytes
        [(user_id, size)] = others.most_common(1)
        if not size:
            return newest
        theirs = (each for each in self._backlogs[user_id] if each is not newest)
        return max(theirs, key=lambda backlog: backlog.bytes)


class Backlog:
    """Of one connection. `bytes` are its share of what `Unread` counts."""

    __slots__ = ("_drop", "_full", "_held", "_unread", "_unsent", "bytes", "gone", "user_id")

    def __init__(
        self, unread: Unread, unsent: Callable[[], int], drop: Callable[[], object]
    ) -> None:
        self._unread = unread
        self._unsent = unsent
        self._drop = drop
        self._full = False
        self._held = 0  # an answer, or a part, that was not written to the transport yet
        self.bytes = 0
        self.gone = False  # nobody reads any more
        self.user_id: UserId | None = None

    def belongs_to(self, user_id: UserId) -> None:
        """A request of this user, or their socket. A proxy's connection carries requests of many,
        one after the other."""
        if user_id != self.user_id:
            counted = self.bytes
            self._set(0)
            self.user_id = user_id
            self._set(counted)

    def asked_by(self, user_id: UserId) -> None:
        """The same, before anything is done for the request. Raises `HubError(RATE_LIMITED)`."""
        self.belongs_to(user_id)
        self._unread.check(user_id)

    def hold(self, size: int, *, may_refuse: bool = False) -> None:
        """The handler has an answer of this size, instead of what it had before. Raises
        `HubError(RATE_LIMITED)` where it may and the user has too many others."""
        if may_refuse and not self._held and self.user_id is not None:
            self._unread.check(self.user_id)
        self._held = size
        self.measure()

    def release(self) -> None:
        """The request is over: its answer has gone to the transport, or nowhere."""
        self.hold(0)

    def full(self) -> None:
        """The transport has more than it should; or some more was written to it. What the handler
        held is in there."""
        self._full, self._held = True, 0
        self.measure()

    def drained(self) -> None:
        """The transport takes more."""
        self._full = False
        self.measure()

    def lost(self) -> None:
        """The transport is gone. What a handler holds counts until it is released."""
        self.gone = True
        self.drained()

    def measure(self) -> None:
        self._set(self._held + (self._unsent() if self._full else 0))

    def drop(self) -> None:
        self._full, self._held = False, 0
        self._set(0)
        self._drop()

    def _set(self, size: int) -> None:
        more = size - self.bytes
        if more:
            self.bytes = size
            self._unread.count(self, more)
