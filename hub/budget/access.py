"""Who may see a budget, and until when (P9).

What somebody may do depends on how the budget stands and on whether they take part in it:

| they …            | the budget is there | it is deleted     | it is deleted, its past counts   |
|-------------------|---------------------|-------------------|----------------------------------|
| take part         | may                 | BUDGET_NOT_EXISTS | may                              |
| took part before  | NOT_PARTICIPANT     | BUDGET_NOT_EXISTS | BUDGET_NOT_EXISTS                |
| never took part   | BUDGET_NOT_EXISTS   | BUDGET_NOT_EXISTS | BUDGET_NOT_EXISTS                |

A stranger gets the answer of a budget that never was: nobody learns which ids exist.

A subscription ends with its user's membership, and with the budget. `at` is the last sequence it
was given, None before it stands; `member_at` is how long the log was when its user was last read to
take part, `removed_at` the sequence of their latest removal, `deleted_at` of the budget's deletion.

| the removal                | the subscription                                                    |
|----------------------------|---------------------------------------------------------------------|
| none is known              | stays                                                               |
| before any read            | stays for now: the first read decides, if it is newer               |
| later than `member_at`     | ends at once, whatever it has not been given yet                    |
| at or before `member_at`   | stays: its user has come back since, and the removal came late      |

| the deletion               |                                                                     |
|----------------------------|---------------------------------------------------------------------|
| later than `at`            | stays, until it has been given the log to its end                   |
| at or before `at`          | ends                                                                |
"""

from hub.errors import Code


def standing(deleted: bool, member: bool | None, *, past_counts: bool = False) -> Code | None:
    """Why somebody may not; None if they may. `member` is None for someone who never took part,
    False for a former participant. `past_counts`: of a deleted budget, what its log tells."""
    if member is None or (deleted and not (member and past_counts)):
        return Code.BUDGET_NOT_EXISTS
    return None if member else Code.NOT_PARTICIPANT


def ending(
    at: int | None, *, member_at: int | None, removed_at: int | None, deleted_at: int | None
) -> Code | None:
    """Why a subscription is over; None if it is not."""
    if removed_at is not None and member_at is not None and member_at < removed_at:
        return Code.NOT_PARTICIPANT
    if deleted_at is not None and at is not None and at >= deleted_at:
        return Code.BUDGET_DELETED
    return None
