"""The command around the faults: what it refuses, where it works, what it says in the end."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import make_app, verify, verify_report
from pipeline.cli.context import Flags
from pipeline.cli.verify_run import Happened, Verdict
from pipeline.cli.verify_scratch import ScratchFolder, scratch_of
from pipeline.settings import Settings, load
from pipeline.testing.counting import Balance

SETTINGS = """
name = "shop"
[kafka]
bootstrap_servers = "kafka.example:9093"
options = { "security.protocol" = "SASL_SSL", "sasl.mechanism" = "PLAIN" }
[topics]
events = "orders"
predictions = "scores"
create = false
replication_factor = 3
[delivery]
transactional_id_prefix = "shop"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "registry" / "ids").mkdir(parents=True)
    (folder / "registry" / "ids" / "7.avsc").write_text('"string"', "utf-8")
    (folder / "pipeline.toml").write_text(SETTINGS, "utf-8")
    return folder


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(make_app(), ["--config", str(folder / "pipeline.toml"), "verify", *arguments])


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def changed(before: Settings, after: Settings) -> set[str]:
    """Dotted keys of the settings that differ."""
    old, new = (leaves(settings.model_dump()) for settings in (before, after))
    return {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}


def test_everything_that_is_written_is_led_elsewhere(project: Path) -> None:
    """Topics, groups, transactional ids, state and registry are others; the rest of the settings is the project's."""
    given = Flags(project / "pipeline.toml", {"scoring.linger_ms": "3"})
    before = load(given.config, dict(given.overrides))
    with ScratchFolder() as folder:
        scratch = scratch_of(before, given, folder.path, "exactly_once", None)
        after = scratch.settings
        assert not set(after.topic_names().values()) & set(before.topic_names().values())
        assert all(name.startswith(after.name) for name in after.topic_names().values())
        assert after.group("worker") != before.group("worker")
        assert after.registry.dir == folder.path / "registry"
        assert (after.registry.dir / "ids" / "7.avsc").read_text("utf-8") == '"string"'
        assert folder.path in after.drift.state_dir.parents
        assert str(after.delivery.transactional_id_prefix).startswith(after.name)
        assert {key.partition(".")[0] for key in changed(before, after)} == {
            "name", "topics", "registry", "drift", "delivery", "observe",
        }  # fmt: skip
        # What the roles read is what was computed here.
        assert load(scratch.flags.config, dict(scratch.flags.overrides)) == after
    assert not folder.path.exists()


def test_a_broker_of_our_own_is_spoken_to_in_the_clear(project: Path) -> None:
    """On 127.0.0.1, one node, no SASL; whatever the project's own broker demands."""
    given = Flags(project / "pipeline.toml")
    with ScratchFolder() as folder:
        after = scratch_of(load(given.config), given, folder.path, "at_least_once", "127.0.0.1:1234").settings
        assert after.kafka.bootstrap_servers == "127.0.0.1:1234"
        assert after.kafka.options["security.protocol"] == "plaintext"
        assert after.topics.replication_factor == 1


def test_two_runs_never_share_a_name(project: Path) -> None:
    """Nor is any name too long for a topic."""
    given = Flags(project / "pipeline.toml", {"name": "n" * 190})
    with ScratchFolder() as folder:
        made = [scratch_of(load(given.config, dict(given.overrides)), given, folder.path, "at_least_once", None)]
        (folder.path / "registry").rename(folder.path / "other")
        made.append(scratch_of(load(given.config, dict(given.overrides)), given, folder.path, "at_least_once", None))
    assert made[0].settings.name != made[1].settings.name
    assert all(len(name) <= 249 for scratch in made for name in scratch.settings.topic_names().values())


def test_logs_outlive_a_verdict_that_does_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    """They are named; the rest is removed."""
    with ScratchFolder() as folder:
        (folder.path / "kafka").mkdir()
        folder.keep_logs()
    assert [path.name for path in folder.path.iterdir()] == ["logs"]
    assert str(folder.path / "logs") in capsys.readouterr().err
    (folder.path / "logs").rmdir()
    folder.path.rmdir()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--fault", "earthquake"], 2, "earthquake"),
        (["--use-broker", "--fault", "kill-broker"], 2, "needs a broker of its own"),
        (["--use-broker", "--fault", "cut-network"], 2, "needs a broker of its own"),
        (["--events", "0"], 2, "--events"),
        (["--mode", "exactly_twice"], 2, "exactly_twice"),
        ([], 1, "models/champion"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(
    project: Path, arguments: list[str], code: int, said: str
) -> None:
    """One line that says what is wrong."""
    result = run(project, *arguments)
    assert result.exit_code == code, result.output
    assert said in result.output


def test_help_lists_every_fault(project: Path) -> None:
    """With what it does."""
    text = run(project, "--help").output
    assert "kill-worker" in text
    assert "slow-network" in text


HELD = Balance(1_000, 990, 10, 0, 0, 0, 0)
BROKEN = Balance(1_000, 980, 10, 10, 3, 1, 0)


def verdict(balance: Balance, *problems: str) -> Verdict:
    happened = [Happened("kill-worker", 3.0, 2.0, 1.5, ["3.0 s: SIGKILL to worker 1"])]
    return Verdict(balance, 10, 0, 0, happened, ["worker 2 ended by itself"], list(problems), 20.0)


def test_the_report_says_what_happened_and_whether_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    """Faults with their times, totals, verdict, and how to repeat it."""
    verify_report.show(verdict(HELD), "exactly_once", "pipeline verify --seed 3")
    out = capsys.readouterr().out
    for expected in ("kill-worker", "SIGKILL to worker 1", "1.5 s", "1,000", "990", "HOLDS", "verify --seed 3"):
        assert expected in out
    assert "worker 2 ended by itself" in out
    verify_report.show(verdict(BROKEN, "10 lost"), "exactly_once", "")
    captured = capsys.readouterr()
    assert "DOES NOT HOLD" in captured.out
    assert "error: 10 lost" in captured.err


def test_the_report_as_json_has_every_number() -> None:
    """One object; `holds` is the verdict."""
    made = json.loads(json.dumps(verify_report.as_json(verdict(BROKEN, "10 lost"), "exactly_once", 3, "again")))
    assert made["holds"] is False
    assert (made["events"], made["lost"], made["duplicated"], made["out_of_order"]) == (1_000, 10, 3, 1)
    assert made["faults"][0]["recovered_s"] == 1.5
    assert made["seed"] == 3


def test_the_command_to_repeat_is_one() -> None:
    """Every option that decides what happens is in it."""
    options = verify.Options(["kill-worker"], 5, 10.0, 2, 3, "exactly_once", 4, Path("a b.csv"), True, False)
    assert options.command(Flags(Path("p.toml"))) == (
        "pipeline --config p.toml verify --mode exactly_once --fault kill-worker --events 5 --rate 10 --rounds 2 "
        "--workers 3 --seed 4 --data 'a b.csv' --use-broker"
    )
