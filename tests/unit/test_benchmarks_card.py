"""The score card's own arithmetic: how alarms are counted, what drifts in its streams, what it says of a result."""

import math
from collections import Counter

import numpy as np
import pytest

from benchmarks.drift import card, card_rows, counting, shifts, world
from benchmarks.drift.card_plots import plots
from benchmarks.drift.card_report import page
from benchmarks.drift.counting import Detections
from benchmarks.drift.shifts import AFTER, BEFORE, FOUR, ONE, drifting
from benchmarks.drift.synthetic import SIGNALS, river_alone, stationary


def counted(alarms: list[int], changes: list[int]) -> Detections:
    found = Detections()
    found.count(alarms, changes)
    return found


# --------------------------------------------------------------------------- counting


def test_the_first_alarm_after_a_drift_counts_and_no_other() -> None:
    """One before it is false, and so is a second one of the same drift; with none it is missed."""
    assert counted([50, 130, 140], [100]) == Detections([30], missed=0, false=2)
    assert counted([140, 130], [100]).delays == [30]
    assert counted([], [100]) == Detections([], missed=1, false=0)


def test_an_alarm_that_has_read_no_row_of_the_drift_is_false() -> None:
    assert counted([100], [100]) == Detections([], missed=1, false=1)
    assert counted([101], [100]) == Detections([1], missed=0, false=0)


def test_there_and_back_are_two_drifts() -> None:
    """Each wants an alarm of its own, before the next one begins."""
    assert counted([130, 220], [100, 200]) == Detections([30, 20], missed=0, false=0)
    assert counted([130, 150], [100, 200]) == Detections([30], missed=1, false=1)
    assert counted([200], [100, 200]) == Detections([100], missed=1, false=0)
    assert counted([201], [100, 200]) == Detections([1], missed=1, false=0)


def test_f1_is_of_all_streams_together() -> None:
    """Two found, one missed, three false: 2 x 2 / (2 x 2 + 3 + 1)."""
    parts = [counted([30, 40], [10]), counted([], [10]), counted([5, 7, 20], [10])]
    whole = Detections.total(part.plain() for part in parts)
    assert whole == Detections([20, 10], missed=1, false=3)
    assert whole.f1 == pytest.approx(0.5)
    assert Detections().f1 == 0.0


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_a_schedule_retrains_just_as_often(count: int) -> None:
    """At one step, within the stream, begun anywhere within the first step."""
    for phase in (0.05, 0.5, 1.0):
        found = counting.periodic(count, 40_000, phase)
        assert len(found) == count
        assert all(1 <= row <= 40_000 for row in found)
        assert all(abs(step - 40_000 / count) <= 1 for step in np.diff(found))
        assert found[:1] == ([int(phase * 40_000 / count)] if count else [])


def test_the_wait_for_a_schedule_is_half_a_step() -> None:
    """A drift comes at no particular time of it: uniform over the step, and never missed where a step still fits."""
    phases = (np.arange(10) + 0.5) / 10
    found = [counted(counting.periodic(4, 40_000, phase), [20_000]) for phase in phases.tolist()]
    assert sum(one.missed for one in found) == 0
    assert np.mean([one.delays for one in found]) == pytest.approx(5_000)
    once = [counted(counting.periodic(1, 40_000, phase), [20_000]) for phase in phases.tolist()]
    assert sum(one.missed for one in once) == 5


def test_no_delay_below_the_floor() -> None:
    """CUSUM itself, simulated: its run length is what the floor was asked for, its delay just above the floor."""
    size, between, chains = 0.5, 500.0, 2_000
    generator = np.random.default_rng(0)
    b = math.log(between * size**2 / 2)
    for _ in range(50):
        b = math.log(between * size**2 / 2 + b + 1)
    limit = b - 1.166 * size

    def run(mean: float) -> float:
        value, ended = np.zeros(chains), np.zeros(chains)
        row = 0
        while not ended.all():
            row += 1
            value = np.maximum(0, value + size * generator.normal(mean, 1, chains) - size**2 / 2)
            ended[(ended == 0) & (value >= limit)] = row
        return float(ended.mean())

    assert run(0.0) == pytest.approx(between, rel=0.1)
    floor = counting.floor_rows(size, 0.0, rows_between_false=between, tests=1)
    assert floor <= run(size) <= 1.2 * floor


