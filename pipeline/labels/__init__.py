"""Late labels: what became of each event, joined to what was predicted.

store.py      what waits for its other half, on disk: RocksDB, with the changes of an open transaction in memory
join.py       which prediction and label belong together, and what a label is that has none
outcomes.py   pairs -> the columns of schemas/outcome.avsc
station.py    the join for the agent that reads predictions and labels: restored, fed, and in step with its commits
"""

from pipeline.labels.join import Join, Result
from pipeline.labels.station import LabelStation
from pipeline.labels.store import Store

__all__ = ["Join", "LabelStation", "Result", "Store"]
