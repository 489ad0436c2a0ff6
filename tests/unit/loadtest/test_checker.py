"""The history checker finds every fault that is planted in a history, and none in an honest one."""

import re
import sys
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import orjson
import pytest

from hub.budget.events import Joining, Leaving, Submitted, parse_batch
from hub.budget.rules import decide
from hub.budget.state import BudgetState, Change
from loadtest import checker
from loadtest.checker import Figures, Violation, check
from loadtest.history import BadHistory, Json, Recorder, read
from loadtest.replica import Replica

USER, GUEST = "ada", "bob"
BUDGET = str(UUID(int=1))
EXPENSE = str(UUID(int=2))
CATEGORY = str(UUID(int=3))
FILED = str(UUID(int=4))  # an expense of that category
OF_GUEST = (BUDGET, GUEST, 1)


TraceFunction: TypeAlias = Callable[[FrameType, str, Any], Any]


class Tale:
    """A small honest history; a test changes some of it before it is judged.

    Events are sent one a second, each settled after half a second. Events 4 and 5 edit the same
    version, so 5 is a conflict; 6 is sent twice. Everything that was accepted was seen at its
    verdict by eve, a device of ada's, who began at 0 and again after three events."""

    def __init__(self) -> None:
        self.sent: list[tuple[float, str, dict[str, Any]]] = []
        self.answered: list[tuple[float, dict[str, Any]]] = []
        self.log: list[dict[str, Any]] = []
        self.observed: list[tuple[float, dict[str, Any]]] = []
        self.starts = {0: (0, False), 3: (3, False)}  # key and snapshot, by place in `observed`
        self.told: list[tuple[object, ...]] = []  # further lines of the history
        self._state = BudgetState()
        self._state.sums[CATEGORY] = 0
        self._ids = count(10)
        self.at_s = 0.0
        self._act("budget.create", title="Trip")
        self._act("expense.add", recordId=EXPENSE, amount="1.00", date="2026-11-21")
        self._act("expense.edit", recordId=EXPENSE, version=1, amount="2.00")
        self._act("expense.edit", recordId=EXPENSE, version=2, amount="3.00")
        self._act("expense.edit", recordId=EXPENSE, version=2, amount="4.00")
        event = self._act("budget.edit", version=1, title="Journey")
        self._send(USER, event)
        self.settle()

    def settle(self) -> None:
        """Everything is quiet: what snapshots and the observer's replica are."""
        replica = Replica(BUDGET)
        for event in self.log:
            replica.apply(event)
        of = [(kind, record) for (kind, _), record in replica.records.items()]
        members = [name for name, member in self._state.members.items() if member.active]
        self.snapshot: dict[str, Any] = {
            **replica.records["budget", BUDGET],
            "categories": [record for kind, record in of if kind == "category"],
            "expenses": [record for kind, record in of if kind == "expense"],
            "participants": [{"userId": name, "role": replica.members[name]} for name in members],
            "lastEventSequence": replica.sequence,
            "digest": replica.digest_text,
        }
        self.replica = replica.sequence, replica.digest_text

    def _act(self, event_type: str, user_id: str = USER, **fields: Any) -> dict[str, Any]:
        event = {
            "eventId": self._id(),
            "eventType": event_type,
            "budgetId": BUDGET,
            "when": 1,
            **fields,
        }
        self._send(user_id, event)
        return event

    def _id(self) -> str:
        return str(UUID(int=next(self._ids)))

    def _send(self, user_id: str, event: dict[str, Any]) -> None:
        self.sent.append((self.at_s, user_id, event))
        [parsed] = parse_batch([event], 1)
        self.answered.append((self.at_s + 0.5, orjson.loads(self._decide(user_id, parsed))))
        self.at_s += 1

    def _member(self, event: Submitted, actor: str) -> None:
        self._decide(actor, event)
        self.at_s += 1

    def _decide(self, user_id: str, event: Submitted) -> bytes:
        outcome = decide(self._state, user_id, event, 1)
        if isinstance(outcome, Change):
            self._state.apply(outcome)
            self.log.append(orjson.loads(outcome.row.event))
            self.observed.append((self.at_s + 0.5, orjson.loads(outcome.row.event)))
            return outcome.verdict().encode()
        return outcome.encode()

    def record(self, path: Path) -> Path:
        """The history's file."""
        with Recorder(path) as to:
            for at_s, user_id, event in self.sent:
                to.submitted(user_id, event, at_s)
            for at_s, verdict in self.answered:
                to.answered(verdict, at_s)
            for place, (at_s, event) in enumerate(self.observed):
                if place in self.starts:
                    key, snapshot = self.starts[place]
                    to.subscribed("eve", BUDGET, key, at_s, user_id=USER, snapshot=snapshot)
                to.saw("eve", BUDGET, [event], at_s)
            to.replica("eve", BUDGET, *self.replica)
            for name, *arguments in self.told:
                getattr(to, str(name))(*arguments)
            to.log(BUDGET, self.log)
            if self.snapshot:
                to.snapshot(BUDGET, self.snapshot)
        return path

    def check(self, folder: Path) -> Figures:
        history = read([self.record(folder / "history.jsonl")])
        return check(history, history.logs, history.snapshots)


