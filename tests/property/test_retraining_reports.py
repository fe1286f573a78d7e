"""Reports of the gate against `avro`: the same bytes, and the same report back."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import codec
from pipeline.retraining.findings import Finding
from pipeline.retraining.reports import RetrainingReport, from_row, make_report, to_row
from tests.property import avro_cases as cases
from tests.unit.test_retraining_gate import SETTINGS, judge, pair

SCHEMA = codec.load_schema("retraining-report")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBER = st.floats(allow_nan=False)
FINDINGS = st.builds(Finding, TEXT, st.booleans(), st.none() | NUMBER, st.none() | NUMBER, TEXT)
METRICS = st.dictionaries(TEXT, NUMBER, max_size=4)
LONG = st.integers(0, 2**62)
REPORTS = st.builds(
    RetrainingReport,
    *[TEXT, st.none() | TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, st.booleans()],
    st.sampled_from(["automatic", "waiting", "none"]),
    st.lists(FINDINGS, max_size=4).map(tuple),
    *[TEXT, LONG, METRICS, METRICS, TEXT, LONG, st.none() | TEXT],
)


@settings(max_examples=100, deadline=None)
@given(REPORTS)
def test_reports_are_encoded_as_avro_does(report: RetrainingReport) -> None:
    """Byte for byte; `avro` reads the row that was written, and the row is the report."""
    row = to_row(report)
    body = codec.rows.encode_body(SCHEMA, row)
    assert body == cases.write(SCHEMA, row)
    assert from_row(cases.read(SCHEMA, body)) == report


def test_the_schema_has_the_fields_of_the_report() -> None:
    """Names and order: neither changes without the other."""
    schema = json.loads(SCHEMA)
    assert [f["name"] for f in schema["fields"]] == [f.name for f in fields(RetrainingReport)]
    finding = next(f for f in schema["fields"] if f["name"] == "checks")["type"]["items"]
    assert [f["name"] for f in finding["fields"]] == [f.name for f in fields(Finding)]


def test_a_verdict_survives_the_wire(tmp_path: Path) -> None:
    """A real verdict through a registry and back; its id says which comparison it was, and not when it was made."""
    verdict = judge(*pair(0.8, 0.85), SETTINGS, guards=[Finding("duplicates", True, None, None, "none")])

    def report(**changes: Any) -> RetrainingReport:
        known = {"pipeline": "p", "model_id": "m", "versions": ("1", "2"), "challenger_uri": "models/2"}
        return make_report(verdict, **{**known, "data": {"offsets": {"0": [1, 9]}}, "created_at_ms": 5, **changes})

    made = report()
    registry = codec.FileRegistry(tmp_path)
    rows = codec.RowCodec(registry)
    found = from_row(rows.decode(rows.encode(registry.register("r-value", SCHEMA), SCHEMA, to_row(made))))
    assert found == made
    assert found.checks == verdict.checks
    assert (found.champion_metrics, found.challenger_metrics) == verdict.metrics
    assert json.loads(found.data) == {"offsets": {"0": [1, 9]}}
    assert report(created_at_ms=6).report_id == made.report_id
    others = [{"trigger_id": "t"}, {"versions": ("1", "3")}, {"data": {}}, {"pipeline": "q"}]
    assert made.report_id not in {report(**other).report_id for other in others}
