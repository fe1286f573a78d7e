"""A window of labelled events, in order of time, cut into what is learnt from and what it is judged by:

    |------------ fit ------------|-- stopping --|  purged  |------ newest ------|

The newest part is for the gate: nothing was learnt from it, neither by the challenger nor, with a window that begins
after the champion's, by the champion. What is purged (López de Prado 2018, chapter 7) are events before it whose label
came after its first event: a model that had been trained at that moment could not have known them.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.errors import DataError
from pipeline.records import Longs

#: As in train.py: ten rows to measure, five to stop on.
ROWS_MIN = 50
#: Rows to judge by: the accuracy of fewer is not known to 0.1.
NEWEST_MIN = 20


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of rows, each part ascending."""

    fit: Longs
    stopping: Longs
    newest: Longs
    #: Rows in none of the parts.
    purged: Longs


def split(
    times_ms: Longs, label_times_ms: Longs, *, newest_share: float, stopping_share: float, delay_ms: int | None = None
) -> Split:
    """Cut n rows whose times ascend.

    newest_share: of all rows. stopping_share: of those before it that stay. delay_ms: what a label is taken to need,
    where its own time says nothing (a replay of old events); None goes by the labels' times.
    Raises DataError when too few rows are left to train on, and says why.
    """
    n = len(times_ms)
    newest_rows = round(n * newest_share)
    if newest_rows < NEWEST_MIN or n - newest_rows < ROWS_MIN:
        needed = f"it takes at least {ROWS_MIN} to train on and {NEWEST_MIN} to judge by"
        raise DataError(f"{n:,} labelled events in the window; {needed}")
    first = n - newest_rows
    known_ms = label_times_ms if delay_ms is None else times_ms + delay_ms
    known = known_ms[:first] <= times_ms[first]
    train, purged = np.flatnonzero(known), np.flatnonzero(~known)
    if len(train) < ROWS_MIN:
        raise DataError(_too_late(times_ms, label_times_ms, first, len(train), delay_ms))
    stopping = max(1, round(len(train) * stopping_share))
    return Split(train[:-stopping], train[-stopping:], np.arange(first, n), purged)


def _too_late(times_ms: Longs, label_times_ms: Longs, first: int, left: int, delay_ms: int | None) -> str:
    delay_s = (float(np.median(label_times_ms - times_ms)) if delay_ms is None else delay_ms) / 1000
    span_s = (int(times_ms[first]) - int(times_ms[0])) / 1000
    told = f"only {left:,} of {first:,} events had their label when the newest part of the window began"
    why = f"a label takes {delay_s:,.0f} s (median), the window before that part spans {span_s:,.0f} s"
    return f"{told}: {why}; take a larger window, or set retraining.label_delay_s if the labels' times are not real"
