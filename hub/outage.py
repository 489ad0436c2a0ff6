"""What is lost outside, and comes back: said once each time."""

import structlog

_log = structlog.get_logger()


class Outage:
    """`lost` and `back` are the log lines, `facts` their fields. `on` while it is away."""

    def __init__(self, lost: str, back: str, **facts: str) -> None:
        self.on = False
        self._lost = lost
        self._back = back
        self._facts = facts

    def lost(self, error: Exception | str) -> None:
        """It did not answer. An error whose text could quote a secret is given by its kind only."""
        if not self.on:
            self.on = True
            said = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
            _log.warning(self._lost, error=said, **self._facts)

    def back(self, **facts: object) -> bool:
        """It answered; whether it had been lost."""
        was, self.on = self.on, False
        if was:
            _log.warning(self._back, **self._facts, **facts)
        return was
