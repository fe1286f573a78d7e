"""Virtual drift: inputs moved, and by the labels since the model errs no more than before: nothing is to be learnt."""

import functools

import numpy as np

from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.drift.errors import ABSOLUTE, RECENT_OUTCOMES, WRONG, ErrorWatch
from pipeline.drift.parts import confined_to
from pipeline.drift.verdict import verdict
from pipeline.errors import DataError
from pipeline.measures.scored import Scored
from pipeline.quality.errors import error_values
from pipeline.records import ModelIdentity, OutputContract, RetrainingTrigger
from pipeline.settings import Settings
from pipeline.topology.outcomes import newest_outcomes

#: Outcomes compared on either side of the change, at most: a rate of 10 % is known to 1.3 points on each.
COMPARED_MAX = RECENT_OUTCOMES // 2
#: Outcomes of each partition that are looked at, at most, for those of the version: half a second.
LOOKED_AT_MAX = 100_000


def of_inputs(trigger: RetrainingTrigger) -> bool:
    """Whether moved inputs, and not risen errors, raised it."""
    return bool(trigger.signals) and not any(s.signal.startswith("error:") for s in trigger.signals)


def where_accuracy_holds(
    settings: Settings,
    options: ClientOptions,
    trigger: RetrainingTrigger,
    identity: ModelIdentity,
    output: OutputContract,
    labels_min: int,
) -> str | None:
    """In one line, that accuracy holds; None where it does not, or where fewer labels than that came since the change.

    Judged by outcomes of the version as they were published, and as `quality` judges a change of its own. trigger: of
    inputs. Raises UnreachableError.
    """
    asked = (settings, options, make_admin(options), identity, output, settings.retraining.window_rows)
    try:
        found = newest_outcomes(*asked, published=True, looked_at_max=LOOKED_AT_MAX)
    except DataError:
        return None
    return judged(found, output, trigger, labels_min, settings.drift.window_events)


def judged(
    found: Scored, output: OutputContract, trigger: RetrainingTrigger, labels_min: int, window_events: int
) -> str | None:
    """The same of outcomes at hand, n in order of event time: of the newest before the change, and since.

    Where scores moved in slices alone, of the outcomes in these: they are too few to move the errors of all.
    """
    if slices := confined_to(trigger.signals):
        inside = (found.slices[s.field] == s.value for s in slices if s.field in found.slices)
        found = found.take(functools.reduce(np.logical_or, inside, np.zeros(len(found), np.bool_)))
    at = int(np.searchsorted(found.times_ms, trigger.change_event_time_ms))
    if len(found) - at < labels_min:
        return None
    newest = np.arange(max(at, len(found) - COMPARED_MAX), len(found))
    found = found.take(np.concatenate([np.arange(max(0, at - COMPARED_MAX), at), newest]))
    watch = ErrorWatch(ModelIdentity("", trigger.model_version), ABSOLUTE if output.kind == "regression" else WRONG)
    errors = error_values(found.outputs, found.truth, output)
    watch.take("outcomes", 0, np.arange(len(found)), found.times_ms, errors)
    around = watch.around(trigger.change_event_time_ms)
    if around is None:
        return None
    told = verdict(trigger.signals, None, around, trigger.change_events_ago, window_events)
    return told.advice if told.kind == "virtual" else None
