"""From labelled events to a successor without Kafka: kinds of labels, rows that cannot be used, what is packed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.cli.retrain_data import Data
from pipeline.cli.retrain_job import _baseline, _findings, _pack, _scored
from pipeline.cli.retrain_learn import Learner, architecture_of
from pipeline.cli.retrain_log import SENDER, Found
from pipeline.cli.training import train_bundle
from pipeline.errors import ContractError, DataError
from pipeline.models import bundle as bundles
from pipeline.models.architectures import TabularMLP
from pipeline.models.bundle import Bundle
from pipeline.models.loading import load_module
from pipeline.models.manifest import Provenance
from pipeline.records import Feature, FeatureContract, Season
from pipeline.retraining import split, window
from pipeline.retraining.recipes import Trained
from pipeline.settings import Settings

ROWS = 600
FIELDS = {"amount": ("amount", "double", False), "shop": ("shop", "string", True)}
EVENTS = pa.schema([("id", pa.string()), ("amount", pa.float64()), ("shop", pa.string())])


def market(label: str, seed: int = 0, turned: bool = False) -> pa.Table:
    """Rows whose label (class of two or three, or a number) follows from amount and shop; turned: the other way."""
    random = np.random.default_rng(seed)
    amount, shop = random.normal(100, 20, ROWS), random.choice(["a", "b"], ROWS)
    score = (amount - 100) / 20 * (-1 if turned else 1) + (shop == "b")
    labels = {
        "two": np.where(score > 0.5, "up", "down"),
        "three": np.digitize(score, [0, 1]).astype(str),
        "number": score,
    }
    return pa.table({"id": [f"e{n}" for n in range(ROWS)], "amount": amount, "shop": shop, "label": labels[label]})


@pytest.fixture(params=["two", "three", "number"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def parent_of(folder: Path, kind: str) -> Bundle:
    rows = market(kind)
    train_bundle(
        rows, label="label", features=[*FIELDS], fields=FIELDS, out=folder / "p", model_id="m",
        task="regression" if kind == "number" else "classification",
    )  # fmt: skip
    return bundles.read(folder / "p")


def data_of(rows: pa.Table, **columns: Any) -> Data:
    """As `read` would bring them: joined, cut, an event a second."""
    n, numeric = rows.num_rows, pa.types.is_floating(rows.schema.field("label").type)
    times = np.arange(n, dtype=np.int64) * 1000
    facts = {
        window.EVENT_ID: rows.column("id"),
        window.TIME_MS: times,
        window.LABEL: pa.nulls(n, pa.string()) if numeric else rows.column("label"),
        window.VALUE: rows.column("label") if numeric else pa.nulls(n, pa.float64()),
        window.LABEL_TIME_MS: times,
        window.SLICES: pa.array([[]] * n, pa.map_(pa.string(), pa.string())),
        window.PARTITION: np.zeros(n, np.int32),
        window.OFFSET: np.arange(n, dtype=np.int64),
    }
    table = rows.select(EVENTS.names).append_column(SENDER, pa.nulls(n, pa.string()))
    for name, values in {**facts, **columns}.items():
        at = table.column_names.index(name) if name in table.column_names else -1
        column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
        table = table.append_column(name, column) if at < 0 else table.set_column(at, name, column)
    cut = split.split(times, times, newest_share=0.2, stopping_share=0.125)
    found = Found(window.Events(pa.table({}), np.empty(0, np.int64)), 0, 0, (1,))
    return Data(table, np.empty(0, np.int64), cut.fit, cut.stopping, cut.newest, len(cut.purged), found)


def learner_of(parent: Bundle, data: Data, **given: Any) -> Learner:
    chosen = {"epochs_max": 60, "learning_rate": 0.01, **given}
    settings = Settings.model_validate({"retraining": chosen})
    return Learner(settings, parent, data, 0, lambda *_: None)


def quality(metrics: dict[str, float]) -> float:
    return metrics.get("accuracy", metrics.get("r2", 0.0))


@pytest.mark.parametrize("start", ["warm", "fresh"])
def test_each_kind_of_label_is_learnt_anew(tmp_path: Path, kind: str, start: str) -> None:
    """After a turn of the rule, from the parent's weights or from new ones; packed and read back."""
    parent, data = parent_of(tmp_path, kind), data_of(market(kind, seed=1, turned=True))
    learner = learner_of(parent, data, start=start)
    trained, recipe = learner.train()
    assert recipe["name"] == {"warm": "fine-tune", "fresh": "fresh"}[start]
    assert trained.contract is not None
    before = _scored(load_module(parent), parent.contract, learner, data)
    after = _scored(trained.module, trained.contract, learner, data)
    assert quality(after.metrics(data)[0]) > 0.85
    assert quality(before.metrics(data)[0]) < 0.6
    made_of = Provenance(
        window="x", parts=(), recipe=recipe, parent_version=parent.model_version, parent_weights_sha256="0" * 64
    )
    bundle = _pack(parent, data, trained, after, made_of)
    bundles.write(bundle, tmp_path / "s")
    assert bundles.read(tmp_path / "s").training.metrics == after.metrics(data)[0]
    assert bundle.contract.output == parent.contract.output
    assert next(s for s in bundle.baseline.signals if s.name == "feature:amount").count == len(data.newest)
    names = [finding.name for finding in _findings(Settings(), parent, data, after, 0)]
    assert ("label_flips" in names) == (kind != "number")
    assert len(names) == len(set(names))


