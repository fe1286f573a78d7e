"""Quix Streams as its guide shows it: a StreamingDataFrame, record by record.

At least once: a checkpoint flushes the producer, then commits. The harness stops it.
"""

from typing import Any

import torch
from quixstreams import Application

from benchmarks import clients, job, records


def main() -> None:
    given = job.Job.parse()
    torch.set_num_threads(1)
    model = job.model()
    app = Application(
        given.bootstrap_servers,
        consumer_group=given.group,
        auto_offset_reset="earliest",
        commit_interval=clients.COMMIT_INTERVAL_S,
        auto_create_topics=False,
        consumer_extra_config=clients.FETCHING,
        producer_extra_config=clients.SENDING,
        loglevel="WARNING",
    )
    events = app.topic(given.input_topic, value_deserializer="bytes")
    scores = app.topic(given.output_topic, value_serializer="bytes")

    def score(event: dict[str, Any]) -> bytes:
        (output,) = records.score(model, [event])
        return records.encode(event, output)

    stream = app.dataframe(events)
    stream = stream.apply(records.decode).apply(score)
    stream.to_topic(scores)
    app.run()


if __name__ == "__main__":
    main()
