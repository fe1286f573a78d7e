"""A season that the baseline knows is no drift; what comes on top of it is, as soon as elsewhere."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks.drift import IDENTITY, autoregressive, monitor_for
from pipeline.cli import make_app
from pipeline.cli.evaluate_drift import timeline
from pipeline.drift import SignalSummariser, measure_baseline
from pipeline.drift.baseline import as_watched
from pipeline.drift.seasons import Deseasoner
from pipeline.errors import DataError
from pipeline.models import bundle as bundles
from pipeline.models.manifest import baseline_faults
from pipeline.records import Baseline, Floats, Longs, RetrainingTrigger, Season, SignalBaseline

DAY_MS = 86_400_000
#: Events a day.
PER_DAY = 3_000
SIGNALS = tuple(f"feature:{i}" for i in range(6))


def days(count: float, seed: int, rho: float = 0.0, swing: float = 0.0) -> tuple[Floats, Longs]:
    """Six features with a daily cycle of 1.5 standard deviations and an overtone, each at another hour."""
    rows = round(count * PER_DAY)
    noise = autoregressive(np.random.default_rng(seed), rows, len(SIGNALS), rho).astype(np.float64)
    angle = 2 * np.pi * np.arange(rows)[:, None] / PER_DAY + np.arange(len(SIGNALS))
    values = noise * (1 + swing * np.sin(angle)) + 1.5 * np.sin(angle) + 0.5 * np.sin(2 * angle)
    return values.astype(np.float32), np.arange(rows, dtype=np.int64) * (DAY_MS // PER_DAY)


def known(rows: Floats, times_ms: Longs) -> Baseline:
    return measure_baseline(SIGNALS, rows, times_ms, season_s=86_400.0)


def watch(rows: Floats, times_ms: Longs, baseline: Baseline) -> list[tuple[int, RetrainingTrigger]]:
    """Triggers, and the rows read by then, of rows spread over two partitions."""
    generator = np.random.default_rng(0)
    summariser, monitor = SignalSummariser(baseline, IDENTITY), monitor_for(baseline)
    found: list[tuple[int, RetrainingTrigger]] = []
    start = 0
    while start < len(rows):
        end = min(len(rows), start + int(generator.integers(100, 500)))
        for partition in (0, 1):
            chosen = np.arange(start, end)[partition::2]
            summariser.add("events", partition, chosen.astype(np.int64), times_ms[chosen], rows[chosen])
        found += [(end, t) for s in summariser.drain() if (t := monitor.take(s)) is not None]
        start = end
    return found


@pytest.mark.parametrize(("rho", "swing"), [(0.0, 0.0), (0.0, 0.4), (0.9, 0.4)])
def test_a_daily_cycle_raises_no_alarm_in_ten_days(rho: float, swing: float) -> None:
    """Of the mean, or of the spread too; known from three days."""
    rows, times_ms = days(13, 61, rho, swing)
    first = 3 * PER_DAY
    baseline = known(rows[:first], times_ms[:first])
    assert watch(rows[first:], times_ms[first:], baseline) == []


def test_a_season_that_is_not_known_is_drift_every_day() -> None:
    """The same values and baseline without the season's table: what the test above would see."""
    rows, times_ms = days(5, 61)
    baseline = dataclasses.replace(known(rows[: 3 * PER_DAY], times_ms[: 3 * PER_DAY]), season=None)
    assert len(watch(rows[3 * PER_DAY :], times_ms[3 * PER_DAY :], baseline)) >= 1


@pytest.mark.parametrize(("rho", "rows_max"), [(0.0, 600), (0.7, 1_500)])
def test_a_shift_on_top_is_found_and_named_alone(rho: float, rows_max: int) -> None:
    """One standard deviation at any hour; once."""
    rows, times_ms = days(9, 62, rho)
    first, at = 3 * PER_DAY, 3 * PER_DAY + PER_DAY // 3
    baseline = known(rows[:first], times_ms[:first])
    rows = rows[first:]
    rows[at:, 3] += 1.0
    ((read, trigger), *more) = watch(rows, times_ms[first:], baseline)
    assert at < read <= at + rows_max
    assert [s.signal for s in trigger.signals] == ["feature:3"]
    assert trigger.signals[0].after_mean - trigger.signals[0].before_mean == pytest.approx(1.0, abs=0.4)
    assert more == []


# --------------------------------------------------------------------------- what is taken out


