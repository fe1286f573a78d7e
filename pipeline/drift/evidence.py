"""From detected changes to the one trigger a person or a retrainer acts on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pipeline.drift.history import Stretch
from pipeline.drift.joint import PREFIX
from pipeline.drift.parts import OUTPUTS, confined_to, only_slices, shares_told, slice_score, slices_told
from pipeline.records import OffsetRange, RetrainingTrigger, SignalBaseline, SignalEvidence

Doubles = npt.NDArray[np.float64]
Severity = Literal["minor", "major", "critical"]

#: The usual reading of PSI: below 0.1 little has changed, from 0.25 on much has.
PSI_MINOR, PSI_MAJOR = 0.1, 0.25

#: A slice may have a twentieth of the events since a change. Of n of its values PSI is 15 / n by chance over 16 bins,
#: and scatters by sqrt(2 x 15) / n: mean and two deviations, 26 / n, are taken off before it is read.
PART_CHANCE = 26.0


def divergences(histogram: Doubles, baseline: SignalBaseline) -> tuple[float, float]:
    """KL (histogram from baseline, nats) and PSI on the baseline's bins; half a count added to each bin."""
    m = len(baseline.histogram)
    p = (histogram[:m] + 0.5) / (histogram[:m].sum() + 0.5 * m)
    q = np.array(baseline.histogram, dtype=np.float64) + 0.5
    q /= q.sum()
    log_ratio = np.log(p / q)
    return max(0.0, float(p @ log_ratio)), max(0.0, float((p - q) @ log_ratio))


def signal_evidence(
    index: int, baseline: SignalBaseline, detector: str, before: list[Stretch], after: list[Stretch]
) -> SignalEvidence:
    """Evidence for one signal; without stretches before, the baseline stands for them."""
    before_count = sum(float(s.counts[index]) for s in before)
    before_sum = sum(float(s.sums[index]) for s in before)
    after_count = sum(float(s.counts[index]) for s in after)
    after_sum = sum(float(s.sums[index]) for s in after)
    if before_count == 0.0:
        before_count, before_sum = float(baseline.count), baseline.mean * baseline.count
    histogram = np.sum([s.histograms[index] for s in after], axis=0)
    kl, psi = divergences(histogram, baseline)
    return SignalEvidence(
        signal=baseline.name,
        detector=detector,
        before_mean=before_sum / max(1.0, before_count),
        after_mean=after_sum / max(1.0, after_count),
        before_count=round(before_count),
        after_count=round(after_count),
        kl=kl,
        psi=psi,
    )


def severity_of(signals: list[SignalEvidence]) -> Severity:
    """critical: what the model says moved much (PSI >= 0.25 in a score, class share or rejections).
    major: some signal moved by PSI >= 0.1. minor: all below. Scores within slices make nothing critical.
    """
    within = {s.signal for s in signals if slice_score(s.signal) is not None}
    if any(s.psi >= PSI_MAJOR and s.signal.startswith(OUTPUTS) and s.signal not in within for s in signals):
        return "critical"
    beyond = (s.psi - (PART_CHANCE / max(1, s.after_count) if s.signal in within else 0.0) for s in signals)
    return "major" if any(psi >= PSI_MINOR for psi in beyond) else "minor"


def advice_for(
    severity: Severity,
    signals: list[SignalEvidence],
    since: int,
    window_events: int,
    leans: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> str:
    """One line: what moved and what to do. leans: the features that a joint signal is of, as joint.leans_on gives."""
    rejected = next((s for s in signals if s.signal == "rejected" and s.after_mean > s.before_mean), None)
    if rejected is not None:
        return (
            f"rejected records rose from {rejected.before_mean:.2%} to {rejected.after_mean:.2%}: "
            "read the dead letters and mend the producer before retraining"
        )
    nulls = [s.signal.removeprefix("null:") for s in signals if s.signal.startswith("null:")]
    if nulls:
        return f"the share of missing values changed in {', '.join(nulls)}: check the producer before retraining"
    wait = max(0, window_events - since)
    when = f"once {wait} more events have come" if wait else "now"
    moved = _moved(severity, signals, leans)
    return f"{moved}: retrain on the window {when}; compare with labels first if they are there"


def _moved(severity: Severity, signals: list[SignalEvidence], leans: Mapping[str, Sequence[str]]) -> str:
    if all(s.signal.startswith(PREFIX) for s in signals):
        return f"inputs go together otherwise than they did ({_together(signals[0], leans)})"
    if all(s.detector == "spread" for s in signals):
        return f"the spread of {', '.join(s.signal.partition(':')[2] for s in signals)} changed"
    if slices := confined_to(signals):
        return f"the model's outputs moved {slices_told(slices)}, its inputs did not noticeably"
    if all(s.signal.startswith(OUTPUTS) for s in signals):
        return "the model's outputs moved, its inputs did not noticeably"
    moved = "the model's outputs moved" if severity == "critical" else "inputs moved"
    if shares := shares_told(signals):
        moved += f" ({shares})"
    if slices := only_slices(signals):
        moved += f", the model's outputs {slices_told(slices)}"
    return moved


def _together(signal: SignalEvidence, leans: Mapping[str, Sequence[str]]) -> str:
    own, *others = leans.get(signal.signal, (signal.signal.removeprefix(PREFIX),))
    told = f"{own} with {', '.join(others) or 'the others'}"
    return f"correlation of {told}: {signal.before_mean:.2f} -> {signal.after_mean:.2f}"


def trigger_id(evidence: dict[str, Any]) -> str:
    """The first 32 hex digits of SHA-256 over the evidence: the same evidence gives the same id."""
    text = json.dumps(evidence, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def trigger_to_dict(trigger: RetrainingTrigger) -> dict[str, Any]:
    """A trigger as an Avro row; field names are the schema's."""
    return asdict(trigger)


def trigger_from_dict(row: dict[str, Any]) -> RetrainingTrigger:
    """A trigger from an Avro row; fields that this version does not know are left out."""
    plain = {name: row[name] for name in RetrainingTrigger.__slots__}
    plain["signals"] = [SignalEvidence(**{n: s[n] for n in SignalEvidence.__slots__}) for s in row["signals"]]
    for ranges in ("evidence", "window"):
        plain[ranges] = [OffsetRange(**{n: r[n] for n in OffsetRange.__slots__}) for r in row[ranges]]
    return RetrainingTrigger(**plain)
