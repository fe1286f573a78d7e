"""The rival to measure against: one loop in one thread, every step on columns.

What makes it fast: librdkafka fetches and sends in its own threads, and a chunk of records is decoded, scored
and encoded by one call each. What it lacks: bad records, metrics, a drain, drift: the first bad byte ends it.
"""

import gc
import time
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro
import torch

from benchmarks import clients, job

OUTPUT_HEADER = pa.scalar(job.wire_header(job.SCORE_SCHEMA_ID), pa.binary())
NOTHING_BETWEEN = pa.scalar(b"", pa.binary())


def score(model: torch.nn.Module, values: Sequence[bytes]) -> list[bytes]:
    """Decode, score and encode a chunk; one output for each value. Also what rivals with our kind of codec call."""
    bodies = [value[job.HEADER_BYTES :] for value in values]
    events = pyruhvro.deserialize_array(bodies, job.EVENT_SCHEMA_JSON)
    features = torch.from_numpy(events.select(list(job.FEATURES)).to_tensor().to_numpy())
    scores = model(features).squeeze(1).numpy()
    outputs = pa.RecordBatch.from_arrays(
        [
            events.column("id"),
            events.column("key"),
            events.column("time"),
            pa.array(scores),
            pa.repeat(job.MODEL_VERSION, len(bodies)),
        ],
        names=["id", "key", "time", "score", "model_version"],
    )
    encoded = pyruhvro.serialize_record_batch(outputs, job.SCORE_SCHEMA_JSON, 1)[0]
    scored: list[bytes] = pc.binary_join_element_wise(OUTPUT_HEADER, encoded, NOTHING_BETWEEN).to_pylist()
    return scored


def main() -> None:
    given = job.Job.parse()
    # Millions of short-lived dicts and messages, no cycles: the collector only costs.
    gc.disable()
    torch.set_num_threads(1)
    model = job.model()
    consumer = clients.make_consumer(given.bootstrap_servers, given.group)
    sender = clients.Sender(given.bootstrap_servers)
    consumer.subscribe([given.input_topic])
    done, next_commit = 0, time.monotonic() + clients.COMMIT_INTERVAL_S
    with torch.inference_mode():
        while done < given.events:
            messages = clients.consume(consumer)
            if not messages:
                continue
            values = score(model, [message.value() for message in messages])
            sender.send(given.output_topic, values, [message.key() for message in messages])
            done += len(messages)
            if time.monotonic() >= next_commit:
                sender.flush()
                clients.commit(consumer)
                next_commit = time.monotonic() + clients.COMMIT_INTERVAL_S
    sender.flush()
    clients.commit(consumer)
    consumer.close()


if __name__ == "__main__":
    main()
