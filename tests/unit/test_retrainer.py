"""When a trigger, or a schedule, asks for nothing that was not done."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.cli.render import describe_report
from pipeline.errors import PipelineError
from pipeline.models.releases import ModelRelease, Releases
from pipeline.records import RetrainingTrigger
from pipeline.settings import Settings
from pipeline.topology.schedule import REPORTED, unreported
from pipeline.topology.succession import Succession, answered_by


def trigger(produced_at_ms: int, version: str = "1") -> RetrainingTrigger:
    return RetrainingTrigger("t2", "p", "m", version, [], 0, 0, [], [], "minor", "", 0, 0, 0, produced_at_ms)


def train(
    exchange: Path, trigger_id: str, asked_at_ms: int, of: str = "1", *, finished: bool = True, cause: str = "trigger"
) -> None:
    """What a training leaves behind."""
    folder = exchange / f"{cause}-{trigger_id}"
    folder.mkdir()
    (folder / "request.json").write_text(json.dumps({"trigger_id": trigger_id, "asked_at_ms": asked_at_ms}))
    if finished:
        (folder / "result.json").write_text(json.dumps({"report": {"champion_version": of}}))


def test_a_training_answers_the_triggers_that_were_sent_before_it_began(tmp_path: Path) -> None:
    """Of the same version; one that has not finished answers nothing."""
    train(tmp_path, "t1", 1_000)
    assert answered_by(tmp_path, trigger(900)) == "t1"
    assert answered_by(tmp_path, trigger(1_000)) == "t1"
    assert answered_by(tmp_path, trigger(1_001)) is None
    assert answered_by(tmp_path, trigger(900, "2")) is None
    train(tmp_path, "t3", 5_000, finished=False)
    assert answered_by(tmp_path, trigger(2_000)) is None
    assert answered_by(tmp_path / "nowhere", trigger(1)) is None
    train(tmp_path, "5", 9_000, cause="schedule")
    assert answered_by(tmp_path, trigger(8_000)) is None, "it learnt from what came before the change, too"


def test_a_training_on_schedule_is_unreported_until_it_is_marked(tmp_path: Path) -> None:
    """The oldest first; one that has not finished, and those of triggers, are none."""
    assert unreported(tmp_path / "nowhere") == []
    for moment in ("999", "1000", "98"):
        train(tmp_path, moment, 1, cause="schedule")
    train(tmp_path, "2000", 1, cause="schedule", finished=False)
    train(tmp_path, "5", 1)
    assert unreported(tmp_path) == ["98", "999", "1000"]
    (tmp_path / "schedule-999" / REPORTED).touch()
    assert unreported(tmp_path) == ["98", "1000"]


def test_a_schedule_that_outlasts_its_memory_is_refused() -> None:
    """The last training is known by its report, which is deleted after the topics' retention."""
    topics = {"retention_hours": 2}
    assert Settings.model_validate({"topics": topics, "retraining": {"every_s": 7_199}}).retraining.every_s == 7_199
    with pytest.raises(ValidationError, match=r"retraining.every_s: .* keeps for 7,200 s"):
        Settings.model_validate({"topics": topics, "retraining": {"every_s": 7_200}})


def released(slot: Any, version: str) -> ModelRelease:
    return ModelRelease("r", "p", "release", slot, "m", version, "u", "0" * 64, 1.0, None, None, None, "", "", 0)


def test_a_trigger_waits_while_a_successor_is_on_trial(tmp_path: Path) -> None:
    """It may be promoted, and the trigger with it; where nothing decides on it, nothing is waited for."""

    class Log:
        def state(self) -> Releases:
            return Releases(released("champion", "1"), released("canary", "2"))

    class Trained(Exception):  # noqa: N818 (how far it came)
        pass

    class Watched(Succession):
        def __init__(self, trial: bool) -> None:
            self._settings = Settings.model_validate({"trial": {"enabled": trial}, "root": tmp_path})
            self._releases: Any = Log()
            self.stop = threading.Event()

        def _train(self, *_arguments: Any) -> bool:
            raise Trained

    with pytest.raises(PipelineError, match="2 is on trial"):
        Watched(trial=True)._attempt(trigger(1))
    with pytest.raises(Trained):
        Watched(trial=False)._attempt(trigger(1))


@pytest.mark.parametrize(("cause", "said"), [("schedule", True), ("trigger", False), (None, False)])
def test_a_person_is_told_which_report_is_of_a_schedule(cause: str | None, said: bool) -> None:
    """Reports of earlier versions have no cause at all."""
    report = {"accepted": True, "approval": "automatic", "checks": [], "report_id": "r1", "model_id": "m"}
    report |= {"champion_version": "1", "challenger_version": "2"} | ({"cause": cause} if cause else {})
    assert describe_report(report).endswith("m 1 → 2" + "  on schedule" * said)
