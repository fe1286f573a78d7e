"""The roles of a verification: told to end, ending by themselves, not ending; on small processes in their place."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import processes, verify_fleet
from pipeline.cli.processes import RoleProcess
from pipeline.cli.verify_fleet import RESTARTS_MAX, Fleet
from pipeline.errors import PipelineError

RUNS = "print('\"running\"', flush=True); "
BLOCKS = "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]); "
WAITS = BLOCKS + RUNS + "signal.sigwait([signal.SIGTERM])"


class Roles:
    """A fleet whose roles run what `programs` says, by slot; the last of a list again and again."""

    def __init__(
        self, logs: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[int, list[str]], deadline_s: float
    ) -> None:
        def command(_flags: Any, role: RoleProcess) -> list[str]:
            program = programs[role.slot]
            return [sys.executable, "-c", program.pop(0) if len(program) > 1 else program[0]]

        monkeypatch.setattr(processes, "command", command)
        monkeypatch.setattr(verify_fleet, "GRACE_S", 0.0)
        self.told: list[str] = []
        self.fleet = Fleet([], logs, deadline_s, self.until, self.told.append)

    def until(self, condition: Callable[[], bool], what: str, patience_s: float) -> bool:
        give_up = time.monotonic() + patience_s
        while not condition():
            if time.monotonic() > give_up:
                return False
            self.fleet.look()
            time.sleep(0.01)
        return True


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Roles]]:
    made: list[Roles] = []

    def new(programs: dict[int, list[str]], deadline_s: float = 60.0) -> Roles:
        made.append(Roles(tmp_path, monkeypatch, programs, deadline_s))
        return made[-1]

    yield new
    for roles in made:
        roles.fleet.kill()


def test_what_was_told_to_end_is_no_surprise(make: Callable[..., Roles]) -> None:
    """SIGTERM: exit code 0; SIGKILL: 137; neither is started again or told of."""
    roles = make({1: [WAITS], 2: [WAITS]})
    fleet = roles.fleet
    pids = [fleet.start(1), fleet.start(2)]
    assert fleet.slots() == [1, 2]
    assert fleet.signal(1, signal.SIGTERM) == pids[0]
    assert fleet.slots() == [2]
    assert fleet.await_end(1) == 0
    fleet.signal(2, signal.SIGKILL)
    assert fleet.await_end(2) == 137
    fleet.look()
    assert roles.told == []
    assert fleet.start(1) != pids[0]


def test_a_role_that_crashed_is_started_again_and_told_of(make: Callable[..., Roles]) -> None:
    """An exit code after which a new start may help: as a supervisor would."""
    roles = make({1: ["print('why it ended'); raise SystemExit(5)", WAITS]})
    roles.fleet.start(1)
    (told,) = roles.told
    assert "worker 1 ended by itself with exit code 5" in told
    assert "why it ended" in told
    assert roles.fleet.slots() == [1]


def test_a_role_that_a_new_start_does_not_help_ends_the_run(make: Callable[..., Roles]) -> None:
    """Exit code 2: a setting is wrong; the last line says which."""
    with pytest.raises(PipelineError, match="worker 1 ended by itself with exit code 2; error: the cause"):
        make({1: ["print('error: the cause'); raise SystemExit(2)"]}).fleet.start(1)


def test_a_role_that_crashes_again_and_again_ends_the_run(make: Callable[..., Roles]) -> None:
    """After RESTARTS_MAX new starts."""
    roles = make({1: ["raise SystemExit(70)"]})
    with pytest.raises(PipelineError, match="exit code 70"):
        roles.fleet.start(1)
    assert len(roles.told) == RESTARTS_MAX


def test_a_role_that_does_not_end_is_killed_and_told_of(make: Callable[..., Roles]) -> None:
    """Its deadline is over: the run goes on without it, the report says so."""
    roles = make({1: [BLOCKS + RUNS + "signal.pause()"]}, deadline_s=0.2)
    roles.fleet.start(1)
    roles.fleet.signal(1, signal.SIGTERM)
    assert roles.fleet.await_end(1) == 137
    assert "did not end within its deadline" in roles.told[0]


def test_the_end_of_the_run_wants_every_role_to_end_in_order(make: Callable[..., Roles]) -> None:
    """One line for each that did not."""
    roles = make({1: [WAITS], 2: [WAITS + "; print('the drain failed'); raise SystemExit(8)"]})
    roles.fleet.start(1)
    roles.fleet.start(2)
    assert roles.fleet.stop() == ["worker 2 ended with exit code 8; the drain failed"]
    assert roles.fleet.slots() == []
