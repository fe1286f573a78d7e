"""`python -m benchmarks.models`: what the model's call alone costs, by model, batch size and precision.

Writes MODELS.md: CPU seconds per million events of several kinds of model, and what lower precisions lose. Weights are
random and fixed: cost does not depend on them, and losses little. About five minutes; --seconds 2 for a quick look.
"""

import argparse
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models import architectures, precisions
from pipeline.records import Baseline, Feature, FeatureContract, ModelIdentity, OutputContract
from pipeline.scoring import speed
from pipeline.scoring.engine import TorchModel, set_threads
from pipeline.scoring.speed import Setup, Timing
from pipeline.scoring.tuning import REFERENCE, Loss, loss_of
from pipeline.sections.serving import Precision

PAGE = Path(__file__).parent / "MODELS.md"
SEED = 20_260_101
BATCHES = (32, 256, 1024, 4096)
#: A step, as a worker takes it; the losses are told on as many rows.
ROWS = 8192
PLAIN_BATCH = 256
CPU = torch.device("cpu")
NO_BASELINE = Baseline((), 1)
TWO_CLASSES = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
NUMBERS = FeatureContract(tuple(Feature(f"f{i:02d}", "number") for i in range(16)), TWO_CLASSES)


class Ensemble(nn.Module):
    """The mean of five MLPs."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList(architectures.TabularMLP(16) for _ in range(5))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(n, 16) float32 under "numbers" -> (n, 1)."""
        return torch.stack([member(inputs) for member in self.members]).mean(dim=0)


@dataclass(frozen=True)
class Case:
    """A kind of model, with random weights."""

    name: str
    contract: FeatureContract
    make: Callable[[], nn.Module]


def _of(feature: Feature) -> FeatureContract:
    return FeatureContract((feature,), TWO_CLASSES)


CASES = (
    Case("MLP 16-64-64-1", NUMBERS, lambda: architectures.TabularMLP(16)),
    Case("five MLPs 16-64-64-1, their mean", NUMBERS, Ensemble),
    Case("MLP 16-1024-1024-1", NUMBERS, lambda: architectures.TabularMLP(16, hidden=(1024, 1024))),
    Case(
        "1-D CNN on 256 values, float32",
        _of(Feature("window", "bytes", shape=(256,))),
        lambda: architectures.SignalCNN("window"),
    ),
    Case(
        "2-D CNN on 28 x 28 bytes, uint8",
        _of(Feature("image", "bytes", shape=(28, 28), dtype="uint8")),
        lambda: _scaled(architectures.ImageCNN("image")),
    ),
    Case(
        "GRU 32 on 1 to 32 values",
        _of(Feature("values", "sequence", shape=(32,))),
        lambda: architectures.SequenceGRU("values"),
    ),
    Case(
        "GRU 256 on 1 to 32 values",
        _of(Feature("values", "sequence", shape=(32,))),
        lambda: architectures.SequenceGRU("values", hidden=256),
    ),
)


def _scaled(module: architectures.ImageCNN) -> nn.Module:
    """As training would: bytes of 0 to 255 to mean 0 and deviation 1."""
    module.standardise.set(torch.full((1, 1, 1), 127.5), torch.full((1, 1, 1), 73.9))
    return module


@dataclass(frozen=True)
class Found:
    """What was measured of a case."""

    case: Case
    timings: list[Timing]
    losses: dict[str, Loss]


