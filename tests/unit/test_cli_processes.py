"""The supervised group of role processes, with small stand-ins for the roles' command lines."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli import processes
from pipeline.cli.context import Flags
from pipeline.cli.processes import ProcessGroup, RoleProcess, roles
from pipeline.settings import Settings

OBEDIENT = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); print('up'); time.sleep(60)"
)
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Role name -> Python source that runs in its place."""
    sources: dict[str, str] = {}
    monkeypatch.setattr(processes, "command", lambda _flags, role: [sys.executable, "-u", "-c", sources[role.name]])
    return sources


def await_up(group: ProcessGroup, *wanted: RoleProcess) -> None:
    give_up = time.monotonic() + 20
    while not all("up" in group.log_file(role).read_text() for role in wanted):
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_all_is_the_workers_and_one_monitor() -> None:
    """Each worker has its slot; the monitor is there unless drift is off, others where they are switched on."""
    assert roles("all", 2, Settings()) == [RoleProcess("worker", 1), RoleProcess("worker", 2), RoleProcess("monitor")]
    on = Settings.model_validate(
        {"drift": {"enabled": False}, "labels": {"enabled": True}, "retraining": {"enabled": True}}
    )
    others = ("labels", "quality", "retrainer")
    assert roles("all", 1, on) == [RoleProcess("worker", 1), *map(RoleProcess, others)]
    unwatched = Settings.model_validate({"labels": {"enabled": True}, "quality": {"enabled": False}})
    assert roles("all", 1, unwatched) == [RoleProcess("worker", 1), RoleProcess("labels"), RoleProcess("monitor")]
    assert roles("worker", 2, on) == [RoleProcess("worker", 1), RoleProcess("worker", 2)]


def test_each_process_of_all_has_a_port_of_its_own() -> None:
    """They run on one machine, and one that finds its port taken ends."""
    on = Settings.model_validate({"labels": {"enabled": True}, "retraining": {"enabled": True}})
    found = [on.observe.port_of(role.name, role.slot) for role in roles("all", 4, on)]
    assert len(set(found)) == len(found) == 8


def test_a_role_gets_the_supervisors_flags() -> None:
    """Settings file and overrides reach every role as they were given."""
    flags = Flags(Path("x/p.toml"), {"name": "a b", "drift.delta": "0.1"}).as_arguments()
    assert flags == ["--config", "x/p.toml", "--set", "name=a b", "--set", "drift.delta=0.1"]
    line = processes.command(flags, RoleProcess("worker", 2))
    assert line[1:] == ["-m", "pipeline.cli", *flags, "run", "worker", "--slot", "2", "--parent", str(os.getpid())]


def test_a_stop_ends_all_in_order(stand_in: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM to each; 0 when each ended well."""
    stand_in.update(worker=OBEDIENT, monitor=OBEDIENT)
    with ProcessGroup([], 5.0, tmp_path) as group:
        group.start(roles("all", 2, Settings()))
        await_up(group, *roles("all", 2, Settings()))
        assert group.ended() is None
        assert group.take_ended() == []
        assert group.stop() == 0


def test_those_that_ended_are_told_once(stand_in: dict[str, str], tmp_path: Path) -> None:
    """With their exit codes; 128 + n for a signal; afterwards they can be started again."""
    stand_in.update(worker="import sys; sys.exit(6)", monitor="import os; os.kill(os.getpid(), 9)")
    with ProcessGroup([], 5.0, tmp_path) as group:
        found: dict[RoleProcess, int] = {}
        group.start(roles("all", 1, Settings()))
        give_up = time.monotonic() + 20
        while len(found) < 2:
            assert time.monotonic() < give_up
            found |= dict(group.take_ended())
        assert found == {RoleProcess("worker"): 6, RoleProcess("monitor"): 128 + signal.SIGKILL}
        assert group.take_ended() == []
        assert group.stop() == 0


def test_a_stop_while_a_role_still_starts_is_in_order(stand_in: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM ends an interpreter that has not got to our code: nothing is open then."""
    stand_in.update(worker="print('up'); import time; time.sleep(60)")
    with ProcessGroup([], 5.0, tmp_path) as group:
        group.start([RoleProcess("worker")])
        await_up(group, RoleProcess("worker"))
        assert group.stop() == 0


def test_one_that_ignores_sigterm_is_killed_past_the_deadline(
    stand_in: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No role outlives its supervisor."""
    monkeypatch.setattr(processes, "GRACE_S", 0.1)
    stand_in.update(worker=STUBBORN)
    with ProcessGroup([], 0.1, tmp_path) as group:
        group.start([RoleProcess("worker")])
        await_up(group, RoleProcess("worker"))
        assert group.stop() == 128 + signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_role_ends_when_its_supervisor_is_killed() -> None:
    """SIGKILL of the supervisor leaves no worker behind: the kernel sends it SIGTERM."""
    child = "import os, sys, time; from pipeline.cli.processes import end_with_parent; "
    child += "end_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(60)"
    parent = (
        f"import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())]); "
    )
    parent += "time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    give_up = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < give_up, "the role is still there"
        time.sleep(0.01)
