"""One retraining, from the log to a bundle in memory: what `pipeline retrain` runs in a process of its own.

1. data     labelled events of the window, and older ones to replay; split in time order   retrain_data.py
2. train    by the recipe of the settings, on what the validator lets through              retrain_learn.py
3. measure  parent and successor on the newest part, which neither learnt from; the baseline on it
4. guard    findings on window and successor
5. pack     with a provenance that names all of it
6. judge    by the gate, if that is asked for
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import __version__, measures
from pipeline.cli.gate_rows import judge_rows
from pipeline.cli.retrain_data import Data, Request, Show, read
from pipeline.cli.retrain_learn import Learner, architecture_of
from pipeline.cli.retrain_log import SENDER, Log
from pipeline.cli.training import baseline, measure, provenance, score
from pipeline.errors import BundleError, DataError
from pipeline.measures.calibrators import Calibrator
from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.bundle import Bundle
from pipeline.models.manifest import Ancestor, DataPart, DataRange, Provenance, Training
from pipeline.records import FeatureContract, Floats, Longs, OffsetRange, TrainingReport
from pipeline.retraining import guards, recipes, reports, window
from pipeline.retraining.findings import Finding
from pipeline.retraining.recipes import Trained
from pipeline.scoring.engine import TorchModel, set_threads
from pipeline.scoring.validate import Validated
from pipeline.settings import Settings

#: Ancestors named in a provenance, the newest: enough for the guard of the rate on any sane day.
ANCESTORS_MAX = 50
#: `git describe` answers in 10 ms; where it hangs on a dead network drive the version alone must do.
GIT_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Retrained:
    """A successor in memory, and what is to be said of it."""

    bundle: Bundle
    #: Plain data: docs/retraining.md lists it.
    result: dict[str, Any]


def retrain(
    settings: Settings, parent: Bundle, request: Request, show: Show, now_ms: int, log: Log | None = None
) -> Retrained:
    """Make a successor of `parent`. Raises DataError where there is nothing to learn from, and says why.

    log: where events and outcomes are read; else the topics of the settings.
    """
    set_threads(settings.retraining.threads)
    pa.set_cpu_count(settings.retraining.threads)
    log = log or Log(settings)
    if misfits := bundles.check_fits(parent, log.schema):
        raise BundleError(f"{parent.model_id} {parent.model_version}: does not fit the events: {'; '.join(misfits)}")
    data = read(settings, log, request, parent.contract.output, show)
    show("training", 0, 0)
    learner = Learner(settings, parent, data, request.seed, show)
    trained, recipe = learner.train()
    show("measuring", 0, 0)
    scored = _scored(trained.module, trained.contract or parent.contract, learner, data)
    made_of = Provenance(
        trigger_id=request.trigger_id,
        window=request.told,
        parts=_parts(settings.topic("events"), data),
        rows_purged=data.rows_purged,
        rows_gone=data.found.gone,
        rows_refused=data.found.refused + learner.rows_refused,
        rows_unknown=learner.rows_unknown,
        schema_ids={"events": data.found.schema_ids, "outcomes": tuple(sorted(log.outcome_schema_ids))},
        code=code_version(),
        recipe=recipe,
        seed=request.seed,
        parent_version=parent.model_version,
        parent_weights_sha256=parent.manifest.files[bundles.WEIGHTS].sha256,
        ancestors=lineage(parent),
        separation=guards.separation(data.rows, scored.truth, scored.contract),
    )
    bundle = _pack(parent, data, trained, scored, made_of)
    findings = _findings(settings, parent, data, scored, now_ms)
    before = _scored(loading.load_module(parent), parent.contract, learner, data)
    result = _result(parent, bundle, data, findings, before.metrics(data)[0])
    if request.judge:
        show("judging", 0, 0)
        result |= _judged(settings, parent, bundle, data, findings, request, now_ms)
    return Retrained(bundle, result)


# --------------------------------------------------------------------------- measuring


@dataclass(frozen=True, slots=True)
class _Scored:
    """All rows of the data, by one model."""

    contract: FeatureContract
    checked: Validated
    #: Rows that have outputs, ascending; (m,) and (m, width), activation applied.
    rows: Longs
    outputs: Floats
    #: (n,) of all rows, under the model's contract.
    truth: npt.NDArray[Any]
    #: Slice fields that `checked` has texts of.
    slice_fields: Sequence[str]

    def newest(self, data: Data) -> npt.NDArray[np.bool_]:
        """(m,) which of them are of the newest part. Raises DataError if none is."""
        late: npt.NDArray[np.bool_] = self.rows >= int(data.newest[0])
        if not late.any():
            raise DataError(f"none of the {len(data.newest):,} newest events fits the feature contract")
        return late

    def metrics(self, data: Data) -> tuple[dict[str, float], list[list[int]]]:
        """Metrics and confusion on the newest part."""
        late = self.newest(data)
        return measure(self.outputs[late], self.contract, self.truth[self.rows[late]], self.truth[data.learnt])


def _scored(module: Any, contract: FeatureContract, learner: Learner, data: Data) -> _Scored:
    checked = learner.validated(contract)
    rows, outputs = score(module, contract, checked.inputs)
    truth = recipes.truth(data.rows, contract.output, window.LABEL, window.VALUE)
    return _Scored(contract, checked, rows, outputs, truth, learner.slice_fields)


def _pack(parent: Bundle, data: Data, trained: Trained, scored: _Scored, made_of: Provenance) -> Bundle:
    contract = scored.contract
    names = [f.name for f in contract.features if f.name in data.rows.column_names]
    bundle = bundles.make(
        model_id=parent.model_id,
        architecture=architecture_of(trained, str(made_of.recipe["name"])),
        contract=contract,
        weights=loading.weights_of(trained.module),
        baseline=_baseline(parent, data, scored),
        training=_training(data.rows.select([*names, window.LABEL, window.VALUE]), data, scored, made_of),
        requires=parent.manifest.requires,
    )
    loading.load_module(bundle)  # what cannot be made again is found here, and not at its release
    return bundle


def _baseline(parent: Bundle, data: Data, scored: _Scored) -> Any:
    """On the newest part; a season is the parent's, since the newest part may be shorter than one."""
    late, first = scored.newest(data), int(data.newest[0])
    return baseline(
        scored.contract,
        scored.checked,
        first,
        scored.rows[late],
        scored.outputs[late],
        data.times_ms,
        slice_fields=scored.slice_fields,
        season=parent.baseline.season,
    )


