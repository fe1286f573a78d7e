"""`pipeline calibrate` on a real Kafka: probabilities are mended while events flow, each event once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import clients, job
from pipeline import codec, drift
from pipeline.bus.clients import ClientOptions
from pipeline.cli.releasing import open_releases
from pipeline.errors import ContractError
from pipeline.measures import Scored, measure
from pipeline.measures.calibrators import Calibrator
from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.calibrations import Calibration, id_of, parameters_of
from pipeline.models.manifest import Architecture
from pipeline.records import FeatureContract, OutputContract
from pipeline.scoring.signals import SignalMatrix
from pipeline.settings import load
from pipeline.topology.releases import release_log
from tests.faults.labelling import Labeller
from tests.integration import serving_models
from tests.pipelines import PATIENCE_S, Pipeline, Process, eventually

pytestmark = pytest.mark.timeout(400)

LABELLED, EVENTS = 4_000, 20_000
OUTPUT = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
VERSION = "sure"


@pytest.fixture
def pipeline(kafka: str, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Pipeline]:
    """The standard job, with a classifier in the place of its model that is three times as sure as it may be."""
    with made_pipeline(tmp_path, kafka, unique("calibrate"), {}) as made:
        yield made


@contextmanager
def made_pipeline(folder: Path, kafka: str, name: str, more: dict[str, Any]) -> Iterator[Pipeline]:
    settings = {
        "delivery.mode": "exactly_once",
        "delivery.commit_interval_ms": 100,
        "labels.enabled": True,
        "model.bundle": "models/sure",
    }
    made = Pipeline(folder, kafka, name, settings={**settings, **more})
    bundles.write(_bundle(), made.config.parent / "models" / "sure")
    try:
        yield made
    finally:
        made.close()


def _bundle() -> bundles.Bundle:
    contract = FeatureContract(serving_models.CONTRACT.features, OUTPUT)
    names, rows = drift.signal_names(contract), np.arange(LABELLED)
    values, outputs = job.features(LABELLED), said(LABELLED)
    nulls = np.zeros(values.shape, dtype=np.bool_)
    labels = (outputs >= 0.5).astype(np.int64)
    matrix = SignalMatrix(names, contract).fill(LABELLED, rows, values, nulls, rows, outputs[:, None], labels)
    return bundles.make(
        model_id="sure",
        model_version=VERSION,
        architecture=Architecture(module="tests.integration.serving_models:Sure", arguments={}),
        contract=contract,
        weights=loading.weights_of(serving_models.Sure()),
        baseline=drift.measure_baseline(names, matrix),
    )


def said(events: int) -> Any:
    """(events,) float32: what the model says of the second class."""
    return serving_models.sure(job.expected_scores(events))


def truths(events: int) -> Any:
    """(events,) drawn with the probabilities that the model should have given: its logits divided by three."""
    outputs = said(events).astype(np.float64)
    right = 1 / (1 + ((1 - outputs) / outputs) ** (1 / serving_models.TOO_SURE))
    return (np.random.default_rng(11).random(events) < right).astype(np.int64)


def predictions(pipeline: Pipeline) -> dict[int, dict[str, Any]]:
    """Decoded predictions by the number of their event; each event has one."""
    rows = codec.RowCodec(codec.open_registry(None, pipeline.folder / "project" / "registry", None))
    found: dict[int, dict[str, Any]] = {}
    for messages in clients.read_all(pipeline.bootstrap_servers, pipeline.job.output_topic, "verify", PATIENCE_S):
        for message in messages:
            decoded = rows.decode(message.value())
            number = int(decoded["event_id"].removeprefix("e"))
            assert number not in found
            found[number] = decoded
    return found


class Load:
    """Events and labels in the order of their numbers."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline, self._labeller = pipeline, Labeller(pipeline, EVENTS)
        self._values, self._truths = job.encode_events(EVENTS), truths(EVENTS)
        self.sent = 0

    def events(self, n: int) -> None:
        self._pipeline.send(self._values[self.sent : self.sent + n], self.sent)
        self.sent += n

    def events_while(self, process: Process) -> None:
        """Until a command has ended, as it should, and some more."""
        while process.popen.poll() is None and self.sent < EVENTS - 4_000:
            self.events(100)
        assert process.wait() == 0, process.log()

    def labels(self, numbers: range) -> None:
        """Of events that are in service; until each has its outcome."""
        values = [self._labeller.value(n, label=OUTPUT.classes[self._truths[n]], value=None) for n in numbers]
        self._labeller.send_values(values, numbers)

    def await_outcomes(self, n: int) -> list[dict[str, Any]]:
        self._labeller.await_outcomes(n)
        return self._labeller.outcomes()


