"""How good each model version is now, as a whole and per slice, from its outcomes; in bounded memory.

Panes of time go by when labels became known: that is the order of the log, so a start that reads the log again finds
the same, and labels that come weeks late are part of the newest window all the same.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import ContractError
from pipeline.measures.estimate import mean_absolute_error
from pipeline.measures.metrics import NOTHING_BEFORE
from pipeline.measures.online import Counting, Tally
from pipeline.measures.scored import Numbers
from pipeline.measures.slices import SLICE_ROWS_MIN
from pipeline.quality.alarms import Alarm, GapWatch
from pipeline.quality.delays import Delays
from pipeline.quality.gaps import Gap, estimated_accuracy, gaps
from pipeline.quality.known import KnownTruths
from pipeline.quality.outcomes import ROLES, Outcomes
from pipeline.records import Baseline, Longs, ModelIdentity

#: Models (version and role) told apart: champion, canary, shadow and the champion before. One whose labels are the
#: oldest goes when another one comes.
MODELS_MAX = 4
#: Slices of a model that have a tally of their own, and values of one field, so that an identifier taken for a slice
#: leaves room for others. Later values count together. A tally of two classes has at most 0.53 MB with 24 panes (see
#: measures/online.py), so 64 slices of 4 models 137 MB, if all have rows in all panes.
SLICES_MAX, VALUES_MAX = 64, 20
#: The newest rows whose gaps are held against those before: this share of the window.
NOW_SHARE = 0.25


def origin_of(baseline: Baseline) -> float:
    """For Sums.origin: near the mean of a regression's truth, which is near that of the model's outputs."""
    return next((signal.mean for signal in baseline.signals if signal.name.startswith("score:")), 0.0)


class Scope(NamedTuple):
    """A slice of a model's outcomes; value None: all values of the field that have no tally of their own."""

    field: str
    value: str | None


@dataclass(slots=True)
class _OfModel:
    """What is known of one model."""

    whole: Tally
    delays: Delays
    slices: dict[Scope, Tally] = field(default_factory=dict)
    watch: GapWatch = field(default_factory=GapWatch)

    def slice(self, name: str, value: str) -> Tally:
        """The tally that rows of this value go to."""
        scope = Scope(name, value)
        if scope not in self.slices:
            of_field = sum(s.field == name and s.value is not None for s in self.slices)
            named = sum(s.value is not None for s in self.slices)
            if of_field >= VALUES_MAX or named >= SLICES_MAX:
                scope = Scope(name, None)
        return self.slices.setdefault(scope, Tally(self.whole.counting))


