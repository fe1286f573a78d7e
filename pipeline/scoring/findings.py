"""What validate.py finds wrong in a batch: which rows break which rule, and which were mended."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.records import Feature, Longs, Reason, Reject, Stage
from pipeline.scoring.fields import Mask

#: A message goes into a dead letter's header, and may come into a log: one line, short beside the record itself,
#: and without what the record holds. It says which field, which rule, which size; the bytes say the rest.
MESSAGE_CHARACTERS_MAX = 200


@dataclass(frozen=True, slots=True)
class _Fault:
    """Rows that break one rule; `order` is the feature's place in the contract, -1 for the identifier."""

    order: int
    reason: Reason
    rows: Mask
    tell: Callable[[int], str]


class Findings:
    """What one pass over a batch of n rows finds."""

    def __init__(self, n: int, features: tuple[Feature, ...]) -> None:
        self.n = n
        self.nulls: Mask = np.zeros((n, len(features)), dtype=np.bool_)
        self._features = features
        self._faults: list[_Fault] = []
        self._mended: list[tuple[str, Mask]] = []

    def fault(self, order: int, reason: Reason, rows: Mask, tell: Callable[[int], str]) -> None:
        """Refuse `rows`; tell(row) says what is wrong, after the feature's name."""
        if rows.any():
            self._faults.append(_Fault(order, reason, rows, tell))

    def mended(self, index: int, how: str, rows: Mask) -> None:
        if rows.any():
            self._mended.append((f"{self._features[index].name}:{how}", rows))

    def good(self) -> Mask:
        """(n,) rows without fault."""
        good = np.ones(self.n, dtype=np.bool_)
        for fault in self._faults:
            good &= ~fault.rows
        return good

    def rejects(self, source_rows: Longs) -> list[Reject]:
        """One per faulty row, for its first fault in contract order; ascending."""
        found: dict[int, Reject] = {}
        for fault in sorted(self._faults, key=lambda f: f.order):
            for row in np.flatnonzero(fault.rows).tolist():
                if row not in found:
                    text = fault.tell(row)
                    if fault.order >= 0:
                        text = f"feature {self._features[fault.order].name}: {text}"
                    found[row] = Reject(int(source_rows[row]), Stage.VALIDATE, fault.reason, one_line(text))
        return [found[row] for row in sorted(found)]

    def imputed(self, good: Mask) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for key, rows in self._mended:
            counts[key] += int(np.count_nonzero(rows & good))
        return {key: count for key, count in counts.items() if count}


def one_line(text: str) -> str:
    """`text` in one printable line: whatever is not printable escaped, cut at MESSAGE_CHARACTERS_MAX."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:MESSAGE_CHARACTERS_MAX])
    return safe if len(safe) <= MESSAGE_CHARACTERS_MAX else safe[: MESSAGE_CHARACTERS_MAX - 1] + "…"
