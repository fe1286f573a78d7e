"""Which role reads and writes which topic, and the only place that wires rooms together.

    worker    NAME.events, NAME.model-releases -> NAME.predictions, NAME.dead-letters, NAME.batch-summaries
    labels    NAME.predictions, NAME.labels -> NAME.outcomes, NAME.dead-letters
    quality   NAME.outcomes, NAME.model-releases -> NAME.retraining-triggers
    monitor   NAME.batch-summaries, NAME.model-releases -> NAME.retraining-triggers
    retrainer NAME.retraining-triggers, NAME.outcomes, NAME.events -> NAME.retraining-reports, NAME.model-releases

Each role is a Faust app of its own with its own consumer group; cli/role.py runs it. One file a role; role.py is what
they share, and releases.py how they learn which models are in service.
"""

from pipeline.topology.role import Role

__all__ = ["Role", "build"]


async def build(role: Role) -> None:
    """Make the role's app: verify and load everything that can be wrong, before it joins its group."""
    # Each brings libraries of its own: torch, River, RocksDB.
    if role.name == "worker":
        from pipeline.topology.worker import build_worker as build_role  # noqa: PLC0415
    elif role.name == "labels":
        from pipeline.topology.labels import build_labels as build_role  # noqa: PLC0415
    elif role.name == "quality":
        from pipeline.topology.quality import build_quality as build_role  # noqa: PLC0415
    elif role.name == "monitor":
        from pipeline.topology.monitor import build_monitor as build_role  # noqa: PLC0415
    elif role.name == "retrainer":
        from pipeline.topology.retrainer import build_retrainer as build_role  # noqa: PLC0415
    else:
        raise ValueError(f"no such role: {role.name}")
    await build_role(role)
