"""What `verify` sees: it reads predictions and dead letters as any consumer could, committed records only."""

import threading
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import numpy as np
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient

from pipeline.bus.clients import ClientOptions
from pipeline.bus.reading import Span, read
from pipeline.bus.topics import offsets
from pipeline.codec import ColumnarDecoder, load_schema, registry_of
from pipeline.errors import PipelineError
from pipeline.records import TopicPartition
from pipeline.settings import Settings
from pipeline.testing.counting import OutcomeCounter

#: Both outcomes of an event.
ROLES = ("predictions", "dead_letters")
CONNECT = "__connect.errors."
#: After a reader failed, as it may while the broker is away.
RETRY_S = 0.5
#: An end behind every end: to where the broker says that there is no more.
FAR = 1 << 62


class Watch:
    """Reads both topics from their beginnings, each on a thread of its own, and counts."""

    def __init__(self, settings: Settings, options: ClientOptions, counter: OutcomeCounter) -> None:
        self._settings, self._options, self._counter = settings, options, counter
        # Not thread-safe: there is one reader of predictions at a time.
        self._decoder = ColumnarDecoder(registry_of(settings), load_schema("prediction"))
        self._next = {role: dict.fromkeys(range(settings.topics.partitions), 0) for role in ROLES}
        self._following: list[Future[None]] = []
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(len(ROLES), thread_name_prefix="verify-watch")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown(wait=True)

    def start(self) -> None:
        self._following = [self._pool.submit(self._follow, role) for role in ROLES]

    def check(self) -> None:
        """Raise what a reader thread raised."""
        for future in self._following:
            if future.done():
                future.result()

    def finish(self) -> None:
        """Stop following, and read on from there to what are the ends now."""
        self._stopped.set()
        for future in self._following:
            future.result()
        for role in ROLES:
            self._read(role, FAR)

    def _follow(self, role: str) -> None:
        while not self._stopped.is_set():
            try:
                self._read(role, None)
            except PipelineError:  # the broker is away, or has just come back and does not know its topics yet
                self._stopped.wait(RETRY_S)

    def _read(self, role: str, end: int | None) -> None:
        """Committed records from where this role was left, to `end`; None: until stopped."""
        group, topic = f"{self._settings.name}-verify", self._settings.topic(role)
        take = self._predictions if role == "predictions" else self._dead_letters
        spans = {partition: Span(start, end) for partition, start in self._next[role].items()}
        for messages in read(self._options, group, topic, spans, isolation_level="read_committed"):
            by_partition: dict[int, list[Message]] = defaultdict(list)
            for message in messages:
                if message.offset() >= self._next[role][message.partition()]:  # each record is read once
                    by_partition[message.partition()].append(message)
            for partition, some in by_partition.items():
                take(partition, some)
                self._next[role][partition] = some[-1].offset() + 1
            if end is None and self._stopped.is_set():
                return

    def _predictions(self, partition: int, messages: list[Message]) -> None:
        decoded = self._decoder.decode([message.value() for message in messages])
        self._counter.unreadable(len(decoded.rejects))
        partitions, offsets = (
            np.asarray(decoded.columns.column(name).to_numpy(zero_copy_only=False), dtype=np.int64)
            for name in ("partition", "offset")
        )
        keys = [messages[row].key() for row in decoded.rows.tolist()]
        self._counter.predictions(partition, partitions, offsets, keys)

    def _dead_letters(self, _partition: int, messages: list[Message]) -> None:
        places = [_place(message, self._settings.topic("events")) for message in messages]
        partitions, offsets = np.array(places, dtype=np.int64).T
        self._counter.dead_letters(partitions, offsets)


def _place(message: Message, topic: str) -> tuple[int, int]:
    """Partition and offset of a dead letter's event; (-1, -1) if it names none of `topic`."""
    headers = dict(message.headers() or [])
    try:
        if headers[f"{CONNECT}topic"] == topic.encode():
            return int(headers[f"{CONNECT}partition"]), int(headers[f"{CONNECT}offset"])
    except (KeyError, ValueError, TypeError):
        pass
    return -1, -1


def held_back(admin: AdminClient, settings: Settings) -> int:
    """Records, markers among them, that readers of committed ones cannot get at: of transactions nobody has ended."""
    tps = [TopicPartition(settings.topic(role), p) for role in ROLES for p in range(settings.topics.partitions)]
    return sum(offsets(admin, tps).values()) - sum(offsets(admin, tps, committed_only=True).values())
