"""Starts a role again that ended by itself, with growing waits, and gives up loudly: the policy of `run all`."""

import signal
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable

import structlog

from pipeline.cli.context import print_error
from pipeline.cli.processes import ProcessGroup, RoleProcess
from pipeline.errors import InternalError, restart_mends
from pipeline.settings import SupervisorSettings

log = structlog.get_logger(__name__)

#: How often the supervisor looks: how late the end of a role is noticed.
POLL_S = 0.1


class Supervisor:
    """Keeps the roles of a group running.

    A role that leaves without being told to, whatever its exit code, is started again after `backoff_s`, twice
    that after its second end within `window_s`, and so on. The group ends, with the role's exit code, when a
    restart cannot mend the cause (a wrong setting, bad input, another instance in its place) or when
    `restarts_max` of them did not.
    """

    def __init__(
        self, group: ProcessGroup, settings: SupervisorSettings, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._group = group
        self._settings = settings
        self._monotonic = monotonic
        #: When each role ended, oldest first, within the window.
        self._ends: dict[RoleProcess, deque[float]] = defaultdict(deque)
        #: When to start each role that waits for it.
        self._due: dict[RoleProcess, float] = {}

    def run(self, wanted: Iterable[RoleProcess], stop: threading.Event) -> int:
        """Until `stop`, then the worst exit code; or until a role is past mending, then that role's."""
        self._group.start(wanted)
        while not stop.wait(POLL_S):
            for role, code in self._group.take_ended():
                if (hopeless := self.ended(role, code)) is not None:
                    log.error("stopping all roles", cause=hopeless)
                    self._group.stop()
                    print_error(hopeless)
                    # A role that leaves in order although nobody told it to has a bug.
                    return code or InternalError.exit_code
            self._start_due()
        return self._group.stop()

    def ended(self, role: RoleProcess, code: int) -> str | None:
        """Plan the restart of a role that has ended; if there will be none: why, and what to do."""
        now, settings = self._monotonic(), self._settings
        ends = self._ends[role]
        while ends and ends[0] <= now - settings.window_s:
            ends.popleft()
        ends.append(now)
        how = told(code)
        if not restart_mends(code):
            return f"{role} ended with {how}, which a restart does not mend; see its last line"
        if len(ends) > settings.restarts_max:
            times = "once" if len(ends) == 1 else f"{len(ends)} times within {settings.window_s:g} s"
            mend = "its log says why; mend that and start again, or raise supervisor.restarts_max"
            return f"{role} ended {times}, now with {how}: giving up; {mend}"
        wait_s = min(settings.backoff_s * 2 ** (len(ends) - 1), settings.backoff_max_s)
        self._due[role] = now + wait_s
        log.warning("a role ended, starting it again", role=str(role), ended=how, restart=len(ends), wait_s=wait_s)
        return None

    def _start_due(self) -> None:
        now = self._monotonic()
        for role in [role for role, due in self._due.items() if due <= now]:
            del self._due[role]
            self._group.start([role])


def told(code: int) -> str:
    """An exit code for a person: its number, or the name of the signal."""
    try:
        return signal.Signals(code - 128).name if code > 128 else f"exit code {code}"
    except ValueError:
        return f"exit code {code}"