def test_a_successor_takes_the_season_over(tmp_path: Path) -> None:
    """The parent's, whatever the newest part spans: its baseline is of values without it."""
    parent, data = parent_of(tmp_path, "two"), data_of(market("two"))
    scored = _scored(load_module(parent), parent.contract, learner_of(parent, data), data)
    season = Season(8.0, 3.0, ("feature:amount",), ((80.0, 120.0, 80.0, 120.0),), ((20.0,) * 4,))
    baseline = dataclasses.replace(parent.baseline, season=season)
    manifest = parent.manifest.model_copy(update={"baseline": baseline})
    plain, seasonal = (_baseline(of, data, scored) for of in (parent, dataclasses.replace(parent, manifest=manifest)))
    assert plain.season is None
    assert seasonal.season == season
    assert seasonal.signals[0].name == "feature:amount"
    assert seasonal.signals[0].variance > plain.signals[0].variance + 100  # there was no season: it puts one in


def test_a_successor_watches_the_slices_of_today(tmp_path: Path) -> None:
    """Of the newest part, whatever its parent's baseline had; a field that the events lack is left out."""
    parent, data = parent_of(tmp_path, "two"), data_of(market("two"))
    settings = Settings.model_validate({"events": {"slice_fields": ["shop", "gone"]}})
    learner = Learner(settings, parent, data, 0, lambda *_: None)
    baseline = _baseline(parent, data, _scored(load_module(parent), parent.contract, learner, data))
    parts = [s.name for s in baseline.signals if "shop" in s.name and not s.name.startswith("null:")]
    assert len(parts) == 4
    assert {*parts} >= {"category:shop=(other)", "score:up@shop=a", "score:up@shop=b"}


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    """Refused by the validator, or of a class that the model does not know; the rest is learnt from."""
    parent, rows = parent_of(tmp_path, "two"), market("two", seed=1)
    amount, labels = rows.column("amount").to_pylist(), rows.column("label").to_pylist()
    amount[3] = amount[500] = float("inf")
    labels[7] = labels[8] = labels[590] = "sideways"
    data = data_of(rows, amount=amount, **{window.LABEL: labels})
    learner = learner_of(parent, data, epochs_max=2)
    trained, _ = learner.train()
    assert (learner.rows_refused, learner.rows_unknown) == (2, 2)
    confusion = _scored(trained.module, parent.contract, learner, data).metrics(data)[1]
    assert sum(map(sum, confusion)) == len(data.newest) - 2


def test_what_cannot_be_learnt_from(tmp_path: Path) -> None:
    """One class alone; nothing that is left. Each says how much there was."""
    parent, rows = parent_of(tmp_path, "two"), market("two")
    with pytest.raises(DataError, match="the label of all 420 events to train on is class 'up'"):
        learner_of(parent, data_of(rows, **{window.LABEL: ["up"] * ROWS})).train()
    with pytest.raises(DataError, match=r"0 events to learn from .* and 480 have a label"):
        learner_of(parent, data_of(rows, **{window.LABEL: ["other"] * ROWS})).train()
    with pytest.raises(DataError, match="none of the 600 labelled events fits the feature contract"):
        learner_of(parent, data_of(rows, amount=[float("nan")] * ROWS)).train()


def test_a_module_that_cannot_be_made_again() -> None:
    """A class inside a function, arguments that are no JSON: said before anything is packed."""

    class Local(TabularMLP):
        pass

    for trained in (Trained(Local(1), {}), Trained(TabularMLP(1), {"numbers": {1}})):
        with pytest.raises(ContractError, match=r"x: .* cannot be made again"):
            architecture_of(trained, "x")
    made = architecture_of(Trained(TabularMLP(1), {"numbers": 1}), "x")
    assert made.module == "pipeline.models.architectures:TabularMLP"


def test_a_contract_of_ones_own_counts(tmp_path: Path) -> None:
    """What a function returns with its module is what its successor is scored by."""
    parent, data = parent_of(tmp_path, "two"), data_of(market("two"))
    contract = FeatureContract((Feature("amount", "number"),), parent.contract.output)
    learner = learner_of(parent, data)
    scored = _scored(TabularMLP(1).eval(), contract, learner, data)
    assert scored.outputs.shape == (ROWS, 1)
