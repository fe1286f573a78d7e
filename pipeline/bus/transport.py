"""The Faust transport `rdkafka://`: librdkafka under any Faust app. docs/transport.md is its manual."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import confluent_kafka
import faust
from confluent_kafka.admin import AdminClient
from faust.transport import base
from mode.utils.times import want_seconds

from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.bus.consumer import Consumer
from pipeline.bus.partitioner import partition_for
from pipeline.bus.producer import BatchProducer, Producer
from pipeline.bus.transactions import TransactionalProducer
from pipeline.errors import SettingsError
from pipeline.records import RecordBatch


def _ignore(*_args: Any) -> None:
    pass


@dataclass
class Hooks:
    """What the transport reports; every hook may be called often and must be quick.

    `on_fault` gets the PipelineError that makes going on impossible (delivery refused, drain deadline
    passed): the app must stop, and exit with the error's code. Without a handler it crashes the app.
    """

    on_fault: Callable[[Exception], None] | None = None
    on_rebalance: Callable[[str, int], None] = _ignore
    on_commit: Callable[[str], None] = _ignore
    on_commit_seconds: Callable[[float], None] = _ignore
    on_in_flight: Callable[[int], None] = _ignore
    on_missed: Callable[[str, int], None] = _ignore
    on_broker_error: Callable[[str], None] = _ignore
    on_statistics: Callable[[str], None] | None = None
    statistics_interval_ms: int = 2_000


@dataclass(frozen=True)
class Transactions:
    """Exactly once: what an app sends by `producer.batch` and its input offsets commit together.

    transactional_id: this instance's own; the same after a restart, so that what it left open is ended at once.
    timeout_ms: the broker aborts a transaction that is open for longer.
    when_idle: commit early when nothing is left to do, so that readers of a quiet topic need not wait.

    The app must put `consumer.commit_guard` around its work, so that a commit finds no batch half done, and
    skip what `consumer.is_current` denies: batches that an abort has called back.
    """

    transactional_id: str
    timeout_ms: int = 60_000
    when_idle: bool = True


@dataclass
class Configuration:
    """How an app wants its transport. `configure(app, Configuration(...))` before the app starts."""

    options: ClientOptions | None = None
    hooks: Hooks = field(default_factory=Hooks)
    #: Most records in one Faust message.
    poll_records: int = 1024
    #: Records handed out and not done above which fetching pauses.
    in_flight_max: int = 32_768
    #: The same in bytes: what bounds memory where records are large. 64 MiB: 2 KiB for each of `in_flight_max`.
    in_flight_max_bytes: int = 67_108_864
    #: Longest wait for streams to finish at a rebalance or at shutdown.
    drain_deadline_s: float = 25.0
    #: None: at least once.
    transactions: Transactions | None = None
    #: Topic -> another, of which the same partitions come along: whoever is assigned partition 3 of the first reads
    #: partition 3 of the second as well. For joins; the group divides up the first ones alone.
    companions: Mapping[str, str] = field(default_factory=dict)


def configure(app: Any, configuration: Configuration) -> None:
    """Attach a configuration to a Faust app, before its first agent or topic."""
    if getattr(app, "_transport", None) is not None:
        raise RuntimeError("configure(app, ...) must come before the app's first agent or topic")
    app.rdkafka = configuration


class Deadline:
    """The one clock that drain, flush, commit and close share at shutdown."""

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self._end: float | None = None

    def start(self) -> None:
        """Start the clock; only the first call does."""
        if self._end is None:
            self._end = time.monotonic() + self.budget_s

    def left_s(self) -> float:
        """Seconds left; the whole budget before the start."""
        return self.budget_s if self._end is None else max(self._end - time.monotonic(), 0.0)


class Transport(base.Transport):
    """Batch-native transport on confluent-kafka. One Faust message is one `records.RecordBatch`."""

    Consumer = Consumer
    Producer = Producer
    default_port = 9092
    driver_version = f"confluent-kafka={confluent_kafka.__version__}"

    def __init__(self, url: list[Any], app: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(url, app, loop)
        configuration: Configuration = getattr(app, "rdkafka", None) or Configuration()
        _refuse_what_is_not_read(url, app.conf)
        self.options = configuration.options or _options_of(url, app.conf, self.default_port)
        self.options.for_consumer("")
        self.options.for_producer()
        self.hooks = configuration.hooks
        if self.hooks.on_fault is None:
            self.hooks = replace(self.hooks, on_fault=self._crash)
        self.poll_records = configuration.poll_records
        self.in_flight_max = configuration.in_flight_max
        self.in_flight_max_bytes = configuration.in_flight_max_bytes
        self.drain_deadline_s = configuration.drain_deadline_s
        self.transactions = configuration.transactions
        self.companions = configuration.companions
        # Faust makes one transport for consuming and one for producing: the shutdown is the same.
        self._deadline: Deadline = app.__dict__.setdefault("rdkafka_deadline", Deadline(self.drain_deadline_s))
        self._admin: AdminClient | None = None
        self._counts: dict[str, int] = {}

    def _crash(self, error: Exception) -> None:
        self.loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self.app.crash(error)))

    def start_deadline(self) -> None:
        """Start the shutdown's clock, unless it runs."""
        self._deadline.start()

    def deadline_left_s(self) -> float:
        """Seconds left of the shutdown's budget; the whole of it before shutdown began."""
        return self._deadline.left_s()

    def make_batch_producer(self, options: dict[str, Any]) -> BatchProducer:
        """The producer behind `app.producer.batch`."""
        if self.transactions is None:
            return BatchProducer(options, self.hooks.on_broker_error)
        return TransactionalProducer(
            options,
            self.transactions.transactional_id,
            timeout_ms=self.transactions.timeout_ms,
            on_broker_error=self.hooks.on_broker_error,
        )

    def _ensure_admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = make_admin(self.options)
        return self._admin

    def partition_count(self, topic: str) -> int | None:
        """Partitions of `topic`, asked once and again while it is unknown; None if it does not exist."""
        if topic not in self._counts:
            self._counts = topics.partition_counts(self._ensure_admin())
        return self._counts.get(topic)

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """Where a record with `key` goes; a null key goes anywhere. None for an unknown topic."""
        if partition is not None:
            return partition
        count = self.partition_count(topic)
        if count is None:
            return None
        return random.randrange(count) if key is None else partition_for(key, count)  # noqa: S311 (not a secret)

    async def create_topic(
        self,
        topic: str,
        partitions: int,
        replication: int,
        *,
        config: dict[str, Any] | None = None,
        timeout: Any = 30.0,  # noqa: ARG002, ASYNC109 (Faust's signature)
        retention: Any = None,
        compacting: bool | None = None,
        deleting: bool | None = None,
        ensure_created: bool = False,  # noqa: ARG002 (always)
    ) -> None:
        """Create `topic` unless it exists. Raises ContractError if refused, UnreachableError if nobody answers."""
        settings = {k: str(v) for k, v in (config or {}).items()}
        policies = [name for name, wanted in (("compact", compacting), ("delete", deleting)) if wanted]
        if policies:
            settings["cleanup.policy"] = ",".join(policies)
        if retention:
            settings["retention.ms"] = str(int(want_seconds(retention) * 1000))
        spec = topics.TopicSpec(topic, partitions, replication, settings)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, topics.create, self._ensure_admin(), [spec])


