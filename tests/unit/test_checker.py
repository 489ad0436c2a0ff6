"""The history checker finds every fault that is planted in a history, and none in an honest one."""

from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import orjson
import pytest

from hub.events import parse_batch
from hub.rules import BudgetState, Change, decide
from loadtest.replica import Replica
from tests.checker import History, LogRow, Violation
from tests.device import Frame, Json

USER = "ada"
BUDGET = str(UUID(int=1))
EXPENSE = str(UUID(int=2))


class Tale:
    """A small honest history; a test changes some of it before it is told to a `History`.

    Events are sent one a second, each settled after half a second. Events 4 and 5 edit the same
    version, so 5 is a conflict; 6 is sent twice."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, Json]] = []
        self.answered: list[tuple[float, Json]] = []
        self.log: list[LogRow] = []
        self._state = BudgetState()
        self._act("budget.create", title="Trip")
        self._act("expense.add", recordId=EXPENSE, amount="1.00", date="2026-11-21")
        self._act("expense.edit", recordId=EXPENSE, version=1, amount="2.00")
        self._act("expense.edit", recordId=EXPENSE, version=2, amount="3.00")
        self._act("expense.edit", recordId=EXPENSE, version=2, amount="4.00")
        event = self._act("budget.edit", version=1, title="Journey")
        self._send(event)
        self.keys = [0, 3]  # the observer began at 0, and again after three events
        self.observed = [row.event for row in self.log]
        replica = Replica(BUDGET)
        for row in self.log:
            replica.apply(orjson.loads(row.event))
        self.snapshot: Json = {
            **replica.records["budget", BUDGET],
            "categories": [],
            "expenses": [replica.records["expense", EXPENSE]],
            "lastEventSequence": replica.sequence,
            "digest": replica.digest_text,
        }

    def _act(self, event_type: str, **fields: Any) -> Json:
        event = {
            "eventId": str(UUID(int=10 + len(self.sent))),
            "eventType": event_type,
            "budgetId": BUDGET,
            "when": 1,
            **fields,
        }
        self._send(event)
        return event

    def _send(self, event: Json) -> None:
        at_s = float(len(self.sent))
        self.sent.append((at_s, event))
        [parsed] = parse_batch([event], 1)
        outcome = decide(self._state, USER, parsed, 1)
        if isinstance(outcome, Change):
            self._state.apply(outcome)
            row = outcome.row
            assert row.version is not None
            self.log.append(LogRow(BUDGET, row.sequence, row.event_id, row.version, row.event))
            outcome = outcome.verdict()
        self.answered.append((at_s + 0.5, orjson.loads(outcome.encode())))

    def told(self) -> History:
        history = History()
        for at_s, event in self.sent:
            history.invoked(USER, event, at_s)
        for at_s, verdict in self.answered:
            history.answered(verdict, at_s)
        first, second = self.keys
        history.subscribed("eve", BUDGET, first)
        for raw in self.observed[:3]:
            history.saw("eve", BUDGET, raw, 1.0)
        history.subscribed("eve", BUDGET, second)
        for raw in self.observed[3:]:
            history.saw("eve", BUDGET, raw, 1.0)
        return history

    def check(self) -> str:
        return str(self.told().check(self.log, {BUDGET: [self.snapshot]}))

    def rewrite(self, at: int, **fields: object) -> None:
        """Change a row of the log, in the row and in its event alike."""
        row = self.log[at]
        event = {**orjson.loads(row.event), **fields}
        self.log[at] = LogRow(
            event["budgetId"],
            event["sequence"],
            event["eventId"],
            event["version"],
            orjson.dumps(event),
        )


def test_an_honest_history_passes() -> None:
    assert Tale().check() == (
        "6 sent, 1 resent, 5 accepted, 1 duplicates, 1 conflicts, 0 retryable, 0 unknown,"
        " 1 budgets, 1 contested, 1 observers, 5 observed"
    )


def test_an_event_of_unknown_outcome_may_be_in_the_log_or_not() -> None:
    tale = Tale()
    del tale.answered[5:]  # of the last event, which is in the log
    tale.sent.append((9.0, {**tale.sent[1][1], "eventId": str(UUID(int=99))}))  # and one that isn't
    assert "2 unknown" in tale.check()


def test_a_retryable_rejection_decides_nothing() -> None:
    tale = Tale()
    undecided = {**rejection(tale.sent[2][1]), "error": {"message": "BUSY", "retryable": True}}
    tale.answered.insert(2, (2.1, undecided))
    assert "1 retryable" in tale.check()
    assert tale.told().refusals() == []


def test_a_final_rejection_is_listed() -> None:
    tale = Tale()
    event = {**tale.sent[1][1], "eventId": str(UUID(int=99))}
    tale.sent.append((9.0, event))
    tale.answered.append((9.5, rejection(event)))
    assert tale.told().refusals() == [rejection(event)]


def test_an_observer_that_left_need_not_have_seen_the_end() -> None:
    tale = Tale()
    del tale.observed[4:]
    history = tale.told()
    history.left("eve")
    history.check(tale.log, {BUDGET: [tale.snapshot]})


def test_frames_of_a_connection_are_taken_apart() -> None:
    tale = Tale()
    history = History()
    for at_s, event in tale.sent:
        history.invoked(USER, event, at_s)
    history.received("eve", frames_of(tale))
    assert "5 accepted" in str(history.check(tale.log, {BUDGET: [tale.snapshot]}))


def test_a_device_that_was_given_nonsense_is_heard() -> None:
    tale = Tale()
    history = tale.told()
    history.broke("eve", "a binary message")
    with pytest.raises(Violation, match="broken: eve was given a binary message"):
        history.check(tale.log, {BUDGET: [tale.snapshot]})


def test_the_first_offending_event_tells_its_story() -> None:
    tale = Tale()
    tale.log[2:] = []
    with pytest.raises(Violation) as found:
        tale.check()
    story = str(found.value)
    assert story.startswith("lost: accepted as 3, not in the log")
    assert f"event {UUID(int=12)} of budget {BUDGET}" in story
    assert "2.000000 sent by ada" in story
    assert "2.500000 told {" in story
    assert "1.000000 seen by eve as 3" in story


def a_gap(tale: Tale) -> None:
    tale.log[3] = tale.log[3]._replace(sequence=5)


def no_beginning(tale: Tale) -> None:
    del tale.log[0]


def a_sequence_used_again(tale: Tale) -> None:
    tale.rewrite(3, sequence=3)


def a_row_with_another_event(tale: Tale) -> None:
    tale.log[3] = tale.log[3]._replace(event_id=tale.log[2].event_id)


def applied_twice(tale: Tale) -> None:
    tale.log.append(tale.log[2])
    tale.rewrite(5, sequence=6)


def made_up(tale: Tale) -> None:
    tale.log.append(tale.log[2])
    tale.rewrite(5, sequence=6, eventId=str(UUID(int=99)))


def other_content(tale: Tale) -> None:
    tale.rewrite(2, amount="9.00")


def another_author(tale: Tale) -> None:
    tale.rewrite(2, actorId="bob")


def acknowledged_and_gone(tale: Tale) -> None:
    del tale.log[4:]


def acknowledged_with_another_sequence(tale: Tale) -> None:
    tale.answered[2][1]["sequence"] = 4


def acknowledged_with_another_version(tale: Tale) -> None:
    tale.answered[2][1]["version"] = 4


def another_verdict_for_the_duplicate(tale: Tale) -> None:
    tale.answered[6][1]["version"] = 3


def a_conflict_for_the_duplicate(tale: Tale) -> None:
    verdict = tale.answered[6][1]
    verdict |= {"status": "conflict", "currentRecord": verdict.pop("record")}


def a_conflict_that_was_applied(tale: Tale) -> None:
    verdict = tale.answered[3][1]
    verdict |= {"status": "conflict", "currentRecord": verdict.pop("record")}


def a_rejection_that_was_applied(tale: Tale) -> None:
    tale.answered[3] = (3.5, rejection(tale.sent[3][1]))


def ordered_before_what_was_known(tale: Tale) -> None:
    at_s, event = tale.sent[1]
    tale.sent[1] = (at_s + 9, event)


def a_fork(tale: Tale) -> None:
    tale.rewrite(3, version=2)
    tale.answered[3][1]["version"] = 2


def a_version_left_out(tale: Tale) -> None:
    tale.rewrite(4, version=3)
    for _, verdict in tale.answered[5:]:
        verdict["version"] = 3


def a_stale_edit_that_won(tale: Tale) -> None:
    at_s, event = tale.sent[3]
    tale.sent[3] = (at_s, {**event, "version": 1})


def a_conflict_with_nobody(tale: Tale) -> None:
    at_s, event = tale.sent[4]
    tale.sent[4] = (at_s, {**event, "version": 3})


def a_conflict_with_a_version_that_never_was(tale: Tale) -> None:
    tale.answered[4][1]["currentRecord"]["version"] = 7


def another_record_in_a_verdict(tale: Tale) -> None:
    tale.answered[2][1]["record"]["amount"] = "9.00"


def another_record_in_a_conflict(tale: Tale) -> None:
    tale.answered[4][1]["currentRecord"]["amount"] = "9.00"


def left_out(tale: Tale) -> None:
    del tale.observed[1]


def given_twice(tale: Tale) -> None:
    tale.observed.insert(1, tale.observed[1])


def given_in_another_order(tale: Tale) -> None:
    tale.observed[1:3] = tale.observed[2:0:-1]


def resumed_too_late(tale: Tale) -> None:
    del tale.observed[3]


def resumed_elsewhere(tale: Tale) -> None:
    tale.keys[1] = 2


def the_last_one_never_came(tale: Tale) -> None:
    del tale.observed[4]


def other_bytes(tale: Tale) -> None:
    tale.observed[2] = tale.observed[2].replace(b":", b": ", 1)


def more_than_there_is(tale: Tale) -> None:
    event = orjson.loads(tale.observed[4])
    tale.observed.append(orjson.dumps({**event, "sequence": 6}))


def another_digest(tale: Tale) -> None:
    tale.rewrite(2, digest="0" * 16)


def another_snapshot(tale: Tale) -> None:
    tale.snapshot["expenses"] = []


def another_digest_in_the_snapshot(tale: Tale) -> None:
    tale.snapshot["digest"] = "0" * 16


def an_older_snapshot(tale: Tale) -> None:
    tale.snapshot["lastEventSequence"] = 4


def a_verdict_about_nothing(tale: Tale) -> None:
    tale.answered.append((9.0, {**tale.answered[0][1], "eventId": str(UUID(int=99))}))


@pytest.mark.parametrize(
    ("rule", "plant"),
    [
        ("dense", a_gap),
        ("dense", no_beginning),
        ("dense", a_sequence_used_again),
        ("dense", a_row_with_another_event),
        ("twice", applied_twice),
        ("foreign", made_up),
        ("foreign", other_content),
        ("foreign", another_author),
        ("lost", acknowledged_and_gone),
        ("lost", acknowledged_with_another_sequence),
        ("lost", acknowledged_with_another_version),
        ("verdicts", another_verdict_for_the_duplicate),
        ("verdicts", a_conflict_for_the_duplicate),
        ("verdicts", a_verdict_about_nothing),
        ("refused", a_conflict_that_was_applied),
        ("refused", a_rejection_that_was_applied),
        ("time", ordered_before_what_was_known),
        ("versions", a_fork),
        ("versions", a_version_left_out),
        ("contest", a_stale_edit_that_won),
        ("contest", a_conflict_with_nobody),
        ("contest", a_conflict_with_a_version_that_never_was),
        ("record", another_record_in_a_verdict),
        ("record", another_record_in_a_conflict),
        ("order", left_out),
        ("order", given_twice),
        ("order", given_in_another_order),
        ("order", resumed_too_late),
        ("order", resumed_elsewhere),
        ("order", the_last_one_never_came),
        ("bytes", other_bytes),
        ("bytes", more_than_there_is),
        ("replay", another_digest),
        ("state", another_snapshot),
        ("state", another_digest_in_the_snapshot),
        ("state", an_older_snapshot),
    ],
)
def test_a_planted_fault_is_found(rule: str, plant: Callable[[Tale], None]) -> None:
    tale = Tale()
    plant(tale)
    with pytest.raises(Violation) as found:
        tale.check()
    assert found.value.rule == rule, str(found.value)


def rejection(event: Json) -> Json:
    of = {name: event[name] for name in ("eventId", "eventType", "budgetId")}
    error = {"message": "EXPENSE_EXISTS", "retryable": False}
    return {**of, "status": "rejected", "error": error}


def frames_of(tale: Tale) -> Iterator[Frame]:
    """What a socket of a device that submits and follows would have brought."""
    subscribed = {"type": "subscribed", "budgetId": BUDGET, "key": 0}
    events = b'{"type":"events","budgetId":"%b","events":[%b]}' % (
        BUDGET.encode(),
        b",".join(tale.observed),
    )
    results = {"type": "results", "id": 1, "results": [verdict for _, verdict in tale.answered]}
    for raw in (orjson.dumps(subscribed), events, b'{"type":"pong"}', orjson.dumps(results)):
        yield Frame(raw, orjson.loads(raw), 9.0)
