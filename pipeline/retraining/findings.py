"""One check with its result, as plain data: what the guards of a window find, and what the gate goes by."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    #: Stable, for programs: "duplicates", "producer_share".
    name: str
    passed: bool
    #: What was measured, in the unit of `bound`; None where it could not be, as `says` tells.
    value: float | None
    #: What it was held to; None where nothing was asked.
    bound: float | None
    #: One sentence for a person, numbers included.
    says: str
