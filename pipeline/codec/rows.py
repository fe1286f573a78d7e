"""Single records as Python dicts: for commands, the monitor and tests; not for the hot path."""

import functools
import io
import json
from typing import Any

import fastavro
from fastavro.validation import ValidationError, validate

from pipeline.codec.framing import HEADER_BYTES, header, header_fault, schema_id_of
from pipeline.codec.reader import RowReader
from pipeline.codec.schemas import parse
from pipeline.codec.values import As, Malformed
from pipeline.contracts import Registry
from pipeline.errors import SchemaError

#: What fastavro raises, besides its own errors, for values that do not fit a schema.
MISFIT_ERRORS = (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, ArithmeticError)


class RowCodec:
    """Encodes and decodes one record at a time."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._readers: dict[int, RowReader] = {}

    def encode(self, schema_id: int, schema: str, record: dict[str, Any]) -> bytes:
        """`record` in the Confluent wire format. Raises SchemaError if it does not fit `schema` exactly."""
        return header(schema_id) + encode_body(schema, record)

    def decode(self, value: bytes | None) -> dict[str, Any]:
        """The record of a value, by the schema it was written with; logical types as stock consumers give them:
        datetime (UTC), date, time, Decimal, UUID.

        Raises SchemaError for whatever cannot be decoded, UnreachableError if the registry does not answer.
        """
        if fault := header_fault(value):
            raise SchemaError(fault[1])
        assert value is not None, "header_fault says so"
        schema_id = schema_id_of(value)
        reader = self._readers.get(schema_id)
        if reader is None:
            schema = parse(self._registry.schema(schema_id))
            reader = self._readers[schema_id] = RowReader(schema, schema, As.OBJECTS)
        try:
            record = reader.read(value, HEADER_BYTES)
        except Malformed as malformed:
            raise SchemaError(f"schema {schema_id}: {malformed}") from None
        if not isinstance(record, dict):
            raise SchemaError(f"schema {schema_id}: the value is no record")
        return record


def encode_body(schema: str, record: dict[str, Any]) -> bytes:
    """The Avro body of a record. Raises SchemaError if it does not fit."""
    parsed = _for_fastavro(schema)
    out = io.BytesIO()
    try:
        validate(record, parsed, strict=True)
        fastavro.schemaless_writer(out, parsed, record, strict=True)
    except (ValidationError, *MISFIT_ERRORS) as error:
        raise SchemaError(f"the record does not fit its schema: {' '.join(str(error).split())[:300]}") from None
    return out.getvalue()


@functools.lru_cache(maxsize=64)
def _for_fastavro(schema: str) -> Any:
    parse(schema)
    return fastavro.parse_schema(json.loads(schema))
