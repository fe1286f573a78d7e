"""A warm start: the same function under new statistics, better weights or the old ones, any architecture."""

import copy
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ContractError, DataError
from pipeline.models.architectures import SequenceGRU, SignalCNN, TabularMLP
from pipeline.records import Feature, FeatureContract, ModelInputs, OutputContract
from pipeline.retraining import recipes, train
from pipeline.retraining.recipes import Trained
from pipeline.retraining.targets import Target
from pipeline.retraining.train import Recipe
from pipeline.retraining.warm import CLIP_SD, restandardise

BINARY = OutputContract("classification", 1, ("no", "yes"), "sigmoid")


def network(**arguments: Any) -> TabularMLP:
    torch.manual_seed(0)
    return TabularMLP(**{"numbers": 3, "hidden": (8,), **arguments})


@settings(deadline=None, max_examples=25)
@given(
    mean=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
    scale=st.lists(st.floats(0.2, 5), min_size=3, max_size=3),
    regression=st.booleans(),
    seed=st.integers(0, 9),
)
def test_new_statistics_are_the_same_function(
    mean: list[float], scale: list[float], regression: bool, seed: int
) -> None:
    """On all that is clipped neither by the old deviations nor by the new ones; the inputs are then near 0 and 1."""
    module = network(categories=[2], rescale=regression)
    random = np.random.default_rng(seed)
    rows = np.clip(random.normal(size=(200, 3)), -3, 3) * 0.5 * np.array(scale) + np.array(mean)
    rows = np.clip(rows, -7.5, 7.5)  # of the old deviations, which are 1
    tensors = {
        "numbers": torch.from_numpy(rows.astype(np.float32)),
        "categories": torch.from_numpy(random.integers(0, 3, (200, 1))),
    }
    goal = torch.from_numpy(random.normal(3, 2, 200) if regression else random.integers(0, 2, 200))
    with torch.inference_mode():
        before = module(tensors).numpy().copy()
    restandardise(module, tensors, goal, 150, regression=regression)
    standardise: Any = module.standardise
    with torch.inference_mode():
        after = module(tensors).numpy()
        inside = standardise(tensors["numbers"][:150])
    moved = np.abs((rows - rows[:150].mean(0)) / np.maximum(rows[:150].std(0), 1e-9)).max() < CLIP_SD
    if moved:
        assert np.allclose(before, after, atol=2e-4)
    assert abs(float(inside.mean())) < 1e-3


@pytest.mark.parametrize("moved", [(1e4, 1e3), (0, 1e3), (1e3, 1)])
def test_a_feature_that_moved_out_of_sight_keeps_its_weight_per_deviation(moved: tuple[float, float]) -> None:
    """A column that was constant, or moves by hundreds of its deviations, would make the layer explode."""
    module = network(numbers=2)
    first: Any = module.layers[0]
    weights = first.weight.detach().clone()
    random = np.random.default_rng(0)
    second = random.normal(size=500)
    second = (second - second.mean()) / second.std() * moved[1] + moved[0]
    rows = np.stack([random.normal(0, 1, 500), second], axis=1)
    tensors = {"numbers": torch.from_numpy(rows.astype(np.float32))}
    restandardise(module, tensors, torch.zeros(500), 500, regression=False)
    assert torch.equal(first.weight[:, 1], weights[:, 1])
    with torch.inference_mode():
        assert float(module(tensors).abs().max()) < 10


def test_a_feature_that_stands_still_keeps_its_statistics() -> None:
    """There is nothing to set them by, and the model stays the same."""
    module = network(numbers=2)
    standardise: Any = module.standardise
    standardise.set(torch.tensor([1.0, 2.0]), torch.tensor([1e-3, 3.0]))
    tensors = {"numbers": torch.tensor([[1.002, 1.0], [1.002, 5.0]] * 50)}
    with torch.inference_mode():
        before = module(tensors).clone()
    restandardise(module, tensors, torch.zeros(100), 100, regression=False)
    with torch.inference_mode():
        assert torch.allclose(module(tensors), before, atol=1e-4)
    assert standardise.mean.tolist() == [1.0, 3.0]


