"""How Avro writes what records are made of: a cursor in one record's bytes, and a reader a type.

Whatever the bytes claim, nothing is read or allocated that is not there.
"""

import struct
from collections.abc import Callable
from typing import Any

from pipeline.codec.defaults import INT_MAX, INT_MIN
from pipeline.codec.values import Malformed

#: Items of a type that takes no bytes; a list of them costs 8 bytes each: 80 kB a record at most.
NOTHINGS_MAX = 10_000

_FLOAT, _DOUBLE = struct.Struct("<f"), struct.Struct("<d")
_MAX_64 = (1 << 64) - 1


class Cursor:
    """Where a read is in its record."""

    __slots__ = ("data", "depth", "end", "nothings", "pos")

    def __init__(self, data: bytes, pos: int) -> None:
        self.data = data
        self.pos = pos
        self.end = len(data)
        self.depth = 0
        self.nothings = NOTHINGS_MAX

    def take(self, size: int, what: str) -> int:
        """Step over `size` bytes; the position before."""
        pos = self.pos
        if size < 0:
            raise Malformed(f"the length of a {what} is negative ({size})")
        if size > self.end - pos:
            raise Malformed(f"ends at byte {self.end}, inside a {what} of {size} bytes from byte {pos}")
        self.pos = pos + size
        return pos


Read = Callable[[Cursor], Any]


def read_long(cursor: Cursor) -> int:
    data, pos = cursor.data, cursor.pos
    value = shift = 0
    try:
        while True:
            byte = data[pos]
            pos += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise Malformed(f"an integer of more than 10 bytes at byte {cursor.pos}")
    except IndexError:
        raise Malformed(f"ends at byte {cursor.end}, where an integer should be or go on") from None
    if value > _MAX_64:
        raise Malformed(f"an integer of more than 64 bits at byte {cursor.pos}")
    cursor.pos = pos
    return (value >> 1) ^ -(value & 1)


def _int(cursor: Cursor) -> int:
    start = cursor.pos
    value = read_long(cursor)
    if not INT_MIN <= value <= INT_MAX:
        raise Malformed(f"an int of more than 32 bits at byte {start}")
    return value


def _null(_: Cursor) -> None:
    return None


def _boolean(cursor: Cursor) -> bool:
    byte = cursor.data[cursor.take(1, "boolean")]
    if byte > 1:
        raise Malformed(f"neither 0 nor 1 at byte {cursor.pos - 1}, where a boolean should be")
    return byte == 1


def _float(cursor: Cursor) -> float:
    value: float = _FLOAT.unpack_from(cursor.data, cursor.take(4, "float"))[0]
    return value


def _double(cursor: Cursor) -> float:
    value: float = _DOUBLE.unpack_from(cursor.data, cursor.take(8, "double"))[0]
    return value


def _bytes(cursor: Cursor) -> bytes:
    start = cursor.take(read_long(cursor), "value")
    return cursor.data[start : cursor.pos]


def read_string(cursor: Cursor) -> str:
    start = cursor.take(read_long(cursor), "string")
    try:
        return cursor.data[start : cursor.pos].decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"a string is no UTF-8 at byte {start + error.start}") from None


def read_fixed(size: int) -> Read:
    def read(cursor: Cursor) -> bytes:
        start = cursor.take(size, "fixed")
        return cursor.data[start : cursor.pos]

    return read


PRIMITIVES: dict[str, Read] = {
    "null": _null,
    "boolean": _boolean,
    "int": _int,
    "long": read_long,
    "float": _float,
    "double": _double,
    "bytes": _bytes,
    "string": read_string,
}


def then(read: Read, convert: Callable[[Any], Any]) -> Read:
    return lambda cursor: convert(read(cursor))


def blocks(item: Read, *, takes_nothing: bool) -> Read:
    def read(cursor: Cursor) -> list[Any]:
        items: list[Any] = []
        while True:
            start = cursor.pos
            count = read_long(cursor)
            if count == 0:
                return items
            if count < 0:
                count = -count
                read_long(cursor)  # the size in bytes, for those who skip
            if takes_nothing:
                cursor.nothings -= count
                if cursor.nothings < 0:
                    raise Malformed(f"{count} items without content at byte {start}; {NOTHINGS_MAX} are allowed")
            elif count > cursor.end - cursor.pos:
                raise Malformed(f"{count} items at byte {start}, but only {cursor.end - cursor.pos} bytes follow")
            items.extend([item(cursor) for _ in range(count)])

    return read
