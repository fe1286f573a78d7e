"""Options, errors and secrets of librdkafka clients."""

from typing import Any

import pytest
import structlog
from confluent_kafka import KafkaError

from pipeline.bus import clients
from pipeline.bus.clients import (
    ClientOptions,
    ErrorLog,
    make_admin,
    make_consumer,
    make_producer,
    redact,
    wait_for_broker,
)
from pipeline.errors import SettingsError, UnreachableError
from pipeline.settings import SECRET_OPTIONS, load

NOWHERE = "127.0.0.1:1"


def test_every_client_gets_the_security_options() -> None:
    """SASL and TLS options, secrets included, reach consumer, producer and admin as librdkafka spells them."""
    settings = load(
        overrides={"kafka.bootstrap_servers": "kafka:9093"},
        environment={
            "PIPELINE__KAFKA__OPTIONS__SECURITY_PROTOCOL": "SASL_SSL",
            "PIPELINE__KAFKA__OPTIONS__SASL_MECHANISM": "SCRAM-SHA-512",
            "PIPELINE__KAFKA__OPTIONS__SASL_USERNAME": "u",
            "PIPELINE__KAFKA__OPTIONS__SASL_PASSWORD": "geheim",
            "PIPELINE__KAFKA__OPTIONS__SSL_CA_LOCATION": "/ca.pem",
            "PIPELINE__KAFKA__OPTIONS__SSL_KEY_PASSWORD": "geheimer",
        },
    )
    options = ClientOptions.from_settings(settings)
    wanted = {
        "bootstrap.servers": "kafka:9093",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "geheim",
        "ssl.ca.location": "/ca.pem",
        "ssl.key.password": "geheimer",
    }
    for got in (options.base(), options.for_consumer("g"), options.for_producer()):
        assert wanted.items() <= got.items()


def test_the_defaults_keep_the_guarantee() -> None:
    """No offset is committed by librdkafka itself, and every output waits for all in-sync replicas."""
    options = ClientOptions("kafka:9092")
    consumer, producer = options.for_consumer("g"), options.for_producer()
    assert (consumer["enable.auto.commit"], consumer["isolation.level"]) == (False, "read_committed")
    assert consumer["check.crcs"] is True
    assert consumer["group.id"] == "g"
    assert (producer["acks"], producer["enable.idempotence"], producer["message.timeout.ms"]) == ("all", True, 0)


def test_extra_options_use_underscores_and_callbacks_keep_theirs() -> None:
    """`stats_cb` is confluent-kafka's name; `client_id` is librdkafka's client.id; None means not set."""
    got = ClientOptions("k:1").for_consumer("g", client_id="me", stats_cb=print, statistics_interval_ms=None)
    assert got["client.id"] == "me"
    assert got["stats_cb"] is print
    assert "statistics.interval.ms" not in got


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ("common", "enable.auto.commit", "true"),
        ("consumer", "enable.auto.offset.store", "true"),
        ("consumer", "partition.assignment.strategy", "range"),
        ("consumer", "group.protocol", "consumer"),
        ("producer", "acks", "1"),
        ("producer", "request.required.acks", "0"),
        ("common", "enable.idempotence", "false"),
    ],
)
def test_options_that_break_the_guarantee_are_refused(table: str, name: str, value: str) -> None:
    """One line names the option and what it may be."""
    options = ClientOptions("k:1", **{table: {name: value}})
    make = options.for_producer if table == "producer" or "idempotence" in name else lambda: options.for_consumer("g")
    with pytest.raises(SettingsError, match=name) as refusal:
        make()
    assert "\n" not in str(refusal.value)


def test_acks_may_be_said_again() -> None:
    """The value we need anyway is no reason to refuse."""
    assert ClientOptions("k:1", producer={"acks": "-1"}).for_producer()["acks"] == "-1"


@pytest.mark.parametrize("make", [make_consumer, make_producer])
@pytest.mark.parametrize(("name", "value"), [("no.such.option", "1"), ("security.protocol", "FTP")])
def test_what_librdkafka_refuses_is_a_settings_error(make: Any, name: str, value: str) -> None:
    """An unknown option or value: one line, librdkafka's reason, no secret."""
    options = ClientOptions(NOWHERE, {name: value}, secret={"sasl.password": "geheim"})
    given = options.for_consumer("g") if make is make_consumer else options.for_producer()
    with pytest.raises(SettingsError, match=name) as refusal:
        make(given, ErrorLog("test"))
    assert "\n" not in str(refusal.value)
    assert "geheim" not in str(refusal.value)
    with pytest.raises(SettingsError, match=name):
        make_admin(options)


def test_no_secret_is_shown() -> None:
    """Neither repr nor redact shows one, wherever an app has put it."""
    secret = dict.fromkeys(SECRET_OPTIONS, "geheim")
    options = ClientOptions("k:1", {"sasl.password": "geheim"}, {"ssl.key.password": "geheim"}, {}, secret)
    assert "geheim" not in repr(options)
    assert "geheim" not in str(options)
    assert "k:1" in repr(options)
    assert "geheim" not in str(redact(options.base()))
    assert redact({"client.id": "me"}) == {"client.id": "me"}


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What clients.py logs, whatever logging other tests have set up."""
    capture = structlog.testing.LogCapture()
    logger = structlog.wrap_logger(None, processors=[capture], wrapper_class=structlog.BoundLogger)
    monkeypatch.setattr(clients, "log", logger)
    return capture.entries


def test_absence_is_logged_once_and_return_once(lines: list[Any]) -> None:
    """Any number of connection errors make one line; so does the broker's return; each error is counted."""
    kinds: list[str] = []
    errors = ErrorLog("consumer", kinds.append)
    for _ in range(5):
        errors(KafkaError(KafkaError._TRANSPORT))
        errors(KafkaError(KafkaError._ALL_BROKERS_DOWN))
    errors.working()
    errors.working()
    assert [line["event"] for line in lines] == ["broker away, waiting for it", "broker back"]
    assert kinds == ["transport", "all_brokers_down"] * 5


def test_other_errors_are_logged_as_they_come(lines: list[Any]) -> None:
    """Refused credentials are remembered, a fatal error too."""
    errors = ErrorLog("producer")
    errors(KafkaError(KafkaError._AUTHENTICATION))
    errors(KafkaError(KafkaError._FENCED, "fenced", fatal=True))
    assert [line["kind"] for line in lines] == ["authentication", "fenced"]
    assert errors.refused is not None
    assert errors.fatal is not None


def test_an_absent_broker_is_unreachable(lines: list[Any]) -> None:
    """The error names the address, the time waited, and what to do; nothing is logged beside it."""
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1 did not answer within 0\.5 s.*pipeline broker"):
        wait_for_broker(ClientOptions(NOWHERE), 0.5)
    assert lines == []


def test_a_present_broker_answers(kafka: str) -> None:
    """With a real Kafka the wait is over at once."""
    wait_for_broker(ClientOptions(kafka), 10)
