"""The releases of a pipeline where every role finds them: models/releases.py on a table that keeps whole changes."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from pipeline.errors import ContractError, SchemaError
from pipeline.models import calibrations
from pipeline.models.calibrations import Calibration
from pipeline.models.releases import Change, Decision, Releases, fold, from_row, is_key, to_row

_Made = TypeVar("_Made")


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
        self,
        table: Table,
        *,
        encode: Callable[[dict[str, Any]], bytes],
        encode_calibration: Callable[[dict[str, Any]], bytes],
        decode: Callable[[bytes], dict[str, Any]],
    ) -> None:
        """encode, encode_calibration: a record of schemas/model-release.avsc, of calibration.avsc, as what is kept.

        decode: of either; raises SchemaError.
        """
        self._table, self._encode, self._decode = table, encode, decode
        self._encode_calibration = encode_calibration

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

    def calibrate(self, model_version: str, calibration: Calibration | None, instead_of: str | None) -> Releases:
        """Have outputs of a version go through `calibration`, None: through none; what holds then.

        instead_of: id of the calibration that holds as far as the caller knows, None: none does. Raises ContractError
        if another does by now, as what was measured was measured beside that one; FencedError as `change` does.
        """
        key = calibrations.key(model_version).encode()
        wanted = None if calibration is None else calibration.calibration_id

        def decide(table: dict[bytes, bytes]) -> list[tuple[bytes, bytes | None]]:
            found = self._state(table).calibrations.get(model_version)
            holds = found and found.calibration_id
            if holds == wanted:
                return []
            if holds != instead_of:
                raise ContractError(
                    f"{model_version}: calibration {holds or 'none'} came in the place of {instead_of or 'none'} "
                    "meanwhile; look at what holds now"
                )
            value = None if calibration is None else self._encode_calibration(calibrations.to_row(calibration))
            return [(key, value)]

        return self._state(self._table.change(decide))

    def follow(self, stop: threading.Event) -> Iterator[Releases]:
        """What holds now, then after each later change, until `stop` is set. Blocks; for a thread of its own.

        Of changes that come faster than they are taken, the last is seen.
        """
        for table in self._table.follow(stop):
            yield self._state(table)

    def _state(self, table: Mapping[bytes, bytes]) -> Releases:
        named = [(key.decode("utf-8", "replace"), value) for key, value in table.items()]
        state = fold((key, self._read(key, value, from_row)) for key, value in named if is_key(key))
        found = [self._read(key, value, calibrations.from_row) for key, value in named if calibrations.is_key(key)]
        return replace(state, calibrations={calibration.model_version: calibration for calibration in found})

    def _read(self, key: str, value: bytes, made_of: Callable[[Mapping[str, Any]], _Made]) -> _Made:
        try:
            return made_of(self._decode(value))
        except (SchemaError, ContractError) as error:
            raise ContractError(f"topic {self._table.topic}: key {key!r:.80}: {error}") from None
