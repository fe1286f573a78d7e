"""What can be seen of a running pipeline from outside.

metrics.py   every Prometheus series, in one container
quality.py   of them those of outcomes
loop.py      of them those of trainings, trials and calibrations
server.py    /metrics, /healthz, /readyz
logs.py      structured logs, one line an event
"""

from pipeline.observe.logs import configure, get_logger
from pipeline.observe.loop import LoopSeries, Outcome
from pipeline.observe.metrics import Metrics
from pipeline.observe.server import ObserveServer

__all__ = ["LoopSeries", "Metrics", "ObserveServer", "Outcome", "configure", "get_logger"]
