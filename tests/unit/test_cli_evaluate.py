"""`pipeline evaluate`: the numbers are those of the model, the page holds them all, and nothing in it can be run."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv, parquet
from typer.testing import CliRunner, Result

from pipeline import codec, measures
from pipeline.cli import evaluate_drift, evaluate_plots, evaluate_source, make_app
from pipeline.cli.evaluate_report import figure, page, title
from pipeline.cli.evaluate_scoring import Scorer
from pipeline.cli.evaluate_source import Bound, _with_label
from pipeline.drift import measure_baseline, signal_names
from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.manifest import Architecture
from pipeline.records import Feature, FeatureContract, OutputContract
from pipeline.scoring.flow import Flow, FlowSettings
from pipeline.scoring.lane import Lane
from pipeline.scoring.publish import Publisher
from pipeline.scoring.serving import Served
from pipeline.scoring.validate import Validator
from pipeline.settings import Settings, load
from pipeline.testing import RecordingObserver, RecordingSink, ScriptedModel, ScriptedSource, record_batch

ROWS = 1_200
START_MS = 1_704_067_200_000
EVIL = '<script>alert("1")</script>'

FIELDS = [
    {"name": "id", "type": "string"},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    {"name": "amount", "type": ["null", "double"], "default": None},
    {"name": "shop", "type": ["null", "string"], "default": None},
]
SETTINGS = """
name = "orders"
[events]
schema_file = "event.avsc"
id_field = "id"
time_field = "at"
label_field = "fraud"
[model]
bundle = "model"
"""


def contract(*classes: str) -> FeatureContract:
    """Amount within 0 to 90, and shop; null amounts are refused."""
    amount = Feature("amount", "number", range=(0.0, 90.0))
    shop = Feature("shop", "category", vocabulary=("a", "b"), on_null="impute", impute="a")
    if not classes:
        return FeatureContract((amount, shop), OutputContract("regression", 1))
    wide = len(classes) if len(classes) > 2 else 1
    activation: Any = "softmax" if wide > 1 else "sigmoid"
    return FeatureContract((amount, shop), OutputContract("classification", wide, classes, activation))


def make_bundle(path: Path, of: FeatureContract, *, watched: bool = True) -> bundles.Bundle:
    """A model with random weights, always the same; its baseline says that amounts are evenly from 0 to 90."""
    arguments = {"numbers": 1, "categories": [2], "hidden": [8], "outputs": of.output.width}
    architecture = Architecture(module="pipeline.models.architectures:TabularMLP", arguments=arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = loading.build(architecture)
    module.standardise.set(torch.tensor([45.0]), torch.tensor([26.0]))  # type: ignore[operator, union-attr]
    signals = signal_names(of)
    matrix = np.zeros((2_000, len(signals)), np.float32)
    matrix[:, 0] = np.random.default_rng(1).uniform(0, 90, len(matrix))
    baseline = measure_baseline(signals, matrix) if watched else bundles.NO_BASELINE
    made = bundles.make(
        model_id="orders",
        architecture=architecture,
        contract=of,
        weights=loading.weights_of(module),
        baseline=baseline,
    )
    bundles.write(made, path, overwrite=True)
    return made


def orders(classes: tuple[Any, ...] = (0, 1), rows: int = ROWS) -> pa.Table:
    """Orders in order of time; the label leans on the amount."""
    random = np.random.default_rng(3)
    amount = random.uniform(0, 90, rows)
    place = np.clip((amount + random.normal(0, 30, rows)) / 90 * len(classes), 0, len(classes) - 1).astype(int)
    return pa.table(
        {
            "id": [f"o{n}" for n in range(rows)],
            "at": pa.array(START_MS + 60_000 * np.arange(rows), pa.timestamp("ms")),
            "amount": amount,
            "shop": random.choice(["a", "b", "other"], rows),
            "region": random.choice(["north", EVIL], rows),
            "fraud": [classes[p] for p in place],
        }
    )


class Project:
    """A project with a model; `evaluate` returns what is in evaluation.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "pipeline.toml").write_text(SETTINGS, "utf-8")
        schema = {"type": "record", "name": "Order", "fields": FIELDS}
        (folder / "event.avsc").write_text(json.dumps(schema), "utf-8")
        self.bundle = make_bundle(folder / "model", contract("0", "1"))
        self.write(orders())

    def write(self, table: pa.Table) -> pa.Table:
        csv.write_csv(table, self.folder / "orders.csv")
        return table

    def run(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(make_app(), ["evaluate", *arguments])
        assert result.exit_code == code, (result.output, result.exception)
        assert "Traceback" not in result.output
        return result

    def evaluate(self, *arguments: str, data: str = "orders.csv") -> dict[str, Any]:
        self.run("--data", data, *arguments)
        found: dict[str, Any] = json.loads((self.folder / "evaluation" / "evaluation.json").read_text("utf-8"))
        return found

    def page(self) -> str:
        return (self.folder / "evaluation" / "evaluation.html").read_text("utf-8")


@pytest.fixture
def project(folder: Path) -> Project:
    return Project(folder)


# --------------------------------------------------------------------------- the numbers


def test_numbers_are_those_of_torch_and_measures(project: Project) -> None:
    """The model's module applied by hand to the rows, measured by hand, gives every number of the report."""
    table = orders()
    amount = table["amount"].to_numpy().astype(np.float32)[:, None]
    shop = np.array([{"a": 1, "b": 2}.get(s, 0) for s in table["shop"].to_pylist()])[:, None]
    module = loading.load_module(project.bundle)
    with torch.inference_mode():
        inputs = {"numbers": torch.from_numpy(amount), "categories": torch.from_numpy(shop)}
        outputs = module(inputs).sigmoid().numpy().astype(np.float64)
    scored = measures.Scored(
        outputs,
        np.array(table["fraud"].to_pylist()),
        START_MS + 60_000 * np.arange(ROWS),
        {"region": np.array(table["region"].to_pylist())},
    )
    expected = measures.measure(scored, project.bundle.contract.output)
    found = project.evaluate("--slice", "region", "--window-rows", "500")
    for part in ("metrics", "confusion", "reliability", "slices", "gaps"):
        assert found[part] == close(expected[part]), part
    assert found["windows"] == close(measures.windows(scored, project.bundle.contract.output, 500))
    assert [w["rows"] for w in found["windows"]] == [500, 500, 200]
    assert found["metrics"]["roc_auc"] != 0.5


def close(value: Any) -> Any:
    """`value` to compare with, its numbers to six digits: float32 sums depend on the size of a batch."""
    if isinstance(value, dict):
        return {key: close(inside) for key, inside in value.items()}
    if isinstance(value, list):
        return [close(inside) for inside in value]
    return pytest.approx(value, rel=1e-6, abs=1e-6) if isinstance(value, float) else value


def test_csv_and_parquet_agree(project: Project) -> None:
    """A table is the same in either form, also where its texts are a dictionary."""
    table = orders()
    coded = table.set_column(3, "shop", table["shop"].dictionary_encode())
    parquet.write_table(coded, project.folder / "orders.parquet", row_group_size=100)
    of_csv, of_parquet = (project.evaluate("--slice", "shop", data=f"orders.{end}") for end in ("csv", "parquet"))
    for report in (of_csv, of_parquet):
        assert report.pop("data")["rows_of_file"] == ROWS
        report.pop("made_at")
    assert of_csv == of_parquet


def test_rows_are_measured_in_order_of_time(project: Project) -> None:
    """However a file is ordered, the timeline and what repeats the last truth are those of the times."""
    first = project.evaluate()
    project.write(orders().take(np.random.default_rng(5).permutation(ROWS)))
    second = project.evaluate()
    for part in ("metrics", "windows", "drift"):
        assert second[part] == close(first[part]), part


def test_without_times_rows_are_in_order_of_the_file(project: Project) -> None:
    """Windows then say which rows they hold."""
    project.write(orders().drop_columns(["at"]))
    found = project.evaluate("--from", "100", "--window-rows", "600")
    assert [(w["first_row"], w["last_row"]) for w in found["windows"]] == [(100, 699), (700, ROWS - 1)]
    assert found["data"]["ordered_by"] == "row"
    assert "first_time_ms" not in found["windows"][0]
    assert "row of the file" in project.page()


def test_what_cannot_be_scored_or_measured_is_counted(project: Project) -> None:
    """By reason, as a worker would reject it; without a truth, of an unknown class: nothing is left out in silence."""
    table = orders().to_pydict()
    table["shop"] = ["a"] * ROWS
    table["amount"][:5] = [None] * 5
    table["amount"][5:8] = [91.0, -1.0, 1e30]
    table["fraud"][8:18] = [None] * 10
    table["fraud"][18:20] = [2, 2]
    table["shop"][20:23] = [None] * 3
    project.write(pa.table(table))
    result = project.run("--data", "orders.csv")
    found = json.loads((project.folder / "evaluation" / "evaluation.json").read_text("utf-8"))
    assert found["rows"] == {
        "read": ROWS,
        "rejected": {"null_feature": 5, "out_of_range": 3},
        "scored": ROWS - 8,
        "unlabelled": 10,
        "unknown_labels": 2,
        "measured": ROWS - 18,
        "imputed": {"shop:null": 3},
    }
    for said in (r"rejected: null_feature\W+5", r"rejected: out_of_range\W+3", r"without fraud\W+10"):
        assert re.search(said, result.stdout), said
    assert found["examples"]["null_feature"].startswith("feature amount")
    for said in ("rejected: null_feature", "of classes the model does not know"):
        assert said in project.page()


@pytest.mark.parametrize(
    ("classes", "has"),
    [(("x", "y", "z"), {"accuracy", "macro_f1", "roc_auc", "ece"}), ((), {"mae", "rmse", "r2", "quantile_loss"})],
    ids=["three classes", "regression"],
)
def test_other_models(project: Project, classes: tuple[str, ...], has: set[str]) -> None:
    """More than two classes, and numbers, are measured and drawn, too."""
    make_bundle(project.folder / "model", contract(*classes))
    project.write(orders(classes or (0.5, 1.25, 7.0)))
    found = project.evaluate("--slice", "region", "--quantile", "0.5")
    assert has <= set(found["metrics"])
    assert len(found["confusion"]) == len(classes)
    assert found["gaps"]
    assert_holds_all(project.page(), found)


def test_a_range_of_a_file(project: Project) -> None:
    """Rows by number, or by time; no more than --rows-max."""
    by_row = project.evaluate("--from", "300", "--to", "500")
    by_time = project.evaluate("--from", "2024-01-01T05:00", "--to", "2024-01-01T08:20Z")
    assert by_row["rows"]["read"] == by_time["rows"]["read"] == 200
    assert by_row["metrics"] == close(by_time["metrics"])
    assert by_row["data"]["first_time_ms"] == START_MS + 300 * 60_000
    assert project.evaluate("--from", "1100", "--rows-max", "50")["rows"]["read"] == 50


def test_slices_of_numbers(project: Project) -> None:
    """Few numbers are classes of their own, many are taken by quarters; null has its own."""
    table = orders()
    few = pa.array([None if n % 5 == 0 else float(n % 5) / 10 for n in range(ROWS)])
    project.write(table.append_column("few", few))
    slices = project.evaluate("--slice", "few", "--slice", "amount")["slices"]
    assert set(slices["few"]) == {"", "0.1", "0.2", "0.3", "0.4"}
    assert [found["rows"] for found in slices["amount"].values()] == [ROWS / 4] * 4


def test_settings_name_the_slices(project: Project) -> None:
    """What travels with predictions is what an evaluation tells apart, unless told otherwise."""
    (project.folder / "pipeline.toml").write_text(
        SETTINGS.replace("[model]", 'slice_fields = ["shop"]\n[model]'), "utf-8"
    )
    assert set(project.evaluate()["slices"]) == {"shop"}
    assert set(project.evaluate("--slice", "region")["slices"]) == {"region"}


# --------------------------------------------------------------------------- the same as a worker


async def test_scores_and_rejects_what_a_worker_does(folder: Path) -> None:
    """The hot path and the evaluation agree on every output and every reason, over broken bytes of all kinds."""
    of = FeatureContract(contract("0", "1").features[:1], OutputContract("classification", 2, ("no", "yes")))
    schema = json.dumps({"type": "record", "name": "Order", "fields": FIELDS})
    registry = codec.FileRegistry(folder / "registry")
    schema_id = registry.register("events-value", schema)
    rows = codec.RowCodec(registry)
    amounts = [0.25, None, 100.0, 0.5, 0.125, float("nan"), 0.75, 3.5]
    values: list[bytes | None] = [
        rows.encode(schema_id, schema, {"id": str(n), "at": START_MS + n, "amount": amount, "shop": "a"})
        for n, amount in enumerate(amounts)
    ]
    values[2:2] = [None, b"", b"junk", b"\0\0\0\1\1", values[0][:-3] if values[0] else b""]

    sink, model = RecordingSink(), ScriptedModel(of, nan_on=frozenset({0.5}))
    prediction = codec.load_schema("prediction")
    publisher = Publisher(
        sink,
        predictions_topic="predictions",
        dead_letters_topic="dead-letters",
        summaries_topic="summaries",
        prediction_encoder=codec.ColumnarEncoder(prediction, registry.register("predictions-value", prediction)),
        encode_summary=lambda _summary: b"",
        clock=lambda: START_MS / 1000,
    )
    flow = Flow(
        decoder=codec.ColumnarDecoder(registry, schema),
        served=Served(Lane(model, Validator(of, id_field="id", time_field="at"), publisher, batch_max=1024)),
        publisher=publisher,
        observer=RecordingObserver(),
        settings=FlowSettings(),
    )
    source = ScriptedSource([record_batch(values)])
    await asyncio.wait_for(flow.run(source, source.more_waiting), 20)
    flow.close()

    class Topic:
        def __init__(self) -> None:
            self.schema, self.registry = schema, registry

    outcome = Scorer(Topic(), model, settings_with_time()).score(values)  # type: ignore[arg-type]
    published = [rows.decode(record.value) for record in sink.to("predictions") if record.value]
    assert outcome.scored_rows.tolist() == [p["offset"] for p in published]
    assert outcome.outputs.tolist() == [p["outputs"] for p in published]
    letters = [dict(record.headers or ()) for record in sink.to("dead-letters")]
    theirs = {(int(h["__connect.errors.offset"] or b""), (h["pipeline.reason"] or b"").decode()) for h in letters}
    assert {(reject.row, str(reject.reason)) for reject in outcome.rejects} == theirs
    assert len({reason for _, reason in theirs}) >= 7
    assert len(outcome.scored_rows) + len(outcome.rejects) == len(values)


def settings_with_time() -> Settings:
    return load(overrides={"events.time_field": "at"}, environment={})


def test_a_label_that_only_writers_know_is_read(folder: Path) -> None:
    """Events written with the label are read with it, others have none: no setting is needed."""
    schema = json.dumps({"type": "record", "name": "Order", "fields": FIELDS})
    registry = codec.FileRegistry(folder / "registry")
    assert _with_label(schema, registry, "t", "fraud") == schema
    with_label = json.dumps({"type": "record", "name": "Order", "fields": [*FIELDS, {"name": "fraud", "type": "int"}]})
    ids = [registry.register("other-value", schema), registry.register("t-value", with_label)]
    read_with = _with_label(schema, registry, "t", "fraud")
    rows = codec.RowCodec(registry)
    event = {"id": "1", "at": START_MS, "amount": 1.0, "shop": None}
    values = [rows.encode(ids[0], schema, event), rows.encode(ids[1], with_label, {**event, "fraud": 1})]
    decoded = codec.ColumnarDecoder(registry, read_with).decode(values)
    assert decoded.rejects == []
    assert decoded.columns.column("fraud").to_pylist() == [None, 1]


# --------------------------------------------------------------------------- the page


class Reader(HTMLParser):
    """Text of a page; fails on tags that do not close in order, or that would load or run anything."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "img", "iframe", "object"}, tag
        assert not {name for name, _ in attrs if name in {"src", "href", "xlink:href"} or name.startswith("on")}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(html: str) -> list[str]:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader.text


def assert_holds_all(html: str, report: dict[str, Any]) -> None:
    """Every number of metrics, slices, gaps and windows stands in the page."""
    text = read_page(html)
    for name, value in report["metrics"].items():
        at = text.index(title(name), text.index("when packed"))
        assert figure(value) in text[at : at + 2]
    cells = set(text)
    for part in [*report["windows"], *(v for values in report["slices"].values() for v in values.values())]:
        assert {figure(value) for value in part["metrics"].values()} <= cells
    for gap in report["gaps"]:
        assert {figure(gap[key]) for key in ("value_of_slice", "of_rest", "difference", "low", "high")} <= cells
    for counts in report["confusion"]:
        assert {f"{n:,}" for n in counts} <= cells


def test_the_page_holds_every_figure_and_loads_nothing(project: Project) -> None:
    """One page of well-formed HTML, with every number of the JSON and a plot of each kind."""
    found = project.evaluate("--slice", "shop")
    html = project.page()
    assert_holds_all(html, found)
    assert not re.search(r"url\(|@import|https?://", html)
    for plot in ("Reliability", "ROC", "Precision and recall", "Selection rate", "accuracy, balanced accuracy"):
        assert f"<h3>{plot}" in html, plot
    assert html.count("<svg") >= 7
    assert found["model"]["model_version"] in html


def test_data_cannot_write_the_page(project: Project) -> None:
    """Classes, values and names of fields are text, whatever they hold."""
    make_bundle(project.folder / "model", contract("0", EVIL))
    table = orders(("0", EVIL)).rename_columns(["id", "at", "amount", "shop", f"<b>{EVIL}", "fraud"])
    project.write(table)
    found = project.evaluate("--slice", f"<b>{EVIL}")
    assert set(found["slices"][f"<b>{EVIL}"]) == {"north", EVIL}
    html = project.page()
    assert_holds_all(html, found)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 4


def test_without_a_baseline_the_page_says_so(project: Project) -> None:
    """A bundle packed without data has nothing to compare with."""
    make_bundle(project.folder / "model", contract("0", "1"), watched=False)
    assert project.evaluate()["drift"] == {"signals": [], "windows": []}
    assert "no baseline" in project.page()


def test_json_on_standard_output_is_the_file(project: Project) -> None:
    """--json prints one line, and nothing else."""
    result = project.run("--data", "orders.csv", "--json", "--out", "elsewhere")
    assert result.stdout == (project.folder / "elsewhere" / "evaluation.json").read_text("utf-8")
    assert len(result.stdout.splitlines()) == 1
    assert "wrote elsewhere/evaluation.html" in result.stderr
    assert sorted(p.name for p in (project.folder / "elsewhere").iterdir()) == ["evaluation.html", "evaluation.json"]


def test_one_row_is_enough_for_a_page(project: Project) -> None:
    """Where a metric is not defined it is absent, and no plot breaks."""
    found = project.evaluate("--rows-max", "1", "--slice", "shop")
    assert found["rows"]["measured"] == 1
    assert "roc_auc" not in found["metrics"]
    assert_holds_all(project.page(), found)


def test_rows_the_model_was_trained_on_are_a_warning(folder: Path) -> None:
    """Of the file itself, until --from leaves them out; of another file there is none. So are rows left unread."""
    csv.write_csv(orders().drop_columns(["region"]).take(np.arange(ROWS)[::-1]), "orders.csv")
    csv.write_csv(orders(rows=ROWS - 1), "others.csv")
    made = CliRunner().invoke(
        make_app(), ["init", "p", "--data", "orders.csv", "--label", "fraud", "--time", "at", "--id", "id"]
    )
    assert made.exit_code == 0, made.output

    def warnings(*arguments: str) -> list[str]:
        flags = ["--config", "p/pipeline.toml", "evaluate", "--json"]
        result = CliRunner().invoke(make_app(), [*flags, *arguments])
        assert result.exit_code == 0, result.output
        found: list[str] = json.loads(result.stdout)["warnings"]
        assert all(f"warning: {warning}" in result.stderr for warning in found)
        assert all(
            warning.replace("'", "&#x27;") in Path("evaluation/evaluation.html").read_text() for warning in found
        )
        return found

    (trained,) = warnings("--data", "orders.csv")
    assert trained.startswith("the model was trained on the first 960 rows of this very file")
    assert warnings("--data", "orders.csv", "--from", "960") == []
    assert warnings("--data", "others.csv") == []
    (left_out,) = warnings("--data", "others.csv", "--rows-max", "100")
    assert left_out.startswith("only the first 100 of 1,199 events are read")


def test_ctrl_c_leaves_no_half_evaluation(project: Project) -> None:
    """Exit code 130, nothing written, no traceback."""
    parquet.write_table(pa.concat_tables([orders()] * 1_000), "many.parquet")
    command = [
        sys.executable,
        "-u",
        "-m",
        "pipeline.cli",
        "evaluate",
        "--data",
        "many.parquet",
        "--rows-max",
        "1200000",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (project.folder / "evaluation").exists():  # made just before the work
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)  # in the midst of the work, which takes seconds
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    assert list((project.folder / "evaluation").iterdir()) == []


# --------------------------------------------------------------------------- drift


def test_a_shift_is_seen_where_it_begins(project: Project) -> None:
    """Windows like the training data are calm, those of larger amounts are not; the mean says how much larger."""
    table = orders(rows=4_000)
    amount = table["amount"].to_numpy().copy()
    amount[2_000:] = 45 + amount[2_000:] / 2
    project.write(table.set_column(2, "amount", pa.array(amount)))
    drift = project.evaluate("--window-rows", "500")["drift"]
    kinds = [evaluate_drift.severity(w["signals"]["feature:amount"]) for w in drift["windows"]]
    assert kinds == ["calm"] * 4 + ["major"] * 4
    overall = {s["signal"]: s for s in drift["signals"]}["feature:amount"]
    assert overall["mean"] == pytest.approx(float(amount.mean()), rel=1e-5)
    assert 'class="major"' in project.page()


def test_psi_by_chance_is_the_mean_of_psi_without_drift() -> None:
    """Over 400 samples of the baseline's own distribution, independent and correlated."""
    random = np.random.default_rng(11)
    for persistence in (0.0, 0.8):
        series = random.normal(size=(3_000, 400)).astype(np.float32)
        for n in range(1, 3_000):
            series[n] = persistence * series[n - 1] + np.sqrt(1 - persistence**2) * series[n]
        names = [f"feature:{n}" for n in range(400)]
        baseline = measure_baseline(names, series[:2_000])
        signals = evaluate_drift.timeline(series[2_000:], np.arange(1_000), baseline, 1_000)["signals"]
        found, expected = (np.mean([signal[key] for signal in signals]) for key in ("psi", "psi_by_chance"))
        assert found / expected == pytest.approx(1, abs=0.15), persistence
        assert found > 0.02 * (1 + persistence)


# --------------------------------------------------------------------------- what can go wrong


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--data", "gone.csv"], 1, "error: gone.csv: cannot be read: No such file or directory"),
        (["--data", "orders.csv", "--label-field", "frod"], 1, "error: orders.csv: no column 'frod' for the truth"),
        (["--data", "orders.csv", "--slice", "x"], 1, "error: orders.csv: --slice x: no such column or field"),
        (["--data", "orders.csv", "--from", "5000"], 1, "error: orders.csv: no rows from 5000: it has 1,200"),
        (["--data", "orders.csv", "--from", "-5"], 1, "error: orders.csv: rows are counted from 0; -5 is none"),
        (["--data", "orders.csv", "--from", "2031-01-01"], 1, "error: orders.csv: no rows from 2031-01-01"),
        (["--data", "orders.csv", "--bundle", "gone"], 1, "error: gone"),
        (["--data", "orders.csv", "--label-field", "shop"], 1, "error: orders.csv: label 'shop': no row has one of"),
        (["--data", "orders.csv", "--from", "yesterday"], 2, "'yesterday' is neither a whole number nor a time"),
        (["--data", "orders.csv", "--topic", "t"], 2, "give --data or --topic, not both"),
        (["--data", "orders.csv", "--out", "orders.csv"], 1, "error: --out orders.csv: cannot be made"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refuses_in_one_line(project: Project, arguments: list[str], code: int, said: str) -> None:
    """What is missing or does not fit is named, with the exit code of its kind, before any file is written."""
    result = project.run(*arguments, code=code)
    shown = re.sub(r"[\s│]+", " ", result.stderr)
    assert said in shown
    assert code == 2 or len(result.stderr.splitlines()) == 1
    assert not (project.folder / "evaluation" / "evaluation.json").exists()


def test_a_bundle_of_other_events_is_refused(project: Project) -> None:
    """Each feature that the events lack has its line."""
    other = FeatureContract((Feature("weight", "number"), Feature("amount", "number")), OutputContract("regression", 1))
    made = bundles.make(
        model_id="other",
        architecture=Architecture(module="pipeline.models.architectures:TabularMLP", arguments={"numbers": 2}),
        contract=other,
        weights=project.bundle.weights,
    )
    bundles.write(made, project.folder / "other")
    result = project.run("--data", "orders.csv", "--bundle", "other", code=1)
    assert result.stderr.startswith("error: other: does not fit the events: feature weight")


def test_nothing_to_measure_is_an_error(project: Project) -> None:
    """No row scored: the reasons are told. No row with a truth: that is."""
    table = orders(rows=20)
    project.write(table.set_column(2, "amount", pa.array([95.0] * 20)))
    assert (
        "none of the 20 events could be scored (out_of_range: feature amount"
        in project.run("--data", "orders.csv", code=1).stderr
    )
    project.write(table.set_column(5, "fraud", pa.array([None] * 20, pa.int64())))
    assert (
        "orders.csv: label 'fraud': none of the 20 scored events has one"
        in project.run("--data", "orders.csv", code=1).stderr
    )


def test_without_a_label_field_it_says_how_to_name_one(project: Project) -> None:
    """Neither in the settings nor on the command line: exit code 2."""
    (project.folder / "pipeline.toml").write_text(SETTINGS.replace('label_field = "fraud"\n', ""), "utf-8")
    assert "events.label_field is not set" in project.run("--data", "orders.csv", code=2).stderr


def test_an_absent_broker_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --data the events topic is read; exit code 5 where nobody answers."""
    monkeypatch.setenv("PIPELINE__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setattr(evaluate_source, "connect", partial(evaluate_source.connect, wait_s=0.5))
    assert "127.0.0.1:1 did not answer" in project.run(code=5).stderr


@pytest.mark.parametrize(
    ("text", "number", "time_ms"),
    [
        ("12", 12, None),
        ("-3", -3, None),
        ("2024-01-01", None, START_MS),
        ("2024-01-01T01:00+01:00", None, START_MS),
        ("20240101", 20240101, None),
    ],
)
def test_a_bound_is_a_number_or_a_time(text: str, number: int | None, time_ms: int | None) -> None:
    """A time without a zone is UTC; digits alone are a number."""
    assert Bound.parse(text) == Bound(text, number, time_ms)


# --------------------------------------------------------------------------- plots


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3.0, 7.0, [-2.0, 0.0, 2.0, 4.0, 6.0]),
        (0.51, 0.54, [0.51, 0.52, 0.53, 0.54]),
        (1e6, 3e6, [1e6, 1.5e6, 2e6, 2.5e6, 3e6]),
        (5.0, 5.0, [5.0]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    """Steps of 1, 2 or 5 times a power of ten."""
    assert evaluate_plots.ticks(low, high) == pytest.approx(expected)


def test_a_thinned_line_keeps_its_ends() -> None:
    """A curve of a million points stays a small file, and begins and ends where it did."""
    points = [(float(n), float(n)) for n in range(100_000)]
    thinned = evaluate_plots.thinned(points)
    assert len(thinned) == evaluate_plots.POINTS_MAX
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert evaluate_plots.thinned(points[:10]) == points[:10]


@pytest.mark.parametrize(
    ("span_ms", "expected"),
    [
        (30_000, ["00:00:00", "00:00:15", "00:00:30"]),
        (7_200_000, ["00:00", "00:30", "01:00", "01:30", "02:00"]),
        (86_400_000, ["01-01 00:00", "01-01 06:00", "01-01 12:00", "01-01 18:00", "01-02 00:00"]),
        (3 * 86_400_000, ["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04"]),
        (400 * 86_400_000, ["2024-01", "2024-07", "2025-01"]),
        (30_000 * 86_400_000, ["2050-01", "2100-01"]),
        (0, ["00:00:00"]),
    ],
)
def test_a_time_axis_has_whole_units(span_ms: int, expected: list[str]) -> None:
    """Seconds, minutes, hours, days, months or years, as long as the axis is; a few of them."""
    axis = evaluate_plots.time_axis("t", START_MS, START_MS + span_ms)
    assert [axis.text(at) for at in axis.at] == expected


def test_the_page_is_made_of_the_json_alone(project: Project) -> None:
    """Read back from the file, the report makes the same page."""
    found: Callable[[], dict[str, Any]] = project.evaluate
    assert page(found()) == project.page()
