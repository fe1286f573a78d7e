"""What came out, offset by offset, and strangers in the workers' group: for tests of crashes and handovers."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pyruhvro
from confluent_kafka import Consumer

from benchmarks import clients, job, ours
from pipeline.bus.clients import ClientOptions
from tests.pipelines import PATIENCE_S, Pipeline

#: A visit takes two rebalances, about a second: partitions are taken from somebody first, then given.
VISIT_MAX_S = 10.0
#: The least that a broker allows.
SESSION = {"session.timeout.ms": "6000"}


def predictions(pipeline: Pipeline) -> dict[int, npt.NDArray[np.int64]]:
    """Partition -> offsets of the events of its predictions, in order; an event's prediction is in its partition."""
    schema = json.dumps(json.loads(ours.prediction_schema()))
    found: dict[int, list[int]] = defaultdict(list)
    servers, topic = pipeline.bootstrap_servers, pipeline.job.output_topic
    for messages in clients.read_all(servers, topic, f"{pipeline.name}.offsets", PATIENCE_S):
        if messages:
            columns = pyruhvro.deserialize_array([m.value()[job.HEADER_BYTES :] for m in messages], schema)
            for message, offset in zip(messages, columns.column("offset").to_pylist(), strict=True):
                found[message.partition()].append(offset)
    return {partition: np.array(offsets) for partition, offsets in found.items()}


@contextmanager
def passers_by(pipeline: Pipeline) -> Iterator[list[int]]:
    """One after the other joins the workers' group, gets partitions, does nothing and leaves; how many each got."""
    visits: list[int] = []
    ended = threading.Event()

    def visit() -> None:
        options = ClientOptions(pipeline.bootstrap_servers, consumer=SESSION).for_consumer(ours.group(pipeline.name))
        while not ended.is_set():
            visitor = Consumer(options)
            visitor.subscribe([pipeline.job.input_topic])
            give_up = time.monotonic() + VISIT_MAX_S
            while not (got := len(visitor.assignment())) and time.monotonic() < give_up and not ended.is_set():
                visitor.consume(1, 0.1)
            visitor.close()
            visits.append(got)

    thread = threading.Thread(target=visit)
    thread.start()
    try:
        yield visits
    finally:
        ended.set()
        thread.join()