def _training(used: pa.Table, data: Data, scored: _Scored, made_of: Provenance) -> Training:
    measured, confusion = scored.metrics(data)
    rows_train = len(data.learnt) + len(data.stopping)
    report = TrainingReport(rows_train, int(scored.newest(data).sum()), measured, confusion)
    return provenance(used, report).model_copy(update={"provenance": made_of})


def _findings(settings: Settings, parent: Bundle, data: Data, scored: _Scored, now_ms: int) -> list[Finding]:
    """What the guards find in the window, and in what the successor makes of it."""
    chosen, rows, contract = settings.retraining, data.rows, scored.contract
    middle = max(len(data.replay), rows.num_rows // 2)
    now = guards.separation(rows.slice(middle), scored.truth[middle:], contract)
    made_of = parent.training.provenance
    earlier = (
        made_of.separation if made_of else guards.separation(rows.slice(0, middle), scored.truth[:middle], contract)
    )
    times = [field.name for field in rows.schema if pa.types.is_timestamp(field.type)]
    label_times_ms = rows.column(window.LABEL_TIME_MS).to_numpy()
    found = [
        guards.producers(rows.column(SENDER) if chosen.producer_field else None, chosen.producer_share_max),
        guards.duplicates(rows.column(window.EVENT_ID), chosen.duplicates_max),
        guards.late_fields(rows, times, label_times_ms, chosen.late_share_max),
        guards.leakage(now, earlier, chosen.separation_max),
        guards.outliers(scored.checked.numbers, chosen.outlier_influence_max),
        guards.rate(_retrained_ms(parent), now_ms, chosen.per_day_max),
    ]
    if contract.output.kind == "classification":
        by_class = measures.scored.by_class(scored.outputs.astype(np.float64))
        found.append(guards.flips(by_class, scored.truth[scored.rows], chosen.flips_max))
    return found


def _judged(
    settings: Settings,
    parent: Bundle,
    bundle: Bundle,
    data: Data,
    findings: list[Finding],
    request: Request,
    now_ms: int,
) -> dict[str, Any]:
    """The gate's report of the successor (a row of schemas/retraining-report.avsc), and the same in one line."""
    champion, challenger = (
        TorchModel(loading.load_module(b), b.contract, b.identity, b.baseline, batch_max=settings.scoring.batch_max)
        for b in (parent, bundle)
    )
    newest = data.rows.take(pa.array(data.newest))
    calibrator = Calibrator.of(json.loads(request.calibration)) if request.calibration else None
    verdict = judge_rows(
        newest, champion, challenger, settings, calibrator=calibrator, guards=tuple(findings), seed=request.seed
    )
    assert bundle.training.provenance is not None
    report = reports.make_report(
        verdict,
        pipeline=settings.name,
        model_id=bundle.model_id,
        versions=(parent.model_version, bundle.model_version),
        challenger_uri=request.bundle_uri,
        data=next(part.model_dump(mode="json") for part in bundle.training.provenance.parts if part.use == "newest"),
        created_at_ms=now_ms,
        trigger_id=request.trigger_id,
        cause=request.cause,
    )
    return {"report": reports.to_row(report), "says": verdict.says}


# --------------------------------------------------------------------------- what is said of it


def _result(
    parent: Bundle, bundle: Bundle, data: Data, findings: list[Finding], of_parent: dict[str, float]
) -> dict[str, Any]:
    training = bundle.training
    made_of = training.provenance
    assert made_of is not None
    return {
        "model_id": bundle.model_id,
        "model_version": bundle.model_version,
        "parent_version": parent.model_version,
        "rows": {part.use: part.rows for part in made_of.parts}
        | {
            "purged": made_of.rows_purged,
            "gone": made_of.rows_gone,
            "refused": made_of.rows_refused,
            "unknown": made_of.rows_unknown,
        },
        "metrics": training.metrics,
        "metrics_of_parent": of_parent,
        "parent_learnt_from_newest": known_before(parent, data),
        "findings": [asdict(finding) for finding in findings],
        "provenance": made_of.model_dump(mode="json"),
    }


def known_before(parent: Bundle, data: Data) -> int | None:
    """How many of the newest rows the parent may have learnt from; None where its bundle does not say."""
    made_of = parent.training.provenance
    if made_of is None:
        return None
    ranges = [
        OffsetRange(r.topic, r.partition, r.first_offset, r.last_offset)
        for part in made_of.parts
        if part.use in {"fit", "stopping"}  # replayed rows are few, far apart, and older than those
        for r in part.ranges
    ]
    return int(window.within(data.rows.take(pa.array(data.newest)), ranges).sum())


def _parts(topic: str, data: Data) -> tuple[DataPart, ...]:
    parts = (("replay", data.replay), ("fit", data.fit), ("stopping", data.stopping), ("newest", data.newest))
    return tuple(_part(use, topic, data.rows.take(pa.array(rows))) for use, rows in parts if len(rows))


def _part(use: Any, topic: str, rows: pa.Table) -> DataPart:
    times, partitions = rows.column(window.TIME_MS).to_numpy(), rows.column(window.PARTITION).to_numpy()
    offsets = rows.column(window.OFFSET).to_numpy()
    ranges = []
    for partition in np.unique(partitions).tolist():
        of_it = offsets[partitions == partition]
        ranges.append(
            DataRange(
                topic=topic,
                partition=partition,
                first_offset=int(of_it.min()),
                last_offset=int(of_it.max()),
                rows=len(of_it),
            )
        )
    first, last = int(times.min()), int(times.max())
    return DataPart(use=use, rows=rows.num_rows, first_time_ms=first, last_time_ms=last, ranges=tuple(ranges))


def lineage(parent: Bundle) -> tuple[Ancestor, ...]:
    """The parent, and what its bundle names as its ancestors."""
    made_of = parent.training.provenance
    first = Ancestor(model_version=parent.model_version, created_at=parent.manifest.created_at)
    return (first, *(made_of.ancestors if made_of else ()))[:ANCESTORS_MAX]


def _retrained_ms(parent: Bundle) -> Sequence[int]:
    """When those of the lineage were made that were themselves retrained: all but the first model."""
    made = [datetime.fromisoformat(a.created_at).timestamp() * 1000 for a in lineage(parent)]
    return [int(ms) for ms in (made if len(made) == ANCESTORS_MAX else made[:-1])]


def code_version() -> dict[str, str]:
    """The package's version, and the commit of the code around it, if it lies in a git repository."""
    found = {"pipeline": __version__}
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607 (git, wherever it is installed)
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=GIT_WAIT_S,
            check=True,
        )
        found["git"] = answer.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return found
