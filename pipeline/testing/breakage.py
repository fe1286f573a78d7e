"""Ten ways to break an event in the Confluent wire format, and what each must be refused as.

For fault tests of a whole pipeline: break one in a thousand, count one dead letter for each, its bytes untouched.
"""

from collections.abc import Callable
from typing import NamedTuple

from pipeline.records import Reason

HEADER_BYTES = 5
#: No registry gets this far; the largest id the format can carry.
UNKNOWN_ID = 2**31 - 1


class Way(NamedTuple):
    """One way to break an event."""

    reason: Reason
    #: (valid value, id of a schema that an event cannot be read with) -> the broken value.
    spoil: Callable[[bytes, int], bytes | None]


def _with_id(value: bytes, schema_id: int) -> bytes:
    return value[:1] + schema_id.to_bytes(4, "big") + value[HEADER_BYTES:]


#: Every event whose first field is a string is broken by each of them.
WAYS: dict[str, Way] = {
    "tombstone": Way(Reason.TOMBSTONE, lambda _value, _other: None),
    "empty": Way(Reason.EMPTY_VALUE, lambda _value, _other: b""),
    "one byte": Way(Reason.TRUNCATED_HEADER, lambda value, _other: value[:1]),
    "half a header": Way(Reason.TRUNCATED_HEADER, lambda value, _other: value[:3]),
    "wrong magic": Way(Reason.WRONG_MAGIC, lambda value, _other: b"{" + value[1:]),
    "unknown schema": Way(Reason.UNKNOWN_SCHEMA, lambda value, _other: _with_id(value, UNKNOWN_ID)),
    "foreign schema": Way(Reason.SCHEMA_MISMATCH, _with_id),
    "truncated body": Way(Reason.UNDECODABLE, lambda value, _other: value[:-3]),
    "trailing byte": Way(Reason.TRAILING_BYTES, lambda value, _other: value + b"\0"),
    # Zigzag varint of 2^62: a decoder that believes it allocates four exabytes.
    "huge length": Way(Reason.UNDECODABLE, lambda value, _other: value[:HEADER_BYTES] + b"\x80" * 8 + b"\x80\x01"),
}

#: A valid Avro schema that no event of ours can be read with: the id field is a number here.
FOREIGN_SCHEMA = (
    '{"type": "record", "name": "Foreign", "namespace": "pipeline.testing", '
    '"fields": [{"name": "id", "type": "double"}, {"name": "unrelated", "type": "double"}]}'
)
