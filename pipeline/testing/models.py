"""A model without weights, that fails on command."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import ScoringError
from pipeline.records import FeatureContract, Floats, ModelIdentity


class ScriptedModel:
    """Outputs computed from the first number feature x of each row (contracts.Model); faults on chosen rows.

    Column j of the output is (x + j) modulo 1. `nan_on`, `raise_on`, `hang_on` hold values of x: such a row's
    outputs are NaN; a call with such a row raises ScoringError (`raise_times` times in all, for ever without);
    a call with such a row waits until `release()`.
    """

    def __init__(
        self,
        contract: FeatureContract,
        *,
        identity: ModelIdentity | None = None,
        nan_on: frozenset[float] = frozenset(),
        raise_on: frozenset[float] = frozenset(),
        raise_times: int | None = None,
        hang_on: frozenset[float] = frozenset(),
    ) -> None:
        self.contract = contract
        self.identity = identity or ModelIdentity("scripted", "1")
        self._nan_on, self._raise_on, self._hang_on = nan_on, raise_on, hang_on
        self._raises_left = raise_times
        self._released = threading.Event()
        #: Set once a call hangs.
        self.hanging = threading.Event()
        #: Rows of each call, failed ones too.
        self.calls: list[int] = []

    def release(self) -> None:
        """Let a hanging call, and every later one, go on."""
        self._released.set()

    def score(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Floats:
        """(n, contract.output.width) float32. Raises ScoringError as told."""
        x = np.asarray(inputs["numbers"], dtype=np.float32)[:, 0]
        self.calls.append(len(x))
        if self._hang_on & set(x.tolist()):
            self.hanging.set()
            self._released.wait()
        if self._raise_on & set(x.tolist()) and self._raises_left != 0:
            self._raises_left = None if self._raises_left is None else self._raises_left - 1
            raise ScoringError("the model was told to raise")
        outputs: Floats = np.mod(x[:, None] + np.arange(self.contract.output.width, dtype=np.float32), 1.0)
        outputs[np.isin(x, list(self._nan_on))] = np.nan
        return outputs
