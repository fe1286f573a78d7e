"""A command in a process group of its own, watched: it ends by itself, at a limit, or when it is told to.

Whatever ends it, the whole group ends: SIGTERM, and SIGKILL after STOP_GRACE_S. Memory is what /proc says that the
group has in RAM (Linux; elsewhere only time is limited). An address-space limit (RLIMIT_AS) would not do: torch alone
maps gigabytes that it never touches.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ContractError, ExhaustedError
from pipeline.settings import RetrainingSettings

#: For what a process does at SIGTERM: close files, end processes of its own.
STOP_GRACE_S = 5.0
#: How often its memory is looked at: reading /proc takes 2 ms with 200 processes. It may take more in between.
WATCH_EVERY_S = 0.25
_PROC = Path("/proc")
_STDERR = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may take."""

    time_max_s: float
    #: In RAM, of the process and all it starts; None: not watched.
    memory_max_bytes: int | None = None


def chosen(settings: RetrainingSettings, request: Path, flags: Sequence[str]) -> tuple[list[str], Limits]:
    """What trains as the file `request` says, and its limits: a process of our own, or the user's command.

    flags: the global ones of this process, for its own kind.
    """
    if settings.executor == "command":
        command = [part.replace("{request}", str(request)) for part in shlex.split(settings.command or "")]
        return command, Limits(settings.time_max_s)
    own = ["retrain", "--request", str(request), "--child-of", str(os.getpid())]
    limits = Limits(settings.time_max_s, settings.memory_max_mb << 20)
    return [sys.executable, "-m", "pipeline.cli", *flags, *own], limits


def run(command: Sequence[str], limits: Limits, stop: threading.Event) -> int | None:
    """Run a command to its end; its exit code as a shell gives it, None if `stop` was set first.

    What it says, on either stream, goes to this process's standard error; it has no input. Raises ContractError for a
    command that cannot be started, ExhaustedError when it passes a limit.
    """
    try:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.DEVNULL, stdout=_STDERR, start_new_session=True
        )
    except OSError as error:
        raise ContractError(f"{command[0]}: cannot be started: {error.strerror}") from None
    started = time.monotonic()
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(WATCH_EVERY_S)
                return code if code >= 0 else 128 - code
            if stop.is_set():
                return None
            _check(process.pid, limits, time.monotonic() - started)
    finally:
        _end(process)


def _check(group: int, limits: Limits, elapsed_s: float) -> None:
    if elapsed_s > limits.time_max_s:
        raise ExhaustedError(
            f"retraining took longer than retraining.time_max_s = {limits.time_max_s:g} and was ended; allow it more, "
            "or take a smaller window"
        )
    most = limits.memory_max_bytes
    if most is not None and (now := memory_bytes(group)) > most:
        raise ExhaustedError(
            f"retraining took {now >> 20:,} MiB, more than retraining.memory_max_mb = {most >> 20:,}, and was ended; "
            "allow it more, or take a smaller window"
        )


def memory_bytes(group: int) -> int:
    """What the processes of a group have in RAM, pages they share counted once for each; 0 where /proc is not."""
    if sys.platform != "linux":
        return 0
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it may have ended just now
                # After the name, which may hold anything but ends with the last bracket: state, parent, group, ...
                fields = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
                total += int(fields[21]) * page if int(fields[2]) == group else 0
    return total


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of the group: the process itself, and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):  # nobody is left; macOS says it so of zombies
            break
        give_up = time.monotonic() + STOP_GRACE_S
        while number == signal.SIGTERM and time.monotonic() < give_up and _alive(process):
            time.sleep(0.02)
    process.wait()


def _alive(process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is None:
        return True
    try:
        os.killpg(process.pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
