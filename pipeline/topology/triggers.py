"""The topic of retraining triggers, for those who send them and those who read them."""

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog

from pipeline import codec, drift, observe
from pipeline.errors import SchemaError
from pipeline.records import RetrainingTrigger
from pipeline.settings import Settings
from pipeline.topology.role import once_reachable

log = structlog.get_logger(__name__)


class Triggers:
    """Encodes, sends and decodes triggers."""

    def __init__(self, topic: str, rows: codec.RowCodec, schema: str, schema_id: int) -> None:
        self.topic = topic
        self._rows, self._schema, self._schema_id = rows, schema, schema_id

    @classmethod
    async def registered(cls, settings: Settings) -> "Triggers":
        """Their schema registered, however long the registry is away."""
        registry, schema = codec.registry_of(settings), codec.load_schema("retraining-trigger")
        topic = settings.topic("retraining_triggers")
        schema_id = await once_reachable(
            "waiting for the registry", lambda: registry.register(f"{topic}-value", schema)
        )
        return cls(topic, codec.RowCodec(registry), schema, schema_id)

    async def send(self, app: Any, trigger: RetrainingTrigger) -> None:
        """Put a trigger into the app's open transaction."""
        value = self._rows.encode(self._schema_id, self._schema, drift.trigger_to_dict(trigger))
        await asyncio.to_thread(app.producer.batch.send, self.topic, trigger.trigger_id.encode(), value)


def decoded(rows: codec.RowCodec, value: bytes | None) -> RetrainingTrigger:
    """The trigger in a record. Raises SchemaError for what is none."""
    try:
        return drift.trigger_from_dict(rows.decode(value or b""))
    except (KeyError, TypeError) as error:
        raise SchemaError(f"{type(error).__name__}: {error}") from error


def published(triggers: Iterable[RetrainingTrigger], metrics: observe.Metrics) -> None:
    """Tell of triggers that are on the topic now."""
    for trigger in triggers:
        metrics.trigger(trigger.severity)
        log.warning(
            "retraining trigger",
            trigger_id=trigger.trigger_id,
            severity=trigger.severity,
            signals=[signal.signal for signal in trigger.signals],
            advice=trigger.advice,
        )
