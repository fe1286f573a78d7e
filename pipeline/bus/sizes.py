"""What records take in memory: the unit of every bound that is in bytes."""

from collections.abc import Sequence

from pipeline.records import Headers

#: What a header takes beside its text: a tuple (56 bytes), a str (49), bytes (33) and its place in a list (8).
HEADER_BYTES = 146


def size_bytes(keys: Sequence[bytes | None], values: Sequence[bytes | None], headers: Sequence[Headers] | None) -> int:
    """Bytes of keys, values and headers together; 26 ns a record without headers."""
    size = sum(map(len, filter(None, keys))) + sum(map(len, filter(None, values)))
    for some in headers or ():
        size += sum(HEADER_BYTES + len(name) + len(value or b"") for name, value in some or ())
    return size