class Household(Tale):
    """More of the same budget, from sequence 6 on: bob joins, files an expense of his and deletes
    its category, so that ada's edit of it meets a tombstone; then he leaves, and has seen all up to
    there on his device mal. After it comes an expense of ada's, the eleventh event."""

    def __init__(self) -> None:
        super().__init__()
        filed = {"amount": "1.00", "date": "2026-11-21", "categoryId": CATEGORY}
        self._member(Joining(self._id(), *OF_GUEST, participants_max=9), GUEST)
        self._act("category.add", GUEST, recordId=CATEGORY, name="Food", allocate="5.00")
        self._act("expense.add", GUEST, recordId=FILED, **filed)
        self._act("category.delete", GUEST, recordId=CATEGORY, version=1)
        self._act("expense.edit", recordId=FILED, version=1, note="late")
        self._member(Leaving(self._id(), *OF_GUEST), GUEST)
        self.mal_saw = self.observed[:]
        self.mal_came_s = self.at_s - 0.5
        self._act("expense.add", recordId=str(UUID(int=5)), amount="1", date="2026-11-21")
        self.settle()

    def record(self, path: Path) -> Path:
        super().record(path)
        with Recorder(path) as to:
            to.subscribed("mal", BUDGET, 0, self.mal_came_s, user_id=GUEST)
            for at_s, event in self.mal_saw:
                to.saw("mal", BUDGET, [event], max(at_s, self.mal_came_s))
        return path

    def back(self) -> None:
        """Bob comes back."""
        self._member(Joining(self._id(), *OF_GUEST, participants_max=9), GUEST)
        self.settle()

    def go_on(self, number: int) -> None:
        """Bob comes back, files, deletes, meets a conflict and leaves, under another observer."""
        category, expense = (str(UUID(int=of * 1000 + number)) for of in (1, 2))
        self._state.sums[category] = 0
        filed = {"amount": "1.00", "date": "2026-11-21", "categoryId": category}
        self._member(Joining(self._id(), *OF_GUEST, participants_max=9), GUEST)
        head = len(self.log)
        self._act("category.add", GUEST, recordId=category, name="Food", allocate="5.00")
        self._act("expense.add", GUEST, recordId=expense, **filed)
        self._act("expense.edit", GUEST, recordId=EXPENSE, version=3 + number, note="again")
        self._act("expense.edit", GUEST, recordId=EXPENSE, version=3, note="stale")
        self._act("category.delete", GUEST, recordId=category, version=1)
        self._member(Leaving(self._id(), *OF_GUEST), GUEST)
        self.told.append(("subscribed", f"tom {number}", BUDGET, head, self.at_s))
        self.told.append(("saw", f"tom {number}", BUDGET, self.log[head:], self.at_s))
        self.told.append(("replica", f"tom {number}", BUDGET, head, self.log[head - 1]["digest"]))
        self.told.append(("left", f"tom {number}"))


def test_an_honest_history_passes(tmp_path: Path) -> None:
    assert str(Tale().check(tmp_path)) == (
        "6 sent, 1 resent, 5 accepted, 1 duplicates, 1 conflicts, 0 rejected, 0 retryable,"
        " 0 unknown, 1 budgets, 5 logged, 1 contested, 1 observers, 5 observed, 1 replicas,"
        " 1 snapshots"
    )


