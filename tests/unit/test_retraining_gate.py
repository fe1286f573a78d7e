"""The gate: each check passes and fails for its own reason, and bounds are those of reference libraries."""

import math
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from scipy import signal, stats
from sklearn.metrics import balanced_accuracy_score, log_loss

from pipeline.errors import ContractError
from pipeline.measures import Scored
from pipeline.records import OutputContract
from pipeline.retraining.comparing import block_means, compare, losses, paired_losses, student_t
from pipeline.retraining.findings import Finding
from pipeline.retraining.gate import Contestant, Verdict, judge
from pipeline.retraining.latency import Latency, measure_latency, ratio
from pipeline.settings import GateSettings
from pipeline.testing import ScriptedModel

TWO = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
NUMBER = OutputContract("regression", 1)
SETTINGS = GateSettings()
ROWS = 4_000


def contestant(
    right: np.ndarray, truth: np.ndarray, confidence: float, version: str = "1", **slices: Any
) -> Contestant:
    """Two classes: right where it says so, always with the same confidence."""
    sure = np.where(right, confidence, 1 - confidence)
    outputs = np.where(truth == 1, sure, 1 - sure)[:, None]
    return Contestant(version, TWO, Scored(outputs, truth, np.arange(len(truth)), slices))


def pair(first: float, second: float, rows: int = ROWS, seed: int = 0) -> tuple[Contestant, Contestant]:
    """Two calibrated models of these accuracies that mostly err together, and five slices."""
    random = np.random.default_rng(seed)
    truth, common = random.integers(0, 2, rows), random.normal(size=rows)
    slices = {"shop": random.choice(list("abcde"), rows)}
    made = []
    for version, accuracy in (("1", first), ("2", second)):
        latent = math.sqrt(0.9) * common + math.sqrt(0.1) * random.normal(size=rows)
        made.append(contestant(latent < NormalDist().inv_cdf(accuracy), truth, accuracy, version, **slices))
    return made[0], made[1]


def finding(verdict: Verdict, name: str) -> Finding:
    (found,) = (check for check in verdict.checks if check.name == name)
    return found


def refused_by(verdict: Verdict) -> set[str]:
    assert verdict.accepted == all(check.passed for check in verdict.checks)
    return {check.name for check in verdict.checks if not check.passed}


# --------------------------------------------------------------------------- verdicts


def test_a_better_challenger_is_accepted() -> None:
    """Five points in 4,000 rows: every check passes, and each says what it saw."""
    verdict = judge(*pair(0.8, 0.85), SETTINGS, latency=Latency(np.ones(60), np.ones(60)))
    assert verdict.says == "accepted: all 7 checks passed"
    assert [c.name for c in verdict.checks] == [
        "rows", "better", "mcnemar", "log_loss", "calibration", "slices", "latency",
    ]  # fmt: skip
    assert verdict.approval == "automatic"
    assert verdict.metrics[1]["accuracy"] - verdict.metrics[0]["accuracy"] == pytest.approx(-verdict.bounds.mean)
    assert "error 0.2" in finding(verdict, "better").says
    manual = judge(*pair(0.8, 0.85), SETTINGS.model_copy(update={"approval": "manual"}))
    assert (manual.accepted, manual.approval) == (True, "waiting")


@pytest.mark.parametrize("second", [0.8, 0.75])
def test_an_equal_or_worse_challenger_is_refused(second: float) -> None:
    """Refused as not better; nothing is left to approve."""
    verdict = judge(*pair(0.8, second), SETTINGS)
    assert {"better", "mcnemar"} <= refused_by(verdict)
    assert verdict.approval == "none"
    assert verdict.says.startswith("refused: better: error")


def test_too_few_rows_are_refused_however_good() -> None:
    """Also none at all, and one."""
    for rows in (0, 1, 10, 999):
        verdict = judge(*pair(0.6, 0.99, rows), SETTINGS)
        assert finding(verdict, "rows").value == rows
        assert "rows" in refused_by(verdict)
    assert refused_by(judge(*pair(0.6, 0.99, 1_000), SETTINGS)) == set()


