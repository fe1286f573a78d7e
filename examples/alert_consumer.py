"""Do something about drift: run a command once for each retraining trigger, with the trigger as JSON on its input.

    pip install confluent-kafka avro
    python examples/alert_consumer.py --topic shop.retraining-triggers --registry shop/registry -- ./retrain.sh

A trigger is done when its command exits with 0; only then is it committed, so one that failed is tried again at the
next start. A trigger that was done is remembered by its id in --done, and not acted on again, should it come twice.
"""

import argparse
import functools
import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import avro.schema
from avro.io import BinaryDecoder, DatumReader
from confluent_kafka import Consumer, KafkaError, KafkaException


def main() -> None:
    """Act on triggers until --max of them, a command that fails, or Ctrl-C."""
    arguments = parse_arguments()
    done = set(arguments.done.read_text("utf-8").split()) if arguments.done.exists() else set()
    consumer = Consumer(
        {
            "bootstrap.servers": arguments.bootstrap,
            "group.id": arguments.group,
            "auto.offset.reset": "earliest",
            "topic.metadata.refresh.interval.ms": 5_000,  # how soon a topic that is created later is seen
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([arguments.topic])
    acted = 0
    try:
        while arguments.max is None or acted < arguments.max:
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error():
                if message.error().code() == KafkaError.UNKNOWN_TOPIC_OR_PART:  # not created yet: wait for it
                    continue
                raise KafkaException(message.error())
            trigger = decode(message.value(), arguments.registry)
            if trigger["trigger_id"] not in done:
                act(trigger, arguments.command)
                with arguments.done.open("a", encoding="utf-8") as file:
                    file.write(f"{trigger['trigger_id']}\n")
                done.add(trigger["trigger_id"])
                acted += 1
            consumer.commit(message, asynchronous=False)
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()


def act(trigger: dict[str, Any], command: list[str]) -> None:
    """Say what happened and run the command; exit with its code if it fails."""
    signals = ", ".join(f"{s['signal']} {s['before_mean']:.3g} -> {s['after_mean']:.3g}" for s in trigger["signals"])
    print(f"{trigger['severity']}: {signals}: {trigger['advice']}", flush=True)
    result = subprocess.run(command, input=json.dumps(trigger, default=str), text=True, check=False)
    if result.returncode:
        sys.exit(f"{command[0]} failed with {result.returncode}; trigger {trigger['trigger_id']} is not committed")


def decode(value: bytes, registry: Path) -> dict[str, Any]:
    """A value in Confluent's wire format: byte 0, the schema's id in 4 bytes, the Avro body."""
    magic, schema_id = struct.unpack(">bI", value[:5])
    assert magic == 0, "not Confluent's wire format"
    return reader(registry / "ids" / f"{schema_id}.avsc").read(BinaryDecoder(io.BytesIO(value[5:])))


@functools.cache
def reader(schema_file: Path) -> DatumReader:
    return DatumReader(avro.schema.parse(schema_file.read_text("utf-8")))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a command for each retraining trigger.")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--registry", type=Path, required=True, help="the project's registry folder")
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--group", default="example-alerts")
    parser.add_argument("--done", type=Path, default=Path("triggers-done.txt"), help="ids of triggers acted on")
    parser.add_argument("--max", type=int, default=None, help="stop after this many triggers")
    parser.add_argument("command", nargs="+", help="command and its arguments, after --")
    return parser.parse_args()


if __name__ == "__main__":
    main()
