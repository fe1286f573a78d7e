"""The Confluent wire format: byte 0, schema id as 4 bytes big endian, Avro body."""

import struct

from pipeline.errors import SchemaError
from pipeline.records import Reason

MAGIC = 0
HEADER_BYTES = 5
SCHEMA_ID_MAX = (1 << 32) - 1
_HEADER = struct.Struct(">BI")


def header(schema_id: int) -> bytes:
    """The 5 bytes before the body. Raises SchemaError for an id that does not fit into 4 bytes."""
    if not 0 <= schema_id <= SCHEMA_ID_MAX:
        raise SchemaError(f"schema id {schema_id} does not fit into 4 bytes")
    return _HEADER.pack(MAGIC, schema_id)


def schema_id_of(value: bytes) -> int:
    """The schema id of a value that `header_fault` finds nothing wrong with."""
    schema_id: int = _HEADER.unpack_from(value)[1]
    return schema_id


def header_fault(value: bytes | None) -> tuple[Reason, str] | None:
    """Why a value has no schema id, and what to say about it; None if it has one."""
    if value is None:
        return Reason.TOMBSTONE, "the value is null: a tombstone holds no event"
    if not value:
        return Reason.EMPTY_VALUE, "the value is empty"
    if value[0] != MAGIC:
        what = f"first byte is 0x{value[0]:02x}, not 0x00: not the Confluent wire format"
        return Reason.WRONG_MAGIC, f"{what}; is the producer using a Schema Registry serializer?"
    if len(value) < HEADER_BYTES:
        return Reason.TRUNCATED_HEADER, f"{len(value)} bytes, but the header alone has {HEADER_BYTES}"
    return None
