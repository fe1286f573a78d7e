"""The command line at its doors: help, bad input, messages, exit codes. No broker is reached."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __version__
from pipeline.cli import COMMANDS, load_command
from tests.unit.doors import failed, run

ROOT = Path(__file__).parents[2]
GROUPS = {
    "topics": ("create", "list"),
    "dead-letters": ("list", "redrive"),
    "model": ("train", "pack", "verify", "show"),
}


def write_csv(path: Path, rows: int = 400) -> Path:
    lines = ["at,amount,shop,fraud"]
    lines += [
        f"2024-01-{1 + n // 24:02}T{n % 24:02}:00:00,{(n * 37) % 101},{'ab'[n % 2]},{int(n % 3 == 0)}"
        for n in range(rows)
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


# --------------------------------------------------------------------------- help


def test_help_lists_every_command() -> None:
    """`pipeline --help` names each command and exits 0."""
    result = run("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    """Each command loads and explains itself."""
    result = run(name, "--help")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "Usage: " in result.stdout
    for sub in GROUPS.get(name, ()):
        assert run(name, sub, "--help").exit_code == 0


def test_help_imports_nothing_heavy() -> None:
    """`--help` must answer at once: no torch, faust, pyarrow, numpy or Kafka client is imported for it."""
    code = (
        "import sys\nfrom pipeline.cli import main\nsys.argv = ['pipeline', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'faust', 'pyarrow', 'numpy', 'confluent_kafka', 'river'}\n"
        "print(sorted(sys.modules.keys() & heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_version() -> None:
    """--version prints the package's version."""
    assert run("--version").stdout == f"pipeline {__version__}\n"


def test_flags_named_like_fausts_stay_ours(folder: Path) -> None:
    """Importing faust reads `--loop` from the command line; ours must not reach it."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "replay", "missing.csv", "--loop", "--rate", "5"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: missing.csv")


# --------------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["topic"], "Did you mean 'topics'?"),
        (["tail", "nothing"], "events"),
        (["tail"], "Missing argument"),
        (["tail", "events", "--filter", "x"], "FIELD=VALUE"),
        (["tail", "events", "--from-beginning", "--offset", "3"], "not both"),
        (["tail", "events", "--max", "0"], "--max"),
        (["replay", "x.csv", "--rate", "-1"], "--rate"),
        (["replay", "x.csv", "--rate", "1", "--speed", "2"], "not both"),
        (["dead-letters", "list", "--reason", "because"], "null_feature"),
        (["--set", "scoring.batch_max", "topics", "list"], "KEY=VALUE"),
        (["init", "x", "--data", "x.csv"], "--label"),
    ],
)
@pytest.mark.case("D4")
def test_usage_errors_exit_2_and_say_why(folder: Path, arguments: list[str], said: str) -> None:
    """A wrong flag is a usage error, and the message names what would be right."""
    lines = failed(*arguments, code=2)
    # Wrapped by the frame around it, a message may be broken between words.
    assert said in " ".join(" ".join(line.strip("│ ") for line in lines).split())


# --------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("name = ", "not valid TOML"),
        ("nmae = 'x'\n", "nmae: no such setting"),
        ("[kafka]\nbootstrap_servers = 'host:99999'\n", "kafka.bootstrap_servers: 'host:99999' is not host:port"),
        ("[kafka]\nbootstrap_servers = 'host'\n", "kafka.bootstrap_servers: 'host' is not host:port"),
        ("[kafka.options]\n'sasl.password' = 'geheim'\n", "kafka.options.sasl.password: a secret"),
        ("[registry]\nbasic_auth = 'geheim'\n", "registry.basic_auth: a secret"),
        ("[topics]\nevents = 'x'\npredictions = 'x'\n", "two roles share one topic name"),
        ("[scoring]\nbatch_max = 'many'\n", "scoring.batch_max"),
    ],
)
@pytest.mark.case("D1")
def test_bad_settings_exit_2_and_name_the_key(folder: Path, text: str, key: str) -> None:
    """Every fault of the settings file is one line with file and key; a secret's value is never printed."""
    (folder / "pipeline.toml").write_text(text, "utf-8")
    lines = failed("topics", "list", code=2)
    assert any(line.startswith("error: pipeline.toml: ") and key in line for line in lines), lines
    assert "geheim" not in "".join(lines)


