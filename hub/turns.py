"""Turns: a few places that many users want, so that no user keeps the others from theirs.

Who asks, and what they get:

| a place is free | the user has `per_user` | what follows                                        |
|-----------------|-------------------------|-----------------------------------------------------|
| yes             | no                      | the place, at once                                  |
| no              | no                      | a turn: each user has a queue of their own          |
| either          | yes                     | the same, but it stands still until the user gives  |
|                 |                         | one of their places back                            |

When a place becomes free, the user whose queue has waited longest since its last turn gets it, for
the first in it. So whoever comes waits for at most one turn of each other user that waits, however
many more of them this one has asked for. `per_user` is below `places` where users come: what one
user asks for may take long, and the other places go on meanwhile. A queue longer than `waiting_max`
takes no more (`Crowded`).
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

W = TypeVar("W", bound=Hashable)

WAITING_MAX = 1_000  # of one user, at one gate


class Crowded(Exception):
    """The user has too many waiting already."""


class Turns(Generic[W]):
    """A waiter is anything that can be told apart. `hub.gate` makes coroutines wait by it."""

    def __init__(self, places: int, per_user: int, waiting_max: int = WAITING_MAX) -> None:
        self._free = places
        self._per_user = per_user
        self._waiting_max = waiting_max
        self._held: Counter[Hashable] = Counter()
        # Users in the order of their next turns; who is behind in it had one later. A user who may
        # have no more places keeps theirs.
        self._queues: OrderedDict[Hashable, OrderedDict[W, None]] = OrderedDict()
        self.waiting = 0

    def take(self, user: Hashable) -> bool:
        """Take a place if the user can have one at once. Nobody is overtaken: while a place is
        free, those who wait are users who may have no more."""
        if not self._free or self._held[user] >= self._per_user:
            return False
        self._free -= 1
        self._held[user] += 1
        return True

    def wait(self, user: Hashable, waiter: W) -> None:
        """Queue up, after `take` was in vain. Raises `Crowded`."""
        queue = self._queues.get(user)
        if queue is None:
            queue = self._queues[user] = OrderedDict()
        elif len(queue) >= self._waiting_max:
            raise Crowded
        queue[waiter] = None
        self.waiting += 1

    def give_back(self, user: Hashable) -> W | None:
        """The user's place is free again. Returns the waiter whose place it is now, if any."""
        self._free += 1
        self._held[user] -= 1
        if not self._held[user]:
            del self._held[user]
        # At most as many users are passed over as there are places.
        for other, queue in self._queues.items():
            if self.take(other):
                waiter, _ = queue.popitem(last=False)
                self.waiting -= 1
                if queue:
                    self._queues.move_to_end(other)
                else:
                    del self._queues[other]
                return waiter
        return None

    def give_up(self, user: Hashable, waiter: W) -> bool:
        """Stop waiting. False where the waiter has got a place already, which it must give back."""
        queue = self._queues.get(user)
        if queue is None or waiter not in queue:
            return False
        del queue[waiter]
        self.waiting -= 1
        if not queue:
            del self._queues[user]
        return True
