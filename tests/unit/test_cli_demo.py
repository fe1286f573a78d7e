"""The demo's parts: what it sends, what it counts, what its verdict says. The whole demo runs in integration."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.cli import demo_data, demo_view
from pipeline.cli.demo_data import Broken, Plan
from pipeline.cli.demo_summary import Verdict
from pipeline.cli.events import EventEncoder
from pipeline.codec import ColumnarDecoder, load_schema
from pipeline.records import Reason

ROWS = 400
FIRST, SECOND = "one", "two"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan.of(demo_data.shuttle(), 1_000, ROWS)


def message(value: bytes | None = b"x", reason: bytes = b"empty_value", key: bytes = b"") -> Any:
    headers = [("pipeline.reason", reason)]
    return SimpleNamespace(value=lambda: value, headers=lambda: headers, key=lambda: key)


def prediction(plan: Plan, row: int, version: str = FIRST) -> dict[str, Any]:
    return {"event_id": f"row-{plan.first_row + row}", "model_version": version, "event_time": datetime.now(UTC)}


def outcome(plan: Plan, row: int, version: str, *, right: bool = True, role: str = "champion") -> dict[str, Any]:
    label = plan.labels()[row]
    predicted = label if right else "neither"
    return {
        "event_id": f"row-{plan.first_row + row}",
        "model_version": version,
        "role": role,
        "label": label,
        "predicted": predicted,
    }


def release(version: str, action: str) -> dict[str, Any]:
    return {"model_version": version, "action": action, "reason": "because"}


def report(*, accepted: bool = True) -> dict[str, Any]:
    checks = [
        {"name": "rows", "passed": True, "says": "enough"},
        {"name": "better", "passed": accepted, "says": "is it"},
    ]
    return {"accepted": accepted, "challenger_version": SECOND, "rows": 500, "checks": checks}


def trigger(plan: Plan, events: int, version: str = FIRST) -> dict[str, Any]:
    return {
        "events_seen": plan.shift_at + events,
        "model_version": version,
        "severity": "critical",
        "trigger_id": "t",
        "signals": [],
    }


def perfect(plan: Plan) -> demo_view.Tally:
    """Every row predicted once; right before the shift, wrong after it, right again where the successor serves."""
    tally = demo_view.Tally(plan, FIRST)
    for row in range(len(plan)):
        is_canary = plan.canary_at <= row < plan.champion_at and row % 2 == 0
        version = SECOND if is_canary or row >= plan.champion_at else FIRST
        tally.prediction(message(), prediction(plan, row, version))
        right, role = row < plan.shift_at or version == SECOND, "canary" if is_canary else "champion"
        tally.outcome(message(), outcome(plan, row, version, right=right, role=role))
    tally.trigger(message(), trigger(plan, 100))
    tally.release(message(), release(FIRST, "release"))
    tally.release(message(), release(SECOND, "canary"))
    tally.release(message(), release(SECOND, "promote"))
    tally.report(message(), report())
    return tally


def verdict(tally: demo_view.Tally, broken: Broken | None = None, uncommitted: int = 0) -> Verdict:
    feed: Any = SimpleNamespace(broken=broken or Broken(), shifted_at=0.0)
    return Verdict(tally, feed, uncommitted=uncommitted)


def text_of(verdict: Verdict) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(verdict.summary())
    return capture.get()


# --------------------------------------------------------------------------- what is sent


def test_shuttle_data_comes_out_of_rivers_wheel() -> None:
    """49,097 rows of nine sensors and a label, without importing river."""
    table = demo_data.shuttle()
    assert table.num_rows == 49_097
    assert table.column_names == [*(f"f{i}" for i in range(1, 10)), demo_data.LABEL]


def test_the_later_rows_are_shifted_in_one_sensor(plan: Plan) -> None:
    """Only the shifted sensor changes, only from the shift on, by the shift; the successor comes later."""
    assert (plan.shift_at, plan.canary_at, plan.champion_at) == (150, 300, 350)
    whole = demo_data.shuttle().slice(1_000, ROWS)
    for name in whole.column_names:
        difference = plan.table.column(name).to_numpy() - whole.column(name).to_numpy()
        expected = np.zeros(ROWS)
        if name == demo_data.SHIFTED:
            expected[plan.shift_at :] = demo_data.SHIFT
        np.testing.assert_array_equal(difference, expected)


def test_events_in_two_parts_are_the_events_in_one(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the rows are cut, each comes once, and the same rows are broken in the same ways."""
    monkeypatch.setattr(demo_data, "BROKEN_EVERY", 50)
    fields = [{"name": "id", "type": "string"}, *({"name": f"f{i}", "type": "long"} for i in range(1, 10))]
    encoder = EventEncoder(f'{{"type": "record", "name": "e", "fields": {fields}}}'.replace("'", '"'), 1)

    def sent(*parts: range) -> tuple[list[bytes | None], list[bytes | None], Broken]:
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        broken = Broken()
        for part in parts:
            for some_keys, some_values in plan.encoded(encoder, 2, broken, part):
                keys += some_keys
                values += some_values
        return keys, values, broken

    whole = sent(range(0, ROWS, ROWS))
    assert whole[0] == [f"row-{1_000 + row}".encode() for row in range(ROWS)]
    assert whole[2].rows == [50, 100, 150, 200, 250, 300, 350]
    assert sent(range(0, 171, 12), range(171, ROWS, 12)) == whole


