"""A command within limits: how it ended, and that nothing of it is left."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.errors import ContractError, ExhaustedError
from pipeline.retraining import executor
from pipeline.retraining.executor import Limits
from tests.pipelines import eventually

LONG = Limits(60.0)
#: Starts a process of its own that ignores SIGTERM, notes both numbers, and waits.
FAMILY = """
import os, pathlib, signal, subprocess, sys, time
child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
other = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
other.stdout.readline()
path = pathlib.Path(sys.argv[1])
path.with_suffix(".part").write_text(f"{os.getpid()} {other.pid}")
path.with_suffix(".part").rename(path)
time.sleep(600)
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie, which nobody here can wait for, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def quick_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "STOP_GRACE_S", 0.2)


@pytest.mark.parametrize(
    ("code", "expected"), [("", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_the_exit_code_is_as_a_shell_gives_it(code: str, expected: int) -> None:
    """128 + n for signal n."""
    assert executor.run(python(code), LONG, threading.Event()) == expected


def test_what_cannot_be_started() -> None:
    """One line with the command."""
    with pytest.raises(ContractError, match="/no/such/command: cannot be started: No such file"):
        executor.run(["/no/such/command"], LONG, threading.Event())


def test_standard_output_stays_free(capfd: pytest.CaptureFixture[str]) -> None:
    """Results go there; what a training function prints is no result."""
    executor.run(python("print('hello'); import sys; print(sys.stdin.read() == '')"), LONG, threading.Event())
    out, errors = capfd.readouterr()
    assert (out, errors) == ("", "hello\nTrue\n")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who is alive")
@pytest.mark.usefixtures("quick_end")
@pytest.mark.parametrize("how", ["stop", "time"])
def test_all_of_a_family_ends(tmp_path: Path, how: str) -> None:
    """Told to stop or out of time: also a child that does not listen."""
    pids, stop = tmp_path / "pids", threading.Event()

    def stop_later() -> None:
        eventually(pids.exists, "both run")
        stop.set()

    if how == "stop":
        threading.Thread(target=stop_later).start()
        assert executor.run(python(FAMILY, str(pids)), LONG, stop) is None
    else:
        with pytest.raises(ExhaustedError, match=r"longer than retraining\.time_max_s = 3"):
            executor.run(python(FAMILY, str(pids)), Limits(3.0), stop)
    family = [int(pid) for pid in pids.read_text("utf-8").split()] if pids.exists() else []
    assert how == "time" or len(family) == 2
    eventually(lambda: not any(map(alive, family)), "none of them lives", 10)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.usefixtures("quick_end")
def test_memory_is_that_of_all_of_them() -> None:
    """200 MiB in a child of the process count; address space that is never touched does not."""
    child = "b = bytearray(200 << 20); import time; time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(ExhaustedError, match=r"took \d+ MiB, more than retraining.memory_max_mb = 150"):
        executor.run(python(code), Limits(60.0, 150 << 20), threading.Event())
    untouched = "import mmap; m = mmap.mmap(-1, 4 << 30); import time; time.sleep(1)"
    assert executor.run(python(untouched), Limits(60.0, 150 << 20), threading.Event()) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_of_this_group_is_about_this_process() -> None:
    """Of a group that is not there, none."""
    own = int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert executor.memory_bytes(os.getpgrp()) >= own * 0.9
    assert executor.memory_bytes(2**22 - 1) == 0


def test_an_end_is_noticed_soon() -> None:
    """A quick command costs its own time."""
    began = time.monotonic()
    executor.run(["true"], LONG, threading.Event())
    assert time.monotonic() - began < 5
