"""Faust's acknowledgements, led into the ledger.

Faust's compiled stream loop does not call `Consumer.ack`: it appends to `consumer._acked[tp]` and adds to
`consumer._acked_index[tp]` itself. These two stand in their places.
"""

from collections.abc import Callable
from typing import Any

from faust.types import TP

from pipeline.bus.ledger import BatchOffset


class Acked(dict[TP, Any]):
    """`consumer._acked`: an object with `append` for any partition asked for."""

    def __init__(self, complete: Callable[[TP, BatchOffset], Any]) -> None:
        super().__init__()
        self._complete = complete

    def __missing__(self, tp: TP) -> "_Acks":
        value = self[tp] = _Acks(self._complete, tp)
        return value


class _Acks:
    def __init__(self, complete: Callable[[TP, BatchOffset], Any], tp: TP) -> None:
        self._complete = complete
        self._tp = tp

    def append(self, offset: BatchOffset) -> None:
        self._complete(self._tp, offset)


class NoIndex(set[int]):
    """`consumer._acked_index[tp]`: stays empty, the ledger knows by itself what is done."""

    def add(self, _offset: int) -> None:
        pass