def task(n: int = 800, seed: int = 0, turned: bool = False) -> tuple[dict[str, np.ndarray[Any, Any]], Target]:
    """Rows of three numbers, and whether the first, or the second of a turned rule, is above 0."""
    random = np.random.default_rng(seed)
    numbers = random.normal(size=(n, 3)).astype(np.float32)
    return {"numbers": numbers}, Target(
        "classification", ("no", "yes"), (numbers[:, 1 if turned else 0] > 0).astype(np.int64)
    )


def accuracy(module: torch.nn.Module, inputs: dict[str, np.ndarray[Any, Any]], target: Target) -> float:
    with torch.inference_mode():
        outputs = module({name: torch.from_numpy(array) for name, array in inputs.items()})
    return float(((outputs[:, 0].numpy() > 0) == target.values).mean())


def test_a_turned_rule_is_learnt_and_the_old_one_kept_where_it_holds() -> None:
    """On rows of the rule it knows a model may stay as it is: 0 epochs, weights and all."""
    module = network()
    train.fine_tune(module, *task(), 700, Recipe(epochs_max=12, learning_rate=0.01))
    assert accuracy(module, *task(seed=9)) > 0.95
    turned = copy.deepcopy(module)
    assert train.fine_tune(turned, *task(seed=1, turned=True), 700, Recipe(epochs_max=12, learning_rate=0.01)) > 0
    assert accuracy(turned, *task(seed=8, turned=True)) > 0.93
    inputs, noise = task(seed=2)[0], np.random.default_rng(5).integers(0, 2, 800)
    noise[700:] = inputs["numbers"][700:, 0] > 0  # what is learnt from is noise, what says when to stop is the rule
    kept = copy.deepcopy(module)
    epochs = train.fine_tune(kept, inputs, Target("classification", ("no", "yes"), noise), 700, Recipe(epochs_max=5))
    assert epochs == 0
    assert accuracy(kept, *task(seed=9)) == pytest.approx(accuracy(module, *task(seed=9)), abs=0.01)


