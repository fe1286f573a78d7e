"""The recipe: what is learnt of a column, where the data is cut, and that it can be repeated."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.errors import DataError
from pipeline.models.architectures import TabularMLP
from pipeline.records import Feature, FeatureContract, OutputContract
from pipeline.retraining import features, targets, train
from pipeline.retraining.targets import Target
from pipeline.retraining.train import Recipe


def chunked(values: Any, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


# --------------------------------------------------------------------------- features


def test_kinds_and_policies_come_from_the_training_part() -> None:
    """Text is a category, the rest numbers; where null may come it becomes the median or the most frequent."""
    rows = pa.table(
        {
            "amount": [5.0, None, 1.0, 100.0, float("inf")],
            "count": [1, 2, 3, 4, 5],
            "shop": ["b", "a", "b", None, "a"],
            "paid": [True, False, None, True, True],
            "kind": ["x", "y", "y", "z", "y"],
        }
    )
    fields = {
        "amount": ("amount", "double", True),
        "count": ("n", "long", False),
        "shop": ("shop", "string", True),
        "paid": ("paid", "boolean", True),
        "kind": ("kind", "string", False),
    }
    assert features.infer(rows, [*fields], fields) == (
        Feature("amount", "number", on_null="impute", impute=5.0),
        Feature("n", "number"),
        Feature("shop", "category", vocabulary=("a", "b"), on_null="impute", impute="a"),
        Feature("paid", "number", on_null="impute", impute=1.0),
        Feature("kind", "category", vocabulary=("y", "x", "z")),
    )


def test_a_vocabulary_is_capped_and_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most frequent words stay; a column that is empty so far still makes a contract that holds."""
    monkeypatch.setattr(features, "VOCABULARY_MAX", 2)
    rows = pa.table({"a": ["x", "y", "y", "z", "z"], "b": pa.nulls(5, pa.string()), "c": pa.nulls(5, pa.float64())})
    fields = {"a": ("a", "string", False), "b": ("b", "string", True), "c": ("c", "double", True)}
    a, b, c = features.infer(rows, [*fields], fields)
    assert a.vocabulary == ("y", "z")
    assert b.vocabulary == ("",)
    assert c.impute == 0.0


# --------------------------------------------------------------------------- targets


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["no", "yes", "no"], "classification", ("no", "yes")),
        ([True, False, True], "classification", ("false", "true")),
        ([10, 9, 10], "classification", ("9", "10")),
        ([1.0, 0.0, 1.0], "classification", ("0", "1")),
        ([1.5, 0.0, 1.0], "regression", ()),
        (list(range(100)), "regression", ()),
    ],
)
def test_the_task_follows_from_the_label(values: list[Any], task: str, classes: tuple[str, ...]) -> None:
    """Words, Booleans and few whole numbers are classes, in their natural order; other numbers a regression."""
    target = targets.infer(chunked(values), len(values), "y")
    assert (target.task, target.classes) == (task, classes)
    if task == "classification":
        assert [target.classes[i] for i in target.values] == [str(v).lower().removesuffix(".0") for v in values]
    else:
        assert target.values.tolist() == values


def test_the_task_can_be_said() -> None:
    """Numbers can be learnt as classes and 0/1 as a number; words cannot be a number."""
    assert targets.infer(chunked([0, 1, 1]), 3, "y", "regression").values.tolist() == [0.0, 1.0, 1.0]
    assert targets.infer(chunked(list(range(50))), 50, "y", "classification").classes[10] == "10"
    with pytest.raises(DataError, match="label 'y': string is no number"):
        targets.infer(chunked(["a", "b"]), 2, "y", "regression")


def test_a_class_that_only_comes_later_is_unknown() -> None:
    """The model has no column for it, so it counts as a miss and is not left out."""
    target = targets.infer(chunked(["a", "b", "a", "c"]), 3, "y")
    assert target.classes == ("a", "b")
    assert target.values.tolist() == [0, 1, 0, -1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 1.5, -1e39, 2.0], "row 2: -1e\\+39 is no finite float32"),
        (["a"] * 4, "is 'a' in all rows to train on"),
        ([2.5] * 4, "is 2.5 in all rows to train on"),
        ([0.5, float("nan"), 1.0, 2.0], "label 'y': row 1: nan is no finite float32"),
        ([f"w{i}" for i in range(200)], "200 classes, and at most 100"),
        ([[1], [2]], "cannot be learnt"),
    ],
)
def test_labels_without_use_are_refused(values: list[Any], expected: str) -> None:
    """Constant, not finite, too many, no text or number: one line that names the column."""
    with pytest.raises(DataError, match=expected):
        targets.infer(chunked(values), len(values), "y")


def test_outputs_follow_from_the_classes() -> None:
    """Two classes are one column, more one each; a regression has none."""
    assert Target("classification", ("a", "b"), np.zeros(1)).output() == OutputContract(
        "classification", 1, ("a", "b"), "sigmoid"
    )
    assert Target("classification", ("a", "b", "c"), np.zeros(1)).output() == OutputContract(
        "classification", 3, ("a", "b", "c"), "softmax"
    )
    assert Target("regression", (), np.zeros(1)).output() == OutputContract("regression", 1)


