"""Schema files, data files, bundles and command lines at the door: one line a fault, the right exit code."""

import gzip
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from torch import nn

from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.manifest import Architecture
from tests.unit.doors import refused, run, told
from tests.unit.test_cli import write_csv
from tests.unit.test_models_bundle import make, rewrite

# --------------------------------------------------------------------------- schema files


def _record(*fields: Any, **more: Any) -> str:
    named = [f if isinstance(f, dict) else {"name": f"f{i}", "type": f} for i, f in enumerate(fields)]
    return json.dumps({"type": "record", "name": "E", "fields": [{"name": "id", "type": "string"}, *named], **more})


def _nested(depth: int) -> str:
    return '{"type": "array", "items": ' * depth + '"int"' + "}" * depth


#: Content of schemas/event.avsc -> what must be said.
SCHEMAS: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "not a valid Avro schema"),
    "no JSON": ("{", "not a valid Avro schema"),
    "JSON twice": (_record() * 2, "not a valid Avro schema"),
    "no text": (b"\xff\xfe\x00", "utf-8"),
    "a byte order mark": (b"\xef\xbb\xbf" + _record().encode(), "schemas/event.avsc"),
    "null": ("null", "not a valid Avro schema"),
    "a number": ("3", "not a valid Avro schema"),
    "an empty list": ("[]", "schemas/event.avsc"),
    "a list of lists": ("[[]]", "not a valid Avro schema"),
    "a primitive": ('"string"', "record"),
    "a union": ('["null", "string"]', "record"),
    "an array": ('{"type": "array", "items": "int"}', "record"),
    "an unknown type": (_record("strnig"), "not a valid Avro schema"),
    "a type that is a number": (_record(3), "not a valid Avro schema"),
    "a type that is null": (_record(None), "not a valid Avro schema"),
    "no type": (_record({"name": "x"}), "not a valid Avro schema"),
    "no name": (_record({"type": "int"}), "not a valid Avro schema"),
    "no fields": ('{"type": "record", "name": "E"}', "schemas/event.avsc"),
    "fields that are an object": ('{"type": "record", "name": "E", "fields": {}}', "schemas/event.avsc"),
    "a field that is a text": ('{"type": "record", "name": "E", "fields": ["id"]}', "not a valid Avro schema"),
    "a field twice": (_record({"name": "id", "type": "int"}), "not a valid Avro schema"),
    "a name that is none": (_record({"name": "a-b", "type": "int"}), "not a name"),
    "a name with an escape sequence": (_record({"name": "a\x1b[31m\n", "type": "int"}), "not a name"),
    "a named type twice": (_record(*[{"type": "fixed", "name": "F", "size": 4}] * 2), "not a valid Avro schema"),
    "a symbol twice": (_record({"name": "e", "type": {"type": "enum", "name": "S", "symbols": ["A", "A"]}}), "not a"),
    "symbols that are none": (
        _record({"name": "e", "type": {"type": "enum", "name": "S", "symbols": ["a b"]}}),
        "not a",
    ),
    "a negative size": (
        _record({"name": "e", "type": {"type": "fixed", "name": "F", "size": -1}}),
        "schemas/event.avsc",
    ),
    "a union in a union": (_record(["null", ["int"]]), "not a valid Avro schema"),
    "a union of the same twice": (_record(["int", "int"]), "not a valid Avro schema"),
    "a default of another type": (_record({"name": "x", "type": "int", "default": "one"}), "default of field"),
    "a default beyond an int": (_record({"name": "x", "type": "int", "default": 2**40}), "default of field"),
    "a default that no branch takes": (_record({"name": "x", "type": ["null", "int"], "default": "x"}), "default of"),
    "a record without end": (_record({"name": "x", "type": "E"}), "schemas/event.avsc"),
    "nested 100,000 deep": ("[" * 100_000, "nested too deeply"),
    "arrays 5,000 deep": (_record(json.loads('"int"')).replace('"int"', _nested(5_000)), "nested too deeply"),
    "arrays 300 deep": (_record("int").replace('"int"', _nested(300)), "schemas/event.avsc"),
    "a number of 5,000 digits": ('{"type": "fixed", "name": "F", "size": ' + "9" * 5_000 + "}", "schemas/event.avsc"),
    "no id": (_record().replace('"id"', '"identity"'), "events.id_field"),
    "an id that is a list": (_record().replace('"string"', '{"type": "array", "items": "int"}'), "id"),
}