def ece(outputs: Any, truth: Any) -> float:
    scored = Scored(np.array(outputs, np.float64)[:, None], truth, np.arange(len(truth)))
    return float(measure(scored, OUTPUT)["metrics"]["ece"])


def check_mended(found: dict[int, dict[str, Any]], first: int, sent: int) -> str:
    """Each event once; from `first` on, and some before, through one calibration, which mends them; its id."""
    raw, truth = said(EVENTS), truths(EVENTS)
    assert sorted(found) == list(range(sent))
    calibrated = [n for n in found if found[n]["calibration_id"]]
    assert set(calibrated) >= set(range(first, sent))
    assert not set(calibrated) & set(range(LABELLED))
    (calibration_id,) = {found[n]["calibration_id"] for n in calibrated}
    np.testing.assert_allclose([found[n]["uncalibrated_outputs"][0] for n in calibrated], raw[calibrated], atol=1e-3)
    plain = [n for n in found if not found[n]["calibration_id"]]
    np.testing.assert_allclose([found[n]["outputs"][0] for n in plain], raw[plain], atol=1e-3)
    assert all(found[n]["label"] == OUTPUT.classes[int(raw[n] >= 0.5)] for n in found if abs(raw[n] - 0.5) > 1e-3)
    assert ece([found[n]["uncalibrated_outputs"][0] for n in calibrated], truth[calibrated]) > 0.1
    assert ece([found[n]["outputs"][0] for n in calibrated], truth[calibrated]) < 0.03
    return str(calibration_id)


def check_in_service(pipeline: Pipeline, worker: Process, load: Load) -> tuple[int, Calibration]:
    """Once the worker has a calibration: what is released, which mends all events from the first one returned on."""
    worker.await_log('"calibration"')
    first = load.sent
    load.events(2_500)
    pipeline.await_committed(load.sent)
    now = open_releases(load_settings(pipeline)).state().calibrations[VERSION]
    assert now.calibration_id == check_mended(predictions(pipeline), first, load.sent)
    return first, now


def test_an_overconfident_model_is_calibrated_while_events_flow(pipeline: Pipeline) -> None:
    """From outcomes to the workers; fitted again on what it made of them it is refused; withdrawn, it is gone."""
    worker, _labels = pipeline.start("run", "worker"), pipeline.start("run", "labels")
    worker.await_log('"running"')
    load = Load(pipeline)
    load.events(LABELLED)
    load.labels(range(LABELLED))
    load.await_outcomes(LABELLED)

    dry = pipeline.start("calibrate", "--dry-run")
    assert dry.wait() == 0, dry.log()
    assert "nothing was changed" in dry.log()
    load.events_while(told := pipeline.start("calibrate", "--reason", "too sure"))
    for text in ("accepted: all 3 checks passed", "0.00% of the rows are decided for another class", "ECE"):
        assert text in told.log()
    first, now = check_in_service(pipeline, worker, load)
    assert now.reason == "too sure"
    assert (now.fitted_rows, now.judged_rows) == (2_800, 1_200)

    # What it is fitted on next is what the model says, not what the calibration made of it.
    load.labels(range(first, first + 2_000))
    outcomes = load.await_outcomes(LABELLED + 2_000)
    assert sum(outcome["calibration_id"] == now.calibration_id for outcome in outcomes) == 2_000
    again = pipeline.start("calibrate", "--last", "2000")
    assert again.wait() == 1
    pipeline.processes.remove(again)  # it ended as it should
    assert f"now: temperature {now.calibration_id}" in again.log()
    temperature = float(again.log().split("temperature ")[-1].split(";")[0])
    assert temperature == pytest.approx(serving_models.TOO_SURE, rel=0.3)
    assert "refused: " in again.log()

    served = worker.log().count('"in service"')
    gone = pipeline.start("calibrate", "--withdraw")
    assert gone.wait() == 0, gone.log()
    eventually(lambda: worker.log().count('"in service"') > served, "the calibration withdrawn")
    last = load.sent
    load.events(200)
    pipeline.await_committed(load.sent)
    assert worker.terminate() == 0, worker.log()[-3000:]
    found = predictions(pipeline)
    assert sorted(found) == list(range(load.sent))
    assert not any(found[n]["calibration_id"] for n in range(last, load.sent))


