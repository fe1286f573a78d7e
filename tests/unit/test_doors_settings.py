"""Settings at the door: whatever is wrong with file, environment or flags is one line: source, key, fault."""

from pathlib import Path

import pytest

from tests.unit.doors import refused

pytestmark = pytest.mark.case("D1")

#: Text of pipeline.toml -> what must be said.
FILES: dict[str, tuple[str, str]] = {
    "a value without end": ("name = 'x", "not valid TOML"),
    "a key twice": ("name = 'x'\nname = 'y'\n", "not valid TOML"),
    "a table twice": ("[kafka]\n[kafka]\n", "not valid TOML"),
    "JSON": ('{"name": "x"}', "not valid TOML"),
    "YAML": ("name: x\nkafka:\n  bootstrap_servers: y\n", "not valid TOML"),
    "nested beyond reason": ("x = " + "[" * 100_000, "pipeline.toml: "),
    "a number beyond reason": ("[scoring]\nbatch_max = " + "9" * 5_000, "pipeline.toml: "),
    "an unknown section": ("[kafkaa]\nx = 1\n", "kafkaa: no such setting"),
    "an unknown key": ("[kafka]\nbootstrap_server = 'h:1'\n", "kafka.bootstrap_server: no such setting"),
    "a section that is a value": ("kafka = 3\n", "kafka: "),
    "a value that is a section": ("[name]\nx = 1\n", "name: "),
    "a list of tables": ("[[kafka]]\nx = 1\n", "kafka: "),
    "options that are a text": ("[kafka]\noptions = 'acks=all'\n", "kafka.options: "),
    "an option that is a list": ("[kafka.options]\nacks = [1, 2]\n", "kafka.options"),
    "text for a number": ("[scoring]\nbatch_max = 'many'\n", "scoring.batch_max: "),
    "a fraction for a whole number": ("[scoring]\nbatch_max = 1.5\n", "scoring.batch_max: "),
    "a date for a number": ("[scoring]\nbatch_max = 2024-01-01\n", "scoring.batch_max: "),
    "zero": ("[scoring]\nbatch_max = 0\n", "scoring.batch_max: "),
    "negative": ("[delivery]\ncommit_interval_ms = -1\n", "delivery.commit_interval_ms: "),
    "infinite": ("[delivery]\nshutdown_deadline_s = inf\n", "delivery.shutdown_deadline_s: "),
    "not a number": ("[scoring]\nlinger_ms = nan\n", "scoring.linger_ms: "),
    "endless retention": ("[topics]\nretention_hours = inf\n", "topics.retention_hours: "),
    "an unknown mode": ("[delivery]\nmode = 'at_most_once'\n", "delivery.mode: "),
    "no port": ("[kafka]\nbootstrap_servers = 'localhost'\n", "is not host:port"),
    "an empty address": ("[kafka]\nbootstrap_servers = ''\n", "is not host:port"),
    "a name with a blank": ("name = 'my shop'\n", "name: "),
    "an empty name": ("name = ''\n", "name: "),
    "a name with a line end": ('name = "a\\nb"\n', "name: "),
    "a name beyond Kafka's length": (f"name = '{'x' * 300}'\n", "name: "),
    "a topic of two dots": ("[topics]\nevents = '..'\n", "topics.events: "),
    "a topic with a slash": ("[topics]\nevents = '../etc'\n", "topics.events: "),
    "two roles, one topic": ("[topics]\nevents = 'x'\ndead_letters = 'x'\n", "two roles share one topic"),
    "two roles, one topic by default": (
        "name = 'p'\n[topics]\nevents = 'p.predictions'\n",
        "two roles share one topic",
    ),
    "a secret": ("[kafka.options]\n'sasl.password' = 'geheim'\n", "a secret"),
    "a secret, nested": ("[kafka.options.sasl]\npassword = 'geheim'\n", "a secret"),
    "a secret for consumers": ("[kafka.consumer_options]\nsasl_password = 'geheim'\n", "a secret"),
    "the place of secrets": ("[kafka.secrets]\n'sasl.password' = 'geheim'\n", "not a key"),
    "a secret's file that is not there": ("[kafka.options]\nsasl_password_file = 'no'\n", "cannot be read"),
    "a secret's file that is a folder": ("[kafka.options]\nsasl_password_file = '.'\n", "cannot be read"),
    "a login": ("[registry]\nbasic_auth = 'geheim'\n", "a secret"),
    "a field twice": ("[events]\nslice_fields = ['a', 'b', 'a']\n", "events.slice_fields: a is named twice"),
    "too many fields": (f"[events]\nslice_fields = {[f'f{i}' for i in range(17)]}\n", "at most 16 items"),
    "a number for a field": ("[events]\nslice_fields = [1]\n", "events.slice_fields.0: "),
    "the folder of it all": ("root = '/'\n", "root: "),
}