@pytest.mark.case("D2")
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_file(folder: Path, name: str) -> None:
    """`check` says in one line what is wrong with the event schema; `model train` and `replay` do not choke on it."""
    content, said = SCHEMAS[name]
    (folder / "schemas").mkdir()
    path = folder / "schemas" / "event.avsc"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    bundles.write(make(), folder / "models" / "champion")
    lines = refused("check", "--offline", code=1)
    assert any(said in line for line in lines), lines
    data = str(write_csv(folder / "orders.csv", 60))
    for command in (("model", "train", "--data", data, "--label", "fraud"), ("replay", data, "--wait", "0.1")):
        done = run("--set", "kafka.bootstrap_servers=127.0.0.1:1", *command)
        assert isinstance(done.exception, SystemExit | None), (command, done.exception)
        assert done.exit_code in (0, 1, 5), done.output


@pytest.mark.case("D2")
def test_a_schema_that_is_no_file(folder: Path) -> None:
    """A folder, nothing at all, 50 MB."""
    for make_it in (lambda p: None, Path.mkdir, lambda p: p.write_bytes(b" " * 50_000_000 + b"x")):
        path = folder / "schemas" / "event.avsc"
        path.parent.mkdir(exist_ok=True)
        make_it(path)
        lines = refused("check", "--offline", code=1)
        assert any("schemas/event.avsc" in line for line in lines), lines
        if path.is_dir():
            path.rmdir()


# --------------------------------------------------------------------------- data files

HEAD = b"at,amount,shop,fraud\n"
ROWS = b"".join(b"2024-01-01T%02d:00:00,%d,a,%d\n" % (n % 24, n, n % 2) for n in range(60))


def _parquet(**columns: Any) -> Callable[[Path], None]:
    return lambda path: parquet.write_table(pa.table(columns), path)


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: Path(path).write_bytes(content) and None


#: Name of the file -> how it is made. The label is `fraud`.
DATA: dict[str, Callable[[Path], Any]] = {
    "missing.csv": lambda _: None,
    "folder.csv": Path.mkdir,
    "empty.csv": _bytes(b""),
    "blank.csv": _bytes(b"\n\n\n"),
    "header.csv": _bytes(HEAD),
    "one-row.csv": _bytes(HEAD + ROWS[:30]),
    "ragged.csv": _bytes(HEAD + b"1,2\n3,4,5,6\n"),
    "too-many.csv": _bytes(HEAD + ROWS + b"1,2,3,4,5\n"),
    "same-name-twice.csv": _bytes(b"amount,amount,fraud\n" + b"1,2,0\n3,4,1\n" * 30),
    "no-name.csv": _bytes(b",,fraud\n" + b"1,2,0\n3,4,1\n" * 30),
    "no-label.csv": _bytes(b"at,amount\n1,2\n3,4\n"),
    "label-empty.csv": _bytes(HEAD + b"1,2,a,\n" * 60),
    "label-constant.csv": _bytes(HEAD + b"1,2,a,0\n" * 60),
    "label-only.csv": _bytes(b"fraud\n" + b"0\n1\n" * 30),
    "quote-open.csv": _bytes(HEAD + b'1,"2,a,0\n' * 60),
    "nul.csv": _bytes(b"\x00" * 10_000),
    "binary.csv": _bytes(bytes(range(256)) * 100),
    "latin.csv": _bytes("at,amount,shop,fraud\n1,2,sh\xf6p,0\n1,2,b,1\n".encode("latin-1")),
    "latin-head.csv": _bytes("at,amount,gr\xf6\xdfe,fraud\n1,2,3,0\n".encode("latin-1")),
    "utf16.csv": _bytes((HEAD + ROWS).decode().encode("utf-16")),
    "huge-line.csv": _bytes(HEAD + b"x" * 20_000_000),
    "ansi-\x1b[31m.csv": _bytes(b""),
    "json.csv": _bytes(b'{"at": 1, "amount": 2}\n' * 60),
    "cut.csv.gz": _bytes(gzip.compress(HEAD + ROWS)[:-20]),
    "not.csv.gz": _bytes(HEAD + ROWS),
    "pickle.parquet": _bytes(pickle.dumps({"a": 1})),
    "head.parquet": _bytes(b"PAR1"),
    "damaged.parquet": _bytes(b"PAR1" + b"\x00" * 1_000 + b"PAR1"),
    "csv.parquet": _bytes(HEAD + ROWS),
    "parquet-empty.csv": _parquet(amount=pa.array([], pa.float64()), fraud=pa.array([], pa.int64())),
    "lists.parquet": _parquet(amount=[[1.0]] * 60, fraud=[0, 1] * 30),
    "label-list.parquet": _parquet(amount=[1.0] * 60, fraud=[[0], [1]] * 30),
    "nulls.parquet": _parquet(amount=pa.nulls(60), fraud=[0, 1] * 30),
    "infinite.parquet": _parquet(amount=[float("inf"), float("nan")] * 30, fraud=[0, 1] * 30),
}


