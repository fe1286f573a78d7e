"""Series of what outcomes say: one report at a time, so that a version or a slice that is gone is gone."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipeline.observe.bounds import LABEL_SETS_MAX, OTHER, printable

#: Labels of all series but the coverage; field and value are "" for a version as a whole, value is "other" for all
#: values that are not told apart.
MODEL = ("model_version", "role")
SLICE = (*MODEL, "field", "value", "measure")
#: Measures exported by slice: of 64 slices of 4 models 512 series at most. `pipeline quality` has all.
SLICE_MEASURES = ("accuracy", "log_loss", "mae")
#: How far histograms may be off (measures/sums.py): not worth a series.
_BOUNDS = ("roc_auc_error", "pr_auc_error")


class Snapshot(Collector):
    """A gauge whose series are all replaced at once."""

    def __init__(self, name: str, documentation: str, labels: tuple[str, ...], registry: CollectorRegistry) -> None:
        self._name, self._documentation, self._labelnames = name, documentation, labels
        self._values: Mapping[tuple[str, ...], float] = {}
        registry.register(self)

    def replace(self, values: Mapping[tuple[str, ...], float]) -> None:
        """Values by their labels, of which the first LABEL_SETS_MAX are shown: no honest report has more."""
        shown = islice(values.items(), LABEL_SETS_MAX)
        self._values = {tuple(map(printable, labels)): value for labels, value in shown}

    def describe(self) -> list[GaugeMetricFamily]:
        return [GaugeMetricFamily(self._name, self._documentation, labels=self._labelnames)]

    def collect(self) -> list[GaugeMetricFamily]:
        (family,) = self.describe()
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return [family]


class QualitySeries:
    """The latest report of `quality.Quality`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._outcomes = Snapshot("pipeline_quality_outcomes", "Labelled predictions in the window.", MODEL, registry)
        self._measures = Snapshot("pipeline_quality", "Measures of the window; see measures.md.", SLICE, registry)
        self._gaps = Snapshot("pipeline_quality_gap", "A slice less the rest.", SLICE, registry)
        self._alarms = Snapshot("pipeline_quality_gap_alarm", "1 for each gap that has widened.", SLICE, registry)

    def show(self, versions: Iterable[Mapping[str, Any]]) -> None:
        """versions: as in `Quality.report()`."""
        outcomes: dict[tuple[str, ...], float] = {}
        measures: dict[tuple[str, ...], float] = {}
        gaps: dict[tuple[str, ...], float] = {}
        alarms: dict[tuple[str, ...], float] = {}
        for version in versions:
            model = (version["model_version"], version["role"])
            outcomes[model] = version["rows"]
            measures |= {(*model, "", "", m): v for m, v in version["metrics"].items() if m not in _BOUNDS}
            for part in version["slices"]:
                found = part["metrics"]
                measures |= {(*model, *_slice(part), m): found[m] for m in SLICE_MEASURES if m in found}
            gaps |= {(*model, *_slice(gap), gap["measure"]): gap["difference"] for gap in version["gaps"]}
            alarms |= {(*model, *_slice(alarm), alarm["measure"]): 1.0 for alarm in version["alarms"]}
        for series, values in (
            (self._outcomes, outcomes),
            (self._measures, measures),
            (self._gaps, gaps),
            (self._alarms, alarms),
        ):
            series.replace(values)


def _slice(part: Mapping[str, Any]) -> tuple[str, str]:
    return part["field"], OTHER if part["value"] is None else part["value"]
