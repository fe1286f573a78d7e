"""From rows to a bundle: trained as production will score, measured on the newest rows, repeatable."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import drift
from pipeline.cli.training import event_columns, fingerprint, train_bundle, validated
from pipeline.errors import BundleError, DataError
from pipeline.models import bundle as bundles
from pipeline.models.loading import load_module
from pipeline.records import TrainingReport
from pipeline.scoring.engine import TorchModel

ROWS = 400
FIELDS = {
    "amount": ("amount", "double", False),
    "shop no": ("shop_no", "string", True),
    "count": ("count", "long", False),
}


def table(rows: int = ROWS) -> pa.Table:
    """Orders whose fraud follows from amount and shop; every 40th has no shop."""
    random = np.random.default_rng(0)
    amount = random.normal(100, 20, rows)
    shop = random.choice(["a", "b", "c"], rows)
    fraud = (amount > 110) | (shop == "c")
    return pa.table(
        {
            "amount": amount,
            "shop no": [None if i % 40 == 0 else s for i, s in enumerate(shop)],
            "count": random.integers(0, 9, rows),
            "fraud": ["yes" if f else "no" for f in fraud],
            "at": np.arange(rows) * 1000 + 1_700_000_000_000,
        }
    )


def train(rows: pa.Table, out: Path, **options: Any) -> TrainingReport:
    given: dict[str, Any] = {"label": "fraud", "features": [*FIELDS], "fields": FIELDS, "model_id": "shop", **options}
    return train_bundle(rows, out=out, **given)


def test_rows_become_a_bundle_that_scores(tmp_path: Path) -> None:
    """The report, the contract under the event's names, metrics in the manifest, a module that loads."""
    report = train(table(), tmp_path / "b")
    assert (report.rows_train, report.rows_validation) == (320, 80)
    assert report.metrics["accuracy"] > report.metrics["accuracy_of_majority"]
    assert sum(map(sum, report.confusion)) == 80
    bundle = bundles.read(tmp_path / "b")
    assert bundle.model_id == "shop"
    assert [(f.name, f.kind) for f in bundle.contract.features] == [
        ("amount", "number"),
        ("shop_no", "category"),
        ("count", "number"),
    ]
    assert bundle.contract.output.classes == ("no", "yes")
    assert bundle.training.metrics == report.metrics
    assert bundle.training.confusion == tuple(map(tuple, report.confusion))
    TorchModel(load_module(bundle), bundle.contract, bundle.identity, bundle.baseline).warm_up()


def test_the_metrics_are_those_of_the_packed_model(tmp_path: Path) -> None:
    """Scored again from the bundle, the newest rows give the accuracy that was reported."""
    rows = table()
    report = train(rows, tmp_path / "b")
    bundle = bundles.read(tmp_path / "b")
    checked = validated(bundle.contract, event_columns(rows, [*FIELDS], FIELDS))
    model = TorchModel(load_module(bundle), bundle.contract, bundle.identity, bundle.baseline)
    outputs = model.score(checked.inputs[0].arrays)[320:, 0]
    truth = np.array(rows.column("fraud").to_pylist()[320:]) == "yes"
    assert ((outputs >= 0.5) == truth).mean() == report.metrics["accuracy"]


def test_the_baseline_is_of_the_newest_rows(tmp_path: Path) -> None:
    """Every watched signal, over the validation rows, as they come in production: missing values missing."""
    rows = table()
    report = train(rows, tmp_path / "b")
    bundle = bundles.read(tmp_path / "b")
    signals = {signal.name: signal for signal in bundle.baseline.signals}
    plain = drift.signal_names(bundle.contract)
    assert tuple(signals)[: len(plain)] == plain
    assert {*signals} - {*plain} == {f"category:shop_no={value}" for value in ("a", "b", "c", "(other)")}
    assert sum(signals[f"category:shop_no={value}"].mean for value in "abc") == pytest.approx(1.0)
    assert signals["category:shop_no=a"].count == 78  # of two rows it is not known
    assert signals["feature:amount"].mean == pytest.approx(np.mean(rows.column("amount").to_pylist()[320:]), rel=1e-5)
    assert signals["null:shop_no"].mean == pytest.approx(2 / 80)
    assert signals["rejected"].mean == 0.0
    predicted = sum(row[1] for row in report.confusion) / 80
    assert signals["class:yes"].mean == pytest.approx(predicted)
    assert all(math.isfinite(signal.autocorrelation_time) for signal in bundle.baseline.signals)


