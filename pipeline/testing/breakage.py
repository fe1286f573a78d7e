"""Ways to break an event in the Confluent wire format, and what each must be refused as.

For fault tests of a whole pipeline: break one in a thousand, count one dead letter for each, its bytes untouched.
"""

import zlib
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


def _instead_of_length(length: bytes) -> Callable[[bytes, int], bytes]:
    """The event up to its first field, then `length` and nothing else."""
    return lambda value, _other: value[:HEADER_BYTES] + length


def _invalid_text(value: bytes, _other: int) -> bytes:
    """The first field's first character is a byte that no UTF-8 has."""
    at = HEADER_BYTES
    while value[at] & 0x80:  # the varint with its length
        at += 1
    return value[: at + 1] + b"\xff" + value[at + 2 :]


def varint(number: int) -> bytes:
    """Avro's spelling of an integer."""
    left = (number << 1) ^ (number >> 63)
    spelled = bytearray()
    while left > 0x7F:
        spelled.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*spelled, left])


def deflate_bomb(size_bytes: int) -> bytes:
    """An Avro container file (codec deflate) that unpacks to one record of `size_bytes` zeros."""
    deflate = zlib.compressobj(wbits=-15)
    packed = deflate.compress(varint(size_bytes) + bytes(size_bytes)) + deflate.flush()
    head = b'Obj\x01\x04\x16avro.schema\x0e"bytes"\x14avro.codec\x0edeflate\x00' + bytes(16)
    return head + varint(1) + varint(len(packed)) + packed + bytes(16)


#: 10 MB in 10 kB.
DEFLATE_BOMB = deflate_bomb(10_000_000)

#: Every event whose first field is a string of one character or more is broken by each of them.
WAYS: dict[str, Way] = {
    "tombstone": Way(Reason.TOMBSTONE, lambda _value, _other: None),
    "empty": Way(Reason.EMPTY_VALUE, lambda _value, _other: b""),
    "one byte": Way(Reason.TRUNCATED_HEADER, lambda value, _other: value[:1]),
    "half a header": Way(Reason.TRUNCATED_HEADER, lambda value, _other: value[:3]),
    "wrong magic": Way(Reason.WRONG_MAGIC, lambda value, _other: b"{" + value[1:]),
    "JSON": Way(Reason.WRONG_MAGIC, lambda _value, _other: b'{"id": "row-1", "amount": 12.5}'),
    "a file with a bomb": Way(Reason.WRONG_MAGIC, lambda _value, _other: DEFLATE_BOMB),
    "unknown schema": Way(Reason.UNKNOWN_SCHEMA, lambda value, _other: _with_id(value, UNKNOWN_ID)),
    "foreign schema": Way(Reason.SCHEMA_MISMATCH, _with_id),
    "header alone": Way(Reason.UNDECODABLE, lambda value, _other: value[:HEADER_BYTES]),
    "truncated body": Way(Reason.UNDECODABLE, lambda value, _other: value[:-3]),
    "trailing byte": Way(Reason.TRAILING_BYTES, lambda value, _other: value + b"\0"),
    "two in one": Way(Reason.TRAILING_BYTES, lambda value, _other: value + value[HEADER_BYTES:]),
    # A decoder that believes it allocates four exabytes.
    "huge length": Way(Reason.UNDECODABLE, _instead_of_length(varint(2**62))),
    "negative length": Way(Reason.UNDECODABLE, _instead_of_length(varint(-1))),
    "endless varint": Way(Reason.UNDECODABLE, _instead_of_length(b"\xff" * 100)),
    "varint of 70 bits": Way(Reason.UNDECODABLE, _instead_of_length(b"\xff" * 9 + b"\x7f")),
    "invalid text": Way(Reason.UNDECODABLE, _invalid_text),
}

#: A valid Avro schema that no event of ours can be read with: the id field is a number here.
FOREIGN_SCHEMA = (
    '{"type": "record", "name": "Foreign", "namespace": "pipeline.testing", '
    '"fields": [{"name": "id", "type": "double"}, {"name": "unrelated", "type": "double"}]}'
)
