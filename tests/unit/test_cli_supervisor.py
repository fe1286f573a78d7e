"""The supervisor's policy: what is started again, when, how often, and what ends the whole group."""

import sys
import threading
from pathlib import Path

import pytest

from pipeline.cli import processes
from pipeline.cli.processes import ProcessGroup, RoleProcess
from pipeline.cli.supervisor import Supervisor, told
from pipeline.errors import PipelineError, _kinds, restart_mends
from pipeline.settings import SupervisorSettings
from pipeline.testing import ManualClock

WORKER, MONITOR = RoleProcess("worker"), RoleProcess("monitor")
#: A role that notes each start in the file SOURCE is given, and ends as told the n-th time.
COUNTS = """
import signal, sys, time
from pathlib import Path
starts = Path({file!r})
n = int(starts.read_text()) + 1 if starts.exists() else 1
starts.write_text(str(n))
codes = {codes!r}
if n <= len(codes): sys.exit(codes[n - 1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print('up'); time.sleep(60)
"""


class Group:
    """Stands for a ProcessGroup: notes what is started."""

    def __init__(self) -> None:
        self.started: list[RoleProcess] = []

    def start(self, wanted: list[RoleProcess]) -> None:
        self.started += wanted


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_000.0)


def make(clock: ManualClock, **settings: float) -> tuple[Supervisor, Group]:
    group = Group()
    return Supervisor(group, SupervisorSettings(**settings), clock), group  # type: ignore[arg-type]


def test_waits_double_up_to_the_cap(clock: ManualClock) -> None:
    """1, 2, 4, 4 s; nothing is started before its time."""
    supervisor, group = make(clock, backoff_s=1, backoff_max_s=4, restarts_max=4)
    for n, wait_s in enumerate((1.0, 2.0, 4.0, 4.0)):
        assert supervisor.ended(WORKER, 6) is None
        clock.advance(wait_s - 0.01)
        supervisor._start_due()
        assert len(group.started) == n
        clock.advance(0.02)
        supervisor._start_due()
        assert group.started == [WORKER] * (n + 1)


def test_giving_up_says_who_how_often_and_what_to_do(clock: ManualClock) -> None:
    """One crash more than allowed within the window."""
    supervisor, _ = make(clock, restarts_max=2)
    assert supervisor.ended(WORKER, 137) is None
    assert supervisor.ended(WORKER, 6) is None
    said = supervisor.ended(WORKER, 6)
    assert said is not None
    assert said.startswith("worker 1 ended 3 times within 600 s, now with exit code 6: giving up")
    assert "supervisor.restarts_max" in said


def test_each_role_has_its_own_account(clock: ManualClock) -> None:
    """The monitor's crashes do not use up the worker's restarts."""
    supervisor, _ = make(clock, restarts_max=1)
    assert supervisor.ended(WORKER, 70) is None
    assert supervisor.ended(MONITOR, 70) is None
    assert supervisor.ended(MONITOR, 70) is not None


def test_a_role_that_ran_well_for_a_while_begins_anew(clock: ManualClock) -> None:
    """What is older than the window neither counts nor makes the wait longer."""
    supervisor, group = make(clock, restarts_max=1, window_s=60)
    assert supervisor.ended(WORKER, 6) is None
    clock.advance(60)
    assert supervisor.ended(WORKER, 6) is None
    clock.advance(1.0)
    supervisor._start_due()
    assert group.started == [WORKER]


def test_without_restarts_the_first_end_is_the_last(clock: ManualClock) -> None:
    """restarts_max 0: another supervisor does that."""
    supervisor, _ = make(clock, restarts_max=0)
    assert (supervisor.ended(WORKER, 6) or "").startswith("worker 1 ended once, now with exit code 6")


@pytest.mark.parametrize("code", [1, 2, 3, 4, 9])
def test_what_a_restart_cannot_mend_is_not_started_again(clock: ManualClock, code: int) -> None:
    """Settings, contract, refused input, another instance: a person must change something."""
    supervisor, group = make(clock)
    assert "a restart does not mend" in (supervisor.ended(WORKER, code) or "")
    clock.advance(3600)
    supervisor._start_due()
    assert group.started == []


@pytest.mark.parametrize("code", [0, 5, 6, 7, 8, 10, 70, 77, 134, 137, 139])
def test_what_may_pass_is_started_again(clock: ManualClock, code: int) -> None:
    """Also one that was told to end by somebody else, was killed, or ended with a code nobody knows."""
    assert make(clock)[0].ended(WORKER, code) is None


def test_errors_with_one_code_agree_about_restarts() -> None:
    """An exit code says whether a restart may help: all errors that share it must say the same."""
    for kind in _kinds(PipelineError):
        if kind.exit_code != PipelineError.exit_code or kind is PipelineError:
            assert kind.restart_mends == restart_mends(kind.exit_code), kind


def test_codes_are_told_as_a_person_knows_them() -> None:
    """Signals by their names."""
    assert [told(code) for code in (6, 137, 139, 255)] == ["exit code 6", "SIGKILL", "SIGSEGV", "exit code 255"]


# --------------------------------------------------------------------------- with processes


def run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, codes: list[int], stop_after: int | None = None
) -> tuple[int, int]:
    """Exit code of the group and starts of its one role, which ends with `codes` and then runs."""
    file = folder / "starts"
    source = COUNTS.format(file=str(file), codes=codes)
    monkeypatch.setattr(processes, "command", lambda _flags, role: [sys.executable, "-u", "-c", source])
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            if "up" in (folder / "worker-1.log").read_text():
                stop.set()

    with ProcessGroup([], 60.0, folder) as group:
        (folder / "worker-1.log").touch()
        if stop_after is not None:
            threading.Thread(target=watch, daemon=True).start()
        settings = SupervisorSettings(restarts_max=3, backoff_s=0.01)
        code = Supervisor(group, settings).run([WORKER], stop)
    return code, int(file.read_text())


def test_a_role_that_crashes_twice_is_there_in_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Started three times; the group's code is that of its orderly stop."""
    assert run(monkeypatch, tmp_path, [6, 70], stop_after=1) == (0, 3)


def test_a_role_that_keeps_crashing_ends_the_group_with_its_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four starts, then one line that says so."""
    assert run(monkeypatch, tmp_path, [6, 6, 6, 7, 6]) == (7, 4)
    assert "worker 1 ended 4 times" in capsys.readouterr().err


def test_a_role_that_keeps_leaving_in_order_is_a_bug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody told it to stop: exit code 70, never 0."""
    assert run(monkeypatch, tmp_path, [0] * 5) == (70, 4)


def test_refused_input_ends_the_group_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Exit code 3 is the group's, after one start."""
    assert run(monkeypatch, tmp_path, [3, 0]) == (3, 1)
