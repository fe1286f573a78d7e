"""`pipeline model`: what a person types and what comes back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from pipeline.cli import make_app
from pipeline.models import bundle as bundles
from pipeline.retraining import tables

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self, columns: int, outputs: int = 1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(columns, outputs)

    def forward(self, inputs):
        return self.layer(inputs["numbers"])
"""
CONTRACT = {
    "features": [{"name": "amount", "kind": "number"}],
    "output": {"kind": "classification", "width": 1, "classes": ["0", "1"], "activation": "sigmoid"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with orders.csv, whose fraud follows from amount."""
    monkeypatch.chdir(tmp_path)
    lines = [f"2024-01-{1 + n // 24:02}T{n % 24:02}:00:00,{n * 37 % 101},{'ab'[n % 2]},{n * 37 % 101 // 60}"
             for n in range(400)]  # fmt: skip
    (tmp_path / "orders.csv").write_text("\n".join(["at,amount,the shop,fraud", *lines]) + "\n", "utf-8")
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(make_app(), ["model", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def train(*arguments: str, **options: Any) -> Result:
    return run("train", "--data", "orders.csv", *arguments, **options)


def refused(*arguments: str) -> list[str]:
    return run(*arguments, code=1).stderr.splitlines()


# --------------------------------------------------------------------------- train


def test_train_packs_and_measures(folder: Path) -> None:
    """Metrics, path and version on standard output; what to do next beside it."""
    result = train("--label", "fraud", "--time", "at", "--drop", "the shop", "--id", "orders", "--out", "m.zip")
    assert "accuracy_of_no_change" in result.stdout
    found = bundles.read(folder / "m.zip")
    assert f"m.zip: orders {found.model_version}" in result.stdout
    assert 'model.bundle = "m.zip"' in result.stderr
    assert [f.name for f in found.contract.features] == ["amount"]


def test_train_in_a_project_fits_its_events(folder: Path) -> None:
    """Features are the fields of the event schema, the label that of the settings: no further flag is needed."""
    made = CliRunner().invoke(
        make_app(), ["init", "p", "--data", "orders.csv", "--label", "fraud", "--time", "at", "--key", "the shop"]
    )
    assert made.exit_code == 0, made.output
    arguments = ["--config", "p/pipeline.toml", "model", "train", "--data", "orders.csv", "--out", "p/models/next"]
    trained = CliRunner().invoke(make_app(), arguments)
    assert trained.exit_code == 0, trained.output
    verified = CliRunner().invoke(make_app(), ["--config", "p/pipeline.toml", "model", "verify", "p/models/next"])
    assert "is whole, loads and runs; fits p/schemas/event.avsc" in verified.stdout
    first, second = (bundles.read(folder / "p" / "models" / name) for name in ("champion", "next"))
    assert [f.name for f in second.contract.features] == ["amount"]
    assert first.model_version == second.model_version


def test_train_watches_the_slices_of_the_settings(folder: Path) -> None:
    """Fields that are no features as well; the bundle, `model show` and an evaluation have their signals."""
    init = ["init", "p", "--data", "orders.csv", "--label", "fraud", "--time", "at", "--key", "the shop"]
    assert CliRunner().invoke(make_app(), init).exit_code == 0
    settings = folder / "p" / "pipeline.toml"
    text = settings.read_text("utf-8").replace("[events]", '[events]\nslice_fields = ["the_shop", "gone", "amount"]')
    settings.write_text(text, "utf-8")

    def told(*arguments: str) -> str:
        result = CliRunner().invoke(make_app(), ["--config", "p/pipeline.toml", *arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    told("model", "train", "--data", "orders.csv", "--out", "p/models/next")
    watched = {s.name: s for s in bundles.read(folder / "p" / "models" / "next").baseline.signals}
    assert watched["slice:the_shop=a"].mean == 0.5
    assert watched["score:1@the_shop=b"].count == 40
    shown = " ".join(told("model", "show", "p/models/next").split())
    assert "score:1@the_shop=b" in shown
    evaluated = json.loads(
        told("evaluate", "--data", "orders.csv", "--bundle", "p/models/next", "--slice", "fraud", "--json")
    )
    counts = {s["signal"]: s["count"] for s in evaluated["drift"]["signals"]}
    assert (counts["slice:the_shop=a"], counts["score:1@the_shop=a"]) == (400, 200)


def test_pack_watches_the_slices_that_the_data_has(folder: Path, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no column, or makes no slices, is left out: a worker will say what is wrong with it."""
    monkeypatch.setenv("PIPELINE__EVENTS__SLICE_FIELDS", "fraud,gone")
    pack(net, "--data", "orders.csv")
    names = [s.name for s in bundles.read(folder / "models" / "candidate").baseline.signals]
    parts = [name for name in names if "fraud" in name]
    assert parts == ["slice:fraud=0", "score:1@fraud=0", "slice:fraud=1", "score:1@fraud=1"]


def test_train_says_what_of_a_schema_it_cannot_use(folder: Path) -> None:
    """Fields of other types, and fields the file lacks, are named and left out; without any left it ends."""
    fields = [
        {"name": "id", "type": "string"},
        {"name": "fraud", "type": "int"},
        {"name": "the_shop", "type": ["null", {"type": "enum", "name": "Shop", "symbols": ["a", "b"]}]},
        {"name": "image", "type": "bytes"},
        {"name": "when", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "gone", "type": "double"},
    ]
    (folder / "schemas").mkdir()
    schema = folder / "schemas" / "event.avsc"
    schema.write_text(json.dumps({"type": "record", "name": "E", "fields": fields}), "utf-8")
    result = train("--label", "fraud")
    for said in ("left out: image, bytes", "left out: when, timestamp-millis", "left out: gone: the file has no such"):
        assert said in result.stderr
    assert [f.name for f in bundles.read(folder / "models" / "candidate").contract.features] == ["the_shop"]
    schema.write_text(json.dumps({"type": "record", "name": "E", "fields": fields[:1]}), "utf-8")
    assert "no column is a feature of" in train("--label", "fraud", "--force", code=1).stderr
    schema.write_text("{", "utf-8")
    assert "schemas/event.avsc: not a valid Avro schema" in train("--label", "fraud", "--force", code=1).stderr


def test_train_refuses_before_it_works(folder: Path) -> None:
    """A taken path, an unknown column, no label, no file: one line each, and nothing is changed."""
    train("--label", "fraud")
    before = bundles.read(folder / "models" / "candidate")
    assert "is there already" in train("--label", "fraud", "--seed", "1", code=1).stderr
    assert bundles.read(folder / "models" / "candidate") == before
    train("--label", "fraud", "--seed", "1", "--force")
    assert bundles.read(folder / "models" / "candidate") != before
    assert (
        "orders.csv: --label frod: no such column; did you mean 'fraud'?"
        in train("--label", "frod", "--out", "x", code=1).stderr
    )
    assert "events.label_field is not set" in train("--out", "x", code=2).output
    assert refused("train", "--data", "gone.csv", "--label", "y", "--out", "x") == [
        "error: gone.csv: cannot be read: No such file or directory"
    ]


# --------------------------------------------------------------------------- pack


@pytest.fixture
def net(folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of a user's own, importable under a name no other test uses; its weights and contract as files."""
    name = f"net_{abs(hash(request.node.name))}"
    (folder / f"{name}.py").write_text(NET, "utf-8")
    monkeypatch.syspath_prepend(folder)
    weights = {"layer.weight": torch.tensor([[0.5]]), "layer.bias": torch.tensor([-29.75])}
    save_file(weights, folder / "net.safetensors")
    (folder / "contract.json").write_text(json.dumps(CONTRACT), "utf-8")
    return f"{name}:Net"


def pack(net: str, *arguments: str, code: int = 0) -> Result:
    files = ("--weights", "net.safetensors", "--contract", "contract.json", "--arguments", '{"columns": 1}')
    return run("pack", net, *files, *arguments, code=code)


def test_pack_takes_a_module_of_ones_own(folder: Path, net: str) -> None:
    """Class, arguments, weights, contract become a bundle; without data drift is not watched."""
    result = pack(net, "--out", "own.tar.gz", "--id", "own", "--version", "3", "--require", "numpy >= 2")
    assert "own.tar.gz: own 3" in result.stdout
    found = bundles.read(folder / "own.tar.gz")
    assert found.architecture.module == net
    assert found.manifest.requires["numpy"] == ">=2"
    assert found.baseline.signals == ()
    assert "whole, loads and runs" in run("verify", "own.tar.gz").stdout
    assert "not watched: packed without data" in run("show", "own.tar.gz").stdout


def test_pack_measures_on_rows_it_is_given(folder: Path, net: str) -> None:
    """Baseline, fingerprint and metrics; a Parquet file's types are taken as they are."""
    parquet.write_table(tables.read(folder / "orders.csv"), folder / "orders.parquet")
    for data in ("orders.csv", "orders.parquet"):
        result = pack(net, "--data", data, "--label", "fraud", "--force")
        assert "measured on 400 rows" in result.stdout
        found = bundles.read(folder / "models" / "candidate")
        assert found.training.metrics["accuracy"] == 1.0  # sigmoid(0.5 amount - 29.75) is 0.5 between 59 and 60
        assert found.training.rows_validation == 400
        assert found.training.data_sha256
        assert {s.name for s in found.baseline.signals} >= {"feature:amount", "score:1", "class:1", "rejected"}
    pack(net, "--data", "orders.csv", "--force")
    unlabelled = bundles.read(folder / "models" / "candidate")
    assert unlabelled.training.metrics == {}
    assert unlabelled.baseline.signals


def test_pack_measures_sequences_and_regressions(folder: Path) -> None:
    """Rows of several shapes are scored each in its own; a number is measured as one."""
    import pyarrow as pa

    from pipeline.models import loading
    from pipeline.models.architectures import SequenceGRU

    parquet.write_table(
        pa.table({"s": [[0.5] * (1 + i % 9) for i in range(90)], "y": [float(i % 9) for i in range(90)]}), "s.parquet"
    )
    (folder / "net.safetensors").write_bytes(loading.weights_of(SequenceGRU("s")))
    contract = {
        "features": [{"name": "s", "kind": "sequence", "shape": [9]}],
        "output": {"kind": "regression", "width": 1},
    }
    (folder / "contract.json").write_text(json.dumps(contract), "utf-8")
    run(
        "pack", "pipeline.models.architectures:SequenceGRU", "--arguments", '{"feature": "s"}',
        "--weights", "net.safetensors", "--contract", "contract.json", "--data", "s.parquet", "--label", "y",
    )  # fmt: skip
    found = bundles.read(folder / "models" / "candidate")
    assert found.training.rows_validation == 90
    assert found.training.metrics["mae"] > 0
    assert "up to 9" in run("show", "models/candidate").stdout


def test_pack_tells_what_does_not_fit(folder: Path, net: str) -> None:
    """Wrong arguments, weights, contracts, files and data: one line each that names it."""
    assert "cannot be made with {'columns': 'x'}" in pack(net, "--arguments", '{"columns": "x"}', code=1).stderr
    wrong = pack(net, "--arguments", '{"columns": 2}', code=1).stderr
    assert "layer.weight is float32 (1, 1), but the module has float32 (1, 2)" in wrong
    assert "not JSON" in pack(net, "--arguments", "{", code=2).output
    assert "not a JSON object" in pack(net, "--arguments", "[]", code=2).output
    assert "not of the form" in pack(net, "--require", "numpy", code=2).output
    assert "is not package.module:Class" in pack("Net", code=2).output
    assert "there is no module gone" in pack("gone:Net", code=1).stderr
    assert "no column 'x'" in pack(net, "--data", "orders.csv", "--label", "x", code=1).stderr
    assert (
        "no row has one of the model's classes"
        in pack(net, "--data", "orders.csv", "--label", "the shop", code=1).stderr
    )
    (folder / "net.safetensors").write_bytes(b"\x80\x04pickle")
    assert "signed bundles" in pack(net, code=1).stderr
    for content, expected in (
        ("{", "contract.json: "),
        (json.dumps({**CONTRACT, "features": []}), "contract.json: the contract has no features"),
        (json.dumps({**CONTRACT, "output": {"kind": "regression", "width": 1, "classes": ["a"]}}), "has no classes"),
    ):
        (folder / "contract.json").write_text(content, "utf-8")
        assert expected in pack(net, code=1).stderr
    (folder / "contract.json").unlink()
    assert "contract.json: cannot be read" in pack(net, code=1).stderr
    assert not (folder / "models").exists()


# --------------------------------------------------------------------------- verify, show


def test_verify_loads_and_runs_the_model(folder: Path) -> None:
    """A bundle whose digests are right but whose module returns something else is refused, by its path."""
    train("--label", "fraud")
    assert "no event schema here" in run("verify", "models/candidate").stdout
    (folder / "schemas").mkdir()
    text = {"type": "record", "name": "E", "fields": [{"name": "amount", "type": "string"}]}
    (folder / "schemas" / "event.avsc").write_text(json.dumps(text), "utf-8")
    lines = refused("verify", "models/candidate")
    assert len(lines) == 2
    assert all(line.startswith("error: models/candidate: does not fit schemas/event.avsc: ") for line in lines)
    assert refused("verify", "gone") == ["error: gone: no such file or folder"]
    assert refused("verify") == ["error: models/champion: no such file or folder"]
    good = bundles.read(folder / "models" / "candidate")
    bad = bundles.make(
        model_id="m", architecture=good.architecture, contract=good.contract, weights=_renamed(good.weights)
    )
    bundles.write(bad, folder / "bad")
    assert "bad: weights.safetensors do not fit" in refused("verify", "bad")[0]


def _renamed(weights: bytes) -> bytes:
    return weights.replace(b"layers.0.bias", b"layers.9.bias")


def test_show_is_for_people_and_for_programs(folder: Path) -> None:
    """A table of what it is; with --json the whole manifest as one line."""
    train("--label", "fraud", "--time", "at")
    shown = run("show", "models/candidate").stdout
    for part in ("TabularMLP", "classification of 0, 1", "the_shop", "2 categories", "null is refused", "SHA-256"):
        assert part in shown
    lines = run("show", "models/candidate", "--json").stdout.splitlines()
    assert len(lines) == 1
    manifest = json.loads(lines[0])
    assert manifest["contract"]["output"]["classes"] == ["0", "1"]
    assert manifest["model_version"] == bundles.read(folder / "models" / "candidate").model_version
    (folder / "models" / "candidate").rename(folder / "models" / "champion")
    assert run("show", "--json").stdout.splitlines() == lines
