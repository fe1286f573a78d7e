"""Train OrderNet on the earlier 80 % of orders.csv, measure it on the rest, and save what a bundle is packed from.

    python examples/orders.py > orders.csv
    pip install -e examples/own_model
    python examples/own_model/train.py orders.csv build

`build` then holds weights.safetensors, arguments.json, contract.json, and held_out.csv: the rows that the model has
not seen. README.md says how to pack them.
"""

import csv
import json
import math
import sys
from pathlib import Path

import torch
from own_model import OrderNet
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

NUMBERS = ("amount", "items", "account_age_days")
CATEGORIES = ("country", "card_present")
LABEL = "fraud"
TRAIN_SHARE = 0.8
EPOCHS = 15


def main(data: Path, out: Path) -> None:
    """Read, train, measure, save."""
    with data.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    cut = int(TRAIN_SHARE * len(rows))
    # Only what the training rows hold is known: a later category is "unknown", index 0.
    vocabularies = [sorted({row[name] for row in rows[:cut]}) for name in CATEGORIES]
    inputs, labels = tensors(rows, vocabularies)
    torch.manual_seed(7)
    arguments = {"numbers": len(NUMBERS), "categories": [len(v) for v in vocabularies]}
    model = OrderNet(**arguments)
    fit(model, {k: v[:cut] for k, v in inputs.items()}, labels[:cut])
    model.eval()
    with torch.inference_mode():
        logits = model({k: v[cut:] for k, v in inputs.items()})
    print(measure(logits, labels[cut:], base_rate=float(labels[:cut].mean())))

    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "weights.safetensors")
    (out / "arguments.json").write_text(json.dumps(arguments), "utf-8")
    (out / "contract.json").write_text(json.dumps(contract(vocabularies), indent=2), "utf-8")
    with (out / "held_out.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows[cut:])


def tensors(rows: list[dict[str, str]], vocabularies: list[list[str]]) -> tuple[dict[str, Tensor], Tensor]:
    """The mapping that the module takes, and labels float32 (n, 1)."""
    places = [{value: place + 1 for place, value in enumerate(v)} for v in vocabularies]
    inputs = {
        "numbers": torch.tensor([[float(row[name]) for name in NUMBERS] for row in rows]),
        "categories": torch.tensor(
            [[place.get(row[name], 0) for name, place in zip(CATEGORIES, places, strict=True)] for row in rows]
        ),
    }
    return inputs, torch.tensor([[float(row[LABEL])] for row in rows])


def fit(model: OrderNet, inputs: dict[str, Tensor], labels: Tensor) -> None:
    """Fit the scaling, then the weights."""
    numbers = inputs["numbers"]
    model.mean.copy_(numbers.mean(dim=0))
    model.scale.copy_(numbers.std(dim=0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(EPOCHS):
        for part in torch.randperm(len(labels)).split(256):
            loss = binary_cross_entropy_with_logits(model({k: v[part] for k, v in inputs.items()}), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def measure(logits: Tensor, labels: Tensor, base_rate: float) -> str:
    """Log loss on rows the model has not seen, beside that of always saying `base_rate`."""
    loss = binary_cross_entropy_with_logits(logits, labels)
    constant = torch.full_like(logits, math.log(base_rate / (1 - base_rate)))
    return f"log loss {loss:.4f}; of a constant {binary_cross_entropy_with_logits(constant, labels):.4f}"


def contract(vocabularies: list[list[str]]) -> dict[str, object]:
    """What the pipeline must know: features in the order of the tensors' columns, and what comes out."""
    numbers = [{"name": name, "kind": "number"} for name in NUMBERS]
    categories = [
        {"name": name, "kind": "category", "vocabulary": vocabulary}
        for name, vocabulary in zip(CATEGORIES, vocabularies, strict=True)
    ]
    output = {"kind": "classification", "width": 1, "classes": ["0", "1"], "activation": "sigmoid"}
    return {"features": [*numbers, *categories], "output": output}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
