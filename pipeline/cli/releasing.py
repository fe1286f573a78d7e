"""Settings to the log of releases, for the commands that look at it or change it."""

import getpass
import socket
import time
import uuid

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.reading import Span, read
from pipeline.cli.wiring import connect
from pipeline.errors import ContractError
from pipeline.models.release_log import ReleaseLog
from pipeline.models.releases import Decision
from pipeline.retraining.reports import RetrainingReport, from_row
from pipeline.settings import Settings
from pipeline.topology.releases import release_log


def open_releases(settings: Settings, *, create: bool = False) -> ReleaseLog:
    """The log of a pipeline's releases on a broker that answers; create: make its topic, if that is allowed.

    Raises UnreachableError for an absent broker or registry.
    """
    options, admin = connect(settings)
    if create and settings.topics.create:
        topic = settings.topic("model_releases")
        topics.create(admin, [spec for spec in topics.specs(settings) if spec.name == topic])
    return release_log(settings, options)


def find_report(settings: Settings, report_id: str) -> RetrainingReport:
    """The gate's report of this id that waits for a person's yes.

    Raises ContractError when there is none or it does not wait, UnreachableError for an absent broker.
    """
    options, admin = connect(settings)
    topic = settings.topic("retraining_reports")
    spans = {tp.partition: Span(*mark) for tp, mark in topics.watermarks(admin, topic).items()}
    rows = codec.RowCodec(codec.registry_of(settings))
    found, waiting = None, set[str]()
    for messages in read(options, settings.group("releases"), topic, spans):
        for message in messages:
            report = from_row(rows.decode(message.value()))
            waiting |= {report.report_id} if report.approval == "waiting" else set()
            found = report if report.report_id == report_id else found
    if found is None:
        known = f"; these wait: {', '.join(sorted(waiting))}" if waiting else ", and no report waits"
        raise ContractError(f"topic {topic}: has no report {report_id}{known}")
    if found.approval != "waiting":
        why = "refused the challenger" if found.approval == "none" else "let it pass without a person"
        raise ContractError(f"report {report_id} does not wait for anybody: the gate {why}")
    return found


def decide(settings: Settings, by: str | None, reason: str, report_id: str | None = None) -> Decision:
    """A decision made here and now; by: else the user and machine of this process. On a report there is one only."""
    release_id = uuid.uuid4().hex if report_id is None else f"report-{report_id}"
    return Decision(release_id, settings.name, by or _user(), int(time.time() * 1000), reason, report_id)


def _user() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"
