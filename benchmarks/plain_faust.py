"""The rival as its documentation shows it: a Faust agent that takes micro-batches, on the shipped aiokafka driver.

Faust 0.15 has no switch for an idempotent aiokafka producer; acks=all is its default. The harness stops it.
"""

import io
import logging
import sys
import tempfile
from typing import Any

import fastavro
import faust
import numpy as np
import torch

from benchmarks import clients, job

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
    reader, writer = fastavro.parse_schema(job.EVENT_SCHEMA), fastavro.parse_schema(job.SCORE_SCHEMA)
    header = job.wire_header(job.SCORE_SCHEMA_ID)
    model = job.model()

    @app.agent(events)  # type: ignore[untyped-decorator, unused-ignore]
    async def score(stream: Any) -> None:
        async for batch in stream.take(TAKE, within=WITHIN_S):
            records: list[Any] = [_decode(value, reader) for value in batch]
            features = np.array([[record[name] for name in job.FEATURES] for record in records], np.float32)
            with torch.inference_mode():
                outputs = model(torch.from_numpy(features)).squeeze(1).tolist()
            acknowledged = []
            for record, output in zip(records, outputs, strict=True):
                body = io.BytesIO()
                body.write(header)
                fastavro.schemaless_writer(body, writer, _prediction(record, output))
                acknowledged.append(await scores.send(key=record["key"].encode(), value=body.getvalue()))
            for future in acknowledged:  # the batch is done, and may be committed, when the broker has it
                await future

    return app


def _decode(value: bytes, schema: Any) -> Any:
    return fastavro.schemaless_reader(io.BytesIO(value[job.HEADER_BYTES :]), schema, None)


def _prediction(record: dict[str, Any], score: float) -> dict[str, Any]:
    return {
        "id": record["id"],
        "key": record["key"],
        "time": record["time"],
        "score": score,
        "model_version": job.MODEL_VERSION,
    }


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
