"""Metrics of a stream without end, in bounded memory: outcomes are added, and tallies of several workers merge.

A `Tally` keeps sums (see sums.py) of all rows: prequential, since each row was scored before its truth was known (Dawid
1984); of rows that fade (fading factor, Gama, Sebastiao & Rodrigues 2013); and of each of the latest panes of time,
which together are the sliding window.

Fading and window go by time, not by number of rows: then neither the order in which labels arrive nor the worker they
arrive at makes a difference, and merging is exact. All rows of one pane weigh the same.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.errors import ContractError
from pipeline.measures.metrics import NOTHING_BEFORE
from pipeline.measures.scored import Metrics, Numbers
from pipeline.measures.sums import Sums
from pipeline.records import Longs

#: Since the start, with older rows fading, or of the latest panes.
View = Literal["total", "faded", "window"]


@dataclass(frozen=True, slots=True)
class Counting:
    """How outcomes are counted; only tallies of the same counting merge."""

    sums: Sums
    #: Length of a pane, milliseconds.
    pane_ms: int
    #: Panes of the sliding window, the newest (which is not full yet) included.
    panes_max: int
    #: Weight of a row of the pane before, one of the newest having 1: in (0, 1). It halves in ln 0.5 / ln fading panes.
    fading: float

    def plain(self) -> dict[str, Any]:
        """What a state was counted by, as plain data for JSON."""
        output = {"kind": self.sums.output.kind, "classes": list(self.sums.output.classes), "size": self.sums.size}
        of_numbers = {"quantile": self.sums.quantile, "origin": self.sums.origin}
        return {**output, **of_numbers, "pane_ms": self.pane_ms, "panes_max": self.panes_max, "fading": self.fading}


@dataclass(slots=True)
class Tally:
    """Outcomes so far of one model version, or of one slice of them; not for several threads.

    Takes at most 8 x size x (panes_max + 2) bytes, 288 kB for two classes and 12 panes.
    """

    counting: Counting
    #: Number of the newest pane since the epoch; None before the first row.
    newest: int | None = None
    total: Numbers = field(init=False)
    faded: Numbers = field(init=False)
    #: Number of a pane -> its sums.
    panes: dict[int, Numbers] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.total, self.faded = np.zeros((2, self.counting.sums.size))

    def add(
        self,
        outputs: Numbers,
        truth: npt.NDArray[Any],
        times_ms: Longs,
        *,
        before: npt.NDArray[Any] | None = None,
        latest_ms: int | None = None,
    ) -> None:
        """Add n outcomes, in any order, divided into batches in any way.

        outputs, truth, times_ms: as in Scored, finite. before: (n,) the latest truth known when each was predicted,
        for the no-change baseline; -2 (a regression: NaN) where there was none. latest_ms: the caller's clock; a later
        time counts as this one, since a single event far in the future would otherwise empty the window.
        """
        if not len(truth):
            return
        sums = self.counting.sums
        if before is None:
            before = np.full(len(truth), np.nan if sums.output.kind == "regression" else NOTHING_BEFORE)
        panes = (times_ms if latest_ms is None else np.minimum(times_ms, latest_ms)) // self.counting.pane_ms
        self._advance(int(panes.max()))
        for pane in np.unique(panes).tolist():
            rows = panes == pane
            self._keep(pane, sums.of(outputs[rows], truth[rows], before[rows]))

    def merge(self, other: "Tally") -> None:
        """Add all that `other` has counted. Raises ContractError for one that counts in another way."""
        if self.counting != other.counting:
            raise ContractError("tallies differ in model output, panes or fading; only the same kind can be merged")
        if other.newest is None:
            return
        newest = self._advance(other.newest)
        self.total += other.total
        self.faded += other.faded * self.counting.fading ** (newest - other.newest)
        for pane, sums in other.panes.items():
            self._put(pane, sums)

    def metrics(self, view: View = "window") -> Metrics:
        """Metrics of a view; see Sums.metrics."""
        return self.counting.sums.metrics(self._sums(view))

    def rows(self, view: View = "window") -> float:
        """Rows in a view; where rows fade, their weight."""
        return self.counting.sums.rows(self._sums(view))

    def reliability(self, view: View = "window") -> list[dict[str, Any]]:
        """Reliability bins of a view; see `measure`."""
        return self.counting.sums.reliability(self._sums(view))

    def state(self) -> dict[str, Any]:
        """All that was counted, as plain data for JSON; `restore` takes it up again, bit for bit."""
        panes = {str(pane): _sparse(sums) for pane, sums in sorted(self.panes.items())}
        counted = {"newest": self.newest, "total": _sparse(self.total), "faded": _sparse(self.faded), "panes": panes}
        return {"counting": self.counting.plain(), **counted}

    @classmethod
    def restore(cls, counting: Counting, state: dict[str, Any]) -> "Tally":
        """The tally whose `state` this is. Raises ContractError if that counted in another way."""
        if state.get("counting") != counting.plain():
            raise ContractError(f"state of a tally: counted by {state.get('counting')}, not {counting.plain()}")
        tally, size = cls(counting, state["newest"]), counting.sums.size
        tally.total, tally.faded = _dense(state["total"], size), _dense(state["faded"], size)
        tally.panes = {int(pane): _dense(sums, size) for pane, sums in state["panes"].items()}
        return tally

    def _sums(self, view: View) -> Numbers:
        if view != "window":
            return self.total if view == "total" else self.faded
        sums = np.zeros_like(self.total)
        for pane in self.panes.values():
            sums += pane
        return sums

    def _advance(self, pane: int) -> int:
        """The newest pane, which `pane` may be: then older rows fade, and the oldest leave the window."""
        if self.newest is None or pane > self.newest:
            self.faded *= self.counting.fading ** (0 if self.newest is None else pane - self.newest)
            self.panes = {n: sums for n, sums in self.panes.items() if n > pane - self.counting.panes_max}
            self.newest = pane
        return self.newest

    def _keep(self, pane: int, sums: Numbers) -> None:
        self.total += sums
        self.faded += sums * self.counting.fading ** (self._advance(pane) - pane)
        self._put(pane, sums)

    def _put(self, pane: int, sums: Numbers) -> None:
        if pane > self._advance(pane) - self.counting.panes_max:
            self.panes[pane] = self.panes[pane] + sums if pane in self.panes else sums.copy()


def _sparse(sums: Numbers) -> dict[str, list[Any]]:
    """Where it is not 0, and what is there: most bins of a slice are empty."""
    at = np.flatnonzero(sums)
    return {"at": at.tolist(), "sums": sums[at].tolist()}


def _dense(sparse: dict[str, list[Any]], size: int) -> Numbers:
    sums = np.zeros(size)
    sums[sparse["at"]] = sparse["sums"]
    return sums
