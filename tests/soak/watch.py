"""What processes hold, from /proc, and whether it grows."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """One look at one process."""

    #: Since the soak began.
    at_s: float
    #: Of the process.
    age_s: float
    rss_mb: float
    handles: int
    threads: int


def look(pid: int, at_s: float, age_s: float) -> Sample | None:
    """Resident memory, open file descriptors and threads of a process; None once it is gone."""
    folder = Path("/proc") / str(pid)
    try:
        pages = int((folder / "statm").read_text().split()[1])
        threads = len(list((folder / "task").iterdir()))
        handles = len(list((folder / "fd").iterdir()))
    except OSError:
        return None
    return Sample(at_s, age_s, pages * _PAGE_BYTES / 1e6, handles, threads)


@dataclass(frozen=True)
class Growth:
    """A straight line through samples: the median of the slopes of all pairs (Theil and Sen), which spikes do not move.

    start is the line's value at the first sample, change what it adds until the last.
    """

    samples: int
    start: float
    change: float

    @property
    def percent(self) -> float:
        """Change in percent of the start."""
        return 100 * self.change / self.start if self.start else 0.0


#: All pairs of more samples would be more work than they are worth.
_FIT_SAMPLES_MAX = 600


def growth(times_s: list[float], values: list[float]) -> Growth | None:
    """How much `values` grow from the first time to the last; None for fewer than 5."""
    if len(values) < 5:
        return None
    step = -(-len(values) // _FIT_SAMPLES_MAX)
    x, y = np.array(times_s[::step]), np.array(values[::step])
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] > x[first]
    slope = float(np.median((y[second] - y[first])[apart] / (x[second] - x[first])[apart]))
    start = float(np.median(y - slope * (x - x[0])))
    return Growth(len(values), start, slope * float(times_s[-1] - times_s[0]))
