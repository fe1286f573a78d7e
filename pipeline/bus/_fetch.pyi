from typing import TypeAlias

from pipeline.records import Headers

#: Topic, partition; offsets and times as bytes of int64; keys, values; headers; bytes of keys, values and headers.
_Columns: TypeAlias = tuple[str, int, bytes, list[bytes | None], list[bytes | None], bytes, list[Headers] | None, int]

def bind(*functions: int) -> None: ...
def fetch(
    queue: int, most: int, timeout_ms: int, /
) -> tuple[list[_Columns], list[tuple[str | None, int, int, int, str | None]]]: ...
