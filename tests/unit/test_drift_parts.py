"""Drift of a part of the stream: a mix of categories that shifts, a slice that moves alone, and how it is told."""

import numpy as np
import pytest

from benchmarks.drift import watch
from pipeline.drift import measure_baseline, signal_names
from pipeline.drift.bins import is_indicator, kind_of
from pipeline.drift.evidence import advice_for, severity_of
from pipeline.drift.parts import SliceScore, confined_to, moved_by_slices, only_slices, slice_score
from pipeline.drift.seasons import Deseasoner
from pipeline.drift.spread import scatters
from pipeline.records import Baseline, Feature, FeatureContract, Floats, Longs, OutputContract, Season, SignalEvidence
from pipeline.scoring.parts import part_names
from pipeline.scoring.signals import SignalMatrix
from tests.unit.test_signal_parts import category, checked

WEATHER, REGIONS = np.array(["sun", "rain", "snow", "fog"]), np.array(["north", "south", "east"])
CONTRACT = FeatureContract(
    (category("weather", "sun", "rain", "snow"), *(Feature(f"x{i}", "number") for i in range(4))),
    OutputContract("regression", 1),
)
BASE, CHANGE, ROWS = 10_000, 20_000, 32_000


def stream(
    seed: int, shares: tuple[float, ...] = (0.6, 0.3, 0.1, 0.0), moved: str = "", by: float = 0.0
) -> tuple[tuple[str, ...], Floats]:
    """Signals of CONTRACT, and rows: from CHANGE on the weather has these shares, and scores in a region move."""
    random = np.random.default_rng(seed)
    late = np.arange(ROWS) >= CHANGE
    weather = np.where(late, random.choice(4, ROWS, p=shares), random.choice(4, ROWS, p=(0.6, 0.3, 0.1, 0.0)))
    region = REGIONS[random.choice(3, ROWS, p=(0.3, 0.5, 0.2))]
    scores = random.normal(size=(ROWS, 1)) + by * (late & (region == moved))[:, None]
    numbers = random.normal(size=(ROWS, 4)).astype(np.float32)
    only = FeatureContract(CONTRACT.features[:1], CONTRACT.output)
    found = checked(only, ("region",), weather=WEATHER[weather].tolist(), region=region.tolist())
    names = signal_names(CONTRACT)
    codes, texts = [found.categories[0][:BASE]], {"region": found.slice_texts[0][:BASE]}
    signals = (*names, *part_names(CONTRACT, names, codes, texts, scores[:BASE].astype(np.float32)))
    rows: Longs = np.arange(ROWS)
    nulls = np.zeros((ROWS, 5), dtype=np.bool_)
    matrix = SignalMatrix(signals, CONTRACT, ("region",))
    given = (ROWS, rows, numbers, nulls, rows, scores.astype(np.float32), None, found.categories, found.slice_texts)
    return signals, matrix.fill(*given)


def triggers(signals: tuple[str, ...], rows: Floats, seed: int) -> list[tuple[int, list[str], str, str]]:
    """Rows read since the change, signals, severity and advice of each trigger."""
    baseline = measure_baseline(signals, rows[:BASE])
    found = watch(rows[BASE:], baseline, np.random.default_rng(seed))
    return [(read + BASE - CHANGE, [s.signal for s in t.signals], t.severity, t.advice) for read, t in found]


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_said_of_parts_that_stay(seed: int) -> None:
    assert triggers(*stream(seed), seed) == []


def test_a_mix_of_categories_that_shifts_is_named() -> None:
    """Sun becomes rain: both shares are in the evidence, nothing else, and no trigger before."""
    ((read, signals, severity, advice),) = triggers(*stream(3, (0.35, 0.55, 0.1, 0.0)), 3)
    assert 0 < read < 1_000
    assert {*signals} == {"category:weather=sun", "category:weather=rain"}
    assert severity == "major"
    assert advice.startswith(("inputs moved (share of weather=sun 0.6", "inputs moved (share of weather=rain 0.3"))


def test_a_value_that_never_came_before_is_seen() -> None:
    """It takes five per cent from sun, which alone would be slow to tell."""
    ((read, signals, _, advice),) = triggers(*stream(4, (0.55, 0.3, 0.1, 0.05)), 4)
    assert 0 < read < 1_500
    assert signals[0] == "category:weather=(other)"
    assert advice.startswith("inputs moved (share of other values of weather 0 -> 0.0")


