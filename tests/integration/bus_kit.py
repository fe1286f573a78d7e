"""What the tests of the transport share: topics, records, app processes, and reading all back with plain clients."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin

APP = Path(__file__).with_name("bus_app.py")
WAIT_S = 120.0


def create(servers: str, name: str, partitions: int = 3, copies: int = 1, **config: str) -> str:
    options = {key.replace("_", "."): value for key, value in config.items()}
    topics.create(make_admin(ClientOptions(servers)), [topics.TopicSpec(name, partitions, copies, options)])
    return name


def produce(servers: str, topic: str, count: int, first: int = 0, keys: int = 97) -> None:
    """Records `first` to `first + count - 1`: value is the number, key is the number modulo `keys`."""
    producer = Producer({"bootstrap.servers": servers, "partitioner": "murmur2_random", "linger.ms": 5})
    for n in range(first, first + count):
        while True:
            try:
                producer.produce(topic, key=str(n % keys).encode(), value=str(n).encode())
            except BufferError:
                producer.poll(0.05)
            else:
                break
        producer.poll(0)
    assert producer.flush(30) == 0


def read(servers: str, topic: str) -> list[Message]:
    """Every committed record of a topic, with confluent-kafka alone."""
    count = topics.partition_counts(make_admin(ClientOptions(servers)))[topic]
    consumer = Consumer(
        {
            "bootstrap.servers": servers,
            "group.id": "read",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    consumer.assign([TopicPartition(topic, p, 0) for p in range(count)])
    found, ended = [], 0
    while ended < count:
        for message in consumer.consume(10_000, 1.0):
            if message.error() is None:
                found.append(message)
            else:
                ended += 1
    consumer.close()
    return found


def numbers(messages: list[Message]) -> list[int]:
    return [int(m.value()) for m in messages]


def lag(servers: str, group: str, topic: str) -> int:
    return sum(topics.lag(make_admin(ClientOptions(servers)), group, topic).values())


class AppProcess:
    """A bus_app.py that runs, and all it has said so far."""

    def __init__(self, **spec: Any) -> None:
        self.said: list[dict[str, Any]] = []
        self.errors = ""
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, str(APP), json.dumps(spec)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._listen, self._listen_errors)]
        for thread in self._threads:
            thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.said.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def _listen_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line

    def of(self, kind: str, **values: Any) -> list[dict[str, Any]]:
        return [m for m in self.said if m["kind"] == kind and values.items() <= m.items()]

    def done(self) -> int:
        """Records its agent has handled."""
        return sum(m["n"] for m in self.of("batch"))

    def wait_for(self, condition: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, f"not in {timeout_s} s; said last {self.said[-5:]}; {self.errors[-2000:]}"
                self._news.wait(min(left, 0.2))

    def wait_ready(self) -> None:
        self.wait_for(lambda: self.of("ready") and self.of("rebalance", what="assign"))

    def end(self, timeout_s: float = WAIT_S) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.join(timeout_s)

    def join(self, timeout_s: float = WAIT_S) -> int:
        code = self.process.wait(timeout_s)
        for thread in self._threads:
            thread.join(10)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def app(**spec: Any) -> Iterator[AppProcess]:
    """An app process; killed at the end if a test has not ended it."""
    running = AppProcess(**spec)
    try:
        yield running
    finally:
        running.kill()


def wait_until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s} s"
        time.sleep(0.05)
