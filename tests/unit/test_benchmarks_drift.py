"""The drift benchmark's own arithmetic: no label before its time, schedules, measures, report."""

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow.compute as pc
import pytest

from benchmarks.drift import elec2_report, loop, market, policies
from pipeline.retraining import window
from pipeline.retraining.window import Wanted
from pipeline.settings import Settings, load


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A project as the benchmark makes it, but for the training of its model."""
    folder = tmp_path_factory.mktemp("elec2")
    fields = [
        {"name": "id", "type": "string", "column": "no"},
        {"name": "time", "type": {"type": "long", "logicalType": "timestamp-millis"}, "column": "at"},
        *({"name": name, "type": "double", "column": name} for name in market.FEATURES),
    ]
    (folder / "schemas").mkdir()
    schema = {"type": "record", "name": "Elec2Event", "fields": fields}
    (folder / "schemas/event.avsc").write_text(json.dumps(schema), "utf-8")
    (folder / "pipeline.toml").write_text(loop.SETTINGS, "utf-8")
    return load(folder / "pipeline.toml", environment={})


def test_the_data_is_the_copy_that_its_note_names() -> None:
    digest = hashlib.sha256(market.DATA.read_bytes()).hexdigest()
    assert digest in market.DATA.with_name("SOURCE.md").read_text("utf-8")
    assert market.rows().num_rows == 45_312
    assert market.truth().mean() == pytest.approx(0.4245, abs=1e-4)


@pytest.mark.parametrize("ahead", [0, market.DELAY, market.DELAY + 1, 5_000])
def test_no_label_is_known_before_its_time(settings: Settings, ahead: int) -> None:
    """Nor one of the rows that the first model had: the loop has no outcomes of these either."""
    log = market.MemoryLog(settings)
    log.now = market.first_rows() + ahead
    known = log.labelled(Wanted(), 0, lambda _n, _size: None)
    assert known.num_rows == max(0, ahead - market.DELAY)
    if known.num_rows:
        now_ms = market.START_MS + log.now * market.STEP_MS
        assert pc.max(known.column(window.LABEL_TIME_MS)).as_py() == now_ms - market.STEP_MS
        assert known.column(window.OFFSET)[0].as_py() == market.first_rows()


def test_events_in_memory_are_those_asked_for(settings: Settings) -> None:
    log = market.MemoryLog(settings)
    log.now = market.first_rows() + 5_000
    asked = log.labelled(Wanted(), 0, lambda _n, _size: None).slice(100, 50)
    joined = window.joined(asked, log.events(asked, lambda _n, _size: None).events)
    first = market.first_rows() + 100
    assert joined.column("nswprice").equals(market.rows().column("nswprice").slice(first, 50))
    assert joined.column("id").to_pylist() == [f"e{row}" for row in range(first, first + 50)]


def test_no_change_is_no_better_than_itself() -> None:
    """Its kappa-temporal is 0 by definition, and its accuracy here is known (notes of the literature: 0.66)."""
    found = policies.measured(policies.no_change())
    assert found["kappa_temporal"] == pytest.approx(0.0, abs=2e-3)
    assert found["accuracy"] == pytest.approx(0.66, abs=5e-3)


def test_to_know_the_truth_is_perfect() -> None:
    found = policies.measured(market.truth().astype(np.float64))
    assert (found["accuracy"], found["kappa_temporal"]) == (1.0, 1.0)


def test_schedules_are_within_the_stream() -> None:
    first, n = market.first_rows(), market.rows().num_rows
    parts = np.diff([first, *policies.evenly(9), n])
    assert len(parts) == 10
    assert np.ptp(parts) <= 1
    assert policies.every(1_000)[0] == first + 1_000
    assert n - 1_000 <= policies.every(1_000)[-1] < n


def _found(often: float = 0.8) -> dict[str, object]:
    policies_ = [
        {
            "policy": name,
            "accuracy": accuracy,
            "kappa_temporal": 0.1,
            "ece": 0.05,
            "log_loss": 0.5,
            "retrainings": trainings,
            "timeline": [[10_000, accuracy - 0.05], [11_000, accuracy + 0.05]],
        }
        for name, accuracy, trainings in (
            ("static", 0.7, 0),
            ("every 1,000 rows", often, 36),
            ("the loop on Kafka", 0.775, 2),
        )
    ]
    step = {"trigger_id": "t", "change_row": 9_500, "triggered_row": 9_800, "judged_row": 10_500}
    done = [
        {**step, "signals": ["feature:a"], "accepted": True, "says": "accepted: all 9 checks passed"},
        {
            **step,
            "signals": ["a", "b", "c", "d"],
            "accepted": False,
            "says": "refused: better: error 0.2; by chance; mcnemar: x",
        },
    ]
    return {
        "when": "today",
        "machine": "one",
        "took_s": 1,
        "settings": "[gate]\n",
        "window": 2_000,
        "triggers": 3,
        "overtaken": 1,
        "held": 2,
        "calibrations": 7,
        "released": 1,
        "retrainings": done,
        "policies": policies_,
        "rehearsed": [[0.76, 11, 5], [0.74, 9, 3]],
    }


def test_the_share_regained_is_of_what_the_schedule_gains() -> None:
    assert elec2_report.regained(_found()) == pytest.approx(0.75)
    assert elec2_report.regained(_found(often=0.7)) is None


def test_the_page_tells_trainings_and_why_one_was_refused() -> None:
    page = elec2_report.page(_found())
    assert "| the loop on Kafka | 0.7750 | 0.100 | 0.050 | 0.500 | 2 |" in page
    assert "gains **75%**" in page
    assert "- better than static: yes\n- 80 % of what the frequent schedule gains: **no**\n- with a quarter" in page
    assert "of its trainings: yes\n" in page
    assert "| 1 | 0.7400 | 9 | 3 |" in page
    assert "`a`, `b`, `c` and 1 more | refused: better, mcnemar |" in page


def test_the_plot_has_a_line_a_policy_and_a_mark_a_release() -> None:
    drawn = ET.fromstring(elec2_report.plot(_found()))
    tags = [element.tag.rpartition("}")[2] for element in drawn.iter()]
    assert tags.count("polyline") == 3
    marks = [e for e in drawn.iter() if e.get("d", "").endswith("v-10")]
    assert len(marks) == 1


def test_the_results_are_of_the_run_that_lies_beside_them() -> None:
    """RESULTS.md and the plot are what elec2.json says."""
    folder = Path(elec2_report.__file__).parent
    found = json.loads((folder / "elec2.json").read_text("utf-8"))
    assert (folder / "RESULTS.md").read_text("utf-8") == elec2_report.page(found)
    assert (folder / "elec2.svg").read_text("utf-8") == elec2_report.plot(found)
