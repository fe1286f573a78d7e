"""docs/transport.md, followed to the letter."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.bus.clients import CONSUMER_DEFAULTS, GUARDED_OPTIONS
from pipeline.bus.transport import Configuration, Hooks
from tests.integration.bus_kit import create, lag, numbers, produce, read, wait_until

MANUAL = Path(__file__).parents[2] / "docs" / "transport.md"
PYTHON = re.findall(r"```python\n(.*?)```", MANUAL.read_text("utf-8"), re.DOTALL)


def test_the_first_example_runs_under_fausts_own_command(
    kafka: str, unique: Callable[[str], str], tmp_path: Path
) -> None:
    """`faust -A shout worker` copies every record, commits, and ends cleanly on SIGTERM."""
    source, target, group = create(kafka, unique("words")), create(kafka, unique("loud")), unique("shout")
    produce(kafka, source, 5000)
    code = PYTHON[0].replace("127.0.0.1:9092", kafka).replace('"loud-words"', f'"{target}"')
    (tmp_path / "shout.py").write_text(code.replace('"words"', f'"{source}"').replace('"shout"', f'"{group}"'), "utf-8")
    command = [sys.executable, "-m", "faust", "-A", "shout", "worker", "-l", "info"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        try:
            wait_until(lambda: lag(kafka, group, source) == 0)
            worker.terminate()
            assert worker.wait(30) == 0, (tmp_path / "log").read_text("utf-8")
        finally:
            worker.kill()
    assert sorted(numbers(read(kafka, target))) == list(range(5000))


def test_the_configuration_example_is_valid() -> None:
    """It builds what it says, from names that exist."""
    import faust

    app = faust.App("documented", broker="rdkafka://127.0.0.1:9092")
    exec(PYTHON[1], {"app": app, "password": "geheim"})
    options = app.transport.options.for_consumer("g")
    assert options["bootstrap.servers"] == "broker-1:9093,broker-2:9093"
    assert (options["sasl.mechanism"], options["sasl.password"]) == ("SCRAM-SHA-512", "geheim")
    assert "geheim" not in repr(app.rdkafka)


@pytest.mark.parametrize("kind", [Configuration, Hooks])
def test_every_field_is_in_the_manual(kind: type) -> None:
    """Nothing can be set that is not written about."""
    text = MANUAL.read_text("utf-8")
    assert [name for name in kind.__dataclass_fields__ if name != "hooks" and f"`{name}`" not in text] == []


def test_defaults_in_the_manual_are_the_codes() -> None:
    """The numbers are those of the code, and so is the list of what is refused."""
    text, defaults = MANUAL.read_text("utf-8"), Configuration()
    assert f"| `poll_records` | {defaults.poll_records:,} |" in text
    assert f"| `in_flight_max` | {defaults.in_flight_max:,} |" in text
    assert f"| `drain_deadline_s` | {defaults.drain_deadline_s:g} |" in text
    assert str(CONSUMER_DEFAULTS["partition.assignment.strategy"]) in text
    assert [
        n for n in GUARDED_OPTIONS if n not in text and "assignment" not in n and n != "request.required.acks"
    ] == []
