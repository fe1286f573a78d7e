"""Settings to the log of releases, for the commands that look at it or change it."""

import getpass
import socket
import time
import uuid

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.journal import Journal
from pipeline.cli.wiring import connect
from pipeline.models.release_log import ReleaseLog
from pipeline.models.releases import Decision
from pipeline.settings import Settings

ROLE = "model_releases"


def open_releases(settings: Settings, *, create: bool = False) -> ReleaseLog:
    """The log of a pipeline's releases on a broker that answers; create: make its topic, if that is allowed.

    Raises UnreachableError for an absent broker or registry.
    """
    options, admin = connect(settings)
    topic = settings.topic(ROLE)
    if create and settings.topics.create:
        topics.create(admin, [spec for spec in topics.specs(settings) if spec.name == topic])
    journal = Journal(
        options,
        topic,
        group=settings.group("releases"),
        transactional_id=f"{settings.delivery.transactional_id_prefix or settings.name}-releases",
        transaction_timeout_ms=settings.delivery.transaction_timeout_ms,
    )
    registry, schema = codec.registry_of(settings), codec.load_schema("model-release")
    rows = codec.RowCodec(registry)
    return ReleaseLog(
        journal,
        encode=lambda row: rows.encode(registry.register(f"{topic}-value", schema), schema, row),
        decode=rows.decode,
    )


def decide(settings: Settings, by: str | None, reason: str, report_id: str | None = None) -> Decision:
    """A decision made here and now; by: else the user and machine of this process."""
    return Decision(uuid.uuid4().hex, settings.name, by or _user(), int(time.time() * 1000), reason, report_id)


def _user() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