@pytest.mark.case("D5")
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("command", ["init", "train"])
def test_a_data_file(folder: Path, name: str, command: str) -> None:
    """Of no use for a model: lines that name the file, exit code 1, and nothing is left behind."""
    DATA[name](folder / name)
    given = {"init": ("init", "shop"), "train": ("model", "train", "--out", "shop")}[command]
    lines = refused(*given, "--data", name, "--label", "fraud", code=1)
    shown = name.replace("\x1b", "\\x1b")
    assert all(line.startswith(f"error: {shown}: ") for line in lines), lines
    assert not [p for p in folder.rglob("*") if p.name != name and not p.name.startswith("schemas")]


@pytest.mark.case("D5")
@pytest.mark.parametrize("name", [n for n in DATA if not n.startswith(("label-", "no-label", "one-row", "lists"))])
def test_a_data_file_to_replay(folder: Path, name: str) -> None:
    """Of no use as events."""
    DATA[name](folder / name)
    fields = [("id", "string"), ("amount", "double"), ("shop", "string")]
    (folder / "schemas").mkdir()
    schema = {"type": "record", "name": "E", "fields": [{"name": n, "type": t} for n, t in fields]}
    (folder / "schemas" / "event.avsc").write_text(json.dumps(schema), "utf-8")
    lines = refused("replay", name, "--wait", "0.1", code=1)
    assert all(line.startswith("error: ") and name.replace("\x1b", "\\x1b") in line for line in lines), lines


# --------------------------------------------------------------------------- command lines

#: Arguments -> what the usage error must name.
USAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "an unknown command": (("srat",), "No such command"),
    "an unknown flag": (("status", "--wacht"), "--wacht"),
    "an unknown flag before": (("--cofnig", "x", "status"), "--cofnig"),
    "a flag without its value": (("--config",), "--config"),
    "an argument too many": (("status", "now"), "now"),
    "a role that is none": (("run", "wroker"), "worker"),
    "no workers": (("run", "worker", "--workers", "0"), "--workers"),
    "workers that are words": (("run", "worker", "--workers", "two"), "--workers"),
    "a negative slot": (("run", "worker", "--slot", "-1"), "--slot"),
    "no rows": (("tail", "events", "--max", "0"), "--max"),
    "negative rows": (("dead-letters", "list", "--max", "-1"), "--max"),
    "nothing to redrive": (("dead-letters", "redrive", "--max", "0"), "--max"),
    "a reason that is none": (("dead-letters", "redrive", "--reason", "bad luck"), "null_feature"),
    "a negative partition": (("tail", "events", "--partition", "-1"), "--partition"),
    "an offset that is a word": (("tail", "events", "--offset", "last"), "--offset"),
    "a filter without value": (("tail", "events", "--filter", "=x"), "FIELD=VALUE"),
    "a negative rate": (("replay", "x.csv", "--rate", "-5"), "--rate"),
    "a speed of zero": (("replay", "x.csv", "--speed", "0"), "--speed"),
    "rows before the first": (("replay", "x.csv", "--from", "-1"), "--from"),
    "a seed below zero": (("model", "train", "--data", "x.csv", "--label", "y", "--seed", "-1"), "--seed"),
    "a task that is none": (("model", "train", "--data", "x.csv", "--label", "y", "--task", "guess"), "--task"),
    "a port beyond": (("broker", "--port", "70000"), "--port"),
    "a setting without value": (("--set", "name", "check"), "KEY=VALUE"),
    "no label": (("init", "x", "--data", "x.csv"), "--label"),
}


