"""Which role reads and writes which topic, and the only place that wires rooms together.

    worker    NAME.events -> NAME.predictions, NAME.dead-letters, NAME.batch-summaries
    labels    NAME.predictions, NAME.labels -> NAME.outcomes, NAME.dead-letters
    monitor   NAME.batch-summaries -> NAME.retraining-triggers

Each role is a Faust app of its own with its own consumer group; cli/role.py runs it. One file a role; role.py is what
they share.
"""

from collections.abc import Awaitable, Callable

from pipeline.topology.labels import build_labels
from pipeline.topology.monitor import build_monitor
from pipeline.topology.role import Role
from pipeline.topology.worker import build_worker, checked_bundle, load_model

__all__ = ["ROLES", "Role", "checked_bundle", "load_model"]

ROLES: dict[str, Callable[[Role], Awaitable[None]]] = {
    "worker": build_worker,
    "labels": build_labels,
    "monitor": build_monitor,
}
