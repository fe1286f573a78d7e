"""The models of one worker: loaded and warmed up beside those in service, then swapped in between two steps."""

import asyncio
import time
from dataclasses import dataclass

import structlog

from pipeline import codec, drift, observe
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.errors import ContractError, PipelineError, ScoringError, SettingsError, UnreachableError
from pipeline.measures.calibrators import Calibrator
from pipeline.models import bundle as bundles
from pipeline.models import devices, loading, precisions
from pipeline.models.calibrations import Calibration
from pipeline.models.releases import SLOTS, ModelRelease, Releases, Slot
from pipeline.records import FeatureContract
from pipeline.scoring.engine import TorchModel
from pipeline.scoring.flow import Flow
from pipeline.scoring.lane import Lane
from pipeline.scoring.publish import Publisher
from pipeline.scoring.serving import Served
from pipeline.scoring.validate import Validator
from pipeline.settings import Settings
from pipeline.topology.releases import released_bundle

log = structlog.get_logger(__name__)

#: Between two tries to fetch a released bundle from a store that does not answer.
FETCH_AGAIN_S = 5.0


def load_model(settings: Settings, bundle: bundles.Bundle) -> TorchModel:
    """The bundle's model on its device, at its precision, warmed up. Raises SettingsError where these do not fit."""
    precision, device = settings.scoring.precision, devices.resolve(settings.model.device)
    model = TorchModel(
        precisions.at_precision(loading.load_module(bundle), precision, device),
        bundle.contract,
        bundle.identity,
        bundle.baseline,
        device=device,
        threads=settings.model.threads,
        batch_max=settings.scoring.batch_max,
    )
    try:
        model.warm_up()
    except ScoringError as error:
        # A module that reaches into its layers finds no weights there.
        if precision == "int8" and isinstance(error.__cause__, AttributeError | TypeError):
            raise SettingsError(f"scoring.precision: int8 does not go with this model: {error}") from error
        raise
    return model


@dataclass(frozen=True)
class _Held:
    """What is in a slot of this worker: a model by its digest, its calibration, and the lane they run in."""

    digest: str
    #: As released; the lane's own is None where that could not be used.
    calibration_id: str | None
    lane: Lane


