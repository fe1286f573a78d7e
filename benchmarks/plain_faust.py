"""The rival as its documentation shows it: a Faust agent that takes micro-batches, on the shipped aiokafka driver.

Faust 0.15 has no switch for an idempotent aiokafka producer; acks=all is its default. The harness stops it.
"""

import logging
import sys
import tempfile
from typing import Any

import faust
import torch

from benchmarks import clients, job, records

TAKE = 512
#: Seconds to wait for a full batch. With a full topic batches are full; 5 ms only matters at the end.
WITHIN_S = 0.005
#: Faust sends each record by itself otherwise.
LINGER_S = 0.005


def make_app(given: job.Job, datadir: str) -> Any:
    """The app; Faust makes `datadir` although nothing is kept there."""
    app = faust.App(
        given.group,
        broker=f"kafka://{given.bootstrap_servers}",
        topic_partitions=job.PARTITIONS,
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
        broker_commit_interval=clients.COMMIT_INTERVAL_S,
        stream_wait_empty=False,
        producer_acks=-1,
        producer_linger=LINGER_S,
        datadir=datadir,
        web_enabled=False,
        store="memory://",
        autodiscover=False,
    )
    raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    events, scores = app.topic(given.input_topic, **raw), app.topic(given.output_topic, **raw)
    model = job.model()

    @app.agent(events)  # type: ignore[untyped-decorator, unused-ignore]
    async def score(stream: Any) -> None:
        async for batch in stream.take(TAKE, within=WITHIN_S):
            taken = [records.decode(value) for value in batch]
            acknowledged = []
            for event, output in zip(taken, records.score(model, taken), strict=True):
                acknowledged.append(await scores.send(key=event["key"].encode(), value=records.encode(event, output)))
            for future in acknowledged:  # the batch is done, and may be committed, when the broker has it
                await future

    return app


def main() -> None:
    given = job.Job.parse()
    torch.set_num_threads(1)
    # Faust's --loglevel only sets its handler: these would go on making a record a message, and drop it.
    for name in ("faust", "mode", "aiokafka"):
        logging.getLogger(name).setLevel(logging.WARNING)
    sys.argv = ["plain_faust", "worker", "--loglevel=warn", "--without-web"]
    with tempfile.TemporaryDirectory() as datadir:
        make_app(given, datadir).main()


if __name__ == "__main__":
    main()