def test_the_same_job_gives_the_same_weights() -> None:
    """And another seed other ones."""
    found = []
    for seed in (1, 1, 2):
        module = network()
        train.fine_tune(module, *task(), 700, Recipe(epochs_max=3, seed=seed))
        found.append(module.state_dict()["layers.0.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_every_architecture_goes_on_from_its_weights() -> None:
    """A window of a signal, a sequence of any length: not only tables."""
    random = np.random.default_rng(0)
    truth = random.integers(0, 2, 300)
    target = Target("classification", ("no", "yes"), truth)
    signal = (random.normal(size=(300, 32)) + truth[:, None]).astype(np.float32)
    cnn = SignalCNN("s", filters=(4,))
    assert train.fine_tune(cnn, {"s": signal}, target, 250, Recipe(epochs_max=10, learning_rate=0.01)) > 0
    assert accuracy(cnn, {"s": signal}, target) > 0.9
    gru = SequenceGRU("q", hidden=4)
    inputs = {"q": signal[:, :8], "q_lengths": np.full(300, 8)}
    assert train.fine_tune(gru, inputs, target, 250, Recipe(epochs_max=20, learning_rate=0.02)) > 0
    assert accuracy(gru, inputs, target) > 0.8


def test_an_augmentation_sees_every_batch_and_no_more() -> None:
    """Batches of the rows to fit, each row once a pass; a generator of the recipe's seed."""
    seen: list[float] = []

    def hook(inputs: dict[str, Any], goal: Any, generator: torch.Generator) -> Any:
        seen.extend(inputs["numbers"][:, 0].tolist())
        assert generator.initial_seed() == 4
        return inputs, goal

    inputs, target = task(300)
    train.fine_tune(network(), inputs, target, 250, Recipe(epochs_max=2, seed=4), augment=hook)
    assert sorted(seen) == sorted(inputs["numbers"][:250, 0].tolist() * 2)


def test_a_parent_that_is_out_of_order_is_no_bound() -> None:
    """Its loss is no number: what is learnt is better than that."""
    module = network()
    with torch.no_grad():
        last: Any = module.layers[2]
        last.bias.fill_(float("inf"))
    with pytest.raises(DataError, match="no finite loss"):
        train.fine_tune(module, *task(300), 250, Recipe(epochs_max=2))


# --------------------------------------------------------------------------- recipes


def test_inputs_of_several_shapes_become_one() -> None:
    """In the order of the rows, sequences padded to the longest, everything else as it was."""
    first = ModelInputs(
        {"q": np.ones((2, 2), np.float32), "q_lengths": np.array([2, 1]), "numbers": np.array([[3.0], [0.0]])},
        np.array([3, 0]),
    )
    second = ModelInputs(
        {"q": np.full((2, 4), 2, np.float32), "q_lengths": np.array([4, 3]), "numbers": np.array([[1.0], [2.0]])},
        np.array([1, 2]),
    )
    arrays, rows = recipes.merged([first, second])
    assert rows.tolist() == [0, 1, 2, 3]
    assert arrays["numbers"][:, 0].tolist() == [0, 1, 2, 3]
    assert arrays["q_lengths"].tolist() == [1, 4, 3, 2]
    assert arrays["q"].tolist() == [[1, 1, 0, 0], [2] * 4, [2] * 4, [1, 1, 0, 0]]


def test_a_contract_is_renewed_by_the_rows() -> None:
    """New words, a new middle for missing numbers, new classes; order, policies and everything else stay."""
    contract = FeatureContract(
        (
            Feature("shop", "category", vocabulary=("a", "b"), on_null="impute", impute="a"),
            Feature("amount", "number", on_null="impute", impute=1.0, range=(0, 9)),
            Feature("count", "number"),
            Feature("deep.field", "number", on_null="impute", impute=7.0),
        ),
        BINARY,
    )
    rows = pa.table({"shop": ["c", "c", None, "b"], "amount": [5.0, None, 6.0, 7.0], "count": [1, 2, 3, 4]})
    found = recipes.renewed(contract, rows, pa.chunked_array([pa.array(["x", "y", "z", "x"])]))
    shop, amount, count, deep = found.features
    assert (shop.vocabulary, shop.impute) == (("c", "b"), "c")
    assert (amount.impute, amount.range) == (6.0, (0, 9))
    assert (count, deep) == contract.features[2:]
    assert found.output == OutputContract("classification", 3, ("x", "y", "z"), "softmax")


def test_truth_under_a_contract() -> None:
    """Indices of the model's classes; a class it does not know is -1; one class alone is nothing to learn."""
    rows = pa.table({"l": ["yes", "no", "maybe"], "v": [1.0, 2.0, 3.0]})
    assert recipes.truth(rows, BINARY, "l", "v").tolist() == [1, 0, -1]
    assert recipes.truth(rows, OutputContract("regression", 1), "l", "v").tolist() == [1, 2, 3]
    recipes.check_learnable(np.array([0, 1]), BINARY)
    with pytest.raises(DataError, match="the label of all 2 events to train on is class 'yes'"):
        recipes.check_learnable(np.array([1, 1]), BINARY)
    with pytest.raises(DataError, match=r"is 1\.5; nothing can be learnt"):
        recipes.check_learnable(np.array([1.5]), OutputContract("regression", 1))


def test_functions_by_name() -> None:
    """What cannot be found or called is said in a line."""
    assert recipes.own("pipeline.retraining.recipes:warm") is recipes.warm
    for name, said in (
        ("no_such_module:f", "no_such_module:f: cannot be imported: ModuleNotFoundError"),
        ("pipeline.retraining.recipes:nothing", "has no function nothing"),
        ("pipeline.retraining.train:ROWS_MIN", "has no function ROWS_MIN"),
    ):
        with pytest.raises(ContractError, match=said):
            recipes.own(name)
    job: Any = None
    assert recipes.by_own("x", lambda _: Trained(network().train(), {}), job).module.training is False
    with pytest.raises(ContractError, match="x: returned int, not a Trained"):
        recipes.by_own("x", lambda _: 3, job)  # type: ignore[arg-type, return-value]
