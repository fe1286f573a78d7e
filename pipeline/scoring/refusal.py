"""When to stop for bad input: a wrong schema that somebody deployed is not ten million dead letters."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.errors import InputRefusedError
from pipeline.records import Reason, Reject
from pipeline.scoring.findings import one_line

#: Reasons told in the message.
REASONS_SHOWN_MAX = 3


@dataclass
class InputLimit:
    """The latest events of one worker, and how many of them were bad; see settings.InputSettings.

    The window is kept in steps: it holds `window_events` events or up to one step more. A step that is done again,
    after an aborted transaction, counts again.
    """

    bad_share_max: float = 1.0
    window_events: int = 10_000
    events_min: int = 1_000
    #: Events and dead letters by reason of each step, oldest first, and their sums.
    _steps: deque[tuple[int, Counter[Reason]]] = field(default_factory=deque, init=False)
    _events: int = field(default=0, init=False)
    _reasons: Counter[Reason] = field(default_factory=Counter, init=False)
    _example: str = field(default="", init=False)

    def take(self, events: int, rejects: list[Reject], place: Callable[[int], str]) -> None:
        """Count a step, before anything of it is sent; place(row) names a record of it.

        Raises InputRefusedError above the limit.
        """
        reasons = Counter(reject.reason for reject in rejects)
        if rejects:
            self._example = f"{place(rejects[0].row)}: {one_line(rejects[0].message)}"
        self._steps.append((events, reasons))
        self._events += events
        self._reasons.update(reasons)
        while self._events - self._steps[0][0] >= self.window_events:
            gone, of_them = self._steps.popleft()
            self._events -= gone
            self._reasons.subtract(of_them)
        bad = self._reasons.total()
        if self._events >= self.events_min and bad > self.bad_share_max * self._events:
            raise InputRefusedError(self._told(bad))

    def _told(self, bad: int) -> str:
        reasons = ", ".join(f"{reason.value} {n:,}" for reason, n in self._reasons.most_common(REASONS_SHOWN_MAX) if n)
        return (
            f"input refused: {bad:,} of the latest {self._events:,} events are bad ({reasons}; {self._example}), more "
            f"than input.bad_share_max = {self.bad_share_max:g} allows; mend their producer or events.schema_file and "
            "start again, or raise the limit (1: none) and redrive the dead letters later"
        )
