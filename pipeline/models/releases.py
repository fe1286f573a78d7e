"""Who is champion, canary and shadow: the state, and the changes that it allows. Pure; models/release_log.py keeps it.

A release topic is a table. Its keys are the three slots, each holding one release or nothing, and `release/<id>`, one
for every change ever made, in their order. Each change writes its slots first and its history entry last, in one
transaction: two champions are not possible by the form of the table, and half a change by the transaction.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from pipeline.errors import ContractError
from pipeline.models.calibrations import Calibration

Slot = Literal["champion", "canary", "shadow"]
Action = Literal["release", "canary", "shadow", "promote", "rollback", "withdraw"]
SLOTS: tuple[Slot, ...] = get_args(Slot)
HISTORY = "release/"


@dataclass(frozen=True, slots=True)
class ModelRelease:
    """One model in one slot, with the fields of schemas/model-release.avsc, which says what each means."""

    release_id: str
    pipeline: str
    action: Action
    slot: Slot
    model_id: str
    model_version: str
    uri: str
    manifest_sha256: str
    share: float
    parent_version: str | None
    previous_release_id: str | None
    report_id: str | None
    reason: str
    released_by: str
    released_at_ms: int


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle that can be fetched (models/fetching.py)."""

    model_id: str
    model_version: str
    uri: str
    #: Hexadecimal: the manifest's own digest.
    manifest_sha256: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Who wants a change and why; `release_id` is the same when the same decision is carried out again."""

    release_id: str
    pipeline: str
    by: str
    at_ms: int
    reason: str = ""
    report_id: str | None = None


@dataclass(frozen=True, slots=True)
class Releases:
    """What holds: a release or nothing in each slot, and every change there was, the oldest first."""

    champion: ModelRelease | None = None
    canary: ModelRelease | None = None
    shadow: ModelRelease | None = None
    history: tuple[ModelRelease, ...] = field(default=(), repr=False)
    #: Version -> what its outputs go through, in whichever slot it is; also of versions that are in none.
    calibrations: Mapping[str, Calibration] = field(default_factory=dict, repr=False)

    def slot(self, name: Slot) -> ModelRelease | None:
        """What is in a slot."""
        found: ModelRelease | None = getattr(self, name)
        return found

    def done(self, release_id: str) -> bool:
        """Whether this decision was carried out already."""
        return any(entry.release_id == release_id for entry in self.history)


#: What a change writes, in this order: a release or nothing (a tombstone) under each key.
Change = tuple[tuple[str, ModelRelease | None], ...]


def is_key(key: str) -> bool:
    """Whether there is a release under this key: a later version of this software may keep other things beside."""
    return key in SLOTS or key.startswith(HISTORY)


def fold(table: Iterable[tuple[str, ModelRelease | None]]) -> Releases:
    """The state that records, in the order of the log, lead to."""
    slots: dict[str, ModelRelease | None] = dict.fromkeys(SLOTS)
    history: dict[str, ModelRelease] = {}
    for key, release in table:
        if key in slots:
            slots[key] = release
        elif key.startswith(HISTORY) and release is not None:
            history[key] = release
    return Releases(slots["champion"], slots["canary"], slots["shadow"], tuple(history.values()))


# --------------------------------------------------------------------------- changes


def release(state: Releases, model: Model, decision: Decision) -> Change:
    """`model` becomes champion at once. Raises ContractError if it is in a slot already."""
    _check_new(state, model, "champion")
    return _crown(state, _made(state, model, decision, "release", "champion"))


def canary(state: Releases, model: Model, share: float, decision: Decision) -> Change:
    """`model` scores `share` (above 0, below 1) of the events; also changes the share of the canary that is there.

    Raises ContractError without a champion, for a share out of range, or if `model` is in a slot already.
    """
    check_share(share)
    now = state.canary
    if now is None or not _same(now, model) or now.share == share:
        _check_new(state, model, "canary")
    return _entered(_made(state, model, decision, "canary", "canary", share))


def check_share(share: float) -> None:
    """Raise ContractError for a share that no canary can have."""
    if not 0.0 < share < 1.0:
        raise ContractError(f"a canary's share is above 0 and below 1, not {share:g}; `release` makes a champion")


def shadow(state: Releases, model: Model, decision: Decision) -> Change:
    """`model` scores all events beside the champion, and nobody acts on it.

    Raises ContractError without a champion, or if `model` is in a slot already.
    """
    _check_new(state, model, "shadow")
    return _entered(_made(state, model, decision, "shadow", "shadow"))


def promote(state: Releases, slot: Slot, decision: Decision) -> Change:
    """What is in `slot`, canary or shadow, becomes champion and leaves it. Raises ContractError if it is empty."""
    if slot == "champion":
        raise ContractError("the champion is champion already: promote the canary or the shadow")
    found = _occupant(state, slot)
    model = Model(found.model_id, found.model_version, found.uri, found.manifest_sha256)
    return _crown(state, _made(state, model, decision, "promote", "champion"))


def rollback(state: Releases, version: str | None, decision: Decision) -> Change:
    """The champion before this one, or the latest of `version`, is champion again, as it was; it leaves other slots.

    Rolled back once more, the one before that: what it went back from is not gone back to, unless by its version.
    Raises ContractError when there is no such champion.
    """
    now = _occupant(state, "champion")
    if version is None:
        target = next((e for e in state.history if e.release_id == now.previous_release_id), None)
        if target is None:
            raise ContractError(f"there is no champion before {now.model_version} to go back to")
    else:
        if version == now.model_version:
            raise ContractError(f"{version} is champion already")
        crowned = [e for e in state.history if e.slot == "champion" and e.model_version == version]
        if not crowned:
            known = ", ".join(dict.fromkeys(e.model_version for e in state.history if e.slot == "champion"))
            raise ContractError(f"{version} was never champion; these were: {known}")
        target = crowned[-1]
    model = Model(target.model_id, target.model_version, target.uri, target.manifest_sha256)
    made = _made(state, model, decision, "rollback", "champion")
    return _crown(state, replace(made, previous_release_id=target.previous_release_id))


def withdraw(state: Releases, slot: Slot, decision: Decision) -> Change:
    """Nothing is in `slot` any more. Raises ContractError if nothing was, and for the champion."""
    if slot == "champion":
        raise ContractError("the champion cannot be withdrawn: release another, or roll back")
    found = _occupant(state, slot)
    model = Model(found.model_id, found.model_version, found.uri, found.manifest_sha256)
    entry = _made(state, model, decision, "withdraw", slot, found.share)
    return ((slot, None), _history(entry))


# --------------------------------------------------------------------------- their parts


def _made(
    state: Releases, model: Model, decision: Decision, action: Action, slot: Slot, share: float = 1.0
) -> ModelRelease:
    if state.done(decision.release_id):
        raise ContractError(f"release {decision.release_id} was carried out already")
    champion = state.champion
    return ModelRelease(
        release_id=decision.release_id,
        pipeline=decision.pipeline,
        action=action,
        slot=slot,
        **asdict(model),
        share=share,
        parent_version=champion.model_version if champion else None,
        previous_release_id=champion.release_id if champion and slot == "champion" else None,
        report_id=decision.report_id,
        reason=decision.reason,
        released_by=decision.by,
        released_at_ms=decision.at_ms,
    )


def _crown(state: Releases, made: ModelRelease) -> Change:
    """A new champion; other slots that hold the same version are vacated."""
    left = [slot for slot in SLOTS[1:] if (found := state.slot(slot)) and found.model_version == made.model_version]
    return (("champion", made), *((slot, None) for slot in left), _history(made))


def _entered(made: ModelRelease) -> Change:
    return ((made.slot, made), _history(made))


def _history(entry: ModelRelease) -> tuple[str, ModelRelease]:
    return HISTORY + entry.release_id, entry


def _occupant(state: Releases, slot: Slot) -> ModelRelease:
    found = state.slot(slot)
    if found is None:
        raise ContractError(f"there is no {slot}")
    return found


def _same(found: ModelRelease, model: Model) -> bool:
    return (found.model_version, found.manifest_sha256) == (model.model_version, model.manifest_sha256)


def _check_new(state: Releases, model: Model, slot: Slot) -> None:
    """Raise ContractError if `model` cannot come into `slot`."""
    version = model.model_version
    if slot != "champion" and state.champion is None:
        raise ContractError(f"a {slot} is compared with the champion, and there is none: release one first")
    for where in SLOTS:
        if (found := state.slot(where)) and found.model_version == version:
            share = f" with a share of {found.share:g}" if where == "canary" else ""
            mend = "promote it" if slot == "champion" else "withdraw it first"
            raise ContractError(
                f"{version} is {where} already{share}{'' if where in ('champion', slot) else f'; {mend}'}"
            )
    for entry in state.history:
        if entry.model_version == version and entry.manifest_sha256 != model.manifest_sha256:
            raise ContractError(
                f"{version} was released before with other content; give this bundle a version of its own"
            )


# --------------------------------------------------------------------------- as rows


def to_row(release: ModelRelease) -> dict[str, Any]:
    """The fields of schemas/model-release.avsc."""
    return asdict(release)


def from_row(row: Mapping[str, Any]) -> ModelRelease:
    """The release of a decoded record. Fields it does not know are let be; raises ContractError if one is missing."""
    try:
        return ModelRelease(**{f.name: row[f.name] for f in fields(ModelRelease)})
    except KeyError as error:
        raise ContractError(f"a record of the releases has no field {error}: another tool wrote it") from None