def test_settings_faults_are_told_all_at_once(folder: Path) -> None:
    """Two faults give two lines."""
    (folder / "pipeline.toml").write_text("nmae = 'x'\n[scoring]\nbatch_max = 0\n", "utf-8")
    assert len(failed("check", code=2)) == 2


@pytest.mark.parametrize("content", [b"name = '\xff\xfe'", b"\x00\x01\x02PK"])
def test_a_settings_file_that_is_no_text_is_refused(folder: Path, content: bytes) -> None:
    """Not UTF-8, or not TOML at all: one line."""
    (folder / "pipeline.toml").write_bytes(content)
    assert len(failed("check", code=2)) == 1


def test_a_named_settings_file_must_exist(folder: Path) -> None:
    """--config with a wrong path is not silently ignored."""
    assert "no such file" in failed("--config", "nope.toml", "check", code=2)[0]


def test_flags_override_and_are_checked(folder: Path) -> None:
    """--set goes through the same checks as the file, and the message says where the value came from."""
    assert "command line: kafka.bootstrap_servers" in failed("--set", "kafka.bootstrap_servers=x", "check", code=2)[0]
    lines = failed("--set", "kafka.options.sasl.password=geheim", "check", code=2)
    assert "a secret" in lines[0]
    assert "geheim" not in lines[0]


def test_check_lists_all_settings() -> None:
    """`check --settings` shows every key with its default, and no secret's slot."""
    text = run("check", "--settings").stdout
    assert "kafka.bootstrap_servers" in text
    assert "scoring.batch_max" in text
    assert "kafka.secrets" not in text


