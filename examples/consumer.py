"""Read predictions, with nothing but confluent-kafka and avro: one JSON object a line.

    pip install confluent-kafka avro
    python examples/consumer.py --topic shop.predictions --registry shop/registry --max 10

--registry is the project's registry folder; predictions are then decoded by `avro`. Or it is the URL of a Schema
Registry; then confluent-kafka's own AvroDeserializer does it (pip install "confluent-kafka[avro,schemaregistry]").
"""

import argparse
import functools
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import avro.schema
from avro.io import BinaryDecoder, DatumReader
from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.serialization import MessageField, SerializationContext

Decode = Callable[[bytes, str], dict[str, Any]]


def main() -> None:
    """Print predictions until --max of them, or Ctrl-C."""
    arguments = parse_arguments()
    decode = decoder(arguments.registry)
    consumer = Consumer(
        {
            "bootstrap.servers": arguments.bootstrap,
            "group.id": arguments.group,
            "auto.offset.reset": "earliest",
            "topic.metadata.refresh.interval.ms": 5_000,  # how soon a topic that is created later is seen
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([arguments.topic])
    # After a crash of a worker a prediction may come twice; these three tell it. (They stay in memory here:
    # a program that runs for long writes by this key instead.)
    seen: set[tuple[int, int, str]] = set()
    try:
        while arguments.max is None or len(seen) < arguments.max:
            message = consumer.poll(1.0)
            if message is None:
                continue
            if message.error():
                if message.error().code() == KafkaError.UNKNOWN_TOPIC_OR_PART:  # not created yet: wait for it
                    continue
                raise KafkaException(message.error())
            prediction = decode(message.value(), arguments.topic)
            source = (prediction["partition"], prediction["offset"], prediction["role"])
            if source not in seen:
                seen.add(source)
                print(json.dumps(prediction, default=str), flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()


def decoder(registry: str) -> Decode:
    """From a record's value and topic to a dict."""
    if "://" in registry:
        from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: PLC0415 (an extra)
        from confluent_kafka.schema_registry.avro import AvroDeserializer  # noqa: PLC0415

        deserializer = AvroDeserializer(SchemaRegistryClient({"url": registry}))
        return lambda value, topic: deserializer(value, SerializationContext(topic, MessageField.VALUE))

    @functools.cache
    def reader(schema_id: int) -> DatumReader:
        return DatumReader(avro.schema.parse((Path(registry) / "ids" / f"{schema_id}.avsc").read_text("utf-8")))

    def decode(value: bytes, _topic: str) -> dict[str, Any]:
        magic, schema_id = struct.unpack(">bI", value[:5])
        assert magic == 0, "not Confluent's wire format"
        return reader(schema_id).read(BinaryDecoder(io.BytesIO(value[5:])))

    return decode


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Print predictions as JSON.")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--registry", required=True, help="folder, or URL of a Schema Registry")
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--group", default="example-consumer")
    parser.add_argument("--max", type=int, default=None, help="stop after this many predictions")
    return parser.parse_args()


if __name__ == "__main__":
    main()
