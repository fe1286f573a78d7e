"""What can be seen of a running pipeline from outside.

metrics.py   every Prometheus series, in one container
server.py    /metrics, /healthz, /readyz
logs.py      structured logs, one line an event
"""

from pipeline.observe.logs import configure, get_logger
from pipeline.observe.metrics import Metrics
from pipeline.observe.server import ObserveServer

__all__ = ["Metrics", "ObserveServer", "configure", "get_logger"]
