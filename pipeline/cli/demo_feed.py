"""The demo's two producers: one of events, at their pace, one of labels, each a little after its event."""

import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Self

from pipeline.bus.clients import ClientOptions
from pipeline.bus.producer import BatchProducer
from pipeline.cli.demo_data import Broken, Plan
from pipeline.cli.events import EventEncoder
from pipeline.cli.replay import TICK_S, Rate, chunk_rows, send
from pipeline.codec import event_schema, load_schema
from pipeline.contracts import Registry
from pipeline.settings import Settings
from pipeline.testing.breakage import FOREIGN_SCHEMA

#: A label comes so long after its event, or so many events later where that is sooner. What had no label when the
#: newest part of the labels began is not learnt from: 600 events of the 2,500 that the first training has.
LABEL_DELAY_S, LABEL_DELAY_EVENTS = 0.5, 600


class Feed:
    """Sends the plan's events and their labels on threads of its own, which end with it.

    Those from the plan's `canary_at` on wait for `go_on`, and so do those from its `champion_at` on.
    """

    def __init__(self, settings: Settings, options: ClientOptions, registry: Registry, plan: Plan, rate: float) -> None:
        """rate: events a second."""
        self._settings, self._options, self._registry = settings, options, registry
        self._plan, self._rate = plan, rate
        self.broken = Broken()
        #: Events sent, and labels.
        self.sent = self.labelled = 0
        #: When the first shifted event was sent, by time.monotonic().
        self.shifted_at: float | None = None
        self._may_pass = {place: threading.Event() for place in (plan.canary_at, plan.champion_at)}
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="demo-feed")
        self._futures = [self._pool.submit(self._send_events), self._pool.submit(self._send_labels)]

    @property
    def done(self) -> bool:
        """Whether every event and every label was sent."""
        return self.sent == self.labelled == len(self._plan)

    @property
    def held_at(self) -> int | None:
        """Where the rest waits for `go_on`, if it does."""
        sent = self.sent
        return sent if sent in self._may_pass and not self._may_pass[sent].is_set() else None

    def go_on(self, place: int) -> None:
        """Let pass what waits at `place`, one of the plan's two."""
        self._may_pass[place].set()

    def check(self) -> None:
        """Raise what one of the threads raised."""
        for future in self._futures:
            if future.done():
                future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for passed in self._may_pass.values():
            passed.set()
        self._pool.shutdown(wait=True)

    def _send_events(self) -> None:
        events, topic = self._settings.events, self._settings.topic("events")
        schema = event_schema(self._settings)
        schema_id = self._registry.register(f"{topic}-value", schema)
        foreign_id = self._registry.register(f"{self._settings.name}.foreign-value", FOREIGN_SCHEMA)
        encoder = EventEncoder(schema, schema_id, events.id_field, events.key_field, events.time_field)
        producer = BatchProducer(self._options.for_producer())
        chunk = chunk_rows(self._rate)
        for first, last in pairwise((0, *self._may_pass, len(self._plan))):
            if first:
                self._may_pass[first].wait()
            encoded = self._plan.encoded(encoder, foreign_id, self.broken, range(first, last, chunk))
            send(producer, topic, encoded, Rate(self._rate), self._ended.is_set, partial(self._note, first))
        if not self._ended.is_set():
            producer.flush()

    def _note(self, first: int, sent: int) -> None:
        self.sent = first + sent
        if self.shifted_at is None and self.sent > self._plan.shift_at:
            self.shifted_at = time.monotonic()

    def _send_labels(self) -> None:
        """Labels of all that was sent `delay_s` ago, again and again."""
        topic, schema = self._settings.topic("labels"), load_schema("label")
        keys, values = self._plan.encoded_labels(schema, self._registry.register(f"{topic}-value", schema))
        producer = BatchProducer(self._options.for_producer())
        delay_s = min(LABEL_DELAY_S, LABEL_DELAY_EVENTS / self._rate)
        marks: deque[tuple[float, int]] = deque()
        while self.labelled < len(values) and not self._ended.wait(TICK_S):
            now = time.monotonic()
            marks.append((now, self.sent))
            due = self.labelled
            while marks and marks[0][0] <= now - delay_s:
                due = marks.popleft()[1]
            if due > self.labelled:
                producer.send_batch(topic, keys[self.labelled : due], values[self.labelled : due])
                self.labelled = due
        if not self._ended.is_set():
            producer.flush()