class Quality:
    """Tallies of all models and slices; not for several threads.

    Metrics do not depend on the order of the outcomes, but for which values of a field have a tally of their own where
    there are too many, and for the no-change baseline, which is told by what had come. Alarms follow the order.
    """

    def __init__(self, counting: Counting) -> None:
        """counting: of all models, which therefore have the same kind of output."""
        self.counting = counting
        self.by_model: dict[ModelIdentity, _OfModel] = {}
        self._known = KnownTruths()

    def add(self, outcomes: Outcomes, *, latest_ms: int | None = None) -> list[tuple[ModelIdentity, Alarm]]:
        """Count outcomes, each once; alarms of gaps that this raises.

        latest_ms: the caller's clock, see Tally.add. What a pane of time changed is judged when the next one begins.
        """
        if not len(outcomes):
            return []
        keys = None if outcomes.keys is None else outcomes.keys.tolist()
        self._known.add(outcomes.event_times_ms, outcomes.label_times_ms, outcomes.truth, keys)
        nothing = np.nan if self.counting.sums.output.kind == "regression" else NOTHING_BEFORE
        before = self._known.before(outcomes.event_times_ms, nothing, keys).astype(outcomes.truth.dtype)
        times_ms = outcomes.label_times_ms
        if latest_ms is not None:
            times_ms = np.minimum(times_ms, latest_ms)
        panes = times_ms // self.counting.pane_ms
        alarms = []
        for pane in np.unique(panes).tolist():
            newest = self.newest
            if newest is not None and pane > newest:
                alarms += self.judge()
            rows = np.flatnonzero(panes == pane)
            self._add_pane(outcomes.take(rows), before[rows], times_ms[rows])
        return alarms

    def _add_pane(self, outcomes: Outcomes, before: npt.NDArray[Any], times_ms: Longs) -> None:
        for index, identity in enumerate(outcomes.models):
            rows = np.flatnonzero(outcomes.model == index)
            if not len(rows) or (found := self._of(identity, int(times_ms[rows].max()))) is None:
                continue
            part = outcomes if len(rows) == len(outcomes) else outcomes.take(rows)
            columns = (part.outputs, part.truth, times_ms[rows], before[rows])
            _count(found.whole, columns)
            found.delays.add(part.event_times_ms, part.predicted_at_ms, part.label_times_ms)
            for name, values in part.slices.items():
                for value, inside in _by_value(values):
                    _count(found.slice(name, value), tuple(column[inside] for column in columns))

    def _of(self, identity: ModelIdentity, time_ms: int) -> _OfModel | None:
        """What is known of a model, a new one perhaps; None for one that is older than all there is room for."""
        if identity not in self.by_model:
            if len(self.by_model) >= MODELS_MAX:
                oldest = min(self.by_model, key=lambda m: (self.by_model[m].whole.newest or 0, str(m)))
                if (self.by_model[oldest].whole.newest or 0) > time_ms // self.counting.pane_ms:
                    return None
                del self.by_model[oldest]
            self.by_model[identity] = _OfModel(Tally(self.counting), Delays(self.counting.pane_ms))
        return self.by_model[identity]

    def merge(self, other: "Quality") -> None:
        """Add all that another one has counted, of other partitions. Raises ContractError if it counts in another way.

        Its alarms and known truths stay its own: both follow the order of one log.
        """
        if self.counting != other.counting:
            raise ContractError("quality: tallies of another model output or other panes cannot be merged")
        for identity, theirs in other.by_model.items():
            mine = self._of(identity, (theirs.whole.newest or 0) * self.counting.pane_ms)
            if mine is None:
                continue
            mine.whole.merge(theirs.whole)
            mine.delays.merge(theirs.delays)
            for scope, tally in theirs.slices.items():
                if scope.value is None:
                    mine.slices.setdefault(scope, Tally(self.counting)).merge(tally)
                else:
                    mine.slice(scope.field, scope.value).merge(tally)

    # -- reading -----------------------------------------------------------------------------

    @property
    def models(self) -> list[ModelIdentity]:
        """Those with outcomes: champions, canaries, shadows, of each the one with the newest labels first."""
        return sorted(
            self.by_model, key=lambda m: (ROLES.index(m.role), -(self.by_model[m].whole.newest or 0), m.model_version)
        )

    @property
    def newest(self) -> int | None:
        """Number of the newest pane; None before the first outcome."""
        return max((m.whole.newest for m in self.by_model.values() if m.whole.newest is not None), default=None)

    def judge(self) -> list[tuple[ModelIdentity, Alarm]]:
        """Hold the gaps of the newest panes against those before; alarms that this raises."""
        newest = self.newest
        raised: list[tuple[ModelIdentity, Alarm]] = []
        if newest is None:
            return raised
        panes = max(1, int(self.counting.panes_max * NOW_SHARE))
        for identity, found in self.by_model.items():
            whole = _latest(found.whole, newest, panes)
            before, now = list[Gap](), list[Gap]()
            for scope, tally in found.slices.items():
                inside = _latest(tally, newest, panes)
                now += gaps(*scope, inside, whole, self.counting.sums)
                before += gaps(*scope, tally.total - inside, found.whole.total - whole, self.counting.sums)
            time_ms = (newest + 1) * self.counting.pane_ms
            raised += [(identity, alarm) for alarm in found.watch.judge(before, now, time_ms)]
        return raised

    def alarms(self) -> list[tuple[ModelIdentity, Alarm]]:
        """All that are raised now."""
        return [
            (identity, alarm) for identity in self.models for alarm in self.by_model[identity].watch.raised.values()
        ]

    def labelled_since(self, time_ms: int) -> int:
        """Predictions made since, to the pane, that have a label; those of shadows, who answer nobody, left out."""
        answering = (m.delays for identity, m in self.by_model.items() if identity.role != "shadow")
        return sum(delays.labelled_since(time_ms) for delays in answering)

    def report(self) -> dict[str, Any]:
        """Everything of the window, as plain data for JSON; versions without a label in it are left out.

            versions [{model_id, model_version, role, rows, metrics, reliability, label_delay_s: {p50, p90, p99},
                       estimate, slices: [{field, value, rows, metrics}], gaps, alarms}]

        metrics, reliability and gaps as in measures.measure; metrics of a slice are {} where rows are too few. value
        null: all values without a tally of their own. label_delay_s is since the start. estimate: accuracy as the
        confidences have it, {accuracy, mean_absolute_error, stretches}, the error being that of stretches of panes with
        rows enough; null where outputs are no probabilities.
        """
        return {"versions": [found for identity in self.models if (found := self._described(identity))["rows"]]}

    def _described(self, identity: ModelIdentity) -> dict[str, Any]:
        found, sums = self.by_model[identity], self.counting.sums
        newest, panes = self.newest or 0, self.counting.panes_max
        whole = _latest(found.whole, newest, panes)
        slices, all_gaps = [], list[Gap]()
        for scope, tally in sorted(found.slices.items(), key=lambda item: (item[0].field, item[0].value or "")):
            inside = _latest(tally, newest, panes)
            rows = round(sums.rows(inside))
            if rows:
                metrics = sums.metrics(inside) if rows >= SLICE_ROWS_MIN else {}
                slices.append({**scope._asdict(), "rows": rows, "metrics": metrics})
            if rows >= SLICE_ROWS_MIN:
                all_gaps += gaps(*scope, inside, whole, sums)
        return {
            **asdict(identity),
            "rows": round(sums.rows(whole)),
            "metrics": sums.metrics(whole),
            "reliability": sums.reliability(whole),
            "label_delay_s": {
                name: found.delays.quantile(q) for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
            },
            "estimate": self._estimate(found.whole, whole, newest),
            "slices": slices,
            "gaps": all_gaps,
            "alarms": [asdict(alarm) for alarm in found.watch.raised.values()],
        }

    def _estimate(self, tally: Tally, whole: Numbers, newest: int) -> dict[str, Any] | None:
        """What the confidences say of the accuracy of the window, and how far off that was in stretches of it."""
        sums = self.counting.sums
        if sums.output.kind == "regression" or (accuracy := estimated_accuracy(whole, sums)) is None:
            return None
        stretches, stretch = [], np.zeros(sums.size)
        for number in sorted(tally.panes):
            if number <= newest - self.counting.panes_max:
                continue
            stretch += tally.panes[number]
            if sums.rows(stretch) >= SLICE_ROWS_MIN:
                true = sums.metrics(stretch)["accuracy"]
                stretches.append({"estimated": estimated_accuracy(stretch, sums), "accuracy": true})
                stretch = np.zeros(sums.size)
        error = mean_absolute_error(stretches)
        return {"accuracy": accuracy, "mean_absolute_error": error, "stretches": len(stretches)}


def _count(tally: Tally, columns: tuple[Any, ...]) -> None:
    outputs, truth, times_ms, before = columns
    tally.add(outputs, truth, times_ms, before=before)


def _latest(tally: Tally, newest: int, panes: int) -> Numbers:
    """Sums of the newest panes, counted from `newest` and not from the tally's own, which may have fallen silent."""
    found = np.zeros(tally.counting.sums.size)
    for number, sums in tally.panes.items():
        if number > newest - panes:
            found += sums
    return found


def _by_value(values: pa.StringArray) -> Iterator[tuple[str, Longs]]:
    """Each value, and the rows that have it."""
    encoded = values.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    for code, value in enumerate(encoded.dictionary.to_pylist()):
        yield value, np.flatnonzero(codes == code)