def test_the_season_is_taken_out_in_the_signals_own_unit() -> None:
    """Every hour then has the median and the range of all; what has no value, and what is no number, stays."""
    rows, times_ms = days(8, 63, swing=0.4)
    signals = (*SIGNALS, "null:0", "score:up")
    matrix = np.concatenate([rows, rows[:, :1] > 0, rows[:, :1] * 10 + 100], axis=1).astype(np.float32)
    matrix[::7, 2] = np.nan
    baseline = measure_baseline(signals, matrix, times_ms, season_s=86_400.0)
    assert baseline.season is not None
    assert baseline.season.signals == (*SIGNALS, "score:up")
    left = Deseasoner(baseline.season, signals).of(matrix, times_ms)
    assert np.array_equal(left[:, 6], matrix[:, 6])
    assert np.array_equal(np.isnan(left), np.isnan(matrix))
    hour = (times_ms % DAY_MS) // (DAY_MS // 24)
    for column, scale in ((0, 1.0), (2, 1.0), (7, 10.0)):
        medians = [np.nanmedian(left[hour == h, column]) for h in range(24)]
        deviations = [np.nanstd(left[hour == h, column]) for h in range(24)]
        assert np.ptp([np.nanmedian(matrix[hour == h, column]) for h in range(24)]) > 2.5 * scale
        assert np.ptp(medians) < 0.35 * scale
        assert np.ptp(deviations) < 0.25 * scale
    (score,) = (s for s in baseline.signals if s.name == "score:up")
    assert score.mean == pytest.approx(100, abs=1)


