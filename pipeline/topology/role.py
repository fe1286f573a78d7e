"""One running role: a Faust app of its own, with its own consumer group, and what ends it."""

import asyncio
import json
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import faust
import structlog

from pipeline import observe
from pipeline.bus import Configuration, Hooks, Transactions, configure, topics
from pipeline.bus.clients import ClientOptions, make_admin, wait_for_broker
from pipeline.bus.reading import record_batches
from pipeline.errors import ContractError, PipelineError, UnreachableError, explained
from pipeline.records import RecordBatch, TopicPartition
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: How long one try waits for an absent broker: also how late a stop is noticed meanwhile.
BROKER_TRY_S = 2.0
#: Between two tries to reach an absent broker or registry at the start, on top of what a try takes.
ABSENT_PAUSE_S = 0.5
#: An absent broker or registry is mentioned this often.
ABSENT_REMIND_S = 30.0


class _App(faust.App):  # type: ignore[misc, name-defined, unused-ignore]
    """A Faust app without tables, web server or folders of its own."""

    logger = logging.getLogger("faust.app")  # mode logs each step of each service under its class's module

    def _create_directories(self) -> None:
        pass


@dataclass
class Role:
    """One running role: its app, and what ends it."""

    settings: Settings
    name: str
    slot: int
    metrics: observe.Metrics
    #: The global flags of this process, for processes of its own.
    flags: list[str] = field(default_factory=list)
    app: Any = None
    agents_ready: bool = False
    fault: "asyncio.Future[PipelineError]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    #: Run once the app has stopped, whatever stopped it.
    closers: list[Callable[[], None]] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        """Stop this role: nothing more is committed, and the process exits with the error's code."""
        if not self.fault.done():
            self.fault.set_result(explained(error))
        if self.app is not None and self.app._consumer is not None:  # noqa: SLF001 (do not make one now)
            self.app.consumer.abandon()

    def ready(self) -> tuple[bool, str]:
        """Warmed up, in the group and assigned."""
        if self.app is None or not self.agents_ready:
            return False, "starting"
        return (True, "ready") if self.app.consumer.assignment() else (False, "no partitions assigned")


def make_app(
    role: Role,
    on_commit: Callable[[str], None] = lambda _outcome: None,
    companions: Mapping[str, str] | None = None,
) -> Any:
    """The role's Faust app on our transport.

    on_commit: told how each commit went. companions: see bus.Configuration.
    """
    settings, metrics = role.settings, role.metrics
    app = _App(
        settings.group(role.name),
        broker="rdkafka://" + settings.kafka.bootstrap_servers.split(",")[0],
        broker_client_id=f"{settings.name}-{role.name}-{role.slot}",
        broker_commit_interval=settings.delivery.commit_interval_ms / 1000,
        stream_wait_empty=True,
        stream_recovery_delay=0.0,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        store="memory://",
        autodiscover=False,
    )

    def committed(outcome: str) -> None:
        metrics.committed(outcome)
        on_commit(outcome)

    hooks = Hooks(
        on_fault=role.fail,
        on_rebalance=lambda kind, _n: metrics.rebalanced(kind),
        on_commit=committed,
        on_commit_seconds=lambda seconds: metrics.stage("commit", seconds),
        on_in_flight=metrics.in_flight,
        on_missed=metrics.missed,
        on_broker_error=metrics.broker_error,
        on_statistics=_lag_reporter(role),
    )
    configure(
        app,
        Configuration(
            ClientOptions.from_settings(settings),
            hooks,
            poll_records=settings.scoring.step_max,
            in_flight_max=settings.scoring.in_flight_max,
            in_flight_max_bytes=settings.scoring.in_flight_max_bytes,
            drain_deadline_s=settings.delivery.shutdown_deadline_s,
            transactions=_transactions(role),
            companions=companions or {},
        ),
    )
    role.app = app
    return app


def _transactions(role: Role) -> Transactions | None:
    """Workers: as asked for. The others always: what they send commits together with what it came of."""
    delivery, name = role.settings.delivery, role.settings.name
    if role.name in ("monitor", "quality"):
        own_id = f"{delivery.transactional_id_prefix or name}-{role.name}"
        return Transactions(own_id, delivery.transaction_timeout_ms, when_idle=False)  # a trigger may take 0.5 s
    if role.name == "worker" and delivery.mode != "exactly_once":
        return None
    prefix = delivery.transactional_id_prefix or f"{name}-{role.name}-{socket.gethostname()}"
    if role.name != "worker" and delivery.transactional_id_prefix:
        prefix += f"-{role.name}"
    return Transactions(f"{prefix}-{role.slot}", delivery.transaction_timeout_ms)