@pytest.mark.case("D4")
@pytest.mark.parametrize("name", USAGES)
def test_a_command_line(folder: Path, name: str) -> None:
    """Exit code 2, and the message names the flag or says what would be right."""
    arguments, said = USAGES[name]
    assert said in told(*arguments)
    assert list(folder.iterdir()) == []


#: Arguments that only the settings can refuse -> what must be said.
ASSIGNMENTS: dict[str, tuple[str, str]] = {
    "unknown": ("nmae=x", "nmae: no such setting"),
    "no number": ("scoring.batch_max=many", "scoring.batch_max"),
    "a value for a section": ("kafka=x", "kafka"),
    "below a value": ("name.x=y", "name"),
    "an empty part": ("kafka..x=y", "kafka"),
    "a secret": ("kafka.options.sasl_password=geheim", "a secret"),
    "the root": ("root=/", "root: no such setting"),
    "an escape sequence": ("name=\x1b[31m", "name"),
}


@pytest.mark.case("D4")
@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_a_setting_on_the_command_line(folder: Path, name: str) -> None:
    """Exit code 2 in one line that says where the value came from."""
    assignment, said = ASSIGNMENTS[name]
    lines = refused("--set", assignment, "check", "--offline", code=2)
    assert any(line.startswith("error: command line: ") and said in line for line in lines), lines
    assert "geheim" not in "".join(lines)


# --------------------------------------------------------------------------- bundles


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pickled-code-ran",)


@pytest.mark.case("D3")
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".zip", ".tar", ".bundle", ""])
def test_pickled_code_never_runs(folder: Path, suffix: str) -> None:
    """As a file of any name, in an archive, as the weights of a folder: no command reads it."""
    path = folder / f"model{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("manifest.json", pickle.dumps(Bomb()))
            archive.writestr("weights.safetensors", pickle.dumps(Bomb()))
    elif suffix == "":
        bundles.write(make(), path)
        (path / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    for command in (("model", "verify", path.name), ("model", "show", path.name)):
        (line,) = refused(*command, code=1)
        assert line.startswith(f"error: {path.name}: ")
    refused("--set", f"model.bundle={path.name}", "check", "--offline", code=1)
    assert not (folder / "pickled-code-ran").exists()


#: What a careful hand has changed in a manifest, its digest included -> what must be said.
MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another module": (lambda c: c["architecture"].update(module="os:system"), "torch.nn.Module"),
    "a function of torch": (lambda c: c["architecture"].update(module="torch.nn.functional:relu"), "torch.nn.Module"),
    "a class that is not there": (lambda c: c["architecture"].update(module="torch.nn:Nothing"), "has no Nothing"),
    "arguments it does not take": (lambda c: c["architecture"].update(arguments={"x": 1}), "cannot be made with"),
    "arguments of another size": (lambda c: c["architecture"]["arguments"].update(out_features=7), "do not fit"),
    "a layer of 10^15": (lambda c: c["architecture"]["arguments"].update(out_features=10**15), "cannot be made"),
}


@pytest.mark.case("D3")
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_says_something_else(folder: Path, name: str) -> None:
    """`verify` makes the model, and says what does not fit."""
    change, said = MANIFESTS[name]
    linear = make(
        architecture=Architecture(module="torch.nn:Linear", arguments={"in_features": 2, "out_features": 1}),
        weights=loading.weights_of(nn.Linear(2, 1)),
    )
    path = rewrite(linear, change, folder / "model")
    (line,) = refused("model", "verify", str(path), code=1)
    assert said in line, line