def test_summaries_are_of_what_is_left() -> None:
    """The worker takes the phase from the event's time, whatever the batches; so does the timeline of an evaluation."""
    rows, times_ms = days(3, 64)
    baseline = known(rows, times_ms)
    summariser = SignalSummariser(baseline, IDENTITY)
    for start in range(0, len(rows), 700):
        part = slice(start, start + 700)
        summariser.add("events", 0, np.arange(len(rows))[part], times_ms[part], rows[part])
    (summary,) = summariser.drain()
    left = as_watched(baseline, rows, times_ms)
    np.testing.assert_allclose(summary.sums, left.sum(axis=0, dtype=np.float64), rtol=1e-5, atol=1e-2)
    assert summary.histograms == [list(s.histogram) for s in baseline.signals]
    given = np.concatenate([rows, np.full((len(rows), len(SIGNALS)), np.nan, np.float32)], axis=1)
    windows = timeline(given, times_ms, baseline, PER_DAY // 4)["windows"]
    assert max(w["signals"]["feature:0"]["psi"] - w["signals"]["feature:0"]["psi_by_chance"] for w in windows) < 0.1


def test_few_seasons_make_the_time_longer() -> None:
    """By 1 + pi / seasons: so much the table itself may err."""
    rows, times_ms = days(4, 65)
    baseline = known(rows, times_ms)
    assert baseline.season is not None
    assert baseline.season.seasons == pytest.approx(4, abs=0.01)
    assert baseline.signals[0].autocorrelation_time == pytest.approx(1 + math.pi / 4, rel=0.05)
    assert baseline.signals[-1].autocorrelation_time < 1.2  # of products


def test_hours_without_events_are_bridged_and_few_values_left_alone() -> None:
    """A shop that is closed at night; a feature that is often the same has no range to scale by."""
    rows, times_ms = days(4, 66)
    rows[:, 1] = rows[:, 1] > 2.5
    hour = (times_ms % DAY_MS) // (DAY_MS // 24)
    opened = (hour >= 8) & (hour < 20)
    baseline = known(rows[opened], times_ms[opened])
    assert baseline.season is not None
    assert "feature:1" not in baseline.season.signals
    assert "feature:0" in baseline.season.signals
    assert np.isfinite(as_watched(baseline, rows, times_ms)).all()


def test_a_known_season_is_taken_over() -> None:
    """A retraining's newest part may be shorter than a season: its baseline has the parent's."""
    rows, times_ms = days(4, 67)
    parent = known(rows[: 3 * PER_DAY], times_ms[: 3 * PER_DAY])
    part = slice(3 * PER_DAY, 3 * PER_DAY + PER_DAY // 2)
    again = measure_baseline(SIGNALS, rows[part], times_ms[part], season=parent.season)
    assert again.season == parent.season
    assert again.signals[0].variance < 1.3  # the cycle would add more than 1
    with pytest.raises(DataError, match="no event times"):
        measure_baseline(SIGNALS, rows[part], season=parent.season)


# --------------------------------------------------------------------------- refusals, bundles


def test_a_season_needs_times_of_two_seasons() -> None:
    """One line that says what is there and what is needed; no silent default."""
    rows, times_ms = days(1.5, 68)
    with pytest.raises(DataError, match=r"^drift.season_s = 86400: the rows have no event times .*set it to 0$"):
        measure_baseline(SIGNALS, rows, season_s=86_400.0)
    with pytest.raises(DataError, match=r"^drift.season_s = 86400: .*cover 1.50 seasons, 2 are needed; .*set it to 0$"):
        measure_baseline(SIGNALS, rows, times_ms, season_s=86_400.0)
    assert measure_baseline(SIGNALS, rows, times_ms).season is None


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 20 days of orders, a row each quarter of an hour, whose settings name a season of a day."""
    monkeypatch.chdir(tmp_path)
    lines = [f"2024-01-{1 + n // 96:02}T{n // 4 % 24:02}:{n % 4 * 15:02}:00,{n * 37 % 101},{n * 37 % 101 // 60}"
             for n in range(96 * 20)]  # fmt: skip
    Path("orders.csv").write_text("\n".join(["at,amount,fraud", *lines]) + "\n", "utf-8")
    Path("pipeline.toml").write_text('name = "shop"\n[drift]\nseason_s = 86400\nseason_phases = 6\n', "utf-8")
    return tmp_path


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of `pipeline model ...`."""
    found = CliRunner().invoke(make_app(), ["model", *arguments])
    return found.exit_code, found.stderr


def season_in(bundle: Path) -> Season:
    season = bundles.read(bundle).baseline.season
    assert season is not None
    return season


def test_train_and_pack_take_the_season_of_the_settings(project: Path) -> None:
    """What is held out is measured by its times; too few of it, or none, are refused in one line."""
    train = ("train", "--data", "orders.csv", "--label", "fraud", "--force")
    assert run(*train, "--time", "at")[0] == 0
    season = season_in(project / "models/candidate")
    assert (season.period_s, len(season.medians[0])) == (86_400.0, 6)
    assert "feature:amount" in season.signals
    assert 3 < season.seasons < 5  # a fifth of the rows is held out

    made = bundles.read(project / "models/candidate")
    Path("w.safetensors").write_bytes(made.weights)
    Path("c.json").write_text(json.dumps(dataclasses.asdict(made.contract)), "utf-8")
    pack = ("pack", made.architecture.module, "--weights", "w.safetensors", "--contract", "c.json", "--force",
            "--arguments", json.dumps(made.architecture.arguments), "--data", "orders.csv")  # fmt: skip
    assert run(*pack, "--time", "at")[0] == 0
    assert season_in(project / "models/candidate").seasons == pytest.approx(20, abs=0.1)

    for command in (train, pack):
        code, told = run(*command, *(("--drop", "at") if command is train else ()))
        assert code == 1
        assert "drift.season_s = 86400: the rows have no event times" in told
    Path("pipeline.toml").write_text('name = "shop"\n[drift]\nseason_s = 1728000\n', "utf-8")
    for command in (train, pack):
        code, told = run(*command, "--time", "at")
        assert code == 1
        assert "2 are needed" in told
        assert len(told.strip().splitlines()) == 1
    assert "no column 'when'" in run(*pack, "--time", "when")[1]


def test_contradictions_of_a_season_are_refused() -> None:
    """What a bundle says must fit together; a season travels in it to the last digit."""
    signal = SignalBaseline("feature:a", 3, 1.0, 0.5, 0.0, 2.0, (0.0, 1.0, 2.0), (1, 2), 0.25, 1.5)
    season = Season(86_400.0, 3.0, ("feature:a",), ((1.0, 2.0),), ((0.5, 0.25),))
    baseline = Baseline((signal,), 16, None, season)
    assert baseline_faults(baseline) == []
    assert json.loads(json.dumps(dataclasses.asdict(baseline)))["season"]["seasons"] == 3.0
    for change, reason in (
        ({"period_s": 0.0}, "a period of 0.0 s"),
        ({"seasons": 0.0}, "measured over 0.0 seasons"),
        ({"signals": ("feature:b",)}, "no signal feature:b"),
        ({"medians": ()}, "not one row a signal"),
        ({"ranges": ((0.5,),)}, "not one row a signal"),
        ({"ranges": ((0.5, 0.0),)}, "a range of 0 or less"),
    ):
        faulty = dataclasses.replace(baseline, season=dataclasses.replace(season, **change))
        assert any(reason in fault for fault in baseline_faults(faulty)), reason
