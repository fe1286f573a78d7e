"""Send the rows of a CSV file as events, with nothing but confluent-kafka and avro.

    pip install confluent-kafka avro
    python examples/producer.py orders.csv --topic shop.events --schema shop/schemas/event.avsc --registry shop/registry

--registry is the project's registry folder, or the URL of a Schema Registry. (For a URL:
pip install "confluent-kafka[schemaregistry]".)
"""

import argparse
import csv
import io
import json
import struct
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import avro.schema
from avro.io import BinaryEncoder, DatumWriter
from confluent_kafka import KafkaError, Message, Producer

#: How the text of a CSV cell becomes a value of an Avro type.
READERS: dict[str, Callable[[str], Any]] = {
    "string": str,
    "int": int,
    "long": int,
    "float": float,
    "double": float,
    "boolean": lambda text: text.lower() == "true",
    "timestamp-millis": datetime.fromisoformat,
}


def main() -> None:
    """Encode and send every row; exit with 1 if the broker refused one."""
    arguments = parse_arguments()
    schema = arguments.schema.read_text("utf-8")
    schema_id = registered_id(arguments.registry, f"{arguments.topic}-value", schema)
    fields = json.loads(schema)["fields"]
    writer = DatumWriter(avro.schema.parse(schema))
    producer = Producer({"bootstrap.servers": arguments.bootstrap, "acks": "all", "enable.idempotence": True})
    refused: list[KafkaError] = []

    def on_delivery(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            refused.append(error)

    sent = 0
    with arguments.file.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            event = event_of(row, fields)
            value = frame(schema_id, writer, event)
            while True:
                try:
                    producer.produce(arguments.topic, value, key=event[arguments.id_field], on_delivery=on_delivery)
                    break
                except BufferError:  # the local queue is full: wait until some are delivered
                    producer.poll(1.0)
            producer.poll(0)
            sent += 1
    producer.flush()
    if refused:
        sys.exit(f"{len(refused)} of {sent} events refused; the first: {refused[0].str()}")
    print(f"sent {sent} events to {arguments.topic}")


def event_of(row: dict[str, str], fields: list[dict[str, Any]]) -> dict[str, Any]:
    """A row as an event. A field's attribute "column" names its column where the two differ; empty cells are null."""
    return {field["name"]: value_of(row[field.get("column", field["name"])], field["type"]) for field in fields}


def value_of(text: str, avro_type: Any) -> Any:
    if isinstance(avro_type, list):  # a union of null and one type
        return None if text == "" else value_of(text, next(t for t in avro_type if t != "null"))
    if isinstance(avro_type, dict):
        avro_type = avro_type.get("logicalType", avro_type["type"])
    return READERS[avro_type](text)


def frame(schema_id: int, writer: DatumWriter, event: dict[str, Any]) -> bytes:
    """Confluent's wire format: byte 0, the schema's id in 4 bytes, big endian, then the Avro body."""
    out = io.BytesIO()
    out.write(struct.pack(">bI", 0, schema_id))
    writer.write(event, BinaryEncoder(out))
    return out.getvalue()


def registered_id(registry: str, subject: str, schema: str) -> int:
    """Id of `schema` under `subject`; a Schema Registry gives it one if it is new."""
    if "://" in registry:
        from confluent_kafka.schema_registry import Schema, SchemaRegistryClient  # noqa: PLC0415 (an extra)

        return SchemaRegistryClient({"url": registry}).register_schema(subject, Schema(schema, "AVRO"))
    folder = Path(registry)
    try:
        versions = json.loads((folder / "subjects" / f"{subject}.json").read_text("utf-8"))["ids"]
    except FileNotFoundError:
        sys.exit(f"{folder}: nothing registered for {subject} yet; a worker's first start does that")
    for schema_id in reversed(versions):
        if json.loads((folder / "ids" / f"{schema_id}.avsc").read_text("utf-8")) == json.loads(schema):
            return schema_id
    sys.exit(f"{folder}: {subject} has other versions, but not this schema")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Send the rows of a CSV file as events.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--schema", type=Path, required=True, help="Avro schema of the event")
    parser.add_argument("--registry", required=True, help="folder, or URL of a Schema Registry")
    parser.add_argument("--bootstrap", default="127.0.0.1:9092")
    parser.add_argument("--id-field", default="id", help="field used as the Kafka key")
    return parser.parse_args()


if __name__ == "__main__":
    main()
