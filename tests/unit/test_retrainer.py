"""When a trigger asks for nothing that was not done."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import PipelineError
from pipeline.models.releases import ModelRelease, Releases
from pipeline.records import RetrainingTrigger
from pipeline.settings import Settings
from pipeline.topology.retrainer import Succession, answered_by


def trigger(produced_at_ms: int, version: str = "1") -> RetrainingTrigger:
    return RetrainingTrigger("t2", "p", "m", version, [], 0, 0, [], [], "minor", "", 0, 0, 0, produced_at_ms)


def train(exchange: Path, trigger_id: str, asked_at_ms: int, of: str = "1", *, finished: bool = True) -> None:
    """What a training leaves behind."""
    folder = exchange / f"trigger-{trigger_id}"
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