def test_an_honest_household_passes(tmp_path: Path) -> None:
    figures = Household().check(tmp_path)
    assert (figures.logged, figures.conflicts, figures.observed) == (11, 2, 21)


def test_who_came_back_may_see_what_he_missed(tmp_path: Path) -> None:
    tale = Household()
    tale.back()
    tale.mal_saw = [(tale.at_s, event) for _, event in tale.observed]
    tale.check(tmp_path)


def test_an_event_of_unknown_outcome_may_be_in_the_log_or_not(tmp_path: Path) -> None:
    tale = Tale()
    del tale.answered[5:]  # of the last event, which is in the log
    tale.sent.append((9.0, USER, anew(tale.sent[1][2])))  # and one that isn't
    assert tale.check(tmp_path).unknown == 2


def test_a_retryable_rejection_decides_nothing(tmp_path: Path) -> None:
    tale = Tale()
    undecided = rejection(tale.sent[2][2], "BUSY", retryable=True)
    tale.answered.insert(2, (2.1, undecided))
    assert tale.check(tmp_path).retryable == 1
    assert list(read([tmp_path / "history.jsonl"]).refusals()) == []


def test_a_final_rejection_is_listed(tmp_path: Path) -> None:
    tale = Tale()
    event = anew(tale.sent[1][2])
    tale.sent.append((9.0, USER, event))
    tale.answered.append((9.5, rejection(event)))
    assert tale.check(tmp_path).rejected == 1
    assert list(read([tmp_path / "history.jsonl"]).refusals()) == [rejection(event)]


def test_a_rejected_event_is_decided_afresh_when_it_is_sent_again(tmp_path: Path) -> None:
    """Its category may be there by then; a rejection is not remembered."""
    tale = Tale()
    tale.sent.insert(2, (1.8, USER, tale.sent[2][2]))
    tale.answered.insert(2, (1.9, rejection(tale.sent[2][2], "CATEGORY_NOT_EXISTS")))
    assert tale.check(tmp_path).accepted == 5


def test_what_a_device_writes_may_be_written_otherwise_in_the_log(tmp_path: Path) -> None:
    """An amount without its cents, and the older name of the event's type."""
    tale = Tale()
    event = tale.sent[1][2]
    event["amount"] = "1"
    event["event"] = event.pop("eventType")
    tale.check(tmp_path)


def test_what_came_by_rest_names_the_type_of_event_twice(tmp_path: Path) -> None:
    tale = Tale()
    tale.observed = [
        (at_s, {**event, "event": event["eventType"]}) for at_s, event in tale.observed
    ]
    tale.check(tmp_path)


def test_an_observer_may_go_on_after_a_snapshot(tmp_path: Path) -> None:
    tale = Tale()
    del tale.observed[3]
    tale.starts[3] = (4, True)
    tale.check(tmp_path)


def test_an_observer_that_left_need_not_have_seen_the_end(tmp_path: Path) -> None:
    tale = Tale()
    del tale.observed[4:]
    tale.replica = 4, tale.log[3]["digest"]
    tale.told.append(("left", "eve"))
    tale.check(tmp_path)


def test_a_deleted_budget_has_a_log_and_no_snapshot(tmp_path: Path) -> None:
    deleted(Tale()).check(tmp_path)


