"""`pipeline verify` as a person runs it: on a project of `init` and on the standard job's, on both kinds of broker."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.csv
import pytest

from benchmarks import clients, job, ours
from pipeline.cli import demo_data
from pipeline.cli.inference import Columns, infer
from pipeline.cli.init import make_project
from tests.integration.verify_models import EVERY
from tests.pipelines import ROOT, Process, eventually

pytestmark = pytest.mark.timeout(300)

#: Partitions of a worker that was killed wait for so long; 6 s is the least that a broker allows.
SHORT = ("--set", "kafka.consumer_options.session.timeout.ms=6000", "--set", "delivery.commit_interval_ms=100")


@dataclass
class Verification:
    """One run of the command, all of its temporary files under `folder`."""

    folder: Path
    config: Path

    def start(self, *arguments: str) -> Process:
        """Start it; its log is what it says on stderr, its verdict goes to a file."""
        temporary = self.folder / "tmp"
        temporary.mkdir(exist_ok=True)
        log_file = self.folder / "verify.log"
        with log_file.open("wb") as log, (self.folder / "verdict").open("wb") as verdict:
            popen = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "--config", str(self.config), *SHORT, "verify", *arguments],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=verdict,
                stderr=log,
                env={**os.environ, "TMPDIR": str(temporary)},
            )
        return Process(popen, log_file)

    def run(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Exit code and verdict."""
        process = self.start("--json", *arguments)
        code = process.wait(280.0)
        said = (self.folder / "verdict").read_text("utf-8")
        assert said, process.log()[-4000:]
        verdict: dict[str, Any] = json.loads(said)
        return code, verdict

    def left_behind(self) -> list[Path]:
        return list((self.folder / "tmp").iterdir())


@pytest.fixture
def standard_job(tmp_path: Path) -> Callable[..., Verification]:
    """Makes a verification of the standard job's project."""

    def make(module: str = "benchmarks.ours:Mlp") -> Verification:
        task = job.Job("127.0.0.1:1", "standard.events", "standard.predictions", "standard", 0)
        return Verification(tmp_path, ours.make_project(tmp_path / "project", task, None, module))

    return make


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its content's digest."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_faults_on_the_standard_job_keep_exactly_once(standard_job: Callable[..., Verification]) -> None:
    """The network cut, garbage sent: 0 lost, 0 duplicated, 0 out of order; exit 0; nothing of the project changed."""
    verification = standard_job()
    before = fingerprint(verification.config.parent)
    names = ["cut-network", "garbage"]  # those of the broker take twice as long; tests/faults has them
    faults = [word for name in names for word in ("--fault", name)]
    code, verdict = verification.run("--mode", "exactly_once", "--seed", "7", "--events", "5000", *faults)
    assert (code, verdict["problems"]) == (0, []), verdict
    assert verdict["holds"] is True
    assert (verdict["lost"], verdict["duplicated"], verdict["out_of_order"], verdict["foreign"]) == (0, 0, 0, 0)
    assert verdict["dead_lettered"] == verdict["broken"] == 100
    assert verdict["predicted"] == verdict["events"] - 100 >= 4_900
    assert sorted(fault["name"] for fault in verdict["faults"]) == sorted(names)
    assert all(fault["recovered_s"] is not None and fault["steps"] for fault in verdict["faults"])
    assert verification.left_behind() == []
    assert fingerprint(verification.config.parent) == before


def test_a_pipeline_that_breaks_its_promise_is_found_out(standard_job: Callable[..., Verification]) -> None:
    """Predictions dropped, sent twice and sent late by the worker itself: each is counted; exit 1; logs are kept."""
    verification = standard_job("tests.integration.verify_models:Careless")
    code, verdict = verification.run("--mode", "exactly_once", "--events", "12000", "--workers", "1", "--rate", "4000")
    assert (code, verdict["holds"]) == (1, False)
    # Every thousandth each; what was late at the end of the load is lost as well.
    sent = verdict["events"]
    assert verdict["duplicated"] in {sent // EVERY, sent // EVERY + 1}
    assert 1 <= verdict["out_of_order"] <= sent // EVERY
    assert sent // EVERY < verdict["lost"] < 2 * sent // EVERY
    assert verdict["uncommitted"] == 0, "the worker says that all is done"
    assert [problem.partition(" (")[0].split(" ", 1)[1] for problem in verdict["problems"]] == [
        "lost",
        "duplicated",
        "out of order within their key",
    ]
    (folder,) = verification.left_behind()
    assert [path.name for path in folder.iterdir()] == ["logs"]


def test_a_new_project_is_verified_with_its_own_data_on_a_broker_of_its_user(
    tmp_path: Path, kafka: str, unique: Callable[[str], str]
) -> None:
    """At least once, rows of a file; afterwards the broker has no topic or group of it, the project no new file."""
    data, columns, name = demo_data.shuttle().slice(0, 3_000), Columns(demo_data.LABEL), unique("shop")
    project = tmp_path / "project"
    make_project(project, name, data, columns, infer(data, columns, name), kafka)
    pyarrow.csv.write_csv(data, tmp_path / "data.csv")
    before = fingerprint(project)
    verification = Verification(tmp_path, project / "pipeline.toml")
    code, verdict = verification.run("--use-broker", "--events", "3000", "--data", str(tmp_path / "data.csv"))
    assert (code, verdict["problems"], verdict["mode"]) == (0, [], "at_least_once"), verdict
    assert (verdict["lost"], verdict["dead_lettered"]) == (0, 0)
    assert verdict["predicted"] == verdict["events"] >= 3_000
    assert verification.left_behind() == []
    assert fingerprint(project) == before
    assert traces(kafka, name) == []


def test_ctrl_c_leaves_nothing_behind(standard_job: Callable[..., Verification]) -> None:
    """In the middle of a fault, with a worker stopped: exit 130, no process, no folder."""
    verification = standard_job()
    process = verification.start("--fault", "pause-worker")
    process.await_log("SIGSTOP")
    tasks = Path(f"/proc/{process.popen.pid}/task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text("utf-8").split()]
    assert len(children) == 4, "two workers, the monitor, the broker"
    process.signal(signal.SIGINT)
    assert process.wait() == 130, process.log()[-3000:]
    eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "every process gone")
    assert verification.left_behind() == []


def traces(kafka: str, name: str) -> list[str]:
    """Topics and groups of verifications of pipeline `name`."""
    admin = clients.make_admin(kafka)
    groups = [group.group_id for group in admin.list_consumer_groups(request_timeout=15).result().valid]
    return [found for found in [*admin.list_topics(timeout=15).topics, *groups] if "verify-" in found and name in found]
