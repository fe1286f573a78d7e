"""`pipeline retrain` before there is any Kafka: what is asked for, and what is refused; provenance in a bundle."""

import json
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.cli import make_app
from pipeline.cli.retrain import _range, _since_ms, _wanted
from pipeline.cli.retrain_job import ANCESTORS_MAX, _retrained_ms, code_version, lineage
from pipeline.models import bundle as bundles
from pipeline.models import manifest as manifests
from pipeline.models.bundle import Bundle
from pipeline.models.manifest import Ancestor, Architecture, DataPart, DataRange, Provenance, Training
from pipeline.records import Feature, FeatureContract, OutputContract
from pipeline.settings import Settings
from tests.pipelines import eventually

EMPTY_WEIGHTS = (2).to_bytes(8, "little") + b"{}"


def bundle(provenance: Provenance | None = None, created_at: str = "2024-06-01T12:00:00+00:00") -> Bundle:
    contract = FeatureContract((Feature("x", "number"),), OutputContract("regression", 1))
    return bundles.make(
        model_id="m",
        architecture=Architecture(module="pipeline.models.architectures:TabularMLP", arguments={"numbers": 1}),
        contract=contract,
        weights=EMPTY_WEIGHTS,
        training=Training(rows_train=5, provenance=provenance),
        requires={},
        clock=lambda: datetime.fromisoformat(created_at),
    )


def made_of(**given: Any) -> Provenance:
    part = DataPart(
        use="fit",
        rows=3,
        first_time_ms=1,
        last_time_ms=2,
        ranges=(DataRange(topic="e", partition=0, first_offset=4, last_offset=9, rows=3),),
    )
    return Provenance(
        **{
            "window": "--last 3",
            "parts": (part,),
            "parent_version": "1",
            "parent_weights_sha256": "0" * 64,
            "recipe": {"name": "fine-tune", "hidden": [64]},
            "schema_ids": {"events": (1, 2)},
            "separation": {"x": 0.75},
            **given,
        }
    )


def test_provenance_survives_the_disk(tmp_path: Path) -> None:
    """All of it, and the digest covers it: another seed is another version."""
    first, second = bundle(made_of(seed=1)), bundle(made_of(seed=2))
    bundles.write(first, tmp_path / "b")
    assert bundles.read(tmp_path / "b").training == first.training
    assert first.model_version != second.model_version


def test_a_bundle_from_before_there_was_provenance_reads_as_it_was(tmp_path: Path) -> None:
    """Nothing of it is written where there is none: same bytes, same digest, same version as then."""
    plain = bundle()
    bundles.write(plain, tmp_path / "b")
    written = json.loads((tmp_path / "b/manifest.json").read_text("utf-8"))
    assert sorted(written["training"]) == ["confusion", "data_sha256", "metrics", "rows_train", "rows_validation"]
    assert bundles.read(tmp_path / "b").training.provenance is None
    assert manifests.content_version(plain.manifest) == "45a7a462ccba"


def test_a_lineage_goes_back_to_the_first_model() -> None:
    """Of it, the first was not retrained; the rate counts the others."""
    first = bundle(created_at="2024-06-01T00:00:00+00:00")
    assert _retrained_ms(first) == []
    second = bundle(made_of(ancestors=lineage(first)), "2024-06-02T00:00:00+00:00")
    third = bundle(made_of(ancestors=lineage(second)), "2024-06-03T00:00:00+00:00")
    assert [a.created_at[:10] for a in lineage(third)] == ["2024-06-03", "2024-06-02", "2024-06-01"]
    assert _retrained_ms(third) == [1_717_372_800_000, 1_717_286_400_000]
    many = tuple(Ancestor(model_version=str(n), created_at="2024-06-01T00:00:00+00:00") for n in range(ANCESTORS_MAX))
    assert len(lineage(bundle(made_of(ancestors=many)))) == ANCESTORS_MAX


def test_the_code_has_a_version() -> None:
    """That of the package; in a repository the commit, too."""
    assert code_version()["pipeline"]


