"""Presence: which users have live sockets on a budget, and on how many devices.

It is hearsay, never stored, and nothing is decided by it. Each node tells the others through the
bus which users it has; what a node said counts until it says otherwise or is silent for too long.
"""

from collections.abc import Mapping

from hub.budget.records import UserId
from hub.ports import NodeId


class Presence:
    """Of one budget. `here` counts the devices of this node by user; `moved` is whether that has
    changed since it was last told to the other nodes."""

    __slots__ = ("_elsewhere", "here", "moved")

    def __init__(self) -> None:
        self.here: dict[UserId, int] = {}
        self.moved = False
        self._elsewhere: dict[NodeId, Mapping[UserId, int]] | None = None

    def came(self, user_id: UserId) -> None:
        self.here[user_id] = self.here.get(user_id, 0) + 1
        self.moved = True

    def left(self, user_id: UserId) -> None:
        devices = self.here[user_id] - 1
        if devices:
            self.here[user_id] = devices
        else:
            del self.here[user_id]
        self.moved = True

    def heard(self, node_id: NodeId, users: Mapping[UserId, int]) -> bool:
        """Another node tells which users it has. Returns whether that is news."""
        elsewhere = self._elsewhere or {}
        before = elsewhere.pop(node_id, {})
        if users:
            elsewhere[node_id] = users
        self._elsewhere = elsewhere or None
        return before != users

    def silent(self, node_id: NodeId) -> bool:
        """That node is gone; whether anybody was there."""
        return self.heard(node_id, {})

    def forget(self) -> None:
        """What the other nodes told may no longer hold."""
        self._elsewhere = None

    def users(self) -> dict[UserId, int]:
        """Everybody, in the order of their ids."""
        devices = dict(self.here)
        for users in (self._elsewhere or {}).values():
            for user_id, more in users.items():
                devices[user_id] = devices.get(user_id, 0) + more
        return dict(sorted(devices.items()))
