"""An observer that adds up what the hot path reports."""

from collections import Counter

import numpy as np
import numpy.typing as npt

from pipeline.records import ModelIdentity, Reason, Stage


class RecordingObserver:
    """Counts what it is told (contracts.Observer)."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.scored_by: Counter[ModelIdentity] = Counter()
        self.rejections: Counter[tuple[Stage, Reason]] = Counter()
        self.imputations: Counter[str] = Counter()
        self.batches: list[int] = []
        self.stages: Counter[str] = Counter()
        self.seconds_since: dict[str, list[float]] = {}
        self.retries = 0
        self.failed_trials: list[str] = []
        self.skipped = 0

    def events_read(self, topic: str, n: int) -> None:
        self.read[topic] += n

    def scored(self, identity: ModelIdentity, n: int) -> None:
        self.scored_by[identity] += n

    def rejected(self, stage: Stage, reason: Reason, n: int = 1) -> None:
        self.rejections[stage, reason] += n

    def imputed(self, feature_key: str, n: int) -> None:
        self.imputations[feature_key] += n

    def batch(self, rows: int) -> None:
        self.batches.append(rows)

    def stage(self, name: str, seconds: float) -> None:  # noqa: ARG002 (how long is not for tests)
        self.stages[name] += 1

    def latencies(self, since: str, seconds: npt.NDArray[np.float64]) -> None:
        self.seconds_since.setdefault(since, []).extend(seconds.tolist())

    def retried(self) -> None:
        self.retries += 1

    def trial_failed(self, role: str) -> None:
        self.failed_trials.append(role)

    def shadow_skipped(self, n: int) -> None:
        self.skipped += n
