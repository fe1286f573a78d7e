"""The roles that `verify` runs, one process each: to be started, killed, paused, and started again."""

import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli.processes import GRACE_S, RoleProcess, exit_code, spawn
from pipeline.errors import PipelineError, restart_mends

#: A role that ends so often by itself is not kept up by starting it again.
RESTARTS_MAX = 5
#: Workers import torch and warm up; on a cold disk that takes longest.
START_TIMEOUT_S = 120.0
#: In the log of a role that has joined its group (cli/role.py).
RUNNING = '"running"'

#: (condition, what is waited for, seconds) -> whether it came true; the run goes on meanwhile.
Until = Callable[[Callable[[], bool], str, float], bool]


@dataclass
class _Running:
    popen: "subprocess.Popen[bytes]"
    log_file: Path
    #: Told to end, or killed: its end is no surprise.
    doomed: bool = False

    def last_line(self) -> str:
        said = self.log_file.read_text("utf-8", "replace").splitlines()
        return said[-1] if said else "it said nothing"


class Fleet:
    """Processes by role (testing.faults.Workers).

    until: waits, and looks after the fleet meanwhile (`look`).
    on_surprise: told of a role that ended by itself, or did not when told to.
    """

    def __init__(
        self, flags: Sequence[str], logs: Path, deadline_s: float, until: Until, on_surprise: Callable[[str], None]
    ) -> None:
        self._flags, self._logs, self._deadline_s = list(flags), logs, deadline_s
        self._until, self._on_surprise = until, on_surprise
        self._running: dict[RoleProcess, _Running] = {}
        self._starts = 0
        self._restarts = 0

    def slots(self) -> list[int]:
        return [role.slot for role, process in self._running.items() if role.name == "worker" and not process.doomed]

    def start(self, slot: int) -> int:
        pid = self.spawn(RoleProcess("worker", slot))
        self.await_running()
        return pid

    def signal(self, slot: int, number: int) -> int:
        process = self._running[RoleProcess("worker", slot)]
        process.doomed = process.doomed or number in {signal.SIGKILL, signal.SIGTERM}
        process.popen.send_signal(number)
        return process.popen.pid

    def await_end(self, slot: int) -> int:
        process = self._running.pop(role := RoleProcess("worker", slot))
        try:
            process.popen.wait(self._deadline_s + GRACE_S)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            self._on_surprise(f"{role} did not end within its deadline and was killed; {process.last_line()}")
        return exit_code(process.popen.wait())

    def spawn(self, role: RoleProcess) -> int:
        """Start a role; its process id. On the main thread: a role ends with the thread that started it."""
        self._starts += 1
        log_file = self._logs / f"{self._starts:03}-{role.name}-{role.slot}.log"
        with log_file.open("wb") as log:
            popen = spawn(self._flags, role, log)
        self._running[role] = _Running(popen, log_file)
        return popen.pid

    def await_running(self) -> None:
        """Until every role has joined its group. Raises PipelineError if that takes too long."""

        def all_run() -> bool:
            return all(RUNNING in p.log_file.read_text("utf-8", "replace") for p in self._running.values())

        if not self._until(all_run, "every role to run", START_TIMEOUT_S):
            waiting = [f"{role}: {process.last_line()}" for role, process in self._running.items()]
            raise PipelineError(f"not running within {START_TIMEOUT_S:g} s; {'; '.join(waiting)}")

    def look(self) -> None:
        """Start a role again that ended by itself. Raises PipelineError where that cannot help."""
        for role, process in list(self._running.items()):
            if process.doomed or process.popen.poll() is None:
                continue
            code = exit_code(process.popen.returncode)
            self._restarts += 1
            said = f"{role} ended by itself with exit code {code}"
            if not restart_mends(code) or self._restarts > RESTARTS_MAX:
                raise PipelineError(f"{said}; {process.last_line()}")
            self._on_surprise(f"{said} and is started again; {process.last_line()}")
            self.spawn(role)

    def stop(self) -> list[str]:
        """SIGTERM to all, wait for their drain; one line for each that did not end in order."""
        for process in self._running.values():
            process.doomed = True
            process.popen.terminate()
        problems = []
        for role, process in self._running.items():
            try:
                code = exit_code(process.popen.wait(self._deadline_s + GRACE_S))
            except subprocess.TimeoutExpired:
                problems.append(f"{role} did not end within its deadline")
                continue
            if code:
                problems.append(f"{role} ended with exit code {code}; {process.last_line()}")
        self.kill()
        return problems

    def kill(self) -> None:
        """End all at once."""
        for process in self._running.values():
            process.popen.kill()
            process.popen.wait()
        self._running.clear()
