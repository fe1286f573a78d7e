"""`pipeline gate`: the same judge on a file; both models score the same rows, and what only one can is a finding."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import csv
from typer.testing import CliRunner, Result

from pipeline.cli import evaluate_source, make_app
from pipeline.cli.evaluate_report import figure
from pipeline.measures import Scored, measure
from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.manifest import Architecture
from pipeline.records import Feature, FeatureContract, OutputContract
from tests.unit.test_cli_evaluate import EVIL, FIELDS, SETTINGS, START_MS, read_page

ROWS = 3_000
ARCHITECTURE = "tests.unit.test_cli_gate:Leaning"


class Leaning(torch.nn.Module):
    """Says yes of amounts above `border`, no below, the surer the farther away."""

    def __init__(self, border: float) -> None:
        super().__init__()
        self.border = torch.nn.Parameter(torch.tensor(border))

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return (inputs["numbers"][:, :1] - self.border) / 10


def pack(path: Path, border: float, *, most: float = 90.0, classes: tuple[str, ...] = ("0", "1")) -> bundles.Bundle:
    """A model that takes amounts up to `most`."""
    feature = Feature("amount", "number", range=(0.0, most))
    made = bundles.make(
        model_id="orders",
        architecture=Architecture(module=ARCHITECTURE, arguments={"border": border}),
        contract=FeatureContract((feature,), OutputContract("classification", 1, classes, "sigmoid")),
        weights=loading.weights_of(Leaning(border)),
        baseline=bundles.NO_BASELINE,
    )
    bundles.write(made, path, overwrite=True)
    return made


def orders() -> pa.Table:
    """Amounts, and a truth that turns at 50 as `Leaning(50)` says it does."""
    random = np.random.default_rng(3)
    amount = random.uniform(0, 90, ROWS)
    fraud = random.random(ROWS) < 1 / (1 + np.exp(-(amount - 50) / 10))
    return pa.table(
        {
            "id": [f"o{n}" for n in range(ROWS)],
            "at": pa.array(START_MS + 60_000 * np.arange(ROWS), pa.timestamp("ms")),
            "amount": amount,
            "shop": random.choice(["a", "b"], ROWS),
            "region": random.choice(["north", EVIL], ROWS),
            "fraud": fraud.astype(int),
        }
    )


@pytest.fixture
def project(folder: Path) -> Path:
    """Champion: the border at 30; the better challenger: at 50, where it is."""
    # Models of one weight take microseconds, which show the machine's load: no latency is asked for.
    (folder / "pipeline.toml").write_text(f"{SETTINGS}\n[gate]\nlatency_ratio_max = 100\n", "utf-8")
    schema = {"type": "record", "name": "Order", "fields": FIELDS}
    (folder / "event.avsc").write_text(json.dumps(schema), "utf-8")
    pack(folder / "model", 30.0)
    pack(folder / "better", 50.0)
    csv.write_csv(orders(), folder / "orders.csv")
    return folder


def run(*arguments: str, code: int) -> Result:
    result = CliRunner().invoke(make_app(), ["gate", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def judged(*arguments: str, code: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("--data", "orders.csv", "--json", *arguments, code=code).stdout)
    assert found["accepted"] == (code == 0) == all(check["passed"] for check in found["checks"])
    return found


def failed(found: dict[str, Any]) -> set[str]:
    return {check["name"] for check in found["checks"] if not check["passed"]}


def test_a_better_model_is_accepted_and_the_other_way_round_refused(project: Path) -> None:
    """Exit codes, and metrics that are those of the two functions applied by hand."""
    found = judged("--challenger", "better", "--slice", "shop", code=0)
    table = orders()
    amount, truth = table["amount"].to_numpy(), table["fraud"].to_numpy()
    for who, border in (("champion", 30.0), ("challenger", 50.0)):
        outputs = 1 / (1 + np.exp(-(amount.astype(np.float32) - border) / 10))
        scored = Scored(outputs[:, None].astype(np.float64), truth, np.arange(ROWS))
        expected = measure(scored, OutputContract("classification", 1, ("0", "1"), "sigmoid"))["metrics"]
        assert found["metrics"][who] == pytest.approx(expected, abs=1e-6)
    assert found["rows"] == {
        "read": ROWS,
        "only_champion_could_score": 0,
        "only_challenger_could_score": 0,
        "unlabelled": 0,
        "judged": ROWS,
    }
    assert {s["value"] for s in found["slices"]} == {"a", "b"}
    assert {check["name"] for check in found["checks"]} == {
        "rows", "better", "mcnemar", "log_loss", "calibration", "slices", "latency", "held_out", "refusals",
    }  # fmt: skip
    back = judged("--champion", "better", "--challenger", "model", code=1)
    assert {"better", "mcnemar", "log_loss", "calibration"} <= failed(back)
    assert {"better", "mcnemar"} <= failed(judged("--challenger", "model", code=1))


def test_what_a_person_sees(project: Path) -> None:
    """Checks in words, metrics side by side, the verdict last."""
    told = run("--data", "orders.csv", "--challenger", "better", code=0).stdout
    assert re.search(r"passed\W+better\W+error 0\.\d+ -> 0\.\d+", told)
    assert told.strip().splitlines()[-1] == "accepted"
    refused = run("--data", "orders.csv", "--challenger", "better", "--rows-max", "500", code=1).stdout
    assert re.search(r"failed\W+rows\W+500 labelled rows, 1,000 asked for", refused)
    assert refused.strip().splitlines()[-1] == "refused by rows"
    (project / "pipeline.toml").write_text(
        SETTINGS + '\n[gate]\napproval = "manual"\nlatency_ratio_max = 100\n', "utf-8"
    )
    waiting = run("--data", "orders.csv", "--challenger", "better", code=0).stdout
    assert waiting.strip().splitlines()[-1] == "accepted; a person has to approve it"


def test_a_challenger_that_takes_fewer_events_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows it would make dead letters of are left out for both, counted chunk by chunk, a reason of their own."""
    monkeypatch.setattr(evaluate_source, "CHUNK_ROWS", 700)
    pack(project / "narrow", 50.0, most=80.0)
    found = judged("--challenger", "narrow", code=1)
    beyond = int((orders()["amount"].to_numpy() > 80).sum())
    assert failed(found) == {"refusals"}
    assert found["rows"]["only_champion_could_score"] == beyond
    assert found["rows"]["judged"] == ROWS - beyond
    check = next(check for check in found["checks"] if check["name"] == "refusals")
    assert check["value"] == pytest.approx(beyond / ROWS)
    pack(project / "model", 30.0, most=80.0)
    wide = judged("--challenger", "better", code=0)
    assert wide["rows"]["only_challenger_could_score"] == beyond


