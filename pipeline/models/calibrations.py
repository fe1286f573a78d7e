"""What a version's probabilities go through before they are published; models/release_log.py keeps it.

A calibration is of one model version and lies beside the slots, under `calibrator/<model_version>`: whoever reads the
releases has it, a version takes it along from canary to champion, and another version never gets it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from pipeline.errors import ContractError
from pipeline.measures.calibrators import Calibrator
from pipeline.records import ModelIdentity, OutputContract

PREFIX = "calibrator/"
#: 16 hexadecimal digits are 64 bits: a million calibrations collide with probability 3e-8.
ID_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Calibration:
    """The fields of schemas/calibration.avsc, which says what each means."""

    calibration_id: str
    pipeline: str
    model_id: str
    model_version: str
    kind: str
    #: JSON: `Calibrator.plain`.
    parameters: str
    fitted_rows: int
    fitted_from_ms: int
    fitted_until_ms: int
    judged_rows: int
    log_loss_before: float
    log_loss_after: float
    ece_before: float
    ece_after: float
    brier_before: float
    brier_after: float
    calibrated_by: str
    reason: str
    calibrated_at_ms: int

    def calibrator(self, identity: ModelIdentity, output: OutputContract) -> Calibrator:
        """What to apply to the outputs of this model. Raises ContractError if it is not for such a one."""
        where = f"calibration {self.calibration_id}"
        if (self.model_id, self.model_version) != (identity.model_id, identity.model_version):
            other, asked = f"{self.model_id} {self.model_version}", f"{identity.model_id} {identity.model_version}"
            raise ContractError(f"{where}: is of {other}, not of {asked}")
        try:
            made = Calibrator.of(json.loads(self.parameters))
        except ValueError as error:
            raise ContractError(f"{where}: its parameters are no JSON: {error}") from None
        if output.kind != "classification" or made.width != output.width:
            raise ContractError(
                f"{where}: is for {made.width} probabilities, the model gives {output.width} ({output.kind})"
            )
        try:
            tried = made.apply(np.full((1, made.width), 1 / max(made.width, 2), np.float32))
        except (ValueError, IndexError, TypeError) as error:  # here, and not on the way of an event
            raise ContractError(f"{where}: cannot be applied: {error}") from None
        if not np.isfinite(tried).all():
            raise ContractError(f"{where}: makes {tried.tolist()[0]} of even probabilities")
        return made


def parameters_of(calibrator: Calibrator) -> str:
    """A calibrator as JSON, always the same for the same one."""
    return json.dumps(calibrator.plain(), sort_keys=True, separators=(",", ":"))


def id_of(model_id: str, model_version: str, parameters: str) -> str:
    """The digest that predictions name a calibration by."""
    content = json.dumps([model_id, model_version, parameters])
    return hashlib.sha256(content.encode()).hexdigest()[:ID_DIGITS]


def key(model_version: str) -> str:
    """Where the calibration of a version lies."""
    return PREFIX + model_version


def is_key(text: str) -> bool:
    """Whether there is a calibration under this key."""
    return text.startswith(PREFIX)


def to_row(calibration: Calibration) -> dict[str, Any]:
    """The fields of schemas/calibration.avsc."""
    return asdict(calibration)


def from_row(row: Mapping[str, Any]) -> Calibration:
    """The calibration of a decoded record; further fields are let be. Raises ContractError if one is missing."""
    try:
        return Calibration(**{f.name: row[f.name] for f in fields(Calibration)})
    except KeyError as error:
        raise ContractError(f"a record of the calibrations has no field {error}: another tool wrote it") from None