def test_processes_have_a_file_each(tmp_path: Path) -> None:
    """One sends and another is answered; the files are read in any order."""
    tale = Tale()
    whole = tale.record(tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    parts = [tmp_path / name for name in ("answers.jsonl", "rest.jsonl")]
    answers = [line for line in whole if line.startswith(b'["answered"')]
    parts[0].write_bytes(b"".join(answers))
    parts[1].write_bytes(b"".join(line for line in whole if line not in answers))
    for order in (parts, parts[::-1]):
        history = read(order)
        assert check(history, history.logs, history.snapshots) == tale.check(tmp_path)
        (tmp_path / "history.jsonl").unlink()


@pytest.mark.parametrize(
    "line", ["[", "{}", "[]", '["submitted"]', '["left","eve","too much"]', '["run"]']
)
def test_a_file_that_is_no_history_is_refused(line: str, tmp_path: Path) -> None:
    path = Tale().record(tmp_path / "history.jsonl")
    lines = len(path.read_bytes().splitlines())
    with path.open("a") as file:
        file.write(line)
    with pytest.raises(BadHistory, match=rf"history\.jsonl:{lines + 1} is no line of a history"):
        read([path])


def test_a_device_may_not_change_an_event(tmp_path: Path) -> None:
    tale = Tale()
    tale.sent.append((9.0, USER, {**tale.sent[0][2], "title": "Journey"}))
    with pytest.raises(BadHistory, match="a device changed event"):
        tale.check(tmp_path)


def test_a_device_that_was_given_nonsense_is_heard(tmp_path: Path) -> None:
    tale = Tale()
    tale.told.append(("broke", "eve", "a binary message"))
    with pytest.raises(Violation, match="broken: eve was given a binary message"):
        tale.check(tmp_path)


def test_the_first_offending_event_tells_its_story(tmp_path: Path) -> None:
    tale = Tale()
    tale.log[2:] = []
    with pytest.raises(Violation) as found:
        tale.check(tmp_path)
    assert (found.value.rule, found.value.what) == ("lost", "accepted as 3, not in the log")
    title, sent, told, seen = found.value.story
    assert title.startswith(f"event {UUID(int=12)} of budget {BUDGET}: {{")
    assert sent == "2.000000 sent by ada"
    assert told.startswith("2.500000 told {")
    assert seen == "2.500000 seen by eve as 3"
    assert str(found.value).startswith("lost: accepted as 3, not in the log\n  event ")


def test_a_story_has_an_end(tmp_path: Path) -> None:
    tale = Tale()
    for number in range(200):
        tale.told.append(("saw", f"mal {number}", BUDGET, [tale.log[2]], 9.0))
    tale.log[2:] = []
    with pytest.raises(Violation) as found:
        tale.check(tmp_path)
    assert len(found.value.story) < 100
    assert found.value.story[-1] == "… and 143 more"


def test_the_work_grows_as_the_history_does(tmp_path: Path) -> None:
    """Counted in lines of the load script's code that run: for four times the history four times
    the work, whatever it grows by: edits of one record, conflicts, categories, members who come and
    go, observers, replicas."""
    few, many = (lines_run(grown(times).record(tmp_path / f"{times}.jsonl")) for times in (20, 80))
    assert few > 10_000
    assert many < 4.1 * few


def grown(times: int) -> Household:
    tale = Household()
    for number in range(times):
        tale.go_on(number)
    tale.settle()
    tale.mal_saw = [(tale.at_s, event) for _, event in tale.observed]
    return tale


def lines_run(path: Path) -> int:
    lines = 0

    def count_lines(frame: FrameType, event: str, _: object) -> TraceFunction:
        nonlocal lines
        lines += event == "line"
        return count_lines

    def of_loadtest(frame: FrameType, event: str, _: object) -> TraceFunction | None:
        return count_lines if "loadtest" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(of_loadtest)
    try:
        history = read([path])
        check(history, history.logs, history.snapshots)
    finally:
        sys.settrace(before)
    return lines


# Faults. Those of `Tale` count from 0, the conflict is the fifth event sent.


def a_gap(tale: Tale) -> None:
    tale.log[3]["sequence"] = 5


def no_beginning(tale: Tale) -> None:
    del tale.log[0]


def a_sequence_used_again(tale: Tale) -> None:
    tale.log[3]["sequence"] = 3


def another_budgets_event(tale: Tale) -> None:
    tale.log[3]["budgetId"] = str(UUID(int=99))


def applied_twice(tale: Tale) -> None:
    tale.log.append({**tale.log[2], "sequence": 6})


def made_up(tale: Tale) -> None:
    tale.log.append({**anew(tale.log[2]), "sequence": 6})


def other_content(tale: Tale) -> None:
    tale.log[2]["amount"] = "9.00"


def another_author(tale: Tale) -> None:
    tale.log[2]["actorId"] = GUEST


def by_a_stranger(tale: Tale) -> None:
    at_s, _, event = tale.sent[2]
    tale.sent[2] = at_s, GUEST, event
    tale.log[2]["actorId"] = GUEST


def after_the_end(tale: Tale) -> None:
    deleted(tale)
    event = anew(tale.sent[1][2])
    tale.sent.append((20.0, USER, event))
    tale.log.append({**event, "sequence": 7, "actorId": USER, "version": 1, "digest": "0" * 16})


def acknowledged_and_gone(tale: Tale) -> None:
    del tale.log[4:]


def acknowledged_with_another_sequence(tale: Tale) -> None:
    tale.answered[2][1]["sequence"] = 4


def acknowledged_with_another_version(tale: Tale) -> None:
    tale.answered[2][1]["version"] = 4


def another_verdict_for_the_duplicate(tale: Tale) -> None:
    tale.answered[6][1]["record"]["title"] = "Trip"


def a_conflict_for_the_duplicate(tale: Tale) -> None:
    verdict = tale.answered[6][1]
    verdict |= {"status": "conflict", "currentRecord": verdict.pop("record")}


def a_rejection_for_the_duplicate(tale: Tale) -> None:
    tale.answered[6] = (tale.answered[6][0], rejection(tale.sent[6][2]))


def a_verdict_about_nothing(tale: Tale) -> None:
    tale.answered.append((9.0, anew(tale.answered[0][1])))


def a_conflict_that_was_applied(tale: Tale) -> None:
    verdict = tale.answered[3][1]
    verdict |= {"status": "conflict", "currentRecord": verdict.pop("record")}


def a_rejection_that_was_applied(tale: Tale) -> None:
    tale.answered[3] = (3.5, rejection(tale.sent[3][2]))


def a_repetition_rejected_and_applied(tale: Tale) -> None:
    """What became of it when it was first sent was never told."""
    tale.sent.append((3.6, USER, tale.sent[3][2]))
    tale.answered[3] = (3.9, rejection(tale.sent[3][2]))


def ordered_before_what_was_known(tale: Tale) -> None:
    at_s, user_id, event = tale.sent[1]
    tale.sent[1] = (at_s + 9, user_id, event)


def a_fork(tale: Tale) -> None:
    tale.log[3]["version"] = tale.answered[3][1]["version"] = 2


def a_version_left_out(tale: Tale) -> None:
    for event in (tale.log[4], *(verdict for _, verdict in tale.answered[5:])):
        event["version"] = 3


def a_stale_edit_that_won(tale: Tale) -> None:
    tale.sent[3][2]["version"] = 1


def a_conflict_with_nobody(tale: Tale) -> None:
    tale.sent[4][2]["version"] = 3


def a_conflict_with_a_version_that_never_was(tale: Tale) -> None:
    tale.answered[4][1]["currentRecord"]["version"] = 7


def a_conflict_in_no_budget(tale: Tale) -> None:
    elsewhere = {"budgetId": str(UUID(int=99))}
    tale.sent.append((9.0, USER, {**anew(tale.sent[4][2]), **elsewhere}))
    tale.answered.append((9.5, {**anew(tale.answered[4][1]), **elsewhere}))


def another_record_in_a_verdict(tale: Tale) -> None:
    tale.answered[2][1]["record"]["amount"] = "9.00"


def a_record_without_a_field_in_a_verdict(tale: Tale) -> None:
    del tale.answered[2][1]["record"]["note"]


def another_record_in_a_conflict(tale: Tale) -> None:
    tale.answered[4][1]["currentRecord"]["amount"] = "9.00"


def another_digest(tale: Tale) -> None:
    tale.log[2]["digest"] = "0" * 16


def another_snapshot(tale: Tale) -> None:
    tale.snapshot["expenses"] = []


def another_digest_in_the_snapshot(tale: Tale) -> None:
    tale.snapshot["digest"] = "0" * 16


def an_older_snapshot(tale: Tale) -> None:
    tale.snapshot["lastEventSequence"] = 4


def a_participant_of_the_snapshot_only(tale: Tale) -> None:
    tale.snapshot["participants"].append({"userId": GUEST})


def no_snapshot(tale: Tale) -> None:
    tale.snapshot = {}


def a_snapshot_of_a_deleted_budget(tale: Tale) -> None:
    snapshot = tale.snapshot
    deleted(tale).snapshot = snapshot


def left_out(tale: Tale) -> None:
    del tale.observed[1]


def given_twice(tale: Tale) -> None:
    tale.observed.insert(1, tale.observed[1])


def given_in_another_order(tale: Tale) -> None:
    tale.observed[1:3] = tale.observed[2:0:-1]


def resumed_too_late(tale: Tale) -> None:
    del tale.observed[3]


def resumed_elsewhere(tale: Tale) -> None:
    tale.starts[3] = (2, False)


def the_last_one_never_came(tale: Tale) -> None:
    del tale.observed[4]


def other_content_for_an_observer(tale: Tale) -> None:
    tale.observed[2][1]["when"] = 2


def another_event_for_an_observer(tale: Tale) -> None:
    at_s, event = tale.observed[2]
    tale.observed[2] = at_s, {**event, "eventId": tale.log[1]["eventId"]}


def more_than_there_is(tale: Tale) -> None:
    at_s, event = tale.observed[4]
    tale.observed.append((at_s, {**event, "sequence": 6}))


def a_replica_with_another_digest(tale: Tale) -> None:
    tale.replica = 5, "0" * 16


def a_replica_that_stayed_behind(tale: Tale) -> None:
    tale.replica = 4, tale.log[3]["digest"]


def a_replica_that_knows_more(tale: Tale) -> None:
    tale.replica = 6, tale.log[4]["digest"]


def of_the_past(tale: Tale) -> None:
    tale.told.append(("broke", "eve", "an event of the past"))


# And those of `Household`: 5 is bob's coming, 9 his going, 10 what he must not see.


def joined_twice(tale: Household) -> None:
    tale.log.insert(6, {**anew(tale.log[5]), "sequence": 7})
    for sequence, event in enumerate(tale.log[6:], 7):
        event["sequence"] = sequence


def left_and_never_joined(tale: Household) -> None:
    del tale.log[5]
    for sequence, event in enumerate(tale.log[5:], 6):
        event["sequence"] = sequence


def another_who_joins(tale: Household) -> None:
    tale.log[5]["recordId"] = "tom"


def sent_by_a_device(tale: Household) -> None:
    tale.sent.append((4.0, GUEST, tale.log[5]))


def wrote_after_leaving(tale: Household) -> None:
    at_s, _, event = tale.sent[-1]
    tale.sent[-1] = at_s, GUEST, event
    tale.log[10]["actorId"] = GUEST


def deleted_by_a_guest(tale: Household) -> None:
    del tale.log[9:]
    event = {**anew(tale.sent[0][2]), "eventType": "budget.delete", "version": 2}
    tale.sent.append((20.0, GUEST, event))
    tale.log.append({**event, "sequence": 10, "recordId": BUDGET, "actorId": GUEST})


def a_tombstone_that_lives(tale: Household) -> None:
    """A conflict tells of a deletion at a version that was never reached."""
    tale.answered[-2][1]["currentRecord"]["version"] = 3


def an_edit_of_a_tombstone(tale: Household) -> None:
    """Of the version that the deletion has made, even."""
    edit = {**anew(tale.sent[-2][2]), "version": 2}
    tale.sent.append((20.0, USER, edit))
    tale.log.append({**edit, "sequence": 12, "actorId": USER, "version": 3})


def seen_after_leaving(tale: Household) -> None:
    tale.mal_saw.append(tale.observed[10])


def seen_before_coming_back(tale: Household) -> None:
    """He may read it now; but it reached him when there was still more to come before he came."""
    tale.mal_saw.append(tale.observed[10])
    tale._act("expense.add", recordId=str(UUID(int=6)), amount="1", date="2026-11-21")
    tale.back()
    tale.mal_saw += [(tale.at_s, event) for _, event in tale.observed[11:]]


def seen_before_joining(tale: Household) -> None:
    tale.mal_came_s = 2.0


FAULTS: Sequence[tuple[str, Callable[[Tale], None]]] = (
    ("dense", a_gap),
    ("dense", no_beginning),
    ("dense", a_sequence_used_again),
    ("dense", another_budgets_event),
    ("twice", applied_twice),
    ("foreign", made_up),
    ("foreign", other_content),
    ("foreign", another_author),
    ("members", by_a_stranger),
    ("members", after_the_end),
    ("lost", acknowledged_and_gone),
    ("lost", acknowledged_with_another_sequence),
    ("lost", acknowledged_with_another_version),
    ("verdicts", another_verdict_for_the_duplicate),
    ("verdicts", a_conflict_for_the_duplicate),
    ("verdicts", a_rejection_for_the_duplicate),
    ("verdicts", a_verdict_about_nothing),
    ("refused", a_conflict_that_was_applied),
    ("refused", a_rejection_that_was_applied),
    ("refused", a_repetition_rejected_and_applied),
    ("time", ordered_before_what_was_known),
    ("versions", a_fork),
    ("versions", a_version_left_out),
    ("contest", a_stale_edit_that_won),
    ("contest", a_conflict_with_nobody),
    ("contest", a_conflict_with_a_version_that_never_was),
    ("contest", a_conflict_in_no_budget),
    ("record", another_record_in_a_verdict),
    ("record", a_record_without_a_field_in_a_verdict),
    ("record", another_record_in_a_conflict),
    ("replay", another_digest),
    ("state", another_snapshot),
    ("state", another_digest_in_the_snapshot),
    ("state", an_older_snapshot),
    ("state", a_participant_of_the_snapshot_only),
    ("state", no_snapshot),
    ("state", a_snapshot_of_a_deleted_budget),
    ("order", left_out),
    ("order", given_twice),
    ("order", given_in_another_order),
    ("order", resumed_too_late),
    ("order", resumed_elsewhere),
    ("order", the_last_one_never_came),
    ("content", other_content_for_an_observer),
    ("content", another_event_for_an_observer),
    ("content", more_than_there_is),
    ("replica", a_replica_with_another_digest),
    ("replica", a_replica_that_stayed_behind),
    ("replica", a_replica_that_knows_more),
    ("broken", of_the_past),
)
FAULTS_OF_MEMBERS: Sequence[tuple[str, Callable[[Household], None]]] = (
    ("members", joined_twice),
    ("members", left_and_never_joined),
    ("members", another_who_joins),
    ("members", sent_by_a_device),
    ("members", wrote_after_leaving),
    ("members", deleted_by_a_guest),
    ("contest", a_tombstone_that_lives),
    ("contest", an_edit_of_a_tombstone),
    ("private", seen_after_leaving),
    ("private", seen_before_coming_back),
    ("private", seen_before_joining),
)


@pytest.mark.parametrize(("rule", "plant"), FAULTS)
def test_a_planted_fault_is_found(rule: str, plant: Callable[[Tale], None], tmp_path: Path) -> None:
    assert broken_rule(Tale(), plant, tmp_path) == rule


@pytest.mark.parametrize(("rule", "plant"), FAULTS_OF_MEMBERS)
def test_a_planted_fault_of_members_is_found(
    rule: str, plant: Callable[[Household], None], tmp_path: Path
) -> None:
    assert broken_rule(Household(), plant, tmp_path) == rule


def test_every_rule_has_a_planted_fault() -> None:
    assert checker.__doc__ is not None
    rules = set(re.findall(r"^\| `(\w+)`", checker.__doc__, re.MULTILINE))
    assert rules == {rule for rule, _ in (*FAULTS, *FAULTS_OF_MEMBERS)}


T = TypeVar("T", bound=Tale)


def broken_rule(tale: T, plant: Callable[[T], None], folder: Path) -> str:
    plant(tale)
    with pytest.raises(Violation) as found:
        tale.check(folder)
    return found.value.rule


def deleted(tale: Tale) -> Tale:
    """With an end."""
    tale._act("budget.delete", version=2)
    tale.replica = 6, tale.log[5]["digest"]
    tale.snapshot = {}
    return tale


def anew(item: Json) -> dict[str, Any]:
    """Under another eventId."""
    return {**item, "eventId": str(UUID(int=99))}


def rejection(
    event: Json, code: str = "EXPENSE_EXISTS", *, retryable: bool = False
) -> dict[str, Any]:
    of = {name: event[name] for name in ("eventId", "eventType", "budgetId")}
    return {**of, "status": "rejected", "error": {"message": code, "retryable": retryable}}
