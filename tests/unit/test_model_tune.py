"""`pipeline model tune`: what is measured, what is advised, what a person and a program see."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from pipeline.cli import make_app
from pipeline.cli.model_tune import _short, advised, as_plain, repeated, show_result, thinned, thread_counts
from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.architectures import TabularMLP
from pipeline.models.manifest import Architecture
from pipeline.records import Baseline, Feature, FeatureContract, OutputContract, SignalBaseline
from pipeline.scoring import speed
from pipeline.scoring.speed import Clocks, Setup, Timing, affordable, made_up
from pipeline.scoring.tuning import Loss, advise, loss_of
from pipeline.testing.models import ScriptedModel

TWO_CLASSES = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
NUMBER = FeatureContract((Feature("a", "number"),), TWO_CLASSES)
LITTLE = Loss(0.01, 0.001, 0.0009)
NOW = Setup("float32", 1, 1024)


def timing(precision: str, threads: int, batch: int, rate: float, *rounds: float) -> Timing:
    rates = tuple(rate * factor for factor in (rounds or (1.0, 1.0, 1.0)))
    return Timing(Setup(precision, threads, batch), rates, tuple(1e6 * threads / r for r in rates))


def grid(**rates: float) -> list[Timing]:
    """float32 on one thread at three batch sizes, and each other precision at the factor given."""
    plain = {32: 100.0, 1024: 990.0, 8192: 1000.0}
    factors = {"float32": 1.0, **rates}
    return [timing(name, 1, batch, f * rate) for name, f in factors.items() for batch, rate in plain.items()]


# --------------------------------------------------------------------------- what is advised


def test_the_smallest_batch_near_the_fastest_is_advised() -> None:
    """A batch eight times as large for one percent is not worth its memory."""
    advice = advise(grid(), {}, Setup("float32", 1, 32))
    assert advice.setup == NOW
    assert advice.gain == pytest.approx(9.9)


@pytest.mark.parametrize(
    ("factor", "loss", "expected"),
    [
        (1.2, LITTLE, "int8"),
        (1.09, LITTLE, "float32"),
        (1.2, Loss(0.01, 0.001, 0.001), "float32"),
    ],
)
def test_a_lower_precision_must_gain_much_and_cost_little(factor: float, loss: Loss, expected: str) -> None:
    """10 % of speed at the least, and less than one label in a thousand."""
    assert advise(grid(int8=factor), {"int8": loss}, NOW).setup.model == expected


def test_of_two_precisions_the_faster_is_advised() -> None:
    """Whichever comes first."""
    losses = {"bfloat16": LITTLE, "int8": LITTLE}
    assert advise(grid(bfloat16=1.5, int8=1.2), losses, NOW).setup.model == "bfloat16"
    assert advise(grid(bfloat16=1.2, int8=1.5), losses, NOW).setup.model == "int8"


@pytest.mark.parametrize(("rate", "expected"), [(1500.0, 1), (1700.0, 2)])
def test_a_thread_must_bring_what_a_worker_would(rate: float, expected: int) -> None:
    """Two threads with 1.5 times the rate of one are worse than two workers."""
    assert advise([*grid(), timing("float32", 2, 1024, rate)], {}, NOW).setup.threads == expected


def test_a_busy_round_does_not_make_a_gain() -> None:
    """Factors are those within each round: both were slow in the second."""
    noisy = [timing("float32", 1, 1024, 100.0, 1.0, 0.1, 2.0), timing("int8", 1, 1024, 105.0, 1.0, 0.1, 2.0)]
    assert advise(noisy, {"int8": LITTLE}, NOW).setup.model == "float32"


def test_what_is_set_now_may_not_have_been_measured() -> None:
    """Then there is nothing to compare with."""
    assert advise(grid(), {}, Setup("float32", 7, 1)).gain is None


# --------------------------------------------------------------------------- what a precision costs


def test_loss_of_a_classification_counts_labels() -> None:
    """One of four rows changes sides."""
    before, after = (np.array([values], np.float32).T for values in ([0.1, 0.49, 0.6, 0.9], [0.1, 0.51, 0.6, 0.7]))
    loss = loss_of(before, after, NUMBER)
    assert (loss.largest, loss.mean, loss.changed) == (pytest.approx(0.2), pytest.approx(0.055), 0.25)


def test_loss_of_a_regression_counts_outputs_that_move() -> None:
    """By more than a hundredth of the standard deviation of their column."""
    before = np.array([[0.0, 0.0], [2.0, 2000.0]] * 2, np.float32)  # standard deviations 1 and 1000
    after = before + np.array([[0.0, 9.0], [0.02, 0.0], [0.0, 11.0], [0.0, 0.0]], np.float32)
    assert loss_of(before, after, FeatureContract((), OutputContract("regression", 2))).changed == 0.5


def test_a_row_that_breaks_has_changed() -> None:
    """NaN at one precision only; where it is in both, nothing was lost."""
    before, after = np.array([[0.1], [np.nan], [0.2], [0.3]], np.float32), np.array([[np.nan], [np.nan], [0.2], [0.3]])
    loss = loss_of(before, after.astype(np.float32), NUMBER)
    assert (loss.largest, loss.changed) == (0.0, 0.25)


# --------------------------------------------------------------------------- measuring


def ticking(step_s: float) -> Clocks:
    """Clocks that go on by so much at each look."""

    def clock() -> Any:
        ticks: Iterator[int] = count()
        return lambda: next(ticks) * step_s

    return Clocks(clock(), clock())


def test_every_setup_gets_a_turn_in_every_round() -> None:
    """With its own threads and its own batches; progress counts the turns."""
    models = {name: ScriptedModel(NUMBER) for name in ("float32", "int8")}
    step = [{"numbers": np.zeros((100, 1), np.float32)}]
    setups = [Setup(name, threads, batch) for name in models for threads in (1, 2) for batch in (10, 64)]
    threads, turns = list[int](), list[tuple[int, int]]()
    found = speed.measure(
        models,
        step,
        setups,
        seconds=0.001,
        set_threads=threads.append,
        on_turn=lambda *turn: turns.append(turn),
        clocks=ticking(1e-6),
    )
    assert [t.setup for t in found] == setups
    assert {len(t.rows_per_s) for t in found} == {speed.ROUNDS}
    assert sorted(threads) == [1] * 20 + [2] * 20
    assert turns == [(n + 1, 40) for n in range(40)]
    assert set(models["int8"].calls) == {10, 64, 36}
    assert all(rate > 0 for t in found for rate in (*t.rows_per_s, *t.cpu_s_per_million))


def test_slow_calls_end_after_fewer_rounds() -> None:
    """Once the time is over, and three rounds are."""
    step = [{"numbers": np.zeros((10, 1), np.float32)}]
    found = speed.measure(
        {"float32": ScriptedModel(NUMBER)},
        step,
        [Setup("float32", 1, 10)],
        seconds=1.0,
        set_threads=lambda _n: None,
        clocks=ticking(10.0),
    )
    assert len(found[0].rows_per_s) == speed.ROUNDS_MIN


@pytest.mark.parametrize(("rate", "largest"), [(1e6, 8192), (600.0, 1024), (1.0, 32)])
def test_batches_that_take_too_long_are_left_out(rate: float, largest: int) -> None:
    """Three rounds of all that is left fit into the time; the smallest is measured in any case."""
    sizes = (32, 128, 1024, 8192)
    kept = affordable(sizes, [1, 2], {"float32": rate, "int8": 2 * rate}, 30.0)
    assert kept[-1] == largest
    assert kept == sizes[: len(kept)]


def test_threads_are_powers_of_two_all_cores_and_what_is_set() -> None:
    """Nothing twice, in order."""
    assert thread_counts(1, 1) == [1]
    assert thread_counts(6, 3) == [1, 2, 3, 4, 6]


# --------------------------------------------------------------------------- rows


def signal(name: str, edges: tuple[float, ...], histogram: tuple[int, ...]) -> SignalBaseline:
    return SignalBaseline(name, sum(histogram), 0, 1, edges[0] + 1, edges[-1] - 1, edges, histogram, 0, 1)


def test_made_up_rows_are_those_of_the_baseline() -> None:
    """Numbers lie where its histogram says, and never beyond its least and greatest."""
    contract = FeatureContract((Feature("a", "number"), Feature("b", "number", range=(5, 6))), TWO_CLASSES)
    (inputs,) = made_up(contract, Baseline((signal("feature:a", (-1.0, 10.0, 21.0), (1, 3)),), 8), 4_000)
    first, second = inputs["numbers"].T
    assert inputs["numbers"].dtype == np.float32
    assert 0 <= first.min() <= first.max() <= 20
    assert np.mean(first > 10) == pytest.approx(0.75, abs=0.05)
    assert 5 <= second.min() <= second.max() <= 6


def test_made_up_rows_have_every_kind_and_shape() -> None:
    """As the validator makes them: types, padded lengths, zeros after the end, each row once."""
    features = (
        Feature("c", "category", vocabulary=("x", "y")),
        Feature("i", "bytes", shape=(3, 4), dtype="uint8"),
        Feature("f", "bytes", shape=(2,)),
        Feature("s", "sequence", shape=(5,)),
    )
    step = made_up(FeatureContract(features, TWO_CLASSES), Baseline((), 1), 500)
    assert [inputs["s"].shape[1] for inputs in step] == [1, 2, 4, 5]
    assert sum(map(speed.rows_of, step)) == 500
    for inputs in step:
        lengths, width = inputs["s_lengths"], inputs["s"].shape[1]
        assert {name: (str(a.dtype), a.shape[1:]) for name, a in inputs.items()} == {
            "categories": ("int64", (1,)),
            "i": ("uint8", (3, 4)),
            "f": ("float32", (2,)),
            "s": ("float32", (width,)),
            "s_lengths": ("int64", ()),
        }
        assert set(np.unique(inputs["categories"])) <= {1, 2}
        assert lengths.max() <= width < 2 * lengths.min()
        assert not inputs["s"][np.arange(width) >= lengths[:, None]].any()


def test_few_rows_are_repeated_and_many_thinned() -> None:
    """To as many as a step has; to calls from all over it."""
    step = [{"s": np.arange(3)}, {"s": np.arange(7)}]
    assert [speed.rows_of(inputs) for inputs in repeated(step, 25)] == [9, 21]
    parts = thinned([{"s": np.arange(1024)}], 512)
    assert [part["s"][0] for part in parts] == [0, 512]
    assert len(thinned([{"s": np.arange(1024)}], 0)) == 1


# --------------------------------------------------------------------------- the command


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an event schema, events and a bundle."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    weights = loading.weights_of(TabularMLP(1, hidden=[4]))
    architecture = Architecture(
        module="pipeline.models.architectures:TabularMLP", arguments={"numbers": 1, "hidden": [4]}
    )
    bundles.write(
        bundles.make(model_id="m", architecture=architecture, contract=NUMBER, weights=weights), Path("models/champion")
    )
    fields = [{"name": "id", "type": "string"}, {"name": "a", "type": "double"}]
    Path("schemas").mkdir()
    Path("schemas/event.avsc").write_text(json.dumps({"type": "record", "name": "E", "fields": fields}), "utf-8")
    Path("events.csv").write_text("id,a\n" + "".join(f"e{n},{n / 10}\n" for n in range(100)), "utf-8")
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(make_app(), ["--set", "model.device=cpu", "model", "tune", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.mark.usefixtures("packed")
def test_json_holds_all_that_was_measured() -> None:
    """On the rows of a file; each precision, its speed and loss, and the advice."""
    found = json.loads(run("--events", "events.csv", "--seconds", "1", "--json").stdout)
    assert found["model"]["model_id"] == "m"
    assert found["rows"] == {"count": 8200, "source": "events.csv"}
    assert {t["precision"] for t in found["speed"]} == {"float32", "bfloat16", "int8"}
    assert {t["threads"] for t in found["speed"]} == set(thread_counts(found["machine"]["cores"], 1))
    assert set(found["losses"]) == {"bfloat16", "int8"}
    assert set(found["advice"]) == {"precision", "threads", "batch_max", "now", "rows_per_s", "gain"}
    assert found["barred"] == {}


@pytest.mark.usefixtures("packed")
def test_faults_are_told_in_a_line() -> None:
    """No bundle; no such file; rows that are none of the model's; a missing baseline is a remark."""
    assert "nope: no such file" in run("--bundle", "nope", code=1).stderr
    assert "none.csv" in run("--events", "none.csv", code=1).stderr
    Path("bad.csv").write_text("id,a\ne1,inf\n", "utf-8")
    assert "bad.csv: none of the first 1 events can be scored" in run("--events", "bad.csv", code=1).stderr


