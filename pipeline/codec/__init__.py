"""Bytes <-> columns and records, in the Confluent wire format.

schemas.py        what a schema is, what fits what, and which Arrow columns it becomes: `avro` is the judge
defaults.py       default values from their JSON
framing.py        the 5 bytes before every record
primitives.py     how Avro writes what records are made of
reader.py         one record, byte by byte: exact, bounded, resolving; says what is wrong and where
values.py         logical types, and what is said of bad records
columns.py        many records at once, with pyruhvro, and where that has to be checked
decoder.py        Kafka values -> columns and rejects: the hot path
encoder.py        columns -> Kafka values: the hot path
rows.py           single records as dicts
registry.py       schemas by id in files
http_registry.py  schemas by id in a Schema Registry
configured.py     what the settings say of registry and event schema
"""

from pipeline.codec.configured import event_schema, registry_of
from pipeline.codec.decoder import ColumnarDecoder
from pipeline.codec.encoder import ColumnarEncoder
from pipeline.codec.registry import FileRegistry, open_registry
from pipeline.codec.rows import RowCodec
from pipeline.codec.schemas import arrow_schema, canonical_form, fingerprint, incompatibilities, load_schema, parse

__all__ = [
    "ColumnarDecoder",
    "ColumnarEncoder",
    "FileRegistry",
    "RowCodec",
    "arrow_schema",
    "canonical_form",
    "event_schema",
    "fingerprint",
    "incompatibilities",
    "load_schema",
    "open_registry",
    "parse",
    "registry_of",
]
