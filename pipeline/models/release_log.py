"""The releases of a pipeline where every role finds them: models/releases.py on a table that keeps whole changes."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from pipeline.errors import ContractError, SchemaError
from pipeline.models.releases import Change, Decision, ModelRelease, Releases, fold, from_row, is_key, to_row


class Table(Protocol):
    """Keys and values that are changed whole or not at all; bus.journal.Journal is one."""

    topic: str

    def read(self) -> Mapping[bytes, bytes]: ...
    def change(
        self, decide: Callable[[dict[bytes, bytes]], Sequence[tuple[bytes, bytes | None]]]
    ) -> Mapping[bytes, bytes]: ...
    def follow(self, stop: threading.Event) -> Iterator[Mapping[bytes, bytes]]: ...


class ReleaseLog:
    """Reads, changes and follows the releases. Every call may raise what the table's does. Thread-safe."""

    def __init__(
        self, table: Table, *, encode: Callable[[dict[str, Any]], bytes], decode: Callable[[bytes], dict[str, Any]]
    ) -> None:
        """encode, decode: a record of schemas/model-release.avsc as what is kept; decode raises SchemaError."""
        self._table, self._encode, self._decode = table, encode, decode

    def state(self) -> Releases:
        """What holds now."""
        return self._state(self._table.read())

    def change(self, decision: Decision, transition: Callable[[Releases], Change]) -> Releases:
        """Carry `transition` (one of releases.py, given `decision`) out on what holds now; what holds then.

        A decision that was carried out before is not again: the state is returned as it is, so a caller that was
        killed may simply repeat itself. Raises ContractError as the transition does, FencedError when another
        change began meanwhile: then it is unknown whether this one was carried out, and the state tells.
        """

        def decide(table: dict[bytes, bytes]) -> list[tuple[bytes, bytes | None]]:
            state = self._state(table)
            made = () if state.done(decision.release_id) else transition(state)
            return [(key.encode(), None if entry is None else self._encode(to_row(entry))) for key, entry in made]

        return self._state(self._table.change(decide))

    def follow(self, stop: threading.Event) -> Iterator[Releases]:
        """What holds now, then after each later change, until `stop` is set. Blocks; for a thread of its own.

        Of changes that come faster than they are taken, the last is seen.
        """
        for table in self._table.follow(stop):
            yield self._state(table)

    def _state(self, table: Mapping[bytes, bytes]) -> Releases:
        named = ((key.decode("utf-8", "replace"), value) for key, value in table.items())
        return fold((key, self._release(key, value)) for key, value in named if is_key(key))

    def _release(self, key: str, value: bytes) -> ModelRelease:
        try:
            return from_row(self._decode(value))
        except (SchemaError, ContractError) as error:
            raise ContractError(f"topic {self._table.topic}: key {key!r:.80}: {error}") from None
