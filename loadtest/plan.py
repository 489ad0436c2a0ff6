"""What is to be run, and which part of it one generator process has."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any
from uuid import UUID, uuid5

from loadtest.scenarios import SCENARIOS, Scenario
from loadtest.target import Target


@dataclass(frozen=True)
class Options:
    """What was asked for. `seed` fixes who does what when."""

    scenario: str
    targets: Sequence[str]
    devices: int
    budgets: int
    rate_per_s: float
    duration_s: float
    processes: int
    users: int
    seed: int
    p99_ms: float  # `ramp`: the bound

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Login:
    """A user of one process. Without a `secret` he has a session of his own at the hub."""

    user_id: str
    session: Sequence[Any] = ()
    secret: str = field(default="", repr=False)
    email: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True)
class Plan:
    """The part of process `process`. Budgets and, with them, their devices are dealt out to the
    processes in turn; where there are fewer budgets than processes, the devices themselves are.

    `epoch_s` is the system's time when the clock `time.monotonic` was 0, one value for all."""

    options: Options
    run_id: str
    process: int
    epoch_s: float
    logins: Sequence[Login]
    history: str  # path of the file

    @property
    def scenario(self) -> Scenario:
        return SCENARIOS[self.options.scenario]

    @property
    def shared(self) -> bool:
        """Every process has devices of every budget."""
        return self.options.budgets < self.options.processes

    @property
    def devices(self) -> Sequence[int]:
        """The numbers of this process's devices."""
        options = self.options
        return [n for n in range(options.devices) if self._process_of(n) == self.process]

    @property
    def founded(self) -> Sequence[int]:
        """The numbers of the budgets that this process creates."""
        every = self.options.processes
        if self.shared:
            return range(self.options.budgets) if self.process == 0 else ()
        return range(self.process, self.options.budgets, every)

    def budgets_of(self, device: int) -> Sequence[int]:
        """The numbers of the budgets that a device follows, its own first. Its user takes part in
        all of them."""
        first = device % self.options.budgets
        if self.shared:
            return [first]
        known = self._budgets[self.login_of(device).user_id]
        wanted = 1 + device // self.options.budgets % self.scenario.budgets_per_device
        begin = known.index(first)
        return [*known[begin:], *known[:begin]][:wanted]

    def logins_of(self, budget: int) -> Sequence[Login]:
        """The users who take part in a budget, its owner first."""
        first = budget if self.shared else budget // self.options.processes
        members = min(self.scenario.members, len(self.logins))
        return [self.logins[(first + n) % len(self.logins)] for n in range(members)]

    def login_of(self, device: int) -> Login:
        """A device's user: the members of a budget have its devices in turn."""
        logins = self.logins_of(device % self.options.budgets)
        return logins[device // self.options.budgets % len(logins)]

    @cached_property
    def _budgets(self) -> Mapping[str, Sequence[int]]:
        """The budgets of this process that a user takes part in."""
        budgets: dict[str, list[int]] = {}
        for number in self.founded:
            for login in self.logins_of(number):
                budgets.setdefault(login.user_id, []).append(number)
        return budgets

    def target_of(self, device: int) -> Target:
        """Every budget begins at another target and goes round: its devices meet on all nodes."""
        targets = self.options.targets
        budget, place = device % self.options.budgets, device // self.options.budgets
        return Target.parse(targets[(budget + place) % len(targets)])

    def budget_id(self, number: int) -> str:
        return str(uuid5(UUID(self.run_id), f"budget {number}"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Plan":
        logins = [Login(**login) for login in raw["logins"]]
        return cls(**{**raw, "options": Options(**raw["options"]), "logins": logins})

    def _process_of(self, device: int) -> int:
        number = device if self.shared else device % self.options.budgets
        return number % self.options.processes