@pytest.mark.parametrize("seed", [3, 5, 13])
def test_a_slice_that_moves_alone_is_named(seed: int) -> None:
    """Half a standard deviation in a fifth of the stream: the whole moves by a tenth, and only for that reason."""
    ((read, signals, severity, advice),) = triggers(*stream(seed, moved="east", by=0.5), seed)
    assert 0 < read < 4_000
    assert signals == ["score:output0@region=east"]
    assert severity in ("minor", "major")
    assert advice.startswith(
        "the model's outputs moved in slice region=east only, its inputs did not noticeably: retrain"
    )


@pytest.mark.parametrize("by", [1.0, 2.0])
def test_a_slice_that_moves_far_is_named_as_well(by: float) -> None:
    """The whole alarms first, by mean or spread, and the slice has few values by then: the rest says it stays."""
    ((read, signals, severity, advice),) = triggers(*stream(3, moved="east", by=by), 3)
    assert 0 < read < 1_000
    assert signals == ["score:output0@region=east"]
    assert severity == "major"
    assert "in slice region=east only" in advice


def test_much_of_the_whole_is_the_whole() -> None:
    """Two deviations in half of the stream: critical, and the slice is named in the evidence."""
    ((_, signals, severity, advice),) = triggers(*stream(3, moved="south", by=2.0), 3)
    assert signals == ["score:output0@region=south", "score:output0"]
    assert severity == "critical"
    assert "slice" not in advice


def test_a_whole_that_moves_is_no_matter_of_slices() -> None:
    """All regions alike: the scores within may be named, but no slice is told of."""
    names, rows = stream(6)
    scores = [i for i, name in enumerate(names) if name.startswith("score:")]
    rows[CHANGE:, scores] += 1.0
    ((_, signals, severity, advice),) = triggers(names, rows, 6)
    assert "score:output0" in signals
    assert severity == "critical"
    assert "slice" not in advice


# --------------------------------------------------------------------------- names and words


def evidence(
    signal: str, before: float = 0.0, after: float = 1.0, psi: float = 0.3, count: int = 500
) -> SignalEvidence:
    return SignalEvidence(signal, "adwin", before, after, 5_000, count, 0.1, psi)


@pytest.mark.parametrize(
    ("signal", "part"),
    [
        ("score:yes@region=north", SliceScore("score:yes", "region", "north")),
        ("score:a@b@shop.kind=x=y@z=\n", SliceScore("score:a@b", "shop.kind", "x=y@z=\n")),
        ("score:yes", None),
        ("score:me@home", None),
        ("class:yes@region=north", None),
    ],
)
def test_the_slice_of_a_score_is_read_off_its_name(signal: str, part: SliceScore | None) -> None:
    assert slice_score(signal) == part


def test_slices_are_told_only_where_the_whole_stayed() -> None:
    """Each once, most telling first; "confined" where inputs stayed as well."""
    north, south = evidence("score:a@r=north"), evidence("score:a@r=south")
    assert [part.value for part in only_slices([south, evidence("score:b@r=south"), north])] == ["south", "north"]
    assert len(confined_to([south, north])) == 2
    assert confined_to([north, evidence("feature:x")]) == []
    assert only_slices([north, evidence("score:a")]) == only_slices([north, evidence("class:a")]) == []


def test_the_whole_moves_by_a_slice_where_the_rest_stays() -> None:
    """Its score and class; not where the rest moved too, or is too small to tell."""
    variances = {"score:a": 1.0}
    north = SignalEvidence("score:a@r=n", "adwin", 0.0, 1.0, 1_500, 300, 0.1, 0.3)

    def explained(*means: float, before: int = 5_000, after: int = 1_000) -> set[str]:
        whole = SignalEvidence("score:a", "moved", *means, before, after, 0.1, 0.1)
        return moved_by_slices([north, whole], variances, 3.9)

    assert explained(0.0, 0.3) == {"score:a", "class:a"}  # 0.3 is 1.0 of the slice's 30 %, and 0 of the rest
    assert explained(0.0, 1.0) == set()
    assert explained(0.0, 0.97, before=1_550, after=310) == set()
    assert explained(0.0, 1.0, before=1_500, after=300) == set()
    assert moved_by_slices([north], variances, 3.9) == {"score:a", "class:a"}
    assert moved_by_slices([evidence("score:a")], variances, 3.9) == set()


