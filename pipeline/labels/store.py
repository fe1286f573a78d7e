"""What waits for its other half, on disk, next to the place in the log up to which it is so.

RocksDB keeps it: ten million predictions of 110 bytes take 1.3 GB of disk and at most MEMORY_BYTES of memory, however
many partitions there are. What a transaction changes stays in memory until Kafka has committed it, so the store is
never ahead of the log. After a crash it is behind by one transaction at most, and what lies between is read again.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from rocksdict import AccessType, BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch

from pipeline.errors import ContractError, FencedError
from pipeline.records import TopicPartition

log = structlog.get_logger(__name__)

#: Two write buffers of 32 MiB, and a block cache that holds indexes and filters too: 10 bits a key are 12 MB for ten
#: million keys.
WRITE_BUFFER_BYTES = 33_554_432
WRITE_BUFFERS = 2
CACHE_BYTES = 67_108_864
MEMORY_BYTES = WRITE_BUFFERS * WRITE_BUFFER_BYTES + CACHE_BYTES
FILTER_BITS = 10
#: What has waited too long goes with the next compaction of its file; the sweep must have seen it before.
KEPT_BEYOND_S = 3600

_POSITION, _SOURCE = b"m/", b"s"


class Store:
    """Bytes by key, with one open set of changes. Not thread-safe: one task at a time may use it."""

    def __init__(self, path: Path, *, source: str, wait_s: float) -> None:
        """Open or make the store in the folder `path`, and hold it until `close`.

        source: identifies cluster and topics: a store of others is emptied.
        wait_s: what was put longer ago may be forgotten.
        Raises ContractError when the folder cannot be used, FencedError while another process holds it.
        """
        self._path = path
        self._db = _open(path, int(wait_s) + KEPT_BEYOND_S)
        #: Changes of the open transaction; and of those that are committed and not written yet. None: deleted.
        self._open: dict[bytes, bytes | None] = {}
        self._sealed: dict[bytes, bytes | None] = {}
        if (found := self._db.get(_SOURCE)) != source.encode():
            if found is not None:
                log.warning("labels store is of another cluster or topic, beginning anew", path=str(path))
            self._db.delete_range(b"\x00", b"\xff" * 8)
            self._db.put(_SOURCE, source.encode())

    # -- one transaction ------------------------------------------------------------------

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value of each key, open changes included; None where there is none."""
        found: dict[bytes, bytes | None] = {}
        unknown: list[Any] = []
        for key in keys:
            if key in self._open:
                found[key] = self._open[key]
            elif key in self._sealed:
                found[key] = self._sealed[key]
            else:
                unknown.append(key)
        if unknown:
            found.update(zip(unknown, self._db.get(unknown) or (), strict=True))
        return [found[key] for key in keys]

    def put(self, key: bytes, value: bytes) -> None:
        """Change a value, for now in memory."""
        self._open[key] = value

    def delete(self, key: bytes) -> None:
        """Forget a value, for now in memory."""
        self._open[key] = None

    @property
    def changes(self) -> int:
        """How many changes are open."""
        return len(self._open)

    def drop(self) -> None:
        """Undo the open changes: their transaction was aborted."""
        self._open.clear()

    def seal(self, positions: Mapping[TopicPartition, int]) -> None:
        """The open changes are committed, and `positions` are the offsets after what they came of. Quick."""
        self._sealed.update(self._open)
        self._sealed.update({_position_key(tp): b"%d" % offset for tp, offset in positions.items()})
        self._open.clear()

    def write(self) -> None:
        """Bring what is sealed to disk, all or nothing; 3 µs a change. Raises ContractError (disk full, no permission).

        A crash of this process loses nothing of it, a crash of the machine perhaps the last seconds: these are read
        again, as the positions go with them.
        """
        if not self._sealed:
            return
        batch = WriteBatch(raw_mode=True)
        for key, value in self._sealed.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        try:
            self._db.write(batch)
        except Exception as error:  # noqa: BLE001 (rocksdict raises bare Exception)
            raise ContractError(f"labels.state_dir: {self._path} cannot be written: {error}") from None
        self._sealed = {}

    # -- beyond a transaction -----------------------------------------------------------------

    def position(self, tp: TopicPartition) -> int | None:
        """Offset up to which the store knows `tp`; None if it knows nothing."""
        (found,) = self.get([_position_key(tp)])
        return None if found is None else int(found)

    def forget(self, prefixes: Sequence[bytes], tps: Sequence[TopicPartition]) -> None:
        """Delete all keys with these prefixes, and the positions of `tps`; at once. Nothing may be open."""
        for prefix in prefixes:
            self._db.delete_range(prefix, prefix + b"\xff" * 8)
        for tp in tps:
            self._db.delete(_position_key(tp))

    def ascending(self, prefix: bytes, upto: bytes) -> Iterator[bytes]:
        """Written keys that begin with `prefix` and are not above `upto`, in order."""
        cursor = self._db.iter()
        cursor.seek(prefix)
        while cursor.valid():
            key = bytes(cursor.key())
            if not key.startswith(prefix) or key > upto:
                return
            yield key
            cursor.next()

    def keys_estimate(self) -> int:
        """How many keys are on disk, roughly: RocksDB counts a key twice that was changed and not compacted yet."""
        return int(self._db.property_int_value("rocksdb.estimate-num-keys") or 0)

    def close(self) -> None:
        """Write what is sealed, and let another process have the folder."""
        try:
            self.write()
        except ContractError as error:
            log.warning("labels store not written at the end", error=str(error))
        self._db.close()


def _position_key(tp: TopicPartition) -> bytes:
    return _POSITION + f"{tp.topic}/{tp.partition}".encode()


def _open(path: Path, ttl_s: int) -> Rdict:
    tables = BlockBasedOptions()
    tables.set_block_cache(Cache(CACHE_BYTES))
    tables.set_cache_index_and_filter_blocks(True)
    tables.set_bloom_filter(FILTER_BITS, False)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(WRITE_BUFFERS)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_block_based_table_factory(tables)
    try:
        path.mkdir(parents=True, exist_ok=True)
        return Rdict(str(path), options, access_type=AccessType.with_ttl(ttl_s))
    except OSError as error:
        raise ContractError(f"labels.state_dir: {path} cannot be made or written: {error}") from None
    except Exception as error:  # noqa: BLE001 (rocksdict raises bare Exception)
        if "lock" in str(error).lower():
            mend = "stop it, or give this one a slot of its own"
            raise FencedError(f"labels.state_dir: {path}: another process keeps its labels there; {mend}") from None
        raise ContractError(f"labels.state_dir: {path} cannot be opened: {error}") from None