def _lag_reporter(role: Role) -> Callable[[str], None]:
    """Lag per assigned partition: its last stable offset, out of librdkafka's statistics, less what is committed.

    Before the first commit, their `consumer_lag`: of what a transaction commits, librdkafka's consumer never hears.
    """
    shown: set[tuple[str, int]] = set()

    def report(text: str) -> None:
        now: set[tuple[str, int]] = set()
        for name, topic in json.loads(text).get("topics", {}).items():
            for number, partition in topic.get("partitions", {}).items():
                lag, end = partition.get("consumer_lag", -1), partition.get("ls_offset", -1)
                done = role.app.consumer.ledger.last_committed(TopicPartition(name, int(number)))
                if done is not None and end >= 0:
                    lag = max(end - done, 0)
                if int(number) >= 0 and lag >= 0:
                    now.add((name, int(number)))
                    role.metrics.lag(name, int(number), lag)
        for name, number in shown - now:
            role.metrics.forget_lag(name, number)
        shown.clear()
        shown.update(now)

    return report


# -- what the builders of several roles share


async def once_reachable(waiting: str, call: Callable[[], T]) -> T:
    """What `call`, in a thread, returns once the broker or registry it asks is there, however long that takes.

    waiting: what is logged meanwhile, now and then.
    """
    reminded_at = -ABSENT_REMIND_S
    while True:
        try:
            return await asyncio.to_thread(call)
        except UnreachableError as error:
            if time.monotonic() - reminded_at >= ABSENT_REMIND_S:
                log.warning(waiting, error=str(error))
                reminded_at = time.monotonic()
            await asyncio.sleep(ABSENT_PAUSE_S)


async def prepare_topics(settings: Settings) -> None:
    """Wait for the broker as long as it takes; create what is missing; refuse what does not fit."""
    await once_reachable("waiting for the broker", lambda: _prepare_once(settings))


def _prepare_once(settings: Settings) -> None:
    options = ClientOptions.from_settings(settings)
    wait_for_broker(options, BROKER_TRY_S)
    admin = make_admin(options)
    if settings.topics.create and (created := topics.create(admin, topics.specs(settings))):
        log.info("topics created", topics=created)
    if problems := topics.problems(settings, topics.partition_counts(admin)):
        raise ContractError("\n".join(problems))


def is_current(consumer: Any, event: Any) -> bool:
    """Whether a batch that a stream holds is still to be done."""
    return bool(consumer.is_current(event.message))


class ConsumerPlace:
    """What every station asks of its consumer: the common part of their `Place`."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def is_current(self, delivery: Any) -> bool:
        return is_current(self._app.consumer, delivery)

    def reading(self, delivery: Any) -> int:
        return int(delivery.message.generation_id)

    async def offsets(self) -> dict[TopicPartition, int]:
        """The group's offsets of all assigned partitions that have one."""
        offsets = await self._app.consumer.committed_for_sure()
        return {TopicPartition(tp.topic, tp.partition): offset for tp, offset in offsets.items()}

    async def commit(self) -> None:
        await self._app.consumer.commit()

    def records(self, tp: TopicPartition, start: int, end: int) -> Iterator[RecordBatch]:
        """What a partition holds of these offsets, `end` exclusive."""
        return record_batches(self._app.rdkafka.options, self._app.conf.id, tp.topic, tp.partition, start, end)


class LateSink:
    """contracts.OutputSink: the app's batch producer, which exists once the app has started."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self._get = get

    def send_batch(self, *args: Any, **kwargs: Any) -> None:
        self._get().send_batch(*args, **kwargs)

    def send(self, *args: Any, **kwargs: Any) -> None:
        self._get().send(*args, **kwargs)


async def until_fault(role: Role, work: Awaitable[None]) -> None:
    """Run an agent's work; a fault stops the role instead of Faust restarting the agent past it."""
    try:
        await work
    except asyncio.CancelledError:
        raise
    except Exception as error:
        if not isinstance(error, PipelineError):
            log.exception("agent failed")
        role.fail(error)
        await asyncio.Event().wait()
