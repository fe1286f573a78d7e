"""The gate's verdict as a record of NAME.retraining-reports (schemas/retraining-report.avsc), and back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from pipeline.measures.scored import Metrics
from pipeline.retraining.findings import Finding
from pipeline.retraining.gate import Approval, Verdict

#: 16 hexadecimal digits are 64 bits: a million reports collide with probability 3e-8.
ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class RetrainingReport:
    """All of a verdict that a reader needs; the fields are those of the schema, and explained there."""

    report_id: str
    trigger_id: str | None
    pipeline: str
    model_id: str
    champion_version: str
    challenger_version: str
    challenger_uri: str
    accepted: bool
    approval: Approval
    checks: tuple[Finding, ...]
    loss: str
    rows: int
    champion_metrics: Metrics
    challenger_metrics: Metrics
    #: JSON object.
    data: str
    created_at_ms: int
    #: Reports of earlier versions do not say.
    cause: str | None = None


def make_report(
    verdict: Verdict,
    *,
    pipeline: str,
    model_id: str,
    versions: tuple[str, str],
    challenger_uri: str,
    data: Mapping[str, Any],
    created_at_ms: int,
    trigger_id: str | None = None,
    cause: str | None = None,
) -> RetrainingReport:
    """A report of a verdict. versions: of champion and challenger. data: which rows, as plain data."""
    described = json.dumps(data, sort_keys=True, separators=(",", ":"))
    known = json.dumps([pipeline, model_id, *versions, trigger_id, described])
    champion, challenger = verdict.metrics
    return RetrainingReport(
        report_id=hashlib.sha256(known.encode()).hexdigest()[:ID_DIGITS],
        trigger_id=trigger_id,
        pipeline=pipeline,
        model_id=model_id,
        champion_version=versions[0],
        challenger_version=versions[1],
        challenger_uri=challenger_uri,
        accepted=verdict.accepted,
        approval=verdict.approval,
        checks=verdict.checks,
        loss=verdict.loss,
        rows=verdict.bounds.rows,
        champion_metrics=champion,
        challenger_metrics=challenger,
        data=described,
        created_at_ms=created_at_ms,
        cause=cause,
    )


def to_row(report: RetrainingReport) -> dict[str, Any]:
    """As codec.RowCodec encodes it."""
    return {**asdict(report), "checks": [asdict(check) for check in report.checks]}


def from_row(row: Mapping[str, Any]) -> RetrainingReport:
    """A report as codec.RowCodec decodes it; fields of a newer schema are left out, what an older one lacks is None."""
    known = {field.name: row[field.name] for field in fields(RetrainingReport) if field.name != "cause"}
    known["cause"] = row.get("cause")
    names = [field.name for field in fields(Finding)]
    return RetrainingReport(**{**known, "checks": tuple(Finding(*(c[n] for n in names)) for c in row["checks"])})
