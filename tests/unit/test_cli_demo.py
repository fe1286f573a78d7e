"""The demo's parts: what it sends, what it counts, what its verdict says. The whole demo runs in integration."""

from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.cli import demo, demo_data, demo_view
from pipeline.cli.demo_data import Broken, Plan
from pipeline.records import Reason

ROWS = 400


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.of(demo_data.shuttle(), 1_000, ROWS)


def message(value: bytes | None = b"x", reason: bytes = b"empty_value") -> Any:
    return SimpleNamespace(value=lambda: value, headers=lambda: [("pipeline.reason", reason)])


def prediction(plan: Plan, row: int, label: str | None = None) -> dict[str, Any]:
    label = plan.labels()[row] if label is None else label
    return {"event_id": f"row-{plan.first_row + row}", "label": label, "event_time": datetime.now(UTC)}


def perfect(plan: Plan) -> demo_view.Tally:
    """Every row predicted once, and rightly."""
    tally = demo_view.Tally(plan)
    for row in range(len(plan)):
        tally.prediction(message(), prediction(plan, row))
    return tally


def test_shuttle_data_comes_out_of_rivers_wheel() -> None:
    """49,097 rows of nine sensors and a label, without importing river."""
    table = demo_data.shuttle()
    assert table.num_rows == 49_097
    assert table.column_names == [*(f"f{i}" for i in range(1, 10)), demo_data.LABEL]


def test_half_of_the_rows_are_shifted_in_one_sensor(plan: Plan) -> None:
    """Only the shifted sensor changes, only from half-way on, by the shift."""
    whole = demo_data.shuttle().slice(1_000, ROWS)
    for name in whole.column_names:
        difference = plan.table.column(name).to_numpy() - whole.column(name).to_numpy()
        expected = np.zeros(ROWS)
        if name == demo_data.SHIFTED:
            expected[plan.shift_at :] = demo_data.SHIFT
        np.testing.assert_array_equal(difference, expected)


def test_row_numbers() -> None:
    """Ids of the plan's rows are found; anything else is no row."""
    assert demo_data.row_number("row-1007", 1_000) == 7
    assert demo_data.row_number("row-x", 0) == -1
    assert demo_data.row_number("shop-7", 0) == -1


def test_a_perfect_run_has_no_problems_but_the_missing_trigger(plan: Plan) -> None:
    """Everything once: nothing lost, nothing doubled, accuracy 1; the shift still has to be found."""
    verdict = demo_view.Verdict(perfect(plan), Broken(), uncommitted=0)
    assert (verdict.lost, verdict.duplicates) == (0, 0)
    assert verdict.quality(0, ROWS)[0] == 1.0
    assert demo._problems(verdict) == ["the monitor did not find the shift"]


def test_a_trigger_after_the_shift_is_success_and_one_before_a_false_alarm(plan: Plan) -> None:
    """Triggers are placed by the events the monitor had seen."""
    tally = perfect(plan)
    tally.trigger(message(), {"events_seen": plan.shift_at + 100})
    verdict = demo_view.Verdict(tally, Broken(), uncommitted=0)
    assert [events for events, _ in verdict.found] == [100]
    assert demo._problems(verdict) == []
    tally.trigger(message(), {"events_seen": plan.shift_at - 50})
    assert demo._problems(demo_view.Verdict(tally, Broken(), uncommitted=0)) == [
        "a false alarm, 50 events before the shift"
    ]


def test_losses_and_doubles_are_told_apart(plan: Plan) -> None:
    """Each kind of fault has a line of its own."""
    tally = demo_view.Tally(plan)
    for row in range(1, len(plan)):
        tally.prediction(message(), prediction(plan, row))
    tally.prediction(message(), prediction(plan, 5))
    tally.dead_letter(message(b"not broken by us"), {})
    broken = Broken([b"spoiled"], [0], [Reason.UNDECODABLE])
    tally.trigger(message(), {"events_seen": plan.shift_at})
    problems = demo._problems(demo_view.Verdict(tally, broken, uncommitted=3))
    assert problems == [
        "1 predictions too many",
        "1 broken records have no dead letter with their bytes",
        "1 dead letters for records that were not broken",
        "1 dead letters do not say the right reason",
        "3 events are not committed",
    ]


def test_dead_letters_are_compared_byte_by_byte(plan: Plan) -> None:
    """A dead letter counts only with the bytes and the reason of the record that was broken."""
    tally = perfect(plan)
    broken = Broken([None, b"b"], [0, 1], [Reason.TOMBSTONE, Reason.EMPTY_VALUE])
    tally.predictions[:2] = 0
    tally.dead_letter(message(None, b"tombstone"), {})
    tally.dead_letter(message(b"b", b"empty_value"), {})
    verdict = demo_view.Verdict(tally, broken, uncommitted=0)
    assert (verdict.lost, verdict.extra_dead_letters, verdict.wrong_reasons) == (0, 0, 0)
    assert tally.reasons == Counter(tombstone=1, empty_value=1)


def test_signals_are_ranked_by_their_distance_from_the_baseline() -> None:
    """Of the monitor's metrics, the signal furthest from its baseline comes first; constants are left out."""
    text = (
        "# TYPE pipeline_drift_signal_mean gauge\n"
        'pipeline_drift_signal_mean{signal="a"} 1.5\n'
        'pipeline_drift_signal_mean{signal="b"} -6.0\n'
        'pipeline_drift_signal_mean{signal="constant"} 1.0\n'
    )
    means = demo_view.signal_means(text)
    assert means == {"a": 1.5, "b": -6.0, "constant": 1.0}
    ranked = demo_view.moved(means, {"a": (1.0, 0.5), "b": (0.0, 2.0), "constant": (0.0, 0.0)})
    assert [(name, z) for name, z, _ in ranked] == [("b", -3.0), ("a", 1.0)]