def _refuse_what_is_not_read(url: list[Any], conf: Any) -> None:
    """An app that asks for what this transport does not do must not run as if it did."""
    mend = "use configure(app, Configuration(options=ClientOptions(..., common={'security.protocol': ...})))"
    if conf.broker_credentials is not None or conf.ssl_context is not None:
        raise SettingsError(f"faust: broker_credentials, ssl_context: not read by rdkafka://; {mend}")
    if any(u.user or u.password for u in url):
        raise SettingsError(f"faust: broker: credentials in the URL are not read by rdkafka://; {mend}")
    if conf.processing_guarantee.name != "AT_LEAST_ONCE":
        raise SettingsError("faust: processing_guarantee: rdkafka:// offers at_least_once")


def _options_of(url: list[Any], conf: Any, default_port: int) -> ClientOptions:
    """Client options of an app without a configuration: Faust's own settings, where librdkafka has the same."""
    hosts = [f"[{u.host}]" if ":" in u.host else u.host for u in url]
    servers = ",".join(f"{host}:{u.port or default_port}" for host, u in zip(hosts, url, strict=True))
    consumer = {"auto.offset.reset": str(conf.consumer_auto_offset_reset)}
    if conf.consumer_group_instance_id:
        consumer["group.instance.id"] = str(conf.consumer_group_instance_id)
    return ClientOptions(servers, consumer=consumer)


class BatchSchema(faust.Schema):  # type: ignore[misc, name-defined, unused-ignore]
    """Hands a stream the `RecordBatch` as it is."""

    def loads_key(self, app: Any, message: Any, **_options: Any) -> None:
        """A batch has many keys, none of its own."""

    def loads_value(self, app: Any, message: Any, **_options: Any) -> RecordBatch:  # noqa: ARG002 (Faust's signature)
        """The batch."""
        batch: RecordBatch = message.value
        return batch


def batch_topic(app: Any, *names: str) -> Any:
    """A Faust topic whose stream yields record batches."""
    return app.topic(*names, schema=BatchSchema(key_type=bytes, value_type=bytes))