def test_the_retrainer_calibrates_by_itself(kafka: str, tmp_path: Path, unique: Callable[[str], str]) -> None:
    """Once enough outcomes have come, in time with the stream; killed and begun anew, it goes on where it was."""
    chosen = {"calibration.every_outcomes": LABELLED, "retraining.enabled": True}
    with made_pipeline(tmp_path, kafka, unique("calibrate"), chosen) as pipeline:
        worker, _labels = pipeline.start("run", "worker"), pipeline.start("run", "labels")
        retrainer = pipeline.start("run", "retrainer")
        worker.await_log('"running"')
        load = Load(pipeline)
        load.events(LABELLED)
        load.labels(range(LABELLED))
        retrainer.await_log('"calibrated"')
        first, now = check_in_service(pipeline, worker, load)
        assert now.reason == "after 4,000 outcomes"
        assert now.calibrated_by.endswith("-retrainer")

        retrainer.signal(signal.SIGKILL)
        again = pipeline.start("run", "retrainer")
        again.await_log('"running"')
        load.labels(range(first, first + 1_000))
        load.await_outcomes(LABELLED + 1_000)
        assert again.terminate() == 0, again.log()[-3000:]
        for event in ("calibrated", "calibration refused", "not calibrated"):
            assert f'"event": "{event}"' not in again.log()
        assert worker.terminate() == 0, worker.log()[-3000:]


def load_settings(pipeline: Pipeline) -> Any:
    return load(pipeline.config, environment={})


def calibration(temperature: float) -> Calibration:
    parameters = parameters_of(Calibrator("temperature", 1, 5, temperature))
    measures = (0.5, 0.4, 0.2, 0.1, 0.3, 0.2)
    return Calibration(
        id_of("sure", VERSION, parameters), "p", "sure", VERSION, "temperature", parameters, 7, 1, 5, 3, *measures,
        calibrated_by="ann", reason="", calibrated_at_ms=9,
    )  # fmt: skip


def test_a_calibration_is_changed_by_whoever_knows_what_holds(pipeline: Pipeline) -> None:
    """Of two who measured beside the same one, the second is told; what holds already is not written again."""
    settings = load_settings(pipeline)
    log = open_releases(settings, create=True)
    one, two = calibration(2.0), calibration(3.0)
    assert log.calibrate(VERSION, one, None).calibrations == {VERSION: one}
    assert log.calibrate(VERSION, one, None).calibrations == {VERSION: one}
    with pytest.raises(ContractError, match=f"calibration {one.calibration_id} came in the place of none meanwhile"):
        log.calibrate(VERSION, two, None)
    with pytest.raises(ContractError, match="meanwhile"):
        log.calibrate(VERSION, None, two.calibration_id)
    assert log.calibrate(VERSION, two, one.calibration_id).calibrations == {VERSION: two}
    assert release_log(settings, ClientOptions.from_settings(settings)).state().calibrations == {VERSION: two}
    assert log.calibrate(VERSION, None, two.calibration_id).calibrations == {}
    assert log.calibrate(VERSION, None, two.calibration_id).calibrations == {}
    assert log.state().history == ()


def test_what_is_asked_too_early_is_said(pipeline: Pipeline) -> None:
    """No outcomes; no canary; nothing to withdraw."""
    for arguments, code, text in (
        ((), 1, "is not there; labels.enabled and `pipeline run labels` make outcomes"),
        (("--slot", "canary"), 1, "there is no canary"),
        (("--withdraw",), 0, "has no calibration"),
    ):
        process = pipeline.start("calibrate", *arguments)
        assert process.wait() == code, process.log()
        assert text in process.log()
        assert "Traceback" not in process.log()