def test_labels_are_the_truth_under_the_keys_of_the_events(plan: Plan) -> None:
    """One a row, in the schema of labels; the time is that of writing."""
    schema = load_schema("label")
    keys, values = plan.encoded_labels(schema, 7)
    assert keys == [f"row-{1_000 + row}".encode() for row in range(ROWS)]

    class Registry:
        def schema(self, schema_id: int) -> str:
            assert schema_id == 7
            return schema

    decoded: Any = ColumnarDecoder(Registry(), schema).decode(values)  # type: ignore[arg-type]
    columns = decoded.columns.to_pydict()
    assert columns["event_id"] == [key.decode() for key in keys if key is not None]
    assert columns["label"] == plan.labels()
    assert set(plan.labels()) == {"0", "1"}
    assert columns["value"] == columns["time"] == [None] * ROWS


def test_row_numbers() -> None:
    """Ids of the plan's rows are found; anything else is no row."""
    assert demo_data.row_number("row-1007", 1_000) == 7
    assert demo_data.row_number("row-x", 0) == -1
    assert demo_data.row_number("shop-7", 0) == -1


# --------------------------------------------------------------------------- what is made of it


def test_a_loop_that_closed_has_no_problems(plan: Plan) -> None:
    """Everything once, the shift found, the successor better: nothing to complain of, and all of it is told."""
    found = verdict(perfect(plan))
    assert (found.lost, found.duplicates, found.lost_outcomes, found.extra_outcomes) == (0, 0, 0, 0)
    assert (found.before, found.during, found.canary, found.after) == ((1.0, 150), (0.0, 175), (1.0, 25), (1.0, 50))
    assert [events for events, _ in found.found] == [100]
    assert found.problems() == []
    told = text_of(found)
    for part in (
        "accuracy 1.0000 of 150 outcomes, model one",
        "accuracy 0.0000 of 175 outcomes, the same model",
        "accuracy 1.0000 of 25 outcomes, model two, with half",
        "accuracy 1.0000 of 50 outcomes, model two",
        "accepted two, judged by 500 labelled events",
        "passed  better: is it",
        "two promote: because",
    ):
        assert part in told


def test_the_first_model_is_no_successor(plan: Plan) -> None:
    """It is released too, so that there is something to succeed."""
    tally = demo_view.Tally(plan, FIRST)
    assert tally.successor is None
    tally.release(message(), release(FIRST, "release"))
    assert tally.successor is None
    tally.release(message(), release(SECOND, "canary"))
    assert (tally.successor, tally.given_up) == (SECOND, False)
    assert [entry["model_version"] for entry in tally.releases] == [FIRST, SECOND]


def test_slots_are_no_history() -> None:
    """Their own records say the same again, or nothing at all: an empty slot is a tombstone."""
    assert demo_view.is_history(message(key=b"release/0"))
    assert not any(demo_view.is_history(message(None, key=key)) for key in (b"canary", b"champion", b""))


def steps(tally: demo_view.Tally, feed: Any, happen: Sequence[Any]) -> list[str]:
    told = [demo_view.step(tally, feed)]
    for one in happen:
        one()
        told.append(demo_view.step(tally, feed))
    return told


def test_each_step_of_the_loop_is_told(plan: Plan) -> None:
    """As they come: nothing yet, the shift, trigger, canary, its predictions, promotion; or the end of it."""
    tally, feed = demo_view.Tally(plan, FIRST), SimpleNamespace(shifted_at=None)
    happen = [
        lambda: setattr(feed, "shifted_at", 1.0),
        lambda: tally.trigger(message(), trigger(plan, 10)),
        lambda: tally.release(message(), release(FIRST, "release")),
        lambda: tally.release(message(), release(SECOND, "canary")),
        lambda: tally.prediction(message(), prediction(plan, 1, FIRST)),
        lambda: tally.prediction(message(), prediction(plan, 2, SECOND)),
        lambda: tally.release(message(), release(SECOND, "promote")),
    ]
    told = steps(tally, feed, happen)
    beginnings = ["watching", "f1 reads 19", "drift trigger", "drift trigger", *["the gate accepted two"] * 2]
    beginnings += ["two is on trial as canary", "two is champion"]
    assert [text[: len(start)] for text, start in zip(told, beginnings, strict=True)] == beginnings
    tally.release(message(), release(SECOND, "withdraw"))
    assert demo_view.step(tally, feed) == "the successor was withdrawn"
    assert tally.given_up
    refused = demo_view.Tally(plan, FIRST)
    refused.report(message(), report(accepted=False))
    assert demo_view.step(refused, feed) == "the gate refused the successor"
    assert refused.given_up


