"""`python -m benchmarks.fetching`: CPU time of the poller's part, from librdkafka's queue to record batches, both ways.

One thread reads the standard job's events from an embedded Kafka and lets them go; its CPU time is taken, librdkafka's
own threads' is not. Interleaved, three rounds, medians.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as _TopicPartition

from benchmarks import clients
from benchmarks.job import PARTITIONS
from benchmarks.load import load
from benchmarks.run import broker
from pipeline.bus import fetching
from pipeline.records import TopicPartition

#: As scoring.step_max.
MOST = 8192


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fetching", description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    ways: dict[str, Callable[[Consumer], Any]] = {"messages": fetching.MessageFetch}
    if (library := fetching._library()) is not None:  # noqa: SLF001 (the fast way, if it is built)
        ways["columns"] = lambda consumer: fetching.ColumnFetch(consumer, library)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    gc.disable()
    with broker(None) as (servers, _):
        topic = load(servers, given.events)
        for _ in range(given.rounds):
            for name, way in ways.items():
                taken[name].append(cpu_s(servers, topic, given.events, way) / given.events)
    for name, times in taken.items():
        print(
            f"{name}: {statistics.median(times) * 1e6:.2f} us an event ({min(times) * 1e6:.2f}-{max(times) * 1e6:.2f})"
        )


def cpu_s(servers: str, topic: str, events: int, way: Callable[[Consumer], Any]) -> float:
    """Seconds of this thread's CPU time for all events of a topic."""
    consumer = clients.make_consumer(servers, "fetching")
    fetch = way(consumer)
    fetch.follow([TopicPartition(topic, p) for p in range(PARTITIONS)])
    consumer.incremental_assign([_TopicPartition(topic, p, 0) for p in range(PARTITIONS)])
    done, started = 0, time.thread_time()
    while done < events:
        done += sum(map(len, fetch.fetch(MOST, 0.05).batches))
    taken = time.thread_time() - started
    fetch.close()
    consumer.close()
    return taken


if __name__ == "__main__":
    main()
