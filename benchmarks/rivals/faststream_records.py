"""FastStream as its guide shows batches: a batch subscriber with a decoder, fastavro, `publish_batch`.

At least once: `publish_batch` waits for the broker, and a batch is acknowledged once its handler is done. Its commits
are asynchronous, one a batch; a failed one is not noticed. The harness stops it.
"""

import asyncio
from typing import Any

import torch
from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker, KafkaPublishMessage

from benchmarks import clients, job, records

MAX_RECORDS = 512
#: How long a batch waits to be full. With a full topic batches are full; it matters only at the end.
WAIT_S = 0.005


async def decode(batch: Any) -> list[tuple[bytes, dict[str, Any]]]:
    """Key and fields of each message of a batch."""
    return [(message.key(), records.decode(message.value())) for message in batch.raw_message]


def make_app(given: job.Job) -> FastStream:
    broker = KafkaBroker(
        given.bootstrap_servers,
        config={**clients.FETCHING, **clients.SENDING},
        allow_auto_create_topics=False,
        apply_types=False,
        logger=None,
    )
    model = job.model()

    @broker.subscriber(
        given.input_topic,
        group_id=given.group,
        auto_offset_reset="earliest",
        batch=True,
        max_records=MAX_RECORDS,
        polling_interval=WAIT_S,
        decoder=decode,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def score(batch: list[tuple[bytes, dict[str, Any]]]) -> None:
        outputs = records.score(model, [event for _, event in batch])
        messages = [
            KafkaPublishMessage(records.encode(event, output), key=key)
            for (key, event), output in zip(batch, outputs, strict=True)
        ]
        await broker.publish_batch(*messages, topic=given.output_topic)

    return FastStream(broker, logger=None)


def main() -> None:
    given = job.Job.parse()
    torch.set_num_threads(1)
    asyncio.run(make_app(given).run())


if __name__ == "__main__":
    main()
