"""librdkafka clients: one place for their defaults, their errors and their secrets."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from pipeline.errors import SettingsError, UnreachableError
from pipeline.settings import SECRET_OPTIONS, Settings

log = structlog.get_logger(__name__)

#: For every client. librdkafka reconnects for ever by itself; these bound its back-off.
COMMON_DEFAULTS: dict[str, Any] = {
    "reconnect.backoff.ms": 100,
    "reconnect.backoff.max.ms": 2_000,
    "socket.keepalive.enable": True,
    # What fails goes through error_cb, once, and not to stderr, a line per retry (those have level 3).
    "log_level": 2,
}

CONSUMER_DEFAULTS: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "earliest",
    "isolation.level": "read_committed",
    "check.crcs": True,
    "partition.assignment.strategy": "cooperative-sticky",
    # How long the partitions of a worker that was killed wait for their next owner. librdkafka's own thread
    # sends the heartbeats, so a busy interpreter misses none; three may be lost on the way.
    "session.timeout.ms": 10_000,
    "heartbeat.interval.ms": 3_000,
    # Default 1000 ms makes a fast consumer wait while nothing works: the same loop ran 1.4-2.6 times
    # as fast at 1 (shared measurements; `python -m benchmarks.run` shows the whole job).
    "fetch.queue.backoff.ms": 1,
    # A worker keeps up to this much fetched and unread in librdkafka, over all partitions: 64 MiB or 100,000
    # records (which take about 400 bytes each beside their own), and what one more answer of each broker brings.
    "queued.max.messages.kbytes": 65_536,
    "queued.min.messages": 100_000,
    # Default 50 MiB: with 50 partitions or more one answer may be that large. 16 MiB are 160,000 events of 100 bytes.
    "fetch.max.bytes": 16_777_216,
    # The broker answers as soon as there is a byte, and looks every 50 ms when there is none.
    "fetch.wait.max.ms": 50,
}

PRODUCER_DEFAULTS: dict[str, Any] = {
    "acks": "all",
    "enable.idempotence": True,
    # The partitioner of the Java client (murmur2; null keys at random): a key's partition is the same
    # whichever client wrote it.
    "partitioner": "murmur2_random",
    # Natural batching: what waits while a request is out goes in the next one; 2 ms lets a burst gather.
    "linger.ms": 2,
    "batch.num.messages": 10_000,
    "queue.buffering.max.messages": 200_000,
    # Of values alone: 64 MiB are one second of 64 MB/s. What is full makes scoring wait, and that the intake.
    "queue.buffering.max.kbytes": 65_536,
    # The topic's max.message.bytes decides, not librdkafka's default of 1 MB, which would refuse the
    # dead letter of a record that the events topic took (its bytes and our headers).
    "message.max.bytes": 16_777_216,
    # Wait for an absent broker for as long as it takes; back-pressure comes from the queue limits.
    "message.timeout.ms": 0,
    # Only failures reach Python: a callback per delivered record costs more than the record.
    "delivery.report.only.error": True,
}


#: Options the delivery guarantee stands on, and the values it allows.
GUARDED_OPTIONS: dict[str, frozenset[str]] = {
    "enable.auto.commit": frozenset({"false"}),
    "enable.auto.offset.store": frozenset({"false"}),
    "partition.assignment.strategy": frozenset({"cooperative-sticky"}),
    "group.protocol": frozenset({"classic"}),
    "acks": frozenset({"all", "-1"}),
    "request.required.acks": frozenset({"all", "-1"}),
    "enable.idempotence": frozenset({"true"}),
}


@dataclass(frozen=True, repr=False)
class ClientOptions:
    """What every client of one application shares; no secret is ever shown by repr."""

    bootstrap_servers: str
    common: Mapping[str, str] = field(default_factory=dict)
    consumer: Mapping[str, str] = field(default_factory=dict)
    producer: Mapping[str, str] = field(default_factory=dict)
    secret: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        shown = [redact(table) for table in (self.common, self.consumer, self.producer)]
        return f"ClientOptions({self.bootstrap_servers!r}, {', '.join(map(repr, shown))})"

    @classmethod
    def from_settings(cls, settings: Settings) -> "ClientOptions":
        """The `[kafka]` section as client options."""
        kafka = settings.kafka
        secret = {key: value.get_secret_value() for key, value in kafka.secrets.items()}
        return cls(kafka.bootstrap_servers, kafka.options, kafka.consumer_options, kafka.producer_options, secret)

    def base(self) -> dict[str, Any]:
        """Options of every client, secrets included: never log this; `redact` it first."""
        return {**COMMON_DEFAULTS, "bootstrap.servers": self.bootstrap_servers, **self.common, **self.secret}

    def for_consumer(self, group: str, **extra: Any) -> dict[str, Any]:
        """Options of a consumer in `group`; `extra` uses underscores for dots.

        Raises SettingsError when an option would break the delivery guarantee; so does `for_producer`.
        """
        options = {**CONSUMER_DEFAULTS, **self.base(), "group.id": group, **self.consumer, **_dotted(extra)}
        return _guarded("kafka.consumer_options", options)

    def for_producer(self, **extra: Any) -> dict[str, Any]:
        """Options of an idempotent producer that waits for acks from all replicas."""
        return _guarded(
            "kafka.producer_options", {**PRODUCER_DEFAULTS, **self.base(), **self.producer, **_dotted(extra)}
        )


def _dotted(options: Mapping[str, Any]) -> dict[str, Any]:
    """Option names with dots; librdkafka's callbacks keep their underscore."""
    return {
        name if name.endswith("_cb") else name.replace("_", "."): value
        for name, value in options.items()
        if value is not None
    }


