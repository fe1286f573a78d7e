"""How roles learn which models are in service: the topic of releases, read at the start and followed from then on."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog

from pipeline import codec
from pipeline.bus.clients import ClientOptions
from pipeline.bus.journal import Journal
from pipeline.errors import BundleError, ContractError, PipelineError
from pipeline.models import bundle as bundles
from pipeline.models import fetching
from pipeline.models.release_log import ReleaseLog
from pipeline.models.releases import Decision, ModelRelease, Releases
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

#: Before the topic is followed anew after an error of its client.
FOLLOW_AGAIN_S = 5.0


def release_log(settings: Settings, options: ClientOptions) -> ReleaseLog:
    """The log of a pipeline's releases; asks nobody before it is used."""
    topic = settings.topic("model_releases")
    journal = Journal(
        options,
        topic,
        group=settings.group("releases"),
        transactional_id=f"{settings.delivery.transactional_id_prefix or settings.name}-releases",
        transaction_timeout_ms=settings.delivery.transaction_timeout_ms,
    )
    registry = codec.registry_of(settings)
    release, calibration = codec.load_schema("model-release"), codec.load_schema("calibration")
    rows = codec.RowCodec(registry)
    # Two kinds of records on one topic: the second has a subject of its own, named by topic and record.
    subject = f"{topic}-pipeline.v1.Calibration"
    return ReleaseLog(
        journal,
        encode=lambda row: rows.encode(registry.register(f"{topic}-value", release), release, row),
        encode_calibration=lambda row: rows.encode(registry.register(subject, calibration), calibration, row),
        decode=rows.decode,
    )


def released_bundle(settings: Settings, release: ModelRelease | None, schema: str) -> bundles.Bundle:
    """The bundle of a release, or of the settings where nothing is released; verified, and fitting events of `schema`.

    Raises BundleError, UnreachableError when a later try may succeed.
    """
    if release is None:
        path: Any = settings.path(settings.model.bundle)
        bundle = bundles.read(path)
    else:
        path = release.uri
        cache = settings.path(settings.releases.cache_dir)
        bundle = fetching.fetch(release.uri, release.manifest_sha256, cache=cache, root=settings.root)
    if misfits := bundles.check_fits(bundle, schema):
        raise BundleError(f"{path}: does not fit {settings.events.schema_file}: {'; '.join(misfits)}")
    return bundle


def decided(settings: Settings, release_id: str, reason: str, report_id: str | None = None) -> Decision:
    """A decision of the role `retrainer`, here and now."""
    name = settings.name
    return Decision(release_id, name, f"{name}-retrainer", int(time.time() * 1000), reason, report_id)


def refuse_early(check: Callable[[], object], releases: ReleaseLog) -> None:
    """Say what is wrong with the settings' model before anything is waited for, unless another is released.

    check: raises BundleError or ContractError for a model, or fields of an event, that will not do.
    """
    try:
        check()
    except (BundleError, ContractError) as fault:
        try:
            released = releases.state().champion
        except PipelineError:
            raise fault from None
        if released is None:
            raise


class Follower:
    """Tells the event loop of each change of the releases, from a thread of its own that ends with `close`."""

    def __init__(self, releases: ReleaseLog, changed: Callable[[Releases], None]) -> None:
        """changed: called in the running loop with what holds now, then after each change."""
        self._releases, self._changed = releases, changed
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        threading.Thread(target=self._follow, name="releases", daemon=True).start()

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                for state in self._releases.follow(self._stop):
                    self._tell(state)
            except PipelineError as error:
                log.warning("releases cannot be followed, trying again", error=str(error))
                self._stop.wait(FOLLOW_AGAIN_S)

    def _tell(self, state: Releases) -> None:
        try:
            self._loop.call_soon_threadsafe(self._changed, state)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._stop.set()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
