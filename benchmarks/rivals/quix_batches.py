"""Quix Streams with a BatchingSink: its consumer and its checkpoints, our kind of codec, a producer beside it.

At least once: a checkpoint flushes the sink, whose producer waits for the broker, then commits. The harness stops it.
"""

from typing import Any

import torch
from quixstreams import Application
from quixstreams.sinks import BatchingSink, SinkBatch

from benchmarks import clients, hand_written, job


class ScoringSink(BatchingSink):
    """Scores what a checkpoint has gathered of each partition, and sends it."""

    def __init__(self, given: job.Job) -> None:
        super().__init__()
        self._topic = given.output_topic
        self._sender = clients.Sender(given.bootstrap_servers)
        self._model = job.model()

    def write(self, batch: SinkBatch) -> None:
        for chunk in batch.iter_chunks(clients.CONSUME_MAX):
            items: tuple[Any, ...] = tuple(chunk)
            with torch.inference_mode():
                values = hand_written.score(self._model, [item.value for item in items])
            self._sender.send(self._topic, values, [item.key for item in items])

    def flush(self) -> None:
        super().flush()
        self._sender.flush()


def main() -> None:
    given = job.Job.parse()
    torch.set_num_threads(1)
    app = Application(
        given.bootstrap_servers,
        consumer_group=given.group,
        auto_offset_reset="earliest",
        commit_interval=clients.COMMIT_INTERVAL_S,
        auto_create_topics=False,
        consumer_extra_config=clients.FETCHING,
        loglevel="WARNING",
    )
    events = app.topic(given.input_topic, value_deserializer="bytes")
    app.dataframe(events).sink(ScoringSink(given))
    app.run()


if __name__ == "__main__":
    main()