def _guarded(table: str, options: dict[str, Any]) -> dict[str, Any]:
    for name, allowed in GUARDED_OPTIONS.items():
        value = options.get(name)
        if value is not None and str(value).lower() not in allowed:
            mend = f"leave it out, or say {' or '.join(sorted(allowed))}"
            raise SettingsError(f"{table}: {name}: {value!r} would break the delivery guarantee; {mend}")
    return options


def redact(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as they may be logged."""
    return {k: "***" if k in SECRET_OPTIONS or "password" in k or "secret" in k else v for k, v in options.items()}


class ErrorLog:
    """librdkafka's error callback: logs a broker's absence once, its return once, everything else as it comes.

    quiet: log nothing; for a caller that raises what it learns.
    """

    def __init__(self, client: str, on_error: Callable[[str], None] | None = None, *, quiet: bool = False) -> None:
        self.client = client
        self.on_error = on_error
        self.quiet = quiet
        self.fatal: KafkaError | None = None
        #: Why the broker turned this client away: wrong credentials or certificates. No waiting mends it.
        self.refused: KafkaError | None = None
        self._away_since: float | None = None

    def __call__(self, error: KafkaError) -> None:
        kind = error.name().lstrip("_").lower()
        if self.on_error is not None:
            self.on_error(kind)
        if error.fatal():
            self.fatal = error
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):  # noqa: SLF001
            self.refused = error
        if self.quiet:
            return
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE):  # noqa: SLF001
            if self._away_since is None:
                self._away_since = time.monotonic()
                log.warning("broker away, waiting for it", client=self.client, error=error.str())
            return
        log.error("kafka client error", client=self.client, kind=kind, error=error.str(), fatal=error.fatal())

    def working(self) -> None:
        """Say that the broker answers again, if it was away."""
        if self._away_since is not None:
            log.info("broker back", client=self.client, away_s=round(time.monotonic() - self._away_since, 1))
            self._away_since = None


def make_consumer(options: Mapping[str, Any], errors: ErrorLog) -> Consumer:
    """A consumer. Raises SettingsError for an option librdkafka does not know or accept."""
    return _make(Consumer, options, errors)


def make_producer(options: Mapping[str, Any], errors: ErrorLog) -> Producer:
    """A producer. Raises SettingsError for an option librdkafka does not know or accept."""
    return _make(Producer, options, errors)


class Admin(AdminClient):  # type: ignore[misc, unused-ignore]
    """An admin client that remembers whose it is, for what only a consumer can ask (topics.committed)."""

    client_options: ClientOptions


def make_admin(options: ClientOptions, errors: ErrorLog | None = None) -> Admin:
    """An admin client. Raises SettingsError for an option librdkafka does not know or accept."""
    admin: Admin = _make(Admin, options.base(), errors or ErrorLog("admin"))
    admin.client_options = options
    return admin


def _make(kind: Any, options: Mapping[str, Any], errors: ErrorLog) -> Any:
    try:
        return kind({**options, "error_cb": errors})
    except KafkaException as error:
        raise SettingsError(f"kafka.options: librdkafka says: {error.args[0].str()}") from None


def wait_for_broker(options: ClientOptions, timeout_s: float) -> None:
    """Return once a broker answers a metadata request.

    Raises SettingsError when it refuses the credentials, UnreachableError after `timeout_s`.
    """
    errors = ErrorLog("admin", quiet=True)
    client = make_admin(options, errors)
    deadline = time.monotonic() + timeout_s
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            client.list_topics(timeout=min(left, 2.0))
        except KafkaException as error:
            reason = error.args[0].str()
            client.poll(0)  # serves error_cb
            if errors.refused is not None:
                raise SettingsError(f"kafka.options: the broker refuses this client: {errors.refused.str()}") from None
        else:
            return
    raise UnreachableError(
        f"kafka.bootstrap_servers: {options.bootstrap_servers} did not answer within {timeout_s:g} s ({reason}); "
        "is it running? `pipeline broker` starts one here"
    )