# --------------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7d", {"before_ms": 7 * 86_400_000}),
        ("90m", {"before_ms": 5_400_000}),
        ("2w", {"before_ms": 14 * 86_400_000}),
        ("2024-06-01", {"from_ms": 1_717_200_000_000}),
        ("2024-06-01T02:00+02:00", {"from_ms": 1_717_200_000_000}),
    ],
)
def test_since(text: str, expected: dict[str, int]) -> None:
    """A duration or a moment, UTC unless it says otherwise."""
    assert _since_ms(text) == expected


def test_windows_as_asked() -> None:
    """One of them; without any, as the settings say."""
    settings = Settings.model_validate({"retraining": {"window_rows": 500}})
    assert _wanted(settings, None, None, None, []) == {"last": 500, "told": "--last 500"}
    assert _wanted(settings, 7, None, None, []) == {"last": 7, "told": "--last 7"}
    assert _wanted(settings, None, None, "abc", []) == {"told": "--trigger abc"}
    ranges = _wanted(settings, None, None, None, ["0:5-9", "12:0-0"])
    assert ranges == {"ranges": [[0, 5, 9], [12, 0, 0]], "told": "--range 0:5-9 --range 12:0-0"}
    assert _range("3:0-100") == [3, 0, 100]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--last", "9", "--since", "1d"], 2, "give one of --last and --since"),
        (["--since", "soon"], 2, "neither a duration such as 7d"),
        (["--range", "5-9"], 2, "is not PARTITION:FIRST-LAST"),
        (["--range", "0:9-5"], 2, "is not PARTITION:FIRST-LAST"),
        (["--parent", "nowhere"], 1, "nowhere: no such file or folder"),
        (["--request", "nowhere.json"], 1, "nowhere.json: no request of `pipeline retrain`"),
    ],
)
def test_what_is_refused_before_any_work(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    """In a line, with its exit code."""
    result = CliRunner().invoke(make_app(), ["retrain", "--out", str(tmp_path / "b"), *arguments])
    assert result.exit_code == code, result.output
    assert said in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "b").exists()


def test_a_path_that_is_taken_is_refused_before_the_work(tmp_path: Path) -> None:
    """As `model train` does."""
    (tmp_path / "b").mkdir()
    result = CliRunner().invoke(make_app(), ["retrain", "--out", str(tmp_path / "b")])
    assert result.exit_code == 1
    assert "is there already" in result.output


@pytest.mark.parametrize("text", ["[]", "{}", '{"told": 1}', "nothing"])
def test_a_file_that_is_no_request(tmp_path: Path, text: str) -> None:
    """One line, no traceback."""
    path = tmp_path / "request.json"
    path.write_text(text, "utf-8")
    result = CliRunner().invoke(make_app(), ["retrain", "--request", str(path)])
    assert result.exit_code == 1, result.output
    assert "no request of `pipeline retrain`" in " ".join(result.output.split())


# --------------------------------------------------------------------------- how it ends


def children(pid: int) -> list[int]:
    """Process numbers of what a process has started and that still runs."""
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()
        return [int(n) for n in found if "Z" not in Path(f"/proc/{n}/stat").read_text("utf-8").rpartition(")")[2][:3]]
    except OSError:
        return []


@pytest.mark.skipif(
    sys.platform != "linux", reason="/proc tells who is alive; elsewhere a child outlives a killed parent"
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_end_ends_both(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C, a polite end, a rude one: the process that trains goes with it, and there is no bundle."""
    bundles.write(bundle(), tmp_path / "champion")
    given = {
        "kafka.bootstrap_servers": "127.0.0.1:1",  # nobody answers: it waits
        "model.bundle": tmp_path / "champion",
        "retraining.exchange": tmp_path / "exchange",
        "retraining.nice": 0,
    }
    flags = [flag for key, value in given.items() for flag in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "pipeline.cli", *flags, "retrain", "--out", str(tmp_path / "b")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL) as process:
        eventually(lambda: bool(children(process.pid)), "it trains")
        (child,) = children(process.pid)
        # Before that call a child does not know yet that it is to end with its parent; see end_with_parent.
        eventually(lambda: "libtorch" in Path(f"/proc/{child}/maps").read_text("utf-8"), "it has begun")
        process.send_signal(number)
        assert process.wait(30) == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    eventually(lambda: not Path(f"/proc/{child}").exists(), "the child is gone", 20)
    assert not (tmp_path / "b").exists()
    assert number == signal.SIGKILL or list((tmp_path / "exchange").iterdir()) == []
