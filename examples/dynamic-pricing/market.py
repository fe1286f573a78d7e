"""Play market.csv to the pipeline: a day of events, then the labels of the day before, and so on.

    python market.py       # in the project folder, while `pipeline run all` runs

The next day begins when every role has seen this one, and waits while a successor is trained: in life a half-hour is
longer than that. So a year passes in minutes, and what comes of it does not depend on how fast the machine is.
"""

import csv
import math
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition

from pipeline import codec
from pipeline.settings import Settings, load

DAY_ROWS = 48
#: A label is known a day after its event.
DELAY = timedelta(days=1)
#: Topics that are read as they grow.
READ = ("predictions", "outcomes", "batch_summaries", "retraining_triggers", "retraining_reports", "model_releases")
#: A day takes a fraction of a second; the first waits for six processes to start.
DAY_TIMEOUT_S = 180.0
#: The retrainer looks for labels every 15 s, then trains for some seconds.
RETRAINING_TIMEOUT_S = 300.0
REQUEST_TIMEOUT_S = 15.0
POLL_S = 0.01

Row = dict[str, str]


class Market:
    """What is sent, and what is seen of what comes of it. All topics have one partition."""

    def __init__(self, settings: Settings) -> None:
        """Registers the schemas of events and labels. Ends the program if the market was played already."""
        self._settings = settings
        registry = codec.registry_of(settings)
        self._codec = codec.RowCodec(registry)
        schemas = {"events": codec.event_schema(settings), "labels": codec.load_schema("label")}
        self._schemas = {
            role: (registry.register(f"{settings.topic(role)}-value", schema), schema)
            for role, schema in schemas.items()
        }
        self._servers = {"bootstrap.servers": settings.kafka.bootstrap_servers, "log_level": 3}
        self._producer = Producer({**self._servers, "acks": "all", "enable.idempotence": True})
        self._reader = self._consumer(f"{settings.name}-market")
        self._reader.assign([TopicPartition(settings.topic(role), 0, 0) for role in READ])
        events = TopicPartition(settings.topic("events"), 0)
        if self._reader.get_watermark_offsets(events, REQUEST_TIMEOUT_S) != (0, 0):
            sys.exit(f"{events.topic}: has events already; begin with a new broker and a new folder")
        self._roles = {settings.topic(role): role for role in (*READ, "events", "labels")}
        self._groups = {
            name: self._consumer(settings.group(name)) for name in ("worker", "monitor", "quality", "retrainer")
        }
        #: Role of a topic -> records so far, and the offset behind the last one.
        self.count: Counter[str] = Counter()
        self._end: Counter[str] = Counter()
        #: Those that the retrainer has not dealt with: each with its offset.
        self._waiting: list[tuple[int, dict[str, Any]]] = []
        self._reported: set[str] = set()
        self._champion: str | None = None
        self._right: list[bool] = []

    def play(self, rows: Sequence[Row]) -> None:
        """All of `rows`, and the labels of each."""
        days = [rows[at : at + DAY_ROWS] for at in range(0, len(rows), DAY_ROWS)]
        before: Sequence[Row] = ()
        for number, day in enumerate([*days, ()]):
            self._send("events", map(event, day))
            self._await(lambda: self._has_seen("worker", "events"), "all events scored")
            self._await(lambda: self.count["predictions"] >= self.count["events"], "all predictions read")
            self._send("labels", map(label, before))
            self._await(lambda: self.count["outcomes"] >= self.count["labels"], "all labels joined")
            self._await(lambda: self._has_seen("monitor", "batch_summaries"), "all summaries watched")
            self._await(lambda: self._has_seen("quality", "outcomes"), "all outcomes watched")
            if before:
                self._succeed(before[-1])
            if before and number % 7 == 0:
                self._tell_week(before[-1])
            before = day

    def _tell_week(self, row: Row) -> None:
        share = sum(self._right) / len(self._right)
        print(f"{row['time'][:10]}  accuracy of the week {share:.3f}", flush=True)
        self._right.clear()

    # -- a trigger, and what comes of it -----------------------------------------------------------

    def _succeed(self, newest: Row) -> None:
        """Wait for the retrainer where it has the labels that it needs; `newest`: the row of the newest label."""
        gate, retraining = self._settings.gate, self._settings.retraining
        needed = math.ceil(gate.rows_min / retraining.newest_share)
        while self._waiting:
            offset, trigger = self._waiting[0]
            labelled = datetime.fromisoformat(newest["time"]) - instant(trigger["change_event_time_ms"])
            if labelled < needed * DELAY / DAY_ROWS:
                return
            before = self._champion
            dealt_with = partial(self._has_seen, "retrainer", "retraining_triggers", offset + 1)
            self._await(dealt_with, "a successor, or none", RETRAINING_TIMEOUT_S)
            self._waiting.pop(0)
            if trigger["trigger_id"] not in self._reported:
                print("            no successor: the retrainer's log says why", flush=True)
            if self._champion != before:
                self._await(self._serves, f"{self._champion} in service")

    def _serves(self) -> bool:
        """Whether the worker has the champion in service, by its metrics."""
        observe = self._settings.observe
        with urllib.request.urlopen(f"http://{observe.host}:{observe.port_of('worker', 1)}/metrics") as page:
            return any(
                line.startswith("pipeline_model_info") and str(self._champion) in line
                for line in page.read().decode().splitlines()
            )

    # -- Kafka ---------------------------------------------------------------------------------------

    def _consumer(self, group: str) -> Consumer:
        """One that joins no group: it is assigned its partitions, or asks what a group has committed."""
        options = {"group.id": group, "enable.auto.commit": False, "isolation.level": "read_committed"}
        return Consumer({**self._servers, **options})

    def _send(self, role: str, records: Iterator[dict[str, Any]]) -> None:
        """Send, and wait until the broker has them."""
        schema_id, schema = self._schemas[role]
        for record in records:
            # The key of a label must be that of its event.
            key = record["id"] if role == "events" else record["event_id"]
            value = self._codec.encode(schema_id, schema, record)
            self._producer.produce(self._settings.topic(role), value, key, on_delivery=self._on_delivery)
        self._producer.flush()

    def _on_delivery(self, error: Any, message: Message) -> None:
        if error is not None:
            raise KafkaException(error)
        self._note(message)

    def _note(self, message: Message) -> str:
        role = self._roles[message.topic()]
        self.count[role] += 1
        self._end[role] = message.offset() + 1
        return role

    def _has_seen(self, group: str, role: str, end: int | None = None) -> bool:
        """Whether a role of the pipeline has committed what was seen of a topic (or all before `end`)."""
        wanted = self._end[role] if end is None else end
        at = TopicPartition(self._settings.topic(role), 0)
        (found,) = self._groups[group].committed([at], REQUEST_TIMEOUT_S)
        return not wanted or found.offset >= wanted

    def _await(self, done: Callable[[], bool], what: str, patience_s: float = DAY_TIMEOUT_S) -> None:
        give_up = time.monotonic() + patience_s
        while not done():
            self._read()
            if time.monotonic() > give_up:
                sys.exit(f"not within {patience_s:g} s: {what}; does `pipeline run all` still run?")
        self._read()

    def _read(self) -> None:
        """What has come since."""
        for message in self._reader.consume(1_000, POLL_S):
            if message.error():
                raise KafkaException(message.error())
            role = self._note(message)
            if role == "outcomes":
                outcome = self._codec.decode(message.value())
                self._right.append(outcome["predicted"] == outcome["label"])
            elif role == "retraining_triggers":
                trigger = self._codec.decode(message.value())
                self._waiting.append((message.offset(), trigger))
                self._tell_trigger(trigger)
            elif role == "retraining_reports":
                report = self._codec.decode(message.value())
                self._reported.add(report["trigger_id"])
                self._tell_report(report)
            elif role == "model_releases" and message.key() == b"champion":
                self._champion = self._codec.decode(message.value())["model_version"]
                print(f"            champion: {self._champion}", flush=True)

    @staticmethod
    def _tell_trigger(trigger: dict[str, Any]) -> None:
        signals = ", ".join(signal["signal"] for signal in trigger["signals"])
        changed, noticed = (instant(trigger[name]) for name in ("change_event_time_ms", "detected_event_time_ms"))
        print(
            f"{noticed:%Y-%m-%d}  trigger, {trigger['severity']}: {signals} changed about {changed:%Y-%m-%d}",
            flush=True,
        )

    @staticmethod
    def _tell_report(report: dict[str, Any]) -> None:
        failed = [check["name"] for check in report["checks"] if not check["passed"]]
        verdict = "accepted" if report["accepted"] else f"refused ({', '.join(failed)})"
        better = ", ".join(check["says"] for check in report["checks"] if check["name"] == "better")
        print(f"            gate: {report['challenger_version']} {verdict}; {better}", flush=True)


def event(row: Row) -> dict[str, Any]:
    """A row of market.csv in the event schema."""
    text = {name: row[name] for name in ("id", "period_of_day")}
    numbers = {name: float(row[name]) for name in row if name not in ("id", "time", "period_of_day", "move")}
    return {**text, "time": datetime.fromisoformat(row["time"]), **numbers}


def label(row: Row) -> dict[str, Any]:
    """What became of it, and since when that is known."""
    known = datetime.fromisoformat(row["time"]) + DELAY
    return {"event_id": row["id"], "label": row["move"], "value": None, "time": known}


def instant(time_ms: int) -> datetime:
    """A time in milliseconds since 1970 as UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def main() -> None:
    """Play the file; exit with 1 unless every event has its prediction and its outcome."""
    with Path("market.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    market = Market(load(Path("pipeline.toml")))
    market.play(rows)
    counts = {name: market.count[name] for name in ("events", "predictions", "labels", "outcomes")}
    print(", ".join(f"{n:,} {name}" for name, n in counts.items()))
    if set(counts.values()) != {len(rows)}:
        sys.exit(f"of {len(rows):,} half-hours")


if __name__ == "__main__":
    main()
