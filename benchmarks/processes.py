"""Run one system as a process tree of its own, watch it, end it; and say what it used."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

#: A sample costs about 2 ms: 2 % of a core.
SAMPLE_S = 0.1
#: Longest time without one more output before a system counts as stalled; start-up included.
STALL_S = 60.0
#: Longest time a system may take to commit and leave after its last output or after SIGTERM.
LEAVE_S = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class SystemFailedError(Exception):
    """A system died, stalled, or did not end; the message has the end of its log."""


@dataclass(frozen=True)
class Usage:
    """What a process tree used."""

    wall_s: float
    #: All of it, imports included.
    cpu_s: float
    #: From the first output seen, or rather the last sample before it, to the end.
    cpu_working_s: float
    #: Most memory the tree had at once, as sampled. (The kernel's own peak starts from the parent's at exec.)
    rss_bytes: int


def run_system(
    command: list[str],
    log: Path,
    outputs: Callable[[], int],
    events: int,
    *,
    ends_itself: bool,
    committed: Callable[[], int],
    progress: Callable[[int], None] = lambda _done: None,
    environment: Mapping[str, str] | None = None,
    stall_s: float = STALL_S,
) -> Usage:
    """Start `command`, wait until `outputs()` counts `events`, end it, return what it used.

    A system that does not end itself gets SIGTERM once `committed()` counts `events` too, or after LEAVE_S.
    Raises SystemFailedError when it dies, stalls for `stall_s` or does not end. No process is left behind.
    """
    began = time.monotonic()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    tree = _Tree(process, log)
    try:
        cpu_before, rss_max = _watch(tree, outputs, events, stall_s, progress)
        if not ends_itself:
            _wait(lambda: committed() >= events or tree.ended(), LEAVE_S)
        cpu_last, rss_last = sample(process.pid)
        if not ends_itself:
            tree.terminate()
        if not _wait(tree.ended, LEAVE_S):
            raise SystemFailedError(f"still there {LEAVE_S:g} s after its last output; {tail(log)}")
        if tree.status != 0:
            raise SystemFailedError(f"ended with status {tree.status}; {tail(log)}")
    finally:
        tree.kill()
    # Of a child that nobody waited for (Spark's JVM), the kernel's sum at the end knows nothing.
    cpu_s = max(cpu_last, tree.cpu_s)
    return Usage(time.monotonic() - began, cpu_s, cpu_s - cpu_before, max(rss_max, rss_last))


def _watch(
    tree: "_Tree", outputs: Callable[[], int], events: int, stall_s: float, progress: Callable[[int], None]
) -> tuple[float, int]:
    """Sample until all outputs are there; CPU seconds before the first, and the largest memory in bytes."""
    done, last_change, cpu_before, rss_max = 0, time.monotonic(), 0.0, 0
    while True:
        cpu_s, rss = sample(tree.process.pid)
        rss_max = max(rss_max, rss)
        now_done = outputs()
        if now_done == 0:
            cpu_before = max(cpu_before, cpu_s)
        if now_done >= events:
            progress(now_done)
            return cpu_before, rss_max
        if now_done > done:
            done, last_change = now_done, time.monotonic()
            progress(done)
        if tree.ended():
            count = f"{outputs():,} of {events:,}"
            raise SystemFailedError(f"ended with status {tree.status} after {count}; {tail(tree.log)}")
        if time.monotonic() - last_change > stall_s:
            raise SystemFailedError(f"stalled {stall_s:g} s at {done:,} of {events:,}; {tail(tree.log)}")
        time.sleep(SAMPLE_S)


class _Tree:
    """A child in a session of its own, reaped with its resource usage."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log
        self.status: int | None = None
        self.cpu_s = 0.0

    def ended(self) -> bool:
        if self.status is None:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                self._reaped(status, usage.ru_utime + usage.ru_stime)
        return self.status is not None

    def terminate(self) -> None:
        if not self.ended():
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End whatever is left of the session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.status is None:
            _, status, usage = os.wait4(self.process.pid, 0)
            self._reaped(status, usage.ru_utime + usage.ru_stime)

    def _reaped(self, status: int, cpu_s: float) -> None:
        self.status = self.process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_s = cpu_s


def _wait(condition: Callable[[], bool], timeout_s: float) -> bool:
    give_up = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(SAMPLE_S)
    return True


def sample(session: int, stats: Iterable[Path] | None = None) -> tuple[float, int]:
    """CPU seconds (waited-for children included) and resident bytes of all live processes of a session."""
    ticks = pages = 0
    for path in Path("/proc").glob("[0-9]*/stat") if stats is None else stats:
        try:
            # The command name may hold spaces and brackets: fields count from behind the last bracket.
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[3]) == session:
            ticks += sum(int(field) for field in fields[11:15])
            pages += int(fields[21])
    return ticks / _TICKS, pages * _PAGE


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log, for a message."""
    text = log.read_text("utf-8", "replace").splitlines()[-lines:]
    return "its log ends:\n    " + "\n    ".join(text) if text else "its log is empty"