class Serving:
    """Keeps the models in service those that are released. Its blocking methods belong on a thread, one at a time."""

    def __init__(self, settings: Settings, schema: str, metrics: observe.Metrics) -> None:
        self._settings, self._schema, self._metrics = settings, schema, metrics
        #: Digest -> model, of all that are in a slot now.
        self._models: dict[str, TorchModel] = {}
        self._held: dict[Slot, _Held] = {}
        self._share = 0.0
        self._latest: Releases | None = None
        self._changed = asyncio.Event()

    def check_settings(self) -> None:
        """Raise BundleError or ContractError for a bundle of the settings, or fields of an event, that will not do."""
        self._validator(released_bundle(self._settings, None, self._schema).contract)

    # -- blocking --------------------------------------------------------------------------------

    def start(self, state: Releases, publisher: Publisher) -> Served:
        """The first models. Raises BundleError, ContractError for a champion that cannot be used, UnreachableError."""
        self._hold("champion", state, publisher)
        return self._served_by(state, publisher)

    def update(self, state: Releases, publisher: Publisher) -> Served:
        """The models of `state`; a slot whose model cannot be used keeps what it has (champion) or is empty.

        Raises UnreachableError when a later try may succeed.
        """
        self._try_to_hold("champion", state, publisher)
        return self._served_by(state, publisher)

    def _served_by(self, state: Releases, publisher: Publisher) -> Served:
        for slot in SLOTS[1:]:
            if state.slot(slot) is None:
                self._held.pop(slot, None)
            else:
                self._try_to_hold(slot, state, publisher)
        used = {held.digest for held in self._held.values()}
        self._models = {digest: model for digest, model in self._models.items() if digest in used}
        canary, shadow = self._held.get("canary"), self._held.get("shadow")
        return Served(
            self._held["champion"].lane,
            canary.lane if canary else None,
            state.canary.share if canary and state.canary else 0.0,
            shadow.lane if shadow else None,
        )

    def _try_to_hold(self, slot: Slot, state: Releases, publisher: Publisher) -> None:
        try:
            self._hold(slot, state, publisher)
        except UnreachableError:
            raise
        except PipelineError as error:
            told = str(error)  # one line: what went wrong is in the bundle, not here
            release = state.slot(slot)
            version = release and release.model_version
            log.warning("released model cannot be used", slot=slot, version=version, error=told)
            self._metrics.release_failed(slot)
            if slot != "champion":
                self._held.pop(slot, None)

    def _hold(self, slot: Slot, state: Releases, publisher: Publisher) -> None:
        digest = self._loaded(slot, state.slot(slot))
        model, held = self._models[digest], self._held.get(slot)
        calibration = state.calibrations.get(model.identity.model_version)
        calibration_id = calibration.calibration_id if calibration else None
        if held is not None and (held.digest, held.calibration_id) == (digest, calibration_id):
            return
        if slot == "shadow":
            self._make_shadow_topic()
        self._held[slot] = _Held(digest, calibration_id, self._lane(slot, model, calibration, publisher))

    def _loaded(self, slot: Slot, release: ModelRelease | None) -> str:
        """The digest of what is to be in a slot; its model is loaded. Nothing released: what is there stays."""
        if release is None and (held := self._held.get(slot)):
            return held.digest
        if release is not None and release.manifest_sha256 in self._models:
            return release.manifest_sha256
        bundle = released_bundle(self._settings, release, self._schema)
        self._models[bundle.digest] = load_model(self._settings, bundle)
        return bundle.digest

    def _lane(self, slot: Slot, model: TorchModel, calibration: Calibration | None, publisher: Publisher) -> Lane:
        settings = self._settings
        watched = slot == "champion" and settings.drift.enabled and bool(model.baseline.signals)
        calibrator = self._calibrator(calibration, model) if calibration else None
        return Lane(
            model,
            self._validator(model.contract),
            publisher,
            role=slot,
            batch_max=settings.scoring.batch_max,
            clock=time.time,
            summariser=drift.SignalSummariser(model.baseline, model.identity) if watched else None,
            calibrator=calibrator,
            calibration_id=calibration.calibration_id if calibration and calibrator else None,
        )

    def _calibrator(self, calibration: Calibration, model: TorchModel) -> Calibrator | None:
        """None for one that is not for this model: its outputs are published as they are."""
        try:
            return calibration.calibrator(model.identity, model.contract.output)
        except ContractError as error:
            log.warning("calibration cannot be used", version=model.identity.model_version, error=str(error))
            return None

    def _validator(self, contract: FeatureContract) -> Validator:
        events = self._settings.events
        validator = Validator(
            contract, id_field=events.id_field, time_field=events.time_field, slice_fields=events.slice_fields
        )
        if misfits := validator.check(codec.arrow_schema(self._schema)):
            raise ContractError("\n".join(misfits))
        return validator

    def _make_shadow_topic(self) -> None:
        settings = self._settings
        admin = make_admin(ClientOptions.from_settings(settings))
        topics.create(admin, [topics.like(settings, "predictions", settings.topic("shadow_predictions"))])

    # -- in the event loop -----------------------------------------------------------------------

    def told(self, state: Releases) -> None:
        """The releases are these now."""
        self._latest = state
        self._changed.set()

    async def keep(self, flow: Flow, publisher: Publisher) -> None:
        """Bring each change of the releases into service, until cancelled. No event waits for it."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            state = self._latest
            assert state is not None
            try:
                served = await asyncio.to_thread(self.update, state, publisher)
            except UnreachableError as error:
                log.warning("released model cannot be fetched yet", error=str(error))
                asyncio.get_running_loop().call_later(FETCH_AGAIN_S, self._changed.set)
                continue
            if await flow.serve(served):
                self.report(served)

    def report(self, served: Served) -> None:
        """Say, in log and metrics, which models are in service."""
        now = {lane.identity.role: lane for lane in served.lanes()}
        for role in SLOTS:
            if role not in now:
                self._metrics.model_gone(role)
        calibrated = [(lane.identity, lane.calibration_id) for lane in now.values() if lane.calibration_id]
        self._metrics.loop.calibrations((who.model_version, who.role, used) for who, used in calibrated)
        for role, lane in now.items():
            identity = lane.identity
            device = str(self._models[self._held[role].digest].device)
            self._metrics.model(identity, device)
            share = {"share": served.share} if role == "canary" else {}
            calibration = {"calibration": lane.calibration_id} if lane.calibration_id else {}
            precision = self._settings.scoring.precision
            log.info(
                "in service",
                slot=role,
                model=identity.model_id,
                version=identity.model_version,
                device=device,
                **({} if precision == "float32" else {"precision": precision}),
                **share,
                **calibration,
            )