def test_the_floor_rises_with_autocorrelation_and_signals() -> None:
    one = [counting.floor_rows(0.5, rho, rows_between_false=1e6, tests=1) for rho in (0.0, 0.7, 0.9)]
    many = [counting.floor_rows(0.5, rho, rows_between_false=1e6, tests=32) for rho in (0.0, 0.7, 0.9)]
    assert one == sorted(one)
    assert all(more > less for less, more in zip(one, many, strict=True))
    # n rows say as much as n (1 - rho) / (1 + rho): at most that much longer, less for the first row's innovation.
    assert one[0] < one[1] < 5.7 * one[0]


def test_no_alarm_in_three_million_rows_is_a_rate_below_the_target() -> None:
    """The rule of three; one alarm: 4.74 (Poisson, 95 %)."""
    assert card_rows.upper_rate(0, 3_000_000) == pytest.approx(-math.log(0.05) / 30, rel=1e-6)
    assert card_rows.upper_rate(1, 100_000) == pytest.approx(4.744, abs=1e-3)


# --------------------------------------------------------------------------- what drifts


def halves(kind: str, rho: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    stream = drifting(kind, rho, 3)
    return stream.rows[:BEFORE], stream.rows[BEFORE:]


@pytest.mark.parametrize(("kind", "columns"), [("correlation lost", slice(ONE, ONE + 2)), ("correlation arises", FOUR)])
def test_a_correlation_changes_and_no_feature_does(kind: str, columns: slice) -> None:
    """Mean, spread and autocorrelation of each are as before."""
    before, after = halves(kind, 0.7)
    for part in (before, after):
        assert np.abs(part.mean(axis=0)).max() < 0.1
        assert part.std(axis=0) == pytest.approx(np.ones(len(SIGNALS)), abs=0.06)
        lagged = [np.corrcoef(column[1:], column[:-1])[0, 1] for column in part.T]
        assert lagged == pytest.approx([0.7] * len(SIGNALS), abs=0.03)
    found = [np.corrcoef(part[:, columns].T)[0, 1] for part in (before, after)]
    expected = [0.8, 0.0] if kind == "correlation lost" else [0.0, 0.8]
    assert found == pytest.approx(expected, abs=0.05)


def test_shifts_are_what_they_are_called() -> None:
    before, after = halves("step")
    assert after[:, ONE].mean() - before[:, ONE].mean() == pytest.approx(0.5, abs=0.03)
    _, after = halves("gradual")
    assert after[:100, ONE].mean() == pytest.approx(0.0, abs=0.25)
    assert after[5_000:, ONE].mean() == pytest.approx(0.5, abs=0.03)
    before, after = halves("variance")
    assert after[:, ONE].std() == pytest.approx(2 * before[:, ONE].std(), rel=0.03)
    assert after[:, ONE].mean() == pytest.approx(0.0, abs=0.05)
    before, after = halves("class share")
    assert (before[:, -1].mean(), after[:, -1].mean()) == pytest.approx((0.2, 0.4), abs=0.01)
    stream = drifting("recurring", 0.0, 3)
    assert stream.changes == (BEFORE, BEFORE + AFTER)
    parts = np.split(stream.rows[:, ONE], stream.changes)
    assert [part.mean() for part in parts] == pytest.approx([0.0, 0.5, 0.0], abs=0.03)


def test_a_missing_value_is_missing_and_counted() -> None:
    before, after = halves("missing rate")
    assert (before[:, -1].mean(), after[:, -1].mean()) == pytest.approx((0.01, 0.06), abs=0.005)
    for part in (before, after):
        assert np.array_equal(np.isnan(part[:, ONE]), part[:, -1] == 1)


def test_a_season_is_in_half_of_the_features_and_known() -> None:
    """The baseline has whole seasons, so that the rows after it begin one; the step is on top of it."""
    stream, unaware = shifts.seasonal(0.0, 3)
    period, (change,) = shifts.SEASON_ROWS, stream.changes
    assert change == shifts.SEASONS * period == len(stream.rows) / 2
    by_phase = stream.rows[:change].reshape(shifts.SEASONS, -1, period // 20, len(SIGNALS)).mean(axis=(0, 2))
    assert by_phase.std(axis=0) == pytest.approx([0.7] * 8 + [0.05] * 8, abs=0.05)
    moved = stream.rows[change:].mean(axis=0) - stream.rows[:change].mean(axis=0)
    assert moved[ONE] == pytest.approx(0.5, abs=0.05)
    assert stream.baseline.season is not None
    assert {f"feature:{i}" for i in range(8)} <= set(stream.baseline.season.signals)
    assert unaware.season is None


def test_river_sees_indicators_as_they_are_and_skips_what_is_missing() -> None:
    """A row is counted though it had no value; half of the values bounded like a number would hide the change."""
    rows = np.zeros((4_000, 1), dtype=np.float32)
    rows[2_000:] = 1.0
    rows[::2] = np.nan
    alarms = river_alone(rows, indicators=1)
    assert alarms
    assert 2_000 < alarms[0] < 2_200
    assert alarms[0] % 2 == 0  # rows read; the odd ones of them end with no value


def test_river_finds_a_large_step_and_no_other() -> None:
    """Independent values: no alarm before the step (notes: 0 in 100,000), one soon after it."""
    rows, _, _ = stationary("normal", 0.0, 1, 4_000)
    rows[2_000:, 3] += 3.0
    alarms = river_alone(rows)
    assert alarms == sorted(alarms)
    assert 2_000 < alarms[0] < 2_200


# --------------------------------------------------------------------------- a world with labels


def test_one_producer_flips_one_label_in_twenty() -> None:
    made = world.make(1, 20_000)
    for how in card.POISONS:
        told = world.poisoned(made, 5_000, how, 1)
        flipped = told.told != told.truth
        assert not flipped[:5_000].any()
        assert flipped[5_000:].mean() == pytest.approx(0.05, abs=0.01)
        assert set(told.producers[flipped].tolist()) == {0}
        assert np.array_equal(told.truth, made.truth)


def test_virtual_drift_leaves_the_law_of_labels_alone() -> None:
    """Inputs move; how often a label is YES, and how often for rows of one score, does not."""
    moved = np.array([1.0, -1.0, 0.0, 0.0, 0.0, 0.0])
    made = world.make(1, 60_000, at=30_000, moved=moved)
    assert made.features[30_000:, 0].mean() == pytest.approx(1.0, abs=0.03)
    assert made.features[:30_000, 0].mean() == pytest.approx(0.0, abs=0.03)
    assert made.truth[30_000:].mean() == pytest.approx(made.truth[:30_000].mean(), abs=0.01)
    high = made.features @ world.WEIGHTS > 2.0
    shares = [made.truth[part][high[part]].mean() for part in (slice(30_000), slice(30_000, None))]
    assert shares[1] == pytest.approx(shares[0], abs=0.01)


# --------------------------------------------------------------------------- the card


def test_every_task_has_as_many_seeds() -> None:
    """But for data of which there is only one."""
    found = Counter((job.group, job.row) for job in card.jobs(10, 100))
    assert {count for (group, _), count in found.items() if group not in {"estimate", "shuttle"}} == {10}
    assert {group for group, _ in found} == set(card.GROUPS)
    assert {row.partition(",")[0] for group, row in found if group == "shift"} == set(shifts.SHIFTS)


def result(delays: list[int], missed: int = 0, triggers: int = 1) -> dict[str, object]:
    one = {"delays": delays, "missed": missed, "false": 0}
    return {"monitor": one, "river": one, "periodic": one, "joint": False, "triggers": triggers, "river_after": 9}


def test_a_target_is_held_by_the_median_of_steps_and_by_each_of_other_drifts() -> None:
    tasks = {
        "step, 0.7": [result([100]), result([600]), result([9_000])],
        "variance, 0.7": [result([10]), result([3_001])],
    }
    step, variance = card_rows._shifts(tasks)
    assert step.held
    assert not variance.held
    assert "1 late" in variance.why
    tasks["step, 0.7"][0] = result([], missed=1)
    assert not next(iter(card_rows._shifts(tasks))).held


def test_a_target_that_nobody_can_hold_is_told() -> None:
    """At rho 0.9 the floor is above it, at 0.7 below; a ramp tells too little by then."""
    (steep,) = card_rows._shifts({"step, 0.9": [result([2_500])]})
    (flat,) = card_rows._shifts({"step, 0.7": [result([900])]})
    assert "The target of 1,500 is below the first" in steep.why
    assert "The target of 600 is 1.08 times the first" in flat.why
    (ramp,) = card_rows._shifts({"gradual, 0.7": [result([4_000])]})
    assert "By row 3,000 of it 0.3 of its 0.5" in ramp.why
    assert "tell 7.9 nats" in ramp.why


def test_the_card_is_of_the_run_that_lies_beside_it() -> None:
    """CARD.md and the plots are what card.json and elec2.json say."""
    found = card.read()
    assert (card.HERE / "CARD.md").read_text("utf-8") == page(found)
    for name, drawn in plots(found).items():
        assert (card.HERE / name).read_text("utf-8") == drawn
