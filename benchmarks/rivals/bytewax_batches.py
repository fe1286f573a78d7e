"""Bytewax at its fastest: `flat_map_batch` over what a poll brought, our kind of codec."""

from typing import Any

import bytewax.operators as op
import torch
from bytewax.connectors.kafka import KafkaSinkMessage

from benchmarks import hand_written, job
from benchmarks.rivals import bytewax_flow


def main() -> None:
    given = job.Job.parse()
    torch.set_num_threads(1)
    model = job.model()

    def score(messages: list[Any]) -> list[KafkaSinkMessage]:
        with torch.inference_mode():
            values = hand_written.score(model, [message.value for message in messages])
        return [KafkaSinkMessage(message.key, value) for message, value in zip(messages, values, strict=True)]

    bytewax_flow.run(given, lambda events: op.flat_map_batch("score", events, score))


if __name__ == "__main__":
    main()
