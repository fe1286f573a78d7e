"""What outcomes say of the models as they arrive: how good each version is now, as a whole and per slice.

    outcomes.py   records of schemas/outcome.avsc -> rows with their truth
    known.py      what the no-change baseline would have answered
    delays.py     how late labels come, and for how many predictions
    gaps.py       gaps between a slice and the rest, and what confidences say, from sums
    alarms.py     a gap that widens, told once
    quality.py    `Quality`: all of it per model version and slice, in bounded memory
    reader.py     record batches of the outcomes topic, each offset once
    errors.py     the champion's error on each outcome: what drift/errors.py watches
    pairs.py      outcomes of two models of the same events

Nothing here is kept on disk: a start reads the window of the outcomes topic again.
"""

from pipeline.quality.errors import errors_of
from pipeline.quality.outcomes import Outcomes, outcomes_of
from pipeline.quality.quality import Quality, Scope, origin_of
from pipeline.quality.reader import OutcomeReader, in_turn

__all__ = ["OutcomeReader", "Outcomes", "Quality", "Scope", "errors_of", "in_turn", "origin_of", "outcomes_of"]
