"""A group of role processes on this machine: what `run all` supervises and `demo` watches."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import structlog

from pipeline.settings import Settings

log = structlog.get_logger(__name__)

#: On top of the roles' own shutdown deadline: interpreter start and end, closing of connections.
GRACE_S = 10.0


@dataclass(frozen=True)
class RoleProcess:
    """One role to run: `pipeline run NAME --slot SLOT`."""

    name: str
    slot: int = 1

    def __str__(self) -> str:
        return f"{self.name} {self.slot}"


def roles(name: str, workers: int, settings: Settings) -> list[RoleProcess]:
    """The processes that `pipeline run NAME --workers WORKERS` stands for."""
    if name != "all":
        return [RoleProcess(name, slot) for slot in range(1, workers + 1)]
    found = [RoleProcess("worker", slot) for slot in range(1, workers + 1)]
    others = {
        "labels": settings.labels.enabled,
        "quality": settings.labels.enabled and settings.quality.enabled,
        "monitor": settings.drift.enabled,
        "retrainer": settings.retraining.enabled,
    }
    return found + [RoleProcess(role) for role, wanted in others.items() if wanted]


def command(flags: Sequence[str], role: RoleProcess) -> list[str]:
    """Command line of one role, under the supervisor's own global flags; it ends when this process does."""
    parent = str(os.getpid())
    run = ["run", role.name, "--slot", str(role.slot), "--parent", parent]
    return [sys.executable, "-m", "pipeline.cli", *flags, *run]


def spawn(flags: Sequence[str], role: RoleProcess, output: BinaryIO | None) -> "subprocess.Popen[bytes]":
    """Start a role in a session of its own, so that a Ctrl-C at the terminal is for this process alone.

    output: where what it says goes; None: to this process's own.
    """
    return subprocess.Popen(  # noqa: S603 (our own command)
        command(flags, role), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )


class ProcessGroup:
    """Starts roles, says which have ended, ends them all in order.

    A Ctrl-C at the terminal reaches the supervisor alone, which passes it on: each role drains once, and nobody is
    interrupted twice.

    log_dir: where each role's output goes, NAME-SLOT.log; without it, to this process's own.
    """

    def __init__(self, flags: Sequence[str], deadline_s: float, log_dir: Path | None = None) -> None:
        self._flags = list(flags)
        self._deadline_s = deadline_s
        self._log_dir = log_dir
        self._processes: dict[RoleProcess, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, wanted: Iterable[RoleProcess]) -> None:
        """Start further roles."""
        for role in wanted:
            with nullcontext() if self._log_dir is None else self.log_file(role).open("ab") as output:
                self._processes[role] = spawn(self._flags, role, output)

    def log_file(self, role: RoleProcess) -> Path:
        """Where `role`'s output goes."""
        assert self._log_dir is not None
        return self._log_dir / f"{role.name}-{role.slot}.log"

    def pid(self, role: RoleProcess) -> int:
        """Process id of a role that was started."""
        return self._processes[role].pid

    def ended(self) -> tuple[RoleProcess, int] | None:
        """A role that has ended, with its exit code (128 + n for signal n), failures first; None while all run."""
        return max(self._ends(), key=lambda pair: pair[1], default=None)

    def take_ended(self) -> list[tuple[RoleProcess, int]]:
        """As `ended`, all that have; they are no longer of this group, and may be started again."""
        taken = self._ends()
        for role, _ in taken:
            del self._processes[role]
        return taken

    def _ends(self) -> list[tuple[RoleProcess, int]]:
        return [(role, exit_code(p.returncode)) for role, p in self._processes.items() if p.poll() is not None]

    def stop(self) -> int:
        """SIGTERM to all, wait for their drain, SIGKILL past the deadline. The worst exit code."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + self._deadline_s + GRACE_S
        for role, process in self._processes.items():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.0))
            if process.poll() is None:
                log.error("a role did not end by its deadline and was killed", role=str(role))
                process.kill()
                process.wait()
        # One that SIGTERM ended was still starting, before it could ask for better: it had nothing open.
        codes = [exit_code(p.returncode) for p in self._processes.values() if p.returncode != -signal.SIGTERM]
        worst = max(codes, default=0)
        self._processes.clear()
        return worst


def exit_code(returncode: int) -> int:
    """A process's exit code as a shell would give it: 128 + n for signal n."""
    return returncode if returncode >= 0 else 128 - returncode


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C ask for an end in order; a second one ends at once."""
    stop = threading.Event()

    def handle(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent(parent: int) -> None:
    """Get SIGTERM when process `parent` ends, however it ends (Linux; elsewhere nothing happens)."""
    if sys.platform != "linux":
        return
    import ctypes  # noqa: PLC0415 (only here)

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGTERM))
    if os.getppid() != parent:  # it ended before this call
        os.kill(os.getpid(), signal.SIGTERM)