def model(case: Case, precision: Precision) -> TorchModel:
    """The case's model on the CPU, the same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module = case.make()
    module = precisions.at_precision(module.eval().requires_grad_(False), precision, CPU)
    return TorchModel(module, case.contract, ModelIdentity(case.name, precision), NO_BASELINE)


def measured(case: Case, seconds: float) -> Found:
    """Speed at each precision and batch size, on one thread, and what outputs lose."""
    step = speed.made_up(case.contract, NO_BASELINE, ROWS, SEED)
    models = {precision: model(case, precision) for precision in get_args(Precision)}
    rates = {name: speed.probe(made, step, BATCHES[0]) for name, made in models.items()}
    batches = speed.affordable(BATCHES, [1], rates, seconds)
    setups = [Setup(name, 1, batch) for name in models for batch in batches]
    timings = speed.measure(models, step, setups, seconds=seconds, set_threads=set_threads, seed=SEED)
    parts = list(speed.parts_of(step, PLAIN_BATCH))
    outputs = {name: np.concatenate([made.score(part) for part in parts]) for name, made in models.items()}
    losses = {
        name: loss_of(outputs[REFERENCE], found, case.contract) for name, found in outputs.items() if name != REFERENCE
    }
    return Found(case, timings, losses)


# --------------------------------------------------------------------------- the page


def page(found: Sequence[Found], seconds: float) -> str:
    """All of MODELS.md."""
    return "\n".join(
        [
            "# What models cost",
            "",
            f"`python -m benchmarks.models --seconds {seconds:g}` on {machine()}.",
            "",
            "CPU seconds per million events of the model's call alone, as a worker makes it: NumPy arrays in,",
            "activation applied, one torch thread. The rest of a worker takes much the same for any model:",
            "[RESULTS.md](RESULTS.md). A figure is the median of its rounds; in each, every precision and batch size",
            "has a turn, in an order that changes. Weights and rows are random, sequences of uniform length; as in a",
            "worker, a call holds sequences of one padded length. A dash: it took too long.",
            "",
            *_costs(found),
            "",
            "## What a lower precision gains and loses",
            "",
            "Gain: CPU seconds in float32 over those in the other precision, each at its cheapest batch size. Of the",
            "CNNs int8 changes the last layer alone, so what they gain or lose in it is the scatter of this table:",
            f"trust no gain that is not well beyond it. Labels changed: of two classes, on {ROWS:,} rows; of",
            "random weights that says little, of a model of yours `pipeline model tune` says it.",
            "",
            *_losses(found),
            "",
        ]
    )


def machine() -> str:
    """Processor, cores, what else it did, PyTorch; its instructions are most of what bfloat16 and int8 can gain."""
    capability = torch.backends.cpu.get_cpu_capability()
    cores = f"{os.cpu_count()} cores with a load of {os.getloadavg()[2]:.1f}"
    return f"{platform.machine()} ({capability}), {cores}, PyTorch {torch.__version__.split('+')[0]}"


def _costs(found: Sequence[Found]) -> Iterator[str]:
    yield f"| model | precision | {' | '.join(f'{batch:,}' for batch in BATCHES)} |"
    yield "| --- | --- |" + " ---: |" * len(BATCHES)
    for one in found:
        costs = {t.setup: t.cpu_s for t in one.timings}
        for name in dict.fromkeys(setup.model for setup in costs):
            row = (costs.get(Setup(name, 1, batch)) for batch in BATCHES)
            cells = " | ".join("-" if cost is None else _figure(cost) for cost in row)
            yield f"| {one.case.name} | {name} | {cells} |"


def _figure(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.3g}"


def _losses(found: Sequence[Found]) -> Iterator[str]:
    yield "| model | precision | gain | largest difference | mean difference | labels changed |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for one in found:
        for name, loss in one.losses.items():
            changed = f"{loss.changed:.2%}".replace("%", " %")
            figures = f"{loss.largest:.1e} | {loss.mean:.1e} | {changed}"
            yield f"| {one.case.name} | {name} | {gain(one.timings, name):.2f} | {figures} |"


def gain(timings: Sequence[Timing], precision: str) -> float:
    """By what factor a precision is cheaper than float32, each at its cheapest: the best of pairs would be luck."""
    plain, lower = (min(t.cpu_s for t in timings if t.setup.model == name) for name in (REFERENCE, precision))
    return plain / lower


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all cases, print the page and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each model")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args(arguments)
    found = []
    for case in CASES:
        found.append(measured(case, options.seconds))
        print("\n".join(list(_costs(found[-1:]))[2:]), flush=True)
    text = page(found, options.seconds)
    options.out.write_text(text, "utf-8")
    print(text)


if __name__ == "__main__":
    main()
