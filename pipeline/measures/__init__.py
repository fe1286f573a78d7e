"""How good predictions are: pure functions of NumPy arrays that every room may use.

scored.py        n rows with their truth: what all measures are of
report.py        `measure`: everything at once, as plain data; `windows`: the timeline
metrics.py       point metrics, and what costs nothing beside them
ranking.py       ROC-AUC, average precision, curves
calibration.py   reliability bins, calibration error
slices.py        by slice, gaps between a slice and the rest
intervals.py     confidence intervals of shares and differences
paired.py        whether one model is better than another on the same rows
sums.py          metrics from sums over rows, which add up
online.py        `Tally`: metrics of a stream in bounded memory
estimate.py      accuracy before labels come
calibrators.py   probabilities made to mean what they say

docs/measures.md defines every measure, with its source.
"""

from pipeline.measures.report import measure, windows
from pipeline.measures.scored import Metrics, Numbers, Scored

__all__ = ["Metrics", "Numbers", "Scored", "measure", "windows"]