def test_what_is_shown_meanwhile_names_the_wait(plan: Plan) -> None:
    """On a terminal a table, elsewhere a line: progress, the accuracy of now, where the loop is."""
    tally = demo_view.Tally(plan, FIRST)
    feed: Any = SimpleNamespace(sent=300, labelled=280, held_at=300, shifted_at=1.0)
    assert "accuracy -  f1 reads 19" in demo_view.plain(tally, feed)
    for row, right in enumerate((True, True, True, False)):
        tally.prediction(message(), prediction(plan, row))
        tally.outcome(message(), outcome(plan, row, FIRST, right=right))
    console = Console(width=120)
    with console.capture() as capture:
        console.print(demo_view.live(tally, feed, 20, [("f1", 1.5, 66.0)]))
    table = capture.get()
    for part in (
        "300 of 400 events sent, 280 labels; the rest waits for the successor",
        "0.750 of the last 4 outcomes",
        "20 events not yet committed",
        "f1 +1.50 sd",
    ):
        assert part in table
    feed.held_at = None
    with console.capture() as capture:
        console.print(demo_view.live(tally, feed, None, []))
    assert "waits" not in capture.get()
    assert demo_view.plain(tally, feed).startswith("sent 300/400  out 4 ")


def test_a_trigger_before_the_shift_is_a_false_alarm(plan: Plan) -> None:
    """Triggers are placed by the events the monitor had seen; those on the successor are counted from elsewhere."""
    tally = perfect(plan)
    tally.trigger(message(), trigger(plan, -50))
    tally.trigger(message(), trigger(plan, -70, SECOND))
    assert verdict(tally).problems() == ["a false alarm, 50 events before the shift"]


def test_a_loop_that_did_not_close_is_a_problem(plan: Plan) -> None:
    """No trigger, no successor, or the gate's no with its reasons."""
    tally = demo_view.Tally(plan, FIRST)
    for row in range(len(plan)):
        tally.prediction(message(), prediction(plan, row))
        tally.outcome(message(), outcome(plan, row, FIRST, right=row < plan.shift_at))
    missing = "no successor came into service"
    assert verdict(tally).problems() == ["the monitor did not find the shift", missing]
    tally.trigger(message(), trigger(plan, 0))
    tally.report(message(), report(accepted=False))
    refused = "the gate refused the successor: better: is it"
    assert verdict(tally).problems() == [refused, missing]
    tally.release(message(), release(SECOND, "withdraw"))
    assert verdict(tally).problems() == [refused, "the canary was withdrawn: because", missing]


def test_a_successor_that_is_no_better_is_a_problem(plan: Plan) -> None:
    """As good as before is not enough."""
    tally = perfect(plan)
    tally.right[plan.shift_at :] = True
    worse = "the successor is no better than the first model was on the shifted events"
    assert verdict(tally).problems() == [worse]


def test_losses_and_doubles_are_told_apart(plan: Plan) -> None:
    """Each kind of fault has a line of its own."""
    tally = perfect(plan)
    tally.predictions[0] = tally.outcomes[0] = tally.outcomes[7] = 0
    tally.prediction(message(), prediction(plan, 5))
    for row in (6, 6):
        tally.outcome(message(), outcome(plan, row, FIRST))
    tally.dead_letter(message(b"not broken by us"), {})
    broken = Broken([b"spoiled"], [0], [Reason.UNDECODABLE])
    assert verdict(tally, broken, uncommitted=3).problems() == [
        "1 predictions too many",
        "1 broken records have no dead letter with their bytes",
        "1 dead letters for records that were not broken",
        "1 dead letters do not say the right reason",
        "1 labelled predictions have no outcome",
        "2 outcomes too many",
        "3 events are not committed",
    ]


def test_dead_letters_are_compared_byte_by_byte(plan: Plan) -> None:
    """A dead letter counts only with the bytes and the reason of the record that was broken."""
    tally = perfect(plan)
    broken = Broken([None, b"b"], [0, 1], [Reason.TOMBSTONE, Reason.EMPTY_VALUE])
    tally.predictions[:2] = tally.outcomes[:2] = 0
    tally.dead_letter(message(None, b"tombstone"), {})
    tally.dead_letter(message(b"b", b"empty_value"), {})
    found = verdict(tally, broken)
    assert (found.lost, found.extra_dead_letters, found.wrong_reasons) == (0, 0, 0)
    assert tally.reasons == Counter(tombstone=1, empty_value=1)
    assert found.problems() == []


def test_models_in_use_are_those_of_now() -> None:
    """Versions that only have made predictions are not."""
    text = (
        "# TYPE pipeline_model_info gauge\n"
        'pipeline_model_info{device="cpu",model_id="demo",model_version="two"} 1.0\n'
        "# TYPE pipeline_predictions counter\n"
        'pipeline_predictions_total{model_version="one",role="champion"} 7.0\n'
    )
    assert demo_view.models_in_use(text) == {"two"}
    assert demo_view.models_in_use("") == set()


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
