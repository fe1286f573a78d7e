"""The Faust transport `rdkafka://`: librdkafka under any Faust app. docs/transport.md is its manual."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
from pipeline.bus.producer import Producer
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
    on_broker_error: Callable[[str], None] = _ignore
    on_statistics: Callable[[str], None] | None = None
    statistics_interval_ms: int = 2_000


@dataclass
class Configuration:
    """How an app wants its transport. `configure(app, Configuration(...))` before the app starts."""

    options: ClientOptions | None = None
    hooks: Hooks = field(default_factory=Hooks)
    #: Most records in one Faust message.
    poll_records: int = 1024
    #: Records handed out and not done above which fetching pauses.
    in_flight_max: int = 32_768
    #: Longest wait for streams to finish at a rebalance or at shutdown.
    drain_deadline_s: float = 25.0


def configure(app: Any, configuration: Configuration) -> None:
    """Attach a configuration to a Faust app."""
    app.rdkafka = configuration


class Transport(base.Transport):
    """Batch-native transport on confluent-kafka. One Faust message is one `records.RecordBatch`."""

    Consumer = Consumer
    Producer = Producer
    default_port = 9092
    driver_version = f"confluent-kafka={confluent_kafka.__version__}"

    def __init__(self, url: list[Any], app: Any, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(url, app, loop)
        configuration: Configuration = getattr(app, "rdkafka", None) or Configuration()
        servers = ",".join(f"{u.host}:{u.port or self.default_port}" for u in url)
        self.options = configuration.options or ClientOptions(servers)
        strategy = self.options.for_consumer("").get("partition.assignment.strategy")
        if strategy != "cooperative-sticky":
            raise SettingsError(
                f"kafka.consumer_options: partition.assignment.strategy: {strategy!r} is not supported, "
                "the transport drains cooperatively; leave it out"
            )
        self.hooks = configuration.hooks
        if self.hooks.on_fault is None:
            self.hooks.on_fault = self._crash
        self.poll_records = configuration.poll_records
        self.in_flight_max = configuration.in_flight_max
        self.drain_deadline_s = configuration.drain_deadline_s
        self._deadline: float | None = None
        self._admin: AdminClient | None = None
        self._counts: dict[str, int] = {}

    def _crash(self, error: Exception) -> None:
        self.loop.call_soon(lambda: asyncio.ensure_future(self.app.crash(error)))

    def start_deadline(self) -> None:
        """Start the one clock that drain, flush, commit and close share at shutdown."""
        self._deadline = time.monotonic() + self.drain_deadline_s

    def deadline_left_s(self) -> float:
        """Seconds left of the shutdown's budget; the whole of it before shutdown began."""
        return self.drain_deadline_s if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def _ensure_admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = make_admin(self.options)
        return self._admin

    def partition_counts(self) -> dict[str, int]:
        """Topic -> partitions, asked once and again when a topic is unknown."""
        return self._counts

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """Where a record with `key` goes; a null key goes anywhere. None for an unknown topic."""
        if topic not in self._counts:
            self._counts = topics.partition_counts(self._ensure_admin())
        count = self._counts.get(topic)
        if partition is not None or count is None:
            return partition
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


class BatchSchema(faust.Schema):  # type: ignore[misc, name-defined, unused-ignore]
    """Hands a stream the `RecordBatch` as it is."""

    def loads_key(self, app: Any, message: Any, **_options: Any) -> None:  # noqa: ARG002 (Faust's signature)
        """A batch has many keys, none of its own."""

    def loads_value(self, app: Any, message: Any, **_options: Any) -> RecordBatch:  # noqa: ARG002 (Faust's signature)
        """The batch."""
        batch: RecordBatch = message.value
        return batch


def batch_topic(app: Any, *names: str) -> Any:
    """A Faust topic whose stream yields record batches."""
    return app.topic(*names, schema=BatchSchema(key_type=bytes, value_type=bytes))