@pytest.mark.parametrize(
    ("signals", "told"),
    [
        (
            [evidence("category:weather=rain", 0.214, 0.481)],
            "inputs moved (share of weather=rain 0.21 -> 0.48): retrain",
        ),
        (
            [
                evidence("category:w=a", 0.5, 0.4),
                evidence("category:w=(other)", 0.0, 0.2),
                evidence("slice:s=(other)", 0.9, 0.8),
                evidence("category:v=a=b", 0.05, 0.1),
            ],
            "inputs moved (share of other values of w 0 -> 0.2, share of s=(other) 0.9 -> 0.8 and 1 more): retrain",
        ),
        (
            [evidence("feature:x"), evidence("score:yes@region=north")],
            "inputs moved, the model's outputs in slice region=north only: retrain",
        ),
        (
            [evidence("score:yes@region=north"), evidence("score:yes@device=\x1b[2J" + "x" * 99)],
            "the model's outputs moved in slices region=north, device=\\x1b[2J" + "x" * 33 + "... only, its inputs",
        ),
        (
            [evidence(f"score:yes@region={i}") for i in range(5)],
            "the model's outputs moved in slices region=0, region=1, region=2 and 2 more only, its inputs did not",
        ),
        (
            [evidence("score:yes"), evidence("category:w=a", 0.5, 0.4), evidence("score:yes@r=n")],
            "the model's outputs moved (share of w=a 0.5 -> 0.4): retrain",
        ),
        (
            [evidence("score:yes@r=n"), evidence("score:yes")],
            "the model's outputs moved, its inputs did not noticeably",
        ),
        ([evidence("score:yes@r=n"), evidence("rejected")], "rejected records rose"),
    ],
)
def test_the_advice_names_them(signals: list[SignalEvidence], told: str) -> None:
    """In one printable line, with the largest change of each field."""
    advice = advice_for(severity_of(signals), signals, 30_000, 20_000)
    assert advice.startswith(told)
    assert advice.isprintable()


def test_a_slice_makes_nothing_critical() -> None:
    """It is a part; and of few values the PSI is chance."""
    assert severity_of([evidence("score:yes@r=n")]) == "major"
    assert severity_of([evidence("score:yes@r=n", count=20)]) == "minor"
    assert severity_of([evidence("score:yes@r=n"), evidence("score:yes")]) == "critical"


def test_shares_are_indicators_and_scores_within_slices_numbers() -> None:
    """Whose spread is not watched."""
    rows = np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32)
    assert is_indicator("category:c=a")
    assert is_indicator("slice:s=a")
    (part,) = measure_baseline(["score:yes@s=a"], rows).signals
    (whole,) = measure_baseline(["score:yes"], rows).signals
    assert kind_of(part) == kind_of(whole) == "rank"
    assert [scatters(signal) for signal in (whole, part)] == [True, False]


def test_a_slice_has_the_season_of_the_whole() -> None:
    """Also one that the season was not measured with: a successor has slices of its own."""
    season = Season(4.0, 9.0, ("score:yes",), ((1.0, 5.0, 1.0, 5.0),), ((2.0, 4.0, 2.0, 4.0),))
    names = ("feature:x", "score:yes@s=a", "score:yes")
    values, times = np.arange(24, dtype=np.float32).reshape(8, 3), np.arange(8) * 500
    got = Deseasoner(season, names).of(values, times)
    alone = Deseasoner(season, ("score:yes",))
    np.testing.assert_array_equal(got[:, 0], values[:, 0])
    for column in (1, 2):
        np.testing.assert_array_equal(got[:, [column]], alone.of(values[:, [column]], times))
    baseline: Baseline = measure_baseline(names, np.tile(values, (40, 1)), np.tile(times, 40), season=season)
    assert baseline.season == season


def test_the_seasons_of_the_slices_are_not_measured() -> None:
    random, times = np.random.default_rng(0), np.arange(4_000) * 60_000
    rows = (random.normal(size=(4_000, 2)) + np.sin(times / 86_400_000 * 2 * np.pi)[:, None]).astype(np.float32)
    baseline = measure_baseline(("score:yes", "score:yes@s=a"), rows, times, season_s=86_400.0)
    assert baseline.season is not None
    assert baseline.season.signals == ("score:yes",)
    first, second = (s.autocorrelation_time for s in baseline.signals)
    assert first > 1.5
    assert second > 1.5  # both are to be taken for slower, by few seasons
