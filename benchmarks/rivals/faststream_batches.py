"""FastStream as little as can be: its consumer and its acknowledgements, our kind of codec, a producer beside it.

At least once: the handler flushes, and a batch is acknowledged once its handler is done. The harness stops it.
"""

import asyncio
from typing import Any

import torch
from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker

from benchmarks import clients, hand_written, job

#: How long a batch waits to be full. With a full topic batches are full; it matters only at the end.
WAIT_S = 0.1


async def take_as_it_is(batch: Any) -> Any:
    """The messages themselves: FastStream's decoder makes an object of each."""
    return batch.raw_message


def make_app(given: job.Job) -> FastStream:
    broker = KafkaBroker(
        given.bootstrap_servers,
        config=clients.FETCHING,
        allow_auto_create_topics=False,
        apply_types=False,
        logger=None,
    )
    model, sender = job.model(), clients.Sender(given.bootstrap_servers)

    @broker.subscriber(
        given.input_topic,
        group_id=given.group,
        auto_offset_reset="earliest",
        batch=True,
        max_records=clients.CONSUME_MAX,
        polling_interval=WAIT_S,
        decoder=take_as_it_is,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def score(messages: Any) -> None:
        with torch.inference_mode():
            values = hand_written.score(model, [message.value() for message in messages])
        sender.send(given.output_topic, values, [message.key() for message in messages])
        sender.flush()

    return FastStream(broker, logger=None)


def main() -> None:
    given = job.Job.parse()
    torch.set_num_threads(1)
    asyncio.run(make_app(given).run())


if __name__ == "__main__":
    main()
