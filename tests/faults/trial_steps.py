"""`python -m tests.faults.trial_steps STEP ARGUMENTS`: as `tests.faults.crashing`, at steps of a trial's decision.

And a model that workers of test_trials.py load.
"""

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.models.architectures import TabularMLP
from tests.faults import crashing
from tests.faults.crashing import CLIENT, JOURNAL, ONCE, Step

DECIDING: dict[str, Any] = {"within": "pipeline.topology.trials:Trials._carry_out", **ONCE}
#: Each is in a process of its own; only the last leaves a change behind.
TRIALS: dict[str, Step] = {
    "in a trial, before the change": Step("before", f"{JOURNAL}.change", **DECIDING),
    "in a trial, before the change's commit": Step("before", f"{CLIENT}.commit_transaction", **DECIDING),
    # Not after `commit_transaction`: the role's own producer commits beside it.
    "in a trial, after the change's commit": Step("after", f"{JOURNAL}._write", **DECIDING),
}


class Raising(TabularMLP):
    """Warms up, then raises on what is not all zeros."""

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """As TabularMLP. Raises RuntimeError."""
        if bool(inputs["numbers"].any()):
            raise RuntimeError("made to raise")
        return super().forward(inputs)


if __name__ == "__main__":
    crashing.STEPS.update(TRIALS)
    crashing.main(sys.argv[1], sys.argv[2:])