def test_a_slice_that_gets_worse_is_refused_and_named() -> None:
    """Better on the whole, and much worse in one shop; the bound is a share of the champion's mean loss."""
    champion, challenger = pair(0.8, 0.9)
    inside = champion.scored.slices["shop"] == "c"
    worse = challenger.scored.outputs.copy()
    worse[inside] = 1 - worse[inside]
    verdict = judge(champion, replace(challenger, scored=replace(challenger.scored, outputs=worse)), SETTINGS)
    assert "slices" in refused_by(verdict)
    assert "better" not in refused_by(judge(*pair(0.8, 0.9), SETTINGS))
    found = finding(verdict, "slices")
    assert "1 of 5 slices worse" in found.says
    assert "shop = c" in found.says
    first = verdict.slices[0]
    assert (first.value, first.worse, first.bounds.rows) == ("c", True, int(inside.sum()))
    assert found.value == pytest.approx(first.challenger - first.champion)
    assert found.bound == pytest.approx(0.1 * (1 - verdict.metrics[0]["accuracy"]))


def test_harm_is_what_is_beyond_the_bound_and_beyond_chance() -> None:
    """Neither a certain change within the bound, nor a change beyond it that chance explains, is held against one."""
    champion, challenger = pair(0.8, 0.9)
    tight = SETTINGS.model_copy(update={"slice_worse_max": 0.01})

    def with_errors(rows: np.ndarray, settings: GateSettings) -> Finding:
        outputs = challenger.scored.outputs.copy()
        outputs[rows] = 1 - champion.scored.outputs[rows]
        changed = replace(challenger, scored=replace(challenger.scored, outputs=outputs))
        names = np.where(np.arange(ROWS) % 20 == 0, "few", "many")
        named = replace(champion, scored=replace(champion.scored, slices={"s": names}))
        return finding(judge(named, changed, settings), "slices")

    few = np.flatnonzero(np.arange(ROWS) % 20 == 0)
    right = few[(champion.scored.outputs[few, 0] >= 0.5) == champion.scored.truth[few]]
    challenger = replace(challenger, scored=replace(challenger.scored, outputs=challenger.scored.outputs.copy()))
    challenger.scored.outputs[few] = champion.scored.outputs[few]
    by_chance = with_errors(right[:1], tight)
    assert by_chance.passed
    assert by_chance.value is not None
    assert by_chance.bound is not None
    assert by_chance.value > by_chance.bound
    # All over the slice: errors in a row would be one stroke of bad luck.
    spread = right[:: len(right) // 12][:12]
    within = with_errors(spread, SETTINGS.model_copy(update={"slice_worse_max": 0.5}))
    assert within.passed
    assert not with_errors(spread, tight).passed


def test_bounds_of_slices_hold_together() -> None:
    """Of five slices each at a fifth of alpha (Bonferroni)."""
    champion, challenger = pair(0.8, 0.85)
    verdict = judge(champion, challenger, SETTINGS)
    first, second = (losses("error", c.scored, c.output) for c in (champion, challenger))
    for one in verdict.slices:
        inside = champion.scored.slices["shop"] == one.value
        assert one.bounds == block_means(second[inside] - first[inside], SETTINGS.alpha / 5)
    assert len(verdict.slices) == 5


def test_slices_of_few_rows_are_counted_not_judged() -> None:
    """Under 100 rows chance decides: they are left out, and said to be."""
    champion, challenger = pair(0.8, 0.85)
    names = np.where(np.arange(ROWS) < 99, "rare", "common")
    champion = replace(champion, scored=replace(champion.scored, slices={"kind": names}))
    found = finding(judge(champion, challenger, SETTINGS), "slices")
    assert "1 with fewer than 100 rows" in found.says
    assert "0 of 1 slices" in found.says
    only_few = replace(champion, scored=replace(champion.scored, slices={"id": np.arange(ROWS).astype(str)}))
    assert finding(judge(only_few, challenger, SETTINGS), "slices").value is None


def test_calibration_and_log_loss_are_held_to_their_bounds() -> None:
    """A challenger that is right more often, and far too sure of it."""
    champion, challenger = pair(0.8, 0.85)
    sure = np.where(challenger.scored.outputs > 0.5, 0.999, 0.001)
    bold = replace(challenger, scored=replace(challenger.scored, outputs=sure))
    verdict = judge(champion, bold, SETTINGS)
    assert refused_by(verdict) == {"log_loss", "calibration"}
    assert finding(verdict, "calibration").value == pytest.approx(0.15, abs=0.02)
    losses = [log_loss(c.scored.truth, c.scored.outputs[:, 0]) for c in (champion, bold)]
    assert finding(verdict, "log_loss").value == pytest.approx(losses[1] - losses[0])
    assert finding(verdict, "log_loss").bound == pytest.approx(0.05 * losses[0])
    lenient = SETTINGS.model_copy(update={"ece_worse_max": 1.0, "log_loss_worse_max": 10.0})
    assert refused_by(judge(champion, bold, lenient)) == set()


def test_outputs_that_are_no_probabilities() -> None:
    """No such checks where the champion has none; a challenger that has them no more is refused."""
    champion, challenger = pair(0.8, 0.85)
    raw = replace(challenger, scored=replace(challenger.scored, outputs=challenger.scored.outputs * 2))
    assert refused_by(judge(champion, raw, SETTINGS)) >= {"probabilities"}
    wild = replace(champion, scored=replace(champion.scored, outputs=champion.scored.outputs * 2))
    names = {check.name for check in judge(wild, raw, SETTINGS).checks}
    assert names == {"rows", "better", "mcnemar", "slices"}


def test_a_slow_challenger_is_refused() -> None:
    """Twice as slow, at most 1.5 times; a few spikes of the machine change nothing."""
    seconds = np.full(60, 0.001)
    assert refused_by(judge(*pair(0.8, 0.85), SETTINGS, latency=Latency(seconds, 2 * seconds))) == {"latency"}
    spiky = np.where(np.arange(60) % 10 == 0, 1.0, 0.0012)
    verdict = judge(*pair(0.8, 0.85), SETTINGS, latency=Latency(seconds, spiky))
    assert verdict.accepted
    assert finding(verdict, "latency").value == pytest.approx(1.2)
    assert "1 ms -> 1.2 ms a batch" in finding(verdict, "latency").says


def test_a_guard_that_failed_refuses() -> None:
    """What the guards of the data found is part of the verdict, in their words."""
    guards = [
        Finding("duplicates", True, 0.0, 0.1, "none"),
        Finding("producer_share", False, 0.9, 0.5, "one sent 90 %"),
    ]
    verdict = judge(*pair(0.8, 0.85), SETTINGS, guards=guards)
    assert refused_by(verdict) == {"producer_share"}
    assert verdict.checks[-2:] == tuple(guards)
    assert verdict.says == "refused: producer_share: one sent 90 %"


def test_a_regression_is_judged_by_its_error() -> None:
    """No McNemar, no calibration; absolute error, or squared if the settings say so."""
    random = np.random.default_rng(0)
    truth = random.normal(size=ROWS)

    def guessing(deviation: float) -> Contestant:
        outputs = (truth + random.normal(size=ROWS) * deviation)[:, None]
        return Contestant("1", NUMBER, Scored(outputs, truth, np.arange(ROWS)))

    champion, challenger = guessing(1.0), guessing(0.9)
    verdict = judge(champion, challenger, SETTINGS)
    assert [c.name for c in verdict.checks] == ["rows", "better"]
    assert verdict.accepted
    assert verdict.loss == "absolute_error"
    errors = [np.abs(c.scored.outputs[:, 0] - truth) for c in (champion, challenger)]
    assert verdict.bounds.mean == pytest.approx(errors[1].mean() - errors[0].mean())
    squared = judge(champion, challenger, SETTINGS.model_copy(update={"loss": "squared_error"}))
    assert squared.bounds.mean == pytest.approx((errors[1] ** 2).mean() - (errors[0] ** 2).mean())
    with pytest.raises(ContractError, match=r"gate\.loss: log_loss is no loss of a regression; absolute_error or"):
        judge(champion, challenger, SETTINGS.model_copy(update={"loss": "log_loss"}))


def test_models_that_know_different_classes_are_compared_by_name() -> None:
    """A class that only the challenger knows: the champion is wrong there, the challenger may be right."""
    random = np.random.default_rng(0)
    names = random.choice(["a", "b", "c"], ROWS, p=[0.5, 0.3, 0.2])

    def knowing(classes: tuple[str, ...]) -> Contestant:
        truth = np.array([classes.index(n) if n in classes else -1 for n in names])
        said = np.where(random.random(ROWS) < 0.8, np.maximum(truth, 0), 0)
        outputs = np.full((ROWS, len(classes)), 0.2 / (len(classes) - 1))
        outputs[np.arange(ROWS), said] = 0.8
        return Contestant("1", OutputContract("classification", len(classes), classes, "softmax"),
                          Scored(outputs, truth, np.arange(ROWS)))  # fmt: skip

    verdict = judge(knowing(("b", "a")), knowing(("a", "b", "c")), SETTINGS)
    assert verdict.accepted, verdict.says
    assert verdict.bounds.mean < -0.15


def test_different_rows_or_tasks_are_no_comparison() -> None:
    """A clear error, before anything is compared."""
    champion, challenger = pair(0.8, 0.85)
    for other in (pair(0.8, 0.85, ROWS - 1)[1], pair(0.8, 0.85, seed=1)[1]):
        with pytest.raises(ContractError, match="not scored on the same rows"):
            judge(champion, other, SETTINGS)
    number = Contestant("2", NUMBER, Scored(challenger.scored.outputs, np.ones(ROWS), np.arange(ROWS)))
    with pytest.raises(ContractError, match="a regression cannot replace a classification"):
        judge(champion, number, SETTINGS)


# --------------------------------------------------------------------------- how often


@pytest.mark.parametrize(("gain", "low", "high"), [(0.0, 0.0, 0.09), (0.05, 0.9, 1.0)])
def test_how_often_a_challenger_is_accepted(gain: float, low: float, high: float) -> None:
    """1,000 rows: of equal ones 5 % (three standard errors of 200 runs: 4.6), of five points most."""
    accepted = [judge(*pair(0.8, 0.8 + gain, 1_000, seed), SETTINGS, seed=seed).accepted for seed in range(200)]
    assert low <= np.mean(accepted) <= high


def test_bounds_hold_where_rows_hang_together() -> None:
    """At an autocorrelation of 0.9 in 1,000 rows, 5 % of the upper bounds lie below the truth (three errors: 3.3)."""
    random = np.random.default_rng(1)
    below = 0
    for seed in range(400):
        noise = random.normal(size=1_000) * math.sqrt(1 - 0.81)
        noise[0] = random.normal()
        below += compare(np.zeros(1_000), signal.lfilter([1], [1, -0.9], noise), 0.05, seed=seed).high < 0
    assert below / 400 <= 0.083


# --------------------------------------------------------------------------- against references


@pytest.mark.parametrize("freedom", [9, 19, 200])
@pytest.mark.parametrize("tail", [0.2, 0.05, 1e-3, 1e-5])
def test_student_t_is_that_of_scipy(freedom: int, tail: float) -> None:
    """To 0.3 %, on both sides."""
    assert student_t(1 - tail, freedom) == pytest.approx(stats.t.ppf(1 - tail, freedom), rel=0.003)
    assert student_t(tail, freedom) == pytest.approx(-student_t(1 - tail, freedom))


def test_block_means_of_independent_rows_are_a_t_test() -> None:
    """One-sided 95 % bounds of scipy's interval of the block means; with no spread there is no doubt."""
    values = np.random.default_rng(0).exponential(size=2_001) - 1
    found = block_means(values, 0.05)
    means = values[1:].reshape(-1, 2).mean(axis=1)
    low, high = stats.t.interval(0.9, 999, scale=stats.sem(means))
    assert (found.low, found.high) == (pytest.approx(found.mean + low), pytest.approx(found.mean + high))
    assert found.mean == pytest.approx(values.mean())
    same = block_means(np.full(100, 0.5), 0.05)
    assert (same.mean, same.low, same.high) == (0.5, 0.5, 0.5)
    assert block_means(np.ones(1), 0.05).high == math.inf


def test_what_can_be_found_is_found_in_8_of_10_cases() -> None:
    """The gain that a bound of 1,000 rows promises to find is found about so often."""
    random = np.random.default_rng(0)
    gain = np.mean([block_means(random.normal(size=1_000), 0.05).findable(0.05) for _ in range(50)])
    assert gain == pytest.approx(2.486 / math.sqrt(1_000), rel=0.03)  # z(0.95) + z(0.8), in standard errors
    found = [block_means(random.normal(size=1_000) - gain, 0.05).high < 0 for _ in range(500)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.055)
    assert block_means(np.ones(1), 0.05).findable(0.05) == math.inf


def test_mcnemar_is_the_one_sided_binomial_test() -> None:
    """Mid-p of scipy's binomial distribution of the rows that only one has right."""
    champion, challenger = pair(0.8, 0.82)
    first, second = ((c.scored.outputs[:, 0] >= 0.5) == c.scored.truth for c in (champion, challenger))
    won, lost = int((~first & second).sum()), int((first & ~second).sum())
    for better, worse, wins, losses_ in ((champion, challenger, won, lost), (challenger, champion, lost, won)):
        expected = stats.binom.sf(wins, wins + losses_, 0.5) + stats.binom.pmf(wins, wins + losses_, 0.5) / 2
        assert finding(judge(better, worse, SETTINGS), "mcnemar").value == pytest.approx(expected)


def test_losses_are_those_of_scikit_learn() -> None:
    """Mean log loss and balanced error, of two models in one call."""
    champion, challenger = pair(0.8, 0.85)
    rare = np.where(np.arange(ROWS) % 20 == 0, champion.scored.truth, 0)
    both = [(replace(c.scored, truth=rare), c.output) for c in (champion, challenger)]
    for found, (scored, _) in zip(paired_losses("balanced_error", *both), both, strict=True):
        expected = 1 - balanced_accuracy_score(rare, scored.outputs[:, 0] >= 0.5)
        assert found.mean() == pytest.approx(expected)
    assert losses("log_loss", *both[0]).mean() == pytest.approx(log_loss(rare, both[0][0].outputs[:, 0]))


# --------------------------------------------------------------------------- latency


def test_latency_is_measured_in_turns_on_the_same_batches() -> None:
    """Each call is timed, the first goes first every other time, warm-up does not count."""
    calls: list[tuple[str, int]] = []
    now = iter(np.cumsum(np.tile([0.0, 1.0], 100)))

    class Logged(ScriptedModel):
        name = ""

        def score(self, inputs: Any) -> Any:
            calls.append((self.name, len(inputs["numbers"])))
            return super().score(inputs)

    from pipeline.records import Feature, FeatureContract

    models = []
    for name in ("old", "new"):
        model = Logged(FeatureContract((Feature("x", "number"),), NUMBER))
        model.name = name
        models.append(model)
    three, five = ([{"numbers": np.ones((n, 1), np.float32)}] for n in (3, 5))
    found = measure_latency(
        models[0], models[1], [(three, three), (five, five)], pairs=4, clock=lambda: float(next(now))
    )
    assert calls == [
        ("old", 3), ("new", 3),
        ("old", 3), ("new", 3), ("new", 5), ("old", 5), ("old", 3), ("new", 3), ("new", 5), ("old", 5),
    ]  # fmt: skip
    assert found.champion_s.tolist() == found.challenger_s.tolist() == [1.0] * 4


def test_the_interval_of_the_ratio_holds() -> None:
    """95 % of intervals have the true median, of a skewed distribution, too; few pairs leave everything open."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        _, low, high = ratio(Latency(np.ones(60), random.lognormal(size=60)))
        held += low <= 1 <= high
    assert 0.93 <= held / 400 <= 0.995
    assert ratio(Latency(np.ones(7), np.ones(7))) == (1.0, 0.0, math.inf)
    assert ratio(Latency(np.ones(60), np.full(60, 1.5))) == (1.5, 1.5, 1.5)