def test_an_absent_broker_is_exit_5(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer is said in one line, after the deadline."""
    monkeypatch.setattr("pipeline.cli.wiring.BROKER_WAIT_S", 0.3)
    monkeypatch.setattr("pipeline.cli.wiring.connect.__defaults__", (0.3,))
    lines = failed("--set", "kafka.bootstrap_servers=127.0.0.1:1", "topics", "list", code=5)
    assert len(lines) == 1
    assert "127.0.0.1:1 did not answer" in lines[0]


def test_an_unknown_kafka_option_is_exit_2(folder: Path) -> None:
    """librdkafka's refusal of an option is a settings error."""
    (folder / "pipeline.toml").write_text("[kafka.options]\n'no.such.option' = 1\n", "utf-8")
    assert "no.such.option" in failed("topics", "list", code=2)[0]


def test_debug_shows_where_an_error_came_from(folder: Path) -> None:
    """--debug adds the traceback; the message and exit code stay."""
    result = run("--debug", "--config", "nope.toml", "check")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "error: nope.toml" in result.stderr


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    """`pipeline check --settings | head -1` ends quietly."""
    done = subprocess.run(
        f"{sys.executable} -m pipeline.cli check --settings | head -1",
        shell=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


# --------------------------------------------------------------------------- check


def test_check_reports_all_broken_files(folder: Path) -> None:
    """Offline: a schema that is no Avro and a bundle that is missing are two lines of one call."""
    (folder / "schemas").mkdir()
    (folder / "schemas" / "event.avsc").write_text('{"type": "recrod"}', "utf-8")
    lines = failed("check", "--offline", code=1)
    assert any("schemas/event.avsc" in line for line in lines)
    assert any("models/champion" in line for line in lines)
    assert len(lines) >= 2


def test_check_names_a_missing_field(folder: Path) -> None:
    """Settings that name a field the schema lacks: file, key, and what there is."""
    (folder / "schemas").mkdir()
    schema = {"type": "record", "name": "E", "fields": [{"name": "a", "type": "long"}, {"name": "t", "type": "long"}]}
    (folder / "schemas" / "event.avsc").write_text(json.dumps(schema), "utf-8")
    lines = failed("--set", "events.time_field=t", "check", "--offline", code=1)
    assert any(
        "pipeline.toml: events.id_field: schemas/event.avsc has no field 'id'; it has a, t" in li for li in lines
    )
    assert any("events.time_field: 't' in schemas/event.avsc is no timestamp-millis" in li for li in lines)


def test_check_names_every_field_that_makes_no_slices(folder: Path) -> None:
    """A slice field that is missing, or has no short text, is a line each, beside other faults of the schema."""
    (folder / "schemas").mkdir()
    fields = [{"name": "shop", "type": "string"}, {"name": "amount", "type": ["null", "double"]}]
    schema = {"type": "record", "name": "E", "fields": fields}
    (folder / "schemas" / "event.avsc").write_text(json.dumps(schema), "utf-8")
    lines = failed("--set", "events.slice_fields=shop,amount,region", "check", "--offline", code=1)
    assert any("pipeline.toml: events.id_field: " in line for line in lines)
    amount, region = (line.removeprefix("error: ") for line in lines if "slice_fields" in line)
    assert amount.startswith("pipeline.toml: events.slice_fields amount: a field of type double makes no slices; ")
    assert region == (
        "pipeline.toml: events.slice_fields region: the event schema has no field 'region' there; it has shop, amount"
    )


# --------------------------------------------------------------------------- files given to commands

BAD_FILES = {
    "missing.csv": None,
    "empty.csv": b"",
    "header.csv": b"at,amount,shop,fraud\n",
    "latin.csv": "at,amount,shop,fraud\n1,2,sh\xf6p,0\n1,2,b,1\n".encode("latin-1"),
    "binary.csv": bytes(range(256)) * 40,
    "ragged.csv": b"at,amount,shop,fraud\n1,2\n3,4,5,6\n",
    "broken.parquet": b"PAR1 and then nothing",
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("command", ["init", "replay"])
@pytest.mark.case("D5")
def test_an_unusable_data_file_is_one_line(folder: Path, name: str, command: str) -> None:
    """Whatever is wrong with the file, the message names it and nothing is left behind."""
    content = BAD_FILES[name]
    if content is not None:
        (folder / name).write_bytes(content)
    arguments = ("init", "shop", "--data", name, "--label", "fraud") if command == "init" else ("replay", name)
    lines = failed(*arguments, code=1)
    assert all(line.startswith(f"error: {name}") for line in lines), lines
    assert not (folder / "shop").exists()


def test_init_tells_all_wrong_columns_at_once(folder: Path) -> None:
    """Each flag that names no column is a line, with the nearest name there is."""
    write_csv(folder / "orders.csv")
    lines = failed("init", "s", "--data", "orders.csv", "--label", "frod", "--time", "when", "--id", "shpo", code=1)
    assert "--label frod: no such column; did you mean 'fraud'?" in lines[0]
    assert "--time when: no such column; there are at, amount, shop, fraud" in lines[1]
    assert "did you mean 'shop'?" in lines[2]


def test_init_refuses_a_folder_in_use(folder: Path) -> None:
    """A folder with something in it is not touched without --force."""
    write_csv(folder / "orders.csv")
    (folder / "shop").mkdir()
    (folder / "shop" / "mine.txt").write_text("mine", "utf-8")
    line = failed("init", "shop", "--data", "orders.csv", "--label", "fraud", code=1)[0]
    assert "not empty" in line
    assert "--force" in line
    assert [p.name for p in (folder / "shop").iterdir()] == ["mine.txt"]


def test_init_makes_a_project_that_checks(folder: Path) -> None:
    """From a CSV to settings, schema and bundle; `check --offline` finds nothing wrong with them."""
    write_csv(folder / "orders.csv")
    result = run("init", "my shop", "--data", "orders.csv", "--label", "fraud", "--time", "at", "--key", "shop")
    assert result.exit_code == 0, (result.output, result.exception)
    made = folder / "my shop"
    schema = json.loads((made / "schemas" / "event.avsc").read_text("utf-8"))
    assert {f["name"]: f.get("column") for f in schema["fields"]} == {
        "id": None,
        "time": "at",
        "shop": None,
        "amount": None,
    }
    assert 'name = "my-shop"' in (made / "pipeline.toml").read_text("utf-8")
    assert "pipeline replay ../orders.csv" in result.stdout
    checked = run("--config", str(made / "pipeline.toml"), "check", "--offline")
    assert checked.exit_code == 0, checked.output


def test_every_row_of_the_table_of_commands_loads() -> None:
    """A command named in the table has a module behind it."""
    for name in COMMANDS:
        assert load_command(name).name == name
