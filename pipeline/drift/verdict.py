"""Real drift or virtual drift: what moved inputs and moved errors mean together, and what to do.

The terms are those of Gama et al. 2014 ("A survey on concept drift adaptation"): real drift changes how the truth
depends on the inputs, so that the model errs more; virtual drift changes the inputs alone, and the model may be as good
as ever. Only labels tell them apart, and where they are not there yet, nobody knows: then inputs speak, as before.
"""

from typing import Literal, NamedTuple

from pipeline.drift.errors import ABSOLUTE, Around, ErrorChange
from pipeline.drift.evidence import Severity, advice_for, severity_of
from pipeline.drift.parts import confined_to, slices_told
from pipeline.records import SignalEvidence

#: data: the producer is to be looked at first. real: the model errs more. virtual: inputs moved, errors did not.
#: unknown: inputs moved, too few labels are there to say more. better: errors fell, and nothing else moved.
Kind = Literal["data", "real", "virtual", "unknown", "better"]

#: "Errors did not move" is said where they have risen by less than this, with 95 % confidence: five points of a rate, a
#: quarter of an absolute error.
HOLDS_MAX, HOLDS_MAX_SHARE = 0.05, 0.25


class Verdict(NamedTuple):
    """What a change is, how bad, and one line on what to do."""

    kind: Kind
    severity: Severity
    advice: str


def verdict(
    signals: list[SignalEvidence], change: ErrorChange | None, around: Around | None, since: int, window_events: int
) -> Verdict:
    """What is to be made of signals that moved, of errors that changed, or of both.

    signals: evidence of inputs and outputs of the model, [] if none alarmed. change: of the errors, if they alarmed.
    around: errors before and since the signals' change, None without labels on both sides; where scores moved in slices
    alone, errors in these. since, window_events: events since the signals' change, and those to train on, as for
    advice_for.
    Raises ValueError where nothing changed at all.
    """
    if not signals and change is None:
        raise ValueError("neither signals nor errors have changed; there is nothing to judge")
    rose = (change is not None and change.rose) or (around is not None and around.low > 0)
    if any(s.signal.startswith("null:") or (s.signal == "rejected" and s.after_mean > s.before_mean) for s in signals):
        severity = "critical" if rose else severity_of(signals)
        advice = advice_for(severity, signals, since, window_events)
        return Verdict("data", severity, f"{advice}; {_errors(change, around)}" if rose else advice)
    if rose:
        return Verdict("real", "critical", _real(signals, change, around, since, window_events))
    if not signals:
        return Verdict("better", "minor", f"{_errors(change, around)}: the model is better than it was; nothing to do")
    if around is not None and around.high < _bound(around):
        held = f"{_mean(around.signal, around.before_mean)} before, {_mean(around.signal, around.after_mean)} since"
        slices = confined_to(signals)
        moved = f"outputs moved {slices_told(slices)}, accuracy there" if slices else "inputs moved, accuracy"
        told = f"{moved} holds (errors {held}, {around.after_count:,} labels)"
        return Verdict("virtual", "minor", f"{told}: no need to retrain; watch errors")
    severity = severity_of(signals)
    advice = advice_for(severity, signals, since, window_events)
    labels = 0 if around is None else around.after_count
    return Verdict("unknown", severity, f"{advice} (labels since the change: {labels:,}, too few to tell)")


def _real(
    signals: list[SignalEvidence], change: ErrorChange | None, around: Around | None, since: int, window_events: int
) -> str:
    wait = max(0, window_events - since) if signals else max(0, window_events - (change.outcomes if change else 0))
    when = f"once {wait:,} more events have come" if wait else "now"
    inputs = "and so did inputs" if signals else "inputs did not: what they mean has changed"
    return f"{_errors(change, around)}, {inputs}: retrain on labelled events since the change {when}"


def _errors(change: ErrorChange | None, around: Around | None) -> str:
    """From how much to how much."""
    if change is not None:
        evidence, verb = change.evidence, "rose" if change.rose else "fell"
        signal, before, after = evidence.signal, evidence.before_mean, evidence.after_mean
    else:
        assert around is not None
        signal, before, after, verb = around.signal, around.before_mean, around.after_mean, "rose"
    return f"errors {verb} from {_mean(signal, before)} to {_mean(signal, after)}"


def _mean(signal: str, value: float) -> str:
    return f"{value:.4g}" if signal == ABSOLUTE else f"{value:.1%}"


def _bound(around: Around) -> float:
    return HOLDS_MAX_SHARE * around.before_mean if around.signal == ABSOLUTE else HOLDS_MAX
