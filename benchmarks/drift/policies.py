"""What the loop is held against, offline on the same rows with labels as late: probabilities of UP, row by row.

Retraining is that of `pipeline retrain`, the very function with a log in memory: the newest labelled rows, the recipe
of the settings, from the model before. Each of its models is put into service, without a gate.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.drift import market
from benchmarks.drift.market import DELAY, DOWN, UP
from benchmarks.drift.memory import Numbers, scored
from pipeline import measures
from pipeline.cli.retrain_data import Request
from pipeline.cli.retrain_job import retrain
from pipeline.errors import ContractError
from pipeline.measures import Scored
from pipeline.measures.calibrators import Calibrator
from pipeline.models import bundle as bundles
from pipeline.models.bundle import Bundle
from pipeline.records import OutputContract
from pipeline.retraining.calibrating import calibrate
from pipeline.retraining.window import Wanted
from pipeline.settings import Settings

OUTPUT = OutputContract("classification", 1, (DOWN, UP), "sigmoid")
#: Trees of the forest: River's default.
TREES = 10


def measured(predicted: Numbers) -> dict[str, float]:
    """Measures over all rows that the first model did not see. predicted: (n,) probability of UP."""
    rows = slice(market.first_rows(), len(predicted))
    truth = market.truth()[rows].astype(np.int64)
    scored = Scored(predicted[rows, None], truth, np.arange(len(truth), dtype=np.int64))
    found: dict[str, float] = measures.measure(scored, OUTPUT, delay_rows=DELAY)["metrics"]
    return found


def answers(log: market.MemoryLog, bundle: Bundle) -> Numbers:
    """(n,) probability of UP by one model."""
    assert bundle.contract.output.classes == (DOWN, UP)
    return scored(log, bundle)[0]


def first_model(settings: Settings) -> Bundle:
    """The model that is never retrained, or first."""
    return bundles.read(settings.path(settings.model.bundle))


def retrained(
    settings: Settings, at: Sequence[int], window: int, say: Callable[[str], None] = lambda _: None
) -> Numbers:
    """(n,) where a successor is trained on the newest `window` labelled rows at each row of `at`, ascending."""
    log = market.MemoryLog(settings)
    bundle = first_model(settings)
    predicted = answers(log, bundle)
    for number, row in enumerate(at):
        log.now = row
        request = Request(Wanted(last=window), f"--last {window}")
        bundle = retrain(settings, bundle, request, silent, 0, log).bundle
        predicted[row:] = answers(log, bundle)[row:]
        say(f"{number + 1} of {len(at)} retrainings on {window:,} rows")
    return predicted


class Calibrating:
    """What [calibration] of the settings does to one model after the other: topology/calibrations.py offline."""

    def __init__(self, settings: Settings) -> None:
        self._chosen, self._alpha = settings.calibration, settings.gate.alpha
        self._looked_at = market.first_rows()
        self.current: Calibrator | None = None

    def look(self, predicted: Numbers, since: int, end: int) -> None:
        """Outcomes of rows before `end` are known; (n,) `predicted` says the model in service since row `since`."""
        chosen = self._chosen
        if not chosen.every_outcomes or end - self._looked_at < chosen.every_outcomes:
            return
        self._looked_at = end
        rows = np.arange(max(since, end - chosen.rows), end)
        outcomes = Scored(predicted[rows, None], market.truth()[rows].astype(np.int64), rows)
        given = {"kind": chosen.kind, "judge_by": chosen.judge_by, "current": self.current, "alpha": self._alpha}
        try:
            trial = calibrate(outcomes, OUTPUT, **given)
        except ContractError:  # too few outcomes
            return
        self.current = trial.calibrator if trial.accepted else self.current

    def applied(self, predicted: Numbers) -> Numbers:
        """(n,) probabilities of UP as they are published."""
        if self.current is None:
            return predicted
        return self.current.apply(predicted[:, None].astype(np.float32))[:, 0].astype(np.float64)


def calibrated(settings: Settings, predicted: Numbers) -> Numbers:
    """(n,) where the outputs of one model are calibrated as outcomes come."""
    calibrating, found = Calibrating(settings), predicted.copy()
    for start in range(market.first_rows(), len(predicted), DELAY):
        found[start : start + DELAY] = calibrating.applied(predicted[start : start + DELAY])
        calibrating.look(predicted, market.first_rows(), start)
    return found


def evenly(count: int) -> list[int]:
    """Rows at which a schedule retrains so many times: the stream in count + 1 parts of one length."""
    first, n = market.first_rows(), market.rows().num_rows
    return [first + (n - first) * number // (count + 1) for number in range(1, count + 1)]


def every(rows: int) -> list[int]:
    """Rows at which a schedule retrains that has a fixed step."""
    return list(range(market.first_rows() + rows, market.rows().num_rows, rows))


def no_change() -> Numbers:
    """(n,) the last label known, as a probability of 0 or 1."""
    truth = market.truth().astype(np.float64)
    return np.concatenate([truth[:DELAY], truth[:-DELAY]])


def forest(seed: int = 0) -> Numbers:
    """(n,) River's adaptive random forest (Gomes et al. 2017), which learns each row when its label comes."""
    from river.forest import ARFClassifier  # noqa: PLC0415 (two seconds)

    model = ARFClassifier(n_models=TREES, seed=seed)
    columns = {name: market.rows().column(name).to_pylist() for name in market.FEATURES}
    inputs: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    truth, first = market.truth().tolist(), market.first_rows()
    predicted = np.full(len(truth), 0.5)
    for row in range(len(truth)):
        if row >= DELAY:
            model.learn_one(inputs[row - DELAY], truth[row - DELAY])
        if row >= first:
            predicted[row] = model.predict_proba_one(inputs[row]).get(True, 0.0)
    return predicted


def silent(_what: str, _done: int, _size: int) -> None:
    """Nobody waits at a terminal."""
