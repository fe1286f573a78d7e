"""`python -m benchmarks.drift.rehearsal [--seeds 3]`: the loop on Elec2 without Kafka, to see how much is luck.

The same parts in one process: monitor, watch of errors, `pipeline retrain`, gate, under the settings of loop.py. A
minute a seed, which is that of the training. Prints, for each seed, what the loop did and how good it was.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.drift import market, policies
from benchmarks.drift.loop import SETTINGS
from benchmarks.drift.market import DELAY, START_MS, STEP_MS
from benchmarks.drift.memory import scored
from benchmarks.drift.policies import Numbers
from pipeline.cli.context import quiet_logs
from pipeline.cli.retrain_data import Request
from pipeline.cli.retrain_job import retrain
from pipeline.drift import SignalSummariser
from pipeline.drift.errors import WRONG, ErrorWatch
from pipeline.errors import DataError
from pipeline.measures import Scored
from pipeline.models.bundle import Bundle
from pipeline.models.calibrations import parameters_of
from pipeline.records import RetrainingTrigger
from pipeline.retraining.window import Wanted
from pipeline.settings import Settings
from pipeline.topology.monitor import make_monitor
from pipeline.topology.succession import rows_min
from pipeline.topology.virtual import judged


class _InService:
    """A model, what it says of all rows, and what watches it."""

    def __init__(self, settings: Settings, log: market.MemoryLog, bundle: Bundle, since_row: int) -> None:
        self.bundle, self.since_row = bundle, since_row
        self.predicted, self.signals = scored(log, bundle)
        self.monitor = make_monitor(settings, bundle)
        self.summariser = SignalSummariser(bundle.baseline, bundle.identity)
        self.errors = ErrorWatch(bundle.identity, WRONG, delta=settings.drift.delta)


@dataclass
class Rehearsed:
    """What came of it."""

    predicted: Numbers
    trainings: int = 0
    released: int = 0


def rehearse(settings: Settings, seed: int) -> Rehearsed:
    """The loop over all rows that the first model did not see."""
    log, first, n = market.MemoryLog(settings), market.first_rows(), market.rows().num_rows
    now = _InService(settings, log, policies.first_model(settings), first)
    done, waiting, calibrating = Rehearsed(now.predicted.copy()), list[_Change](), policies.Calibrating(settings)
    needed = rows_min(settings)
    for start in range(first, n, DELAY):
        log.now = end = min(start + DELAY, n)
        done.predicted[start:end] = calibrating.applied(now.predicted[start:end])
        waiting += _changes(now, done.predicted, start, end)
        calibrating.look(now.predicted, now.since_row, end - DELAY)
        while waiting and end - DELAY - max((waiting[0].time_ms - START_MS) // STEP_MS, first) >= needed:
            change = waiting.pop(0)
            if _holds(settings, now, done.predicted, change.trigger, end - DELAY, needed):
                continue
            calibration = parameters_of(calibrating.current) if calibrating.current else None
            wanted = Wanted(from_ms=change.time_ms)
            request = Request(wanted, "", seed, "", needed, judge=True, calibration=calibration)
            try:
                made = retrain(settings, now.bundle, request, policies.silent, 0, log)
            except DataError:
                continue
            done.trainings += 1
            if made.result["report"]["accepted"]:
                done.released += 1
                now, waiting, calibrating.current = _InService(settings, log, made.bundle, end), [], None
    return done


class _Change(NamedTuple):
    """When something changed, and the trigger of inputs that says so; None where errors do."""

    time_ms: int
    trigger: RetrainingTrigger | None


def _holds(
    settings: Settings, now: _InService, predicted: Numbers, trigger: RetrainingTrigger | None, end: int, needed: int
) -> bool:
    """Whether the labels of rows before `end` show that the model errs no more than before."""
    if trigger is None:
        return False
    rows = np.arange(max(now.since_row, end - settings.retraining.window_rows), end)
    found = Scored(predicted[rows, None], market.truth()[rows].astype(np.int64), START_MS + rows * STEP_MS)
    return judged(found, policies.OUTPUT, trigger, needed, settings.drift.window_events) is not None


def _changes(now: _InService, predicted: Numbers, start: int, end: int) -> list[_Change]:
    """Changes that a day of events, and the labels of the day before, have shown."""
    rows = np.arange(start, end)
    now.summariser.add("events", 0, rows, START_MS + rows * STEP_MS, now.signals[start:end])
    triggers = [now.monitor.take(summary) for summary in now.summariser.drain()]
    found = [_Change(trigger.change_event_time_ms, trigger) for trigger in triggers if trigger is not None]
    if start - DELAY >= now.since_row:
        rows = np.arange(start - DELAY, end - DELAY)
        wrong = ((predicted[rows] >= 0.5) != market.truth()[rows]).astype(np.float32)
        change = now.errors.take("outcomes", 0, rows, START_MS + rows * STEP_MS, wrong)
        if change is not None and change.rose:
            found.append(_Change(change.change_event_time_ms, None))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Rehearse and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    quiet_logs()
    with tempfile.TemporaryDirectory(prefix="elec2-") as scratch:
        settings = market.make(Path(scratch) / "project", "elec2", settings=SETTINGS)
        for seed in range(options.seeds):
            done = rehearse(settings, seed)
            found = policies.measured(done.predicted)
            print(
                f"seed {seed}: accuracy {found['accuracy']:.4f}, kappa-temporal {found['kappa_temporal']:.3f}, "
                f"ECE {found['ece']:.3f}, {done.trainings} trainings, {done.released} released",
                flush=True,
            )


if __name__ == "__main__":
    main()