@pytest.mark.parametrize("name", FILES)
def test_a_settings_file(folder: Path, name: str) -> None:
    """One line with the file and what is wrong; a secret's value is never repeated."""
    text, said = FILES[name]
    (folder / "pipeline.toml").write_text(text, "utf-8")
    lines = refused("check", "--offline", code=2)
    assert any("pipeline.toml" in line and said in line for line in lines), lines
    assert "geheim" not in "".join(lines)


#: Options that only the client can judge -> what must be said.
OPTIONS: dict[str, tuple[str, str]] = {
    "unknown": ("'no.such.option' = 1", "no.such.option"),
    "of the wrong type": ("'socket.timeout.ms' = 'soon'", "socket.timeout.ms"),
    "out of range": ("'socket.timeout.ms' = 1", "socket.timeout.ms"),
    "of another kind of client": ("'group.id' = 'x'\nacks = 0", "acks"),
    "a protocol that nobody knows": ("security_protocol = 'carrier-pigeon'", "security.protocol"),
    "a certificate that is not there": ("security_protocol = 'ssl'\nssl_ca_location = 'no.pem'", "ca.location"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_kafka_option(folder: Path, name: str) -> None:
    """librdkafka's refusal, and ours of what would break the guarantee, are one line of `check`, broker or not."""
    text, said = OPTIONS[name]
    table = "producer_options" if "acks" in text else "options"
    (folder / "pipeline.toml").write_text(f"[kafka.{table}]\n{text}\n", "utf-8")
    lines = refused("check", "--offline", code=1)
    assert any(line.startswith("error: pipeline.toml: kafka.") and said in line for line in lines), lines


ENVIRONMENT: dict[str, tuple[str, str, str]] = {
    "unknown": ("PIPELINE__SCORING__BATCH", "1", "scoring.batch: no such setting"),
    "no text for a number": ("PIPELINE__SCORING__BATCH_MAX", "many", "scoring.batch_max: "),
    "empty": ("PIPELINE__SCORING__BATCH_MAX", "", "scoring.batch_max: "),
    "a value for a section": ("PIPELINE__KAFKA", "x", "kafka: "),
    "below a value": ("PIPELINE__NAME__X", "x", "name"),
    "nothing named": ("PIPELINE__", "x", "environment PIPELINE__: "),
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_the_environment(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The line names the variable."""
    variable, value, said = ENVIRONMENT[name]
    monkeypatch.setenv(variable, value)
    lines = refused("check", "--offline", code=2)
    assert any(variable in line and said in line for line in lines), lines


def test_a_settings_file_that_is_none(folder: Path) -> None:
    """A folder, 100 MB of one line, bytes that are no text, nothing at all: one line each."""
    (folder / "folder.toml").mkdir()
    (folder / "bytes.toml").write_bytes(bytes(range(256)) * 100)
    (folder / "utf16.toml").write_bytes("name = 'x'".encode("utf-16"))
    (folder / "huge.toml").write_bytes(b"x" * 100_000_000)
    for name in ("folder", "bytes", "utf16", "huge", "missing"):
        (line,) = refused("--config", f"{name}.toml", "check", "--offline", code=2)
        assert line.startswith(f"error: {name}.toml: "), line