def test_the_same_rows_and_seed_are_the_same_version(tmp_path: Path) -> None:
    """Trained twice, the version (a digest of all content) is equal; another seed or row makes another."""
    rows = table()
    versions = []
    for name, data, seed in (("a", rows, 0), ("b", rows, 0), ("c", rows, 1), ("d", rows.slice(1), 0)):
        train(data, tmp_path / name, seed=seed)
        versions.append(bundles.read(tmp_path / name).model_version)
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


def test_rows_are_brought_into_the_order_of_time(tmp_path: Path) -> None:
    """With a time column a shuffled file gives the same model as the ordered one; without it, another."""
    rows = table()
    shuffled = rows.take(np.random.default_rng(1).permutation(ROWS))
    train(rows, tmp_path / "ordered")
    train(shuffled, tmp_path / "sorted", time="at")
    train(shuffled, tmp_path / "shuffled")
    ordered, by_time, without = (
        bundles.read(tmp_path / name).model_version for name in ("ordered", "sorted", "shuffled")
    )
    assert ordered == by_time != without


def test_nothing_of_the_newest_rows_leaks_into_the_model(tmp_path: Path) -> None:
    """Whatever the validation rows hold, weights, vocabulary and imputed values are the same."""
    rows = table()
    train(rows, tmp_path / "a")
    late = rows.slice(320)
    strange = late.set_column(0, "amount", pa.array(np.full(80, 1e6))).set_column(1, "shop no", pa.array(["new"] * 80))
    train(pa.concat_tables([rows.slice(0, 320), strange]), tmp_path / "b")
    first, second = (bundles.read(tmp_path / name) for name in "ab")
    assert first.weights == second.weights
    assert first.contract == second.contract
    assert first.training.metrics != second.training.metrics


def test_rows_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    """Without a label, or with an infinite number, a row is no part of the training."""
    rows = table()
    amount = rows.column("amount").to_pylist()
    amount[10] = amount[399] = float("inf")
    fraud = rows.column("fraud").to_pylist()
    fraud[3] = None
    rows = rows.set_column(0, "amount", pa.array(amount)).set_column(3, "fraud", pa.array(fraud))
    report = train(rows, tmp_path / "b")
    assert report.rows_train + report.rows_validation == ROWS - 3
    rejected = next(s for s in bundles.read(tmp_path / "b").baseline.signals if s.name == "rejected")
    assert rejected.mean == pytest.approx(1 / 80)


def test_a_regression_and_dictionaries_are_learnt(tmp_path: Path) -> None:
    """A number as label; text that Parquet stores as a dictionary is text."""
    rows = table()
    rows = rows.set_column(1, "shop no", rows.column("shop no").dictionary_encode())
    target = pa.array(np.array(rows.column("amount")) * 3 + 1)
    report = train(rows.append_column("total", target), tmp_path / "b", label="total")
    assert report.metrics["r2"] > 0.9
    assert report.confusion == []
    assert bundles.read(tmp_path / "b").contract.output.kind == "regression"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.slice(0, 30), "30 rows with a label; it takes at least 50"),
        (lambda t: t.set_column(0, "amount", pa.array([float("inf")] * ROWS)), "none of the 400 rows fits"),
        (lambda t: t.set_column(0, "amount", pa.array([1.0] * 320 + [float("inf")] * 80)), "only 320 of 400 rows"),
        (lambda t: t.set_column(2, "count", pa.array(["many"] * ROWS)), "column 'count': does not fit event field"),
        (lambda t: t.set_column(3, "fraud", pa.array(["no"] * ROWS)), "label 'fraud': is 'no' in all rows"),
    ],
)
def test_data_without_use_is_refused(tmp_path: Path, change: Any, expected: str) -> None:
    """Too few rows, none that fit, the wrong type, a constant label: one line, and nothing is written."""
    with pytest.raises(DataError, match=expected):
        train(change(table()), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_path_that_is_taken_is_kept(tmp_path: Path) -> None:
    """An existing bundle is overwritten only on demand."""
    train(table(), tmp_path / "b.tar.gz")
    with pytest.raises(BundleError, match="is there already"):
        train(table(), tmp_path / "b.tar.gz", seed=1)
    train(table(), tmp_path / "b.tar.gz", seed=1, overwrite=True)


def test_the_fingerprint_is_of_the_rows_alone() -> None:
    """Names, types, values and order count; chunks and metadata of the file do not."""
    rows = table()
    chunked = pa.concat_tables([rows.slice(0, 7), rows.slice(7)]).replace_schema_metadata({"pandas": "x"})
    assert fingerprint(chunked) == fingerprint(rows)
    others = [rows.slice(1), rows.take(np.arange(ROWS)[::-1]), rows.rename_columns([*"abcde"]), rows.select(["amount"])]
    assert len({fingerprint(t) for t in [rows, *others]}) == 5
