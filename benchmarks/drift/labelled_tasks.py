"""What the card asks of the loop where labels are there: one seed, or one stream, a call; plain data for JSON."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.drift import market, policies, world
from benchmarks.drift.loop import SETTINGS
from benchmarks.drift.memory import TableLog, scored
from benchmarks.drift.world import DELAY, FIRST, START_MS, STEP_MS, World
from pipeline.cli.context import quiet_logs
from pipeline.cli.retrain_data import Request
from pipeline.cli.retrain_job import Retrained, retrain
from pipeline.drift import SignalSummariser
from pipeline.drift.errors import WRONG, ErrorWatch
from pipeline.drift.verdict import verdict
from pipeline.errors import ContractError
from pipeline.measures.calibrators import Calibrator
from pipeline.measures.estimate import Estimator, estimated_windows
from pipeline.measures.scored import Numbers, Scored
from pipeline.models.bundle import Bundle
from pipeline.records import RetrainingTrigger
from pipeline.retraining.calibrating import calibrate
from pipeline.retraining.window import Wanted
from pipeline.settings import Settings
from pipeline.topology.monitor import make_monitor
from pipeline.topology.succession import rows_min
from pipeline.topology.virtual import judged

#: Rows of one commit.
STEP_ROWS = 100
#: Labels since the change after which the verdict is asked for again.
LABELS_ENOUGH = 2_000
#: Of virtual drift: where it begins, and where the stream ends.
MOVED_AT, MOVED_END = 20_000, 35_000
#: The labelled rows of a poisoned window, and the rows with true labels by which its models are judged.
WINDOW, JUDGED = 10_000, 20_000
#: Real drift: two features change their parts.
SWAPPED = np.array([0.0, 2.0, 1.0, -1.0, 2.5, 0.0])
#: Rows of one estimate on Elec2; newest labels that `pipeline calibrate` takes unless told otherwise, and fewer.
ESTIMATE_ROWS, CALIBRATED_ON, CALIBRATED_ON_FEW = 1_000, 20_000, 2_000


# --------------------------------------------------------------------------- virtual drift


def virtual(seed: int) -> dict[str, Any]:
    """Two features move by a standard deviation against each other: their sum, and so the labels' law, stays.

    The monitor's triggers; what the verdict is of each, when it comes and with LABELS_ENOUGH labels since the change;
    and what comes of it in the retrainer, once it has as many labels as training needs.
    """
    quiet_logs()
    moved = np.array([1.0, -1.0, 0.0, 0.0, 0.0, 0.0])
    made = world.make(seed, MOVED_END, at=MOVED_AT, moved=moved)
    with tempfile.TemporaryDirectory(prefix="world-") as scratch:
        settings = world.project(Path(scratch) / "project", made)
        log, bundle = world.log_of(settings, made), policies.first_model(settings)
        outputs, _ = scored(log, bundle)
        wrong = (outputs >= 0.5) != made.truth
        triggers, verdicts, rises = _watched(settings, log, bundle, wrong)
        trained = []
        for read, trigger in triggers:
            needed = rows_min(settings)
            log.now = max(read, _row(trigger.change_event_time_ms) + needed + DELAY)
            known = np.arange(FIRST, log.now - DELAY)
            found = Scored(outputs[known, None], made.truth[known].astype(np.int64), START_MS + known * STEP_MS)
            if judged(found, policies.OUTPUT, trigger, needed, settings.drift.window_events) is not None:
                continue
            request = Request(Wanted(from_ms=trigger.change_event_time_ms), "since", seed, "", needed, judge=True)
            trained.append(_accepted(_retrained(settings, bundle, request, log)))
    return {
        "error_before": float(wrong[FIRST:MOVED_AT].mean()),
        "error_after": float(wrong[MOVED_AT:].mean()),
        "triggers": len(triggers),
        "delays": [read - MOVED_AT for read, _ in triggers],
        "severities": [trigger.severity for _, trigger in triggers],
        "verdicts_at_once": [first for first, _ in verdicts],
        "verdicts_later": [later for _, later in verdicts],
        "error_triggers": rises,
        "trainings": len(trained),
        "released": sum(trained),
    }


def _watched(
    settings: Settings, log: TableLog, bundle: Bundle, wrong: world.Flags
) -> tuple[list[tuple[int, RetrainingTrigger]], list[tuple[str, str]], int]:
    """Triggers with the rows read; the verdict of each at once and later; triggers of errors that rose."""
    _, signals = scored(log, bundle)
    monitor, summariser = make_monitor(settings, bundle), SignalSummariser(bundle.baseline, bundle.identity)
    errors = ErrorWatch(bundle.identity, WRONG, delta=settings.drift.delta)
    triggers: list[tuple[int, RetrainingTrigger]] = []
    asked: dict[int, list[str]] = {}
    rises = 0
    for start in range(FIRST, len(signals), STEP_ROWS):
        rows = np.arange(start, min(start + STEP_ROWS, len(signals)))
        summariser.add("events", 0, rows, START_MS + rows * STEP_MS, signals[rows])
        if len(late := rows[rows - DELAY >= FIRST] - DELAY):
            change = errors.take("outcomes", 0, late, START_MS + late * STEP_MS, wrong[late].astype(np.float32))
            rises += change is not None and change.rose
        for summary in summariser.drain():
            trigger = monitor.take(summary)
            if trigger is not None:
                triggers.append((int(rows[-1]) + 1, trigger))
                asked[len(triggers) - 1] = [_kind(trigger, errors, settings)]
        for number, (_, trigger) in enumerate(triggers):
            enough = rows[-1] - DELAY - _row(trigger.change_event_time_ms) >= LABELS_ENOUGH
            if enough and len(asked[number]) == 1:
                asked[number].append(_kind(trigger, errors, settings))
    return triggers, [(kinds[0], kinds[-1]) for kinds in asked.values()], rises


def _kind(trigger: RetrainingTrigger, errors: ErrorWatch, settings: Settings) -> str:
    around = errors.around(trigger.change_event_time_ms)
    return verdict(trigger.signals, None, around, trigger.change_events_ago, settings.drift.window_events).kind


def _row(time_ms: int) -> int:
    return (time_ms - START_MS) // STEP_MS


# --------------------------------------------------------------------------- poisoned labels


def poison(drifts: bool, how: str, seed: int) -> dict[str, Any]:
    """A successor learns WINDOW rows of which one producer has flipped 5 %; in service if guards and gate let it.

    drifts: whether the law of the labels has changed as well, so that a successor is wanted. Errors are of JUDGED rows
    of the same law with true labels.
    """
    quiet_logs()
    rows = FIRST + WINDOW + DELAY + JUDGED
    clean = world.make(100 + seed, rows, at=FIRST, weights_since=SWAPPED if drifts else None)
    told = world.poisoned(clean, FIRST, how, seed)
    with tempfile.TemporaryDirectory(prefix="world-") as scratch:
        settings = world.project(Path(scratch) / "project", told)
        log, bundle = world.log_of(settings, told), policies.first_model(settings)
        log.now = FIRST + WINDOW + DELAY
        request = Request(Wanted(last=WINDOW), f"--last {WINDOW}", seed, "", 0, judge=True)
        made = _retrained(settings, bundle, request, log)
        champion, challenger = (_wrong(log, one, told)[-JUDGED:] for one in (bundle, made.bundle))
    worse = challenger.astype(np.float64) - champion
    change, error = float(worse.mean()), float(worse.std() / math.sqrt(JUDGED))
    return {
        "flipped": float((told.told != told.truth)[FIRST : FIRST + WINDOW].mean()),
        "champion": float(champion.mean()),
        "challenger": float(challenger.mean()),
        "worse": change > 0,
        "worse_beyond_chance": change > 1.645 * error,
        "released": _accepted(made),
        "denied": next(one["value"] for one in made.result["findings"] if one["name"] == "label_flips"),
        "guards_failed": [one["name"] for one in made.result["findings"] if not one["passed"]],
    }


def _wrong(log: TableLog, bundle: Bundle, of: World) -> world.Flags:
    found: world.Flags = (scored(log, bundle)[0] >= 0.5) != of.truth
    return found


def _retrained(settings: Settings, bundle: Bundle, request: Request, log: TableLog) -> Retrained:
    return retrain(settings, bundle, request, policies.silent, 0, log)


def _accepted(made: Retrained) -> bool:
    return bool(made.result["report"]["accepted"])


# --------------------------------------------------------------------------- accuracy without labels


def estimate() -> dict[str, list[dict[str, Any]]]:
    """Elec2, the first model for ever: its accuracy as estimated without labels, beside what labels then showed.

    raw: the mean confidence. threshold: ATC, fitted on the part that the model was measured on. calibrated: the mean
    confidence after `pipeline calibrate` every ESTIMATE_ROWS rows, on the newest labels there are by then; what its
    checks refuse is not used. calibrated on few: with --last 2000.
    """
    quiet_logs()
    with tempfile.TemporaryDirectory(prefix="elec2-") as scratch:
        settings = market.make(Path(scratch) / "project", "elec2", settings=SETTINGS)
        log = market.MemoryLog(settings)
        rows = _market_rows(policies.answers(log, policies.first_model(settings)))
    first = market.first_rows()
    live = rows.take(slice(first, len(rows)))
    threshold = Estimator.fit(rows.take(slice(first - first // 5, first)))
    return {
        "raw": estimated_windows(live, ESTIMATE_ROWS, Estimator()),
        "threshold": estimated_windows(live, ESTIMATE_ROWS, threshold),
        "calibrated": estimated_windows(_calibrated(live, CALIBRATED_ON), ESTIMATE_ROWS, Estimator()),
        "calibrated on few": estimated_windows(_calibrated(live, CALIBRATED_ON_FEW), ESTIMATE_ROWS, Estimator()),
    }


def _market_rows(predicted: Numbers) -> Scored:
    truth = market.truth().astype(np.int64)
    return Scored(predicted[:, None], truth, market.START_MS + np.arange(len(truth)) * market.STEP_MS)


def _calibrated(rows: Scored, last: int) -> Scored:
    """What would be published, calibrated on so many of the newest labels."""
    outputs, current = rows.outputs.copy(), None
    for start in range(ESTIMATE_ROWS, len(rows), ESTIMATE_ROWS):
        known = rows.take(slice(0, start - market.DELAY))
        current = _recalibrated(known.take(slice(-last, None)), current)
        part = slice(start, start + ESTIMATE_ROWS)
        if current is not None:
            outputs[part] = current.apply(rows.outputs[part].astype(np.float32))
    return Scored(outputs, rows.truth, rows.times_ms)


def _recalibrated(known: Scored, current: Calibrator | None) -> Calibrator | None:
    """The new one where it is accepted, else what is in service."""
    try:
        trial = calibrate(known, policies.OUTPUT, current=current)
    except ContractError:
        return current
    return trial.calibrator if trial.accepted else current