def test_help_says_what_it_does_and_does_not() -> None:
    """Examples, and that nothing is changed."""
    shown = CliRunner().invoke(make_app(), ["model", "tune", "--help"], env={"COLUMNS": "200"}).stdout
    assert "pipeline model tune --json" in shown
    assert "Nothing is changed." in shown
    assert "tune" in CliRunner().invoke(make_app(), ["model", "--help"]).stdout


def test_a_person_sees_speed_losses_and_what_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    """Batches are columns; what could not be measured says why; the end can be copied."""
    timings = grid(int8=1.2)
    result = {
        "model": {"bundle": "b", "model_id": "m", "model_version": "1"},
        "rows": {"count": 8192, "source": "baseline"},
        "machine": {"device": "cpu", "cores": 2},
        "rows_compared": 8192,
        "output": "classification",
        "batches_left_out": [16384],
        "barred": {"bfloat16": "not here"},
        **as_plain(timings, {"int8": LITTLE}, advise(timings, {"int8": LITTLE}, NOW)),
    }
    show_result(result)
    shown = capsys.readouterr().out
    for told in ("8,192 rows drawn from its baseline", "1.20k", "0.090 %", "16,384; --seconds", "bfloat16 was not"):
        assert told in shown
    assert shown.endswith('[model]\nthreads = 1\n\n[scoring]\nbatch_max = 1024\nprecision = "int8"\n')


@pytest.mark.parametrize(
    ("gain", "now", "told"),
    [
        (1.2, "float32", "1.20 times what is set now"),
        (1.01, "float32", "1.01 times what is set now: leave it"),
        (0.8, "int8", "0.80 times what is set now"),
        (None, "float32", "rows a second"),
    ],
)
def test_a_gain_within_the_noise_is_called_so(gain: float | None, now: str, told: str) -> None:
    """Below 5 % there is nothing to gain; what is set now may be faster and cost too much."""
    setup = {"threads": 1, "batch_max": 512, "precision": "float32"}
    advice = {**setup, "rows_per_s": 1e6, "gain": gain, "now": {**setup, "precision": now}}
    assert next(advised(advice)).endswith(told)


def test_rates_have_three_digits() -> None:
    """And a unit."""
    assert [_short(rate) for rate in (1_234_567.0, 999_900.0, 45_678.0, 999.0, 1.5)] == [
        "1.23M",
        "1.00M",
        "45.7k",
        "999",
        "1.5",
    ]
