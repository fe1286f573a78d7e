"""Bytewax as its guide shows micro-batches: `collect`, fastavro, one message at a time into the sink."""

from datetime import timedelta
from typing import Any

import bytewax.operators as op
import torch
from bytewax.connectors.kafka import KafkaSinkMessage

from benchmarks import job, records
from benchmarks.rivals import bytewax_flow

COLLECT = 512
#: How long a batch waits to be full. With a full topic batches are full; it matters only at the end.
WAIT = timedelta(milliseconds=5)


def main() -> None:
    given = job.Job.parse()
    torch.set_num_threads(1)
    model = job.model()

    def score(batch: tuple[str, list[Any]]) -> list[KafkaSinkMessage]:
        _, messages = batch
        events = [records.decode(message.value) for message in messages]
        outputs = records.score(model, events)
        return [
            KafkaSinkMessage(message.key, records.encode(event, output))
            for message, event, output in zip(messages, events, outputs, strict=True)
        ]

    def scores(events: Any) -> Any:
        # Batches are collected by key; by partition they are full soonest.
        keyed = op.key_on("partition", events, lambda message: str(message.partition))
        return op.flat_map("score", op.collect("collect", keyed, timeout=WAIT, max_size=COLLECT), score)

    bytewax_flow.run(given, scores)


if __name__ == "__main__":
    main()