# --------------------------------------------------------------------------- training


def test_the_newest_rows_are_set_aside() -> None:
    """A fifth for validation, an eighth of the rest to stop on; too few rows are refused."""
    assert train.split(1000, Recipe()) == (700, 800)
    with pytest.raises(DataError, match="at least 50"):
        train.split(49, Recipe())


CONTRACT = FeatureContract(
    (Feature("x", "number"), Feature("y", "number"), Feature("c", "category", vocabulary=("a", "b", "c"))),
    OutputContract("classification", 1, ("n", "y"), "sigmoid"),
)


def rows(n: int = 600, seed: int = 0) -> tuple[dict[str, Any], Any]:
    """Numbers of large mean, categories, and a class that follows from both."""
    random = np.random.default_rng(seed)
    numbers = np.stack([random.normal(1000, 10, n), random.normal(0, 1e-3, n)], axis=1).astype(np.float32)
    codes = random.integers(1, 4, (n, 1))
    score = (numbers[:, 0] - 1000) / 10 + (codes[:, 0] == 2) * 2 - 0.7
    return {"numbers": numbers, "categories": codes}, score


def fitted(target: Target, contract: FeatureContract = CONTRACT, **options: Any) -> train.Fitted:
    inputs, _ = rows()
    recipe = Recipe(**{"epochs_max": 15, **options})
    return train.fit(TabularMLP, inputs, target, contract, 500, recipe)


def test_what_is_there_to_learn_is_learnt() -> None:
    """Two classes, three classes and a number, far better than chance on rows it never saw."""
    _, score = rows()
    fresh, fresh_score = rows(seed=1)
    tensors = {name: torch.from_numpy(array) for name, array in fresh.items()}

    two = fitted(Target("classification", ("n", "y"), (score > 0).astype(np.int64)))
    assert ((two.module(tensors)[:, 0] > 0).numpy() == (fresh_score > 0)).mean() > 0.9

    output = OutputContract("classification", 3, ("l", "m", "h"), "softmax")
    three = fitted(
        Target("classification", ("l", "m", "h"), np.digitize(score, [-0.5, 0.5])),
        FeatureContract(CONTRACT.features, output),
    )
    assert (three.module(tensors).argmax(1).numpy() == np.digitize(fresh_score, [-0.5, 0.5])).mean() > 0.8

    number = fitted(
        Target("regression", (), 5e6 + 1e5 * score), FeatureContract(CONTRACT.features, OutputContract("regression", 1))
    )
    error = number.module(tensors)[:, 0].detach().numpy() - (5e6 + 1e5 * fresh_score)
    assert np.abs(error).mean() < 3e4
    assert number.arguments["rescale"]


def test_the_same_seed_gives_the_same_weights() -> None:
    """Bit for bit, whatever torch's own random state is; another seed gives others; torch's state is left alone."""
    _, score = rows()
    target = Target("classification", ("n", "y"), (score > 0).astype(np.int64))
    torch.manual_seed(1)
    first = fitted(target, epochs_max=2).module.state_dict()
    after = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), after)
    torch.manual_seed(2)
    again, other = (fitted(target, epochs_max=2, seed=seed).module.state_dict() for seed in (0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])


def test_training_ends_when_it_gets_no_better() -> None:
    """With labels of pure chance it stops early and keeps the weights of the best epoch."""
    random = np.random.default_rng(0)
    losses: list[float] = []
    inputs, _ = rows()
    target = Target("classification", ("n", "y"), random.integers(0, 2, 600))
    result = train.fit(
        TabularMLP, inputs, target, CONTRACT, 500, Recipe(patience=3), lambda _e, _m, loss: losses.append(loss)
    )
    assert len(losses) < 60
    assert result.epochs == int(np.argmin(losses)) + 1 == len(losses) - 3
    with torch.inference_mode():
        kept = torch.nn.functional.binary_cross_entropy_with_logits(
            result.module({name: torch.from_numpy(array[500:]) for name, array in inputs.items()})[:, 0],
            torch.from_numpy(target.values[500:]).float(),
        )
    assert float(kept) == pytest.approx(min(losses))


def test_rare_classes_are_not_ignored() -> None:
    """One row in fifty belongs to a class that is easy to tell: it is told."""
    inputs, _ = rows()
    rare = np.arange(600) % 50 == 7
    inputs["numbers"][rare, 0] += 30
    result = train.fit(
        TabularMLP, inputs, Target("classification", ("n", "y"), rare.astype(np.int64)), CONTRACT, 500, Recipe()
    )
    found = result.module({name: torch.from_numpy(array) for name, array in inputs.items()})[:, 0] > 0
    assert found.numpy()[rare].mean() > 0.8


def test_a_training_without_a_finite_loss_is_said() -> None:
    """A descent that leaves all numbers behind is an error, not a model of NaN."""
    target = Target("classification", ("n", "y"), np.arange(600) % 2)
    with pytest.raises(DataError, match="no finite loss"):
        fitted(target, learning_rate=1e30)