def test_rows_without_a_truth_are_counted(project: Path) -> None:
    """Left out of all checks; without any there is nothing to judge."""
    table = orders()
    some = pa.array([None if n < 40 else v for n, v in enumerate(table["fraud"].to_pylist())])
    csv.write_csv(table.set_column(5, "fraud", some), "orders.csv")
    found = judged("--challenger", "better", code=0)
    assert (found["rows"]["unlabelled"], found["rows"]["judged"]) == (40, ROWS - 40)


def test_models_with_other_class_order_are_compared_by_name(project: Path) -> None:
    """The same outputs under names the other way round mean the opposite; under the same names, no change at all."""
    found = judged("--challenger", "model", code=1)
    assert found["change"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    pack(project / "swapped", 30.0, classes=("1", "0"))
    other = judged("--challenger", "swapped", code=1)
    assert other["metrics"]["challenger"]["accuracy"] == pytest.approx(1 - other["metrics"]["champion"]["accuracy"])


def test_the_page_holds_the_verdict_and_loads_nothing(project: Path) -> None:
    """Well-formed, self-contained, every check and every slice in it; data cannot write it."""
    result = run(
        "--data", "orders.csv", "--challenger", "better", "--slice", "region", "--report", "gate.html", "--json", code=0
    )
    found, html = json.loads(result.stdout), (project / "gate.html").read_text("utf-8")
    text = read_page(html)
    assert not re.search(r"url\(|@import|https?://", html)
    assert "<script" not in html
    assert f"Yes: all {len(found['checks'])} checks passed. It needs no person's yes." in text
    for check in found["checks"]:
        assert check["says"] in text
    for who in ("champion", "challenger"):
        assert {figure(value) for value in found["metrics"][who].values()} <= set(text)
    for one in found["slices"]:
        assert {figure(one[key]) for key in ("champion", "challenger", "change", "low", "high")} <= set(text)
        assert f"region = {one['value']}" in text
    for plot in ("Reliability", "accuracy", "log loss", "Change of the error"):
        assert f"<h3>{plot}</h3>" in html, plot
    assert "wrote gate.html" in result.stderr
    refused = ("--champion", "better", "--challenger", "model", "--report", "gate.html")
    run("--data", "orders.csv", *refused, code=1)
    assert any(part.startswith("No: ") and "better" in part for part in read_page((project / "gate.html").read_text()))


def test_a_file_without_times_goes_by_rows(project: Path) -> None:
    """The timeline then is along the file."""
    csv.write_csv(orders().drop_columns(["at"]), "orders.csv")
    run("--data", "orders.csv", "--challenger", "better", "--report", "gate.html", code=0)
    assert "Along the file" in read_page((project / "gate.html").read_text("utf-8"))


def test_rows_that_a_model_was_trained_on_are_no_test(folder: Path) -> None:
    """The file that the champion was made of is refused, until --from leaves out what it learnt from."""
    csv.write_csv(orders().drop_columns(["region"]), "orders.csv")
    made = CliRunner().invoke(
        make_app(), ["init", "p", "--data", "orders.csv", "--label", "fraud", "--time", "at", "--id", "id"]
    )
    assert made.exit_code == 0, made.output
    flags = ("--config", "p/pipeline.toml", "gate", "--json", "--challenger", "p/models/champion", "--data")
    seen = json.loads(CliRunner().invoke(make_app(), [*flags, "orders.csv"]).stdout)
    held_out = next(check for check in seen["checks"] if check["name"] == "held_out")
    trained = seen["champion"]["rows_train"]
    assert (held_out["passed"], held_out["value"]) == (False, trained)
    assert f"--from {trained} leaves them out" in held_out["says"]
    new = json.loads(CliRunner().invoke(make_app(), [*flags, "orders.csv", "--from", str(trained)]).stdout)
    assert next(check for check in new["checks"] if check["name"] == "held_out")["passed"]


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("--challenger", "nowhere"), 1, "nowhere: no such file"),
        (("--challenger", "better", "--data", "none.csv"), 1, "none.csv"),
        (("--challenger", "better", "--label-field", "nothing"), 1, "no column 'nothing' for the truth"),
        (("--challenger", "better", "--slice", "nothing"), 1, "--slice nothing: no such column or field"),
        (("--challenger", "better", "--from", "9000"), 1, "orders.csv: no rows from 9000"),
        (
            ("--challenger", "better", "--report", "no/such/gate.html"),
            1,
            "no/such/gate.html: cannot be written: there is no folder no/such",
        ),
        (("--challenger", "empty"), 1, "orders.csv: none of the 3,000 events could be scored by both models"),
        ((), 2, "--challenger"),
    ],
)
def test_what_cannot_be_judged_is_one_clear_line(
    project: Path, arguments: tuple[str, ...], code: int, line: str
) -> None:
    """No verdict, no traceback."""
    pack(project / "empty", 50.0, most=0.0)
    given = arguments if "--data" in arguments else ("--data", "orders.csv", *arguments)
    result = run(*given, code=code)
    assert line in result.stderr
    if code == 1:
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.splitlines()) == 1
