"""What was answered and not read is bounded, for a user and in all (P8)."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings, strategies as st
from structlog.testing import capture_logs

from api.http.unread import RETRY_S, Backlog, Unread
from hub.errors import Code, HubError

USER_MAX, ALL_MAX = 100, 250


class Peer:
    """One connection: `buffer` bytes wait in its transport."""

    def __init__(self, unread: Unread, user_id: str | None = None) -> None:
        self.buffer = 0
        self.drops = 0
        self.backlog: Backlog = unread.backlog(lambda: self.buffer, self._dropped)
        if user_id is not None:
            self.backlog.belongs_to(user_id)

    def _dropped(self) -> None:
        self.drops += 1

    def answer(self, size: int) -> "Peer":
        """It is written, and the transport is full."""
        self.buffer += size
        self.backlog.full()
        return self


@pytest.fixture
def unread() -> Unread:
    return Unread(USER_MAX, ALL_MAX)


def refused(backlog: Backlog, user_id: str) -> bool:
    try:
        backlog.asked_by(user_id)
    except HubError as error:
        assert (error.code, error.retry_after_s) == (Code.RATE_LIMITED, RETRY_S)
        return True
    return False


def test_a_user_who_does_not_read_is_refused_and_nobody_else(unread: Unread) -> None:
    Peer(unread, "ann").answer(60)
    laptop = Peer(unread, "ann")
    assert not refused(laptop.backlog, "ann")
    laptop.answer(40)
    assert refused(Peer(unread).backlog, "ann")
    assert refused(laptop.backlog, "ann")
    assert not refused(Peer(unread).backlog, "bob")


def test_what_has_left_meanwhile_counts_no_more(unread: Unread) -> None:
    """Its transport has not said so yet."""
    phone = Peer(unread, "ann").answer(150)
    assert refused(Peer(unread).backlog, "ann")
    phone.buffer = 90
    assert not refused(Peer(unread).backlog, "ann")
    assert unread.of("ann") == unread.bytes == 90


@pytest.mark.parametrize("end", [Backlog.drained, Backlog.lost])
def test_a_transport_that_has_drained_or_is_gone_counts_no_more(
    unread: Unread, end: Callable[[Backlog], None]
) -> None:
    phone = Peer(unread, "ann").answer(150)
    end(phone.backlog)
    assert unread.of("ann") == unread.bytes == 0


def test_what_a_handler_holds_counts_also_where_nobody_waits_for_it_any_more(
    unread: Unread,
) -> None:
    phone = Peer(unread, "ann")
    phone.backlog.hold(150)
    phone.backlog.lost()
    assert refused(Peer(unread).backlog, "ann")
    phone.backlog.release()
    assert unread.bytes == 0


def test_of_many_requests_under_way_the_later_ones_are_refused_with_their_answers(
    unread: Unread,
) -> None:
    """All were begun before the first had its answer."""
    peers = [Peer(unread, "ann") for _ in range(5)]
    for peer in peers:
        assert not refused(peer.backlog, "ann")
    answered = []
    for peer in peers:
        try:
            peer.backlog.hold(60, may_refuse=True)
        except HubError:
            continue
        answered.append(peer)
    assert answered == peers[:2]
    answered[0].backlog.hold(20, may_refuse=True)  # compressed; it was taken already
    assert unread.of("ann") == 80


def test_an_answer_does_not_count_twice_when_it_is_written(unread: Unread) -> None:
    phone = Peer(unread, "ann")
    phone.backlog.hold(60)
    phone.answer(60)
    assert unread.of("ann") == 60


def test_a_verdict_is_never_refused(unread: Unread) -> None:
    Peer(unread, "ann").answer(150)
    Peer(unread, "ann").backlog.hold(60)
    assert unread.of("ann") == 210


def test_a_connection_that_another_user_asks_on_is_theirs(unread: Unread) -> None:
    """As a proxy's."""
    shared = Peer(unread, "ann").answer(60)
    shared.backlog.belongs_to("bob")
    assert (unread.of("ann"), unread.of("bob"), unread.bytes) == (0, 60, 60)


def test_too_much_in_all_drops_the_most_of_who_has_most(unread: Unread) -> None:
    bob = Peer(unread, "bob").answer(90)
    small, big = Peer(unread, "ann").answer(40), Peer(unread, "ann").answer(70)
    with capture_logs() as log:
        newcomer = Peer(unread, "cid").answer(60)
    assert [peer.drops for peer in (bob, small, big, newcomer)] == [0, 0, 1, 0]
    assert unread.bytes == 190
    assert [(line["user_id"], line["bytes"]) for line in log] == [("ann", 70)]


def test_the_newcomer_is_served_though_they_have_most_at_first(unread: Unread) -> None:
    bob, ann = Peer(unread, "bob").answer(90), Peer(unread, "ann").answer(80)
    newcomer = Peer(unread, "cid").answer(200)
    assert [peer.drops for peer in (bob, ann, newcomer)] == [1, 1, 0]
    newcomer.answer(60)
    assert (newcomer.drops, unread.bytes) == (1, 0)


def test_who_is_no_user_counts_too(unread: Unread) -> None:
    strangers = [Peer(unread).answer(80) for _ in range(4)]
    assert sum(peer.drops for peer in strangers) == 1


def test_nobody_is_dropped_for_what_has_left_meanwhile(unread: Unread) -> None:
    read, slow = Peer(unread, "ann").answer(150), Peer(unread, "bob").answer(90)
    read.buffer = 20
    newcomer = Peer(unread, "cid").answer(90)
    assert [peer.drops for peer in (read, slow, newcomer)] == [0, 0, 0]
    assert unread.bytes == 200


STEPS = st.tuples(
    st.integers(0, 5),
    st.sampled_from(["answer", "read", "drained", "hold", "release", "lost", "ann", "bob"]),
    st.integers(0, 120),
)


@settings(deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_the_sums_are_those_of_the_connections(steps: list[tuple[int, str, int]]) -> None:
    unread = Unread(USER_MAX, ALL_MAX)
    peers = [Peer(unread) for _ in range(6)]
    for at, what, size in steps:
        peer = peers[at]
        match what:
            case "answer":
                peer.answer(size)
            case "read":
                peer.buffer = max(peer.buffer - size, 0)
            case "drained":
                peer.backlog.drained()
            case "hold":
                peer.backlog.hold(size)
            case "release":
                peer.backlog.release()
            case "lost":
                peer.backlog.lost()
            case user_id:
                peer.backlog.belongs_to(user_id)
        assert unread.bytes == sum(each.backlog.bytes for each in peers)
        assert unread.bytes <= ALL_MAX
    for who in (None, "ann", "bob"):
        theirs = [each.backlog for each in peers if each.backlog.user_id == who]
        assert unread.of(who) == sum(backlog.bytes for backlog in theirs)
    for peer in peers:
        peer.backlog.lost()
        peer.backlog.release()
    assert (unread.bytes, unread._backlogs, +unread._bytes) == (0, {}, {})
