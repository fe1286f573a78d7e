"""The demo's balance: every event accounted for or not, and how the loop was closed."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import RenderableType

from pipeline.cli.demo_data import SHIFT, SHIFTED
from pipeline.cli.demo_feed import Feed
from pipeline.cli.demo_view import Tally, latency, pairs

#: What a consumer sees on the way from the shift to a new model. The report comes when all it tells of is done.
STEPS = {
    "trigger": "drift trigger",
    "canary": "successor trained, judged and released",
    "prediction": "its first prediction",
    "promote": "promoted",
    "withdraw": "withdrawn",
}


class Verdict:
    """What became of every event, and whether the loop closed."""

    def __init__(self, tally: Tally, feed: Feed, *, uncommitted: int) -> None:
        broken = feed.broken
        good = np.ones(len(tally.plan), dtype=np.bool_)
        good[broken.rows] = False
        self._tally, self._feed = tally, feed
        self.sent = len(tally.plan)
        self.lost_events = int((tally.predictions[good] == 0).sum())
        self.duplicates = int(np.maximum(tally.predictions[good] - 1, 0).sum()) + int(tally.predictions[~good].sum())
        missing = Counter(broken.values) - Counter(tally.dead_values)
        extra = Counter(tally.dead_values) - Counter(broken.values)
        self.lost_dead_letters = sum(missing.values())
        self.extra_dead_letters = sum(extra.values())
        self.wrong_reasons = sum((Counter(r.value for r in broken.reasons) - tally.reasons).values())
        self.lost_outcomes = int((tally.outcomes[good] == 0).sum())
        self.extra_outcomes = int(np.maximum(tally.outcomes[good] - 1, 0).sum()) + int(tally.outcomes[~good].sum())
        self.uncommitted = uncommitted
        by_first = np.array([version == tally.version for version in tally.versions], dtype=np.bool_)
        known, shifted = tally.outcomes > 0, np.arange(self.sent) >= tally.plan.shift_at
        by_canary = tally.of_canary
        #: Accuracy and number of the outcomes before the shift, after it, of the canary, and since it is champion.
        self.before = self._accuracy(known & ~shifted)
        self.during = self._accuracy(known & shifted & by_first)
        self.canary = self._accuracy(known & shifted & ~by_first & by_canary)
        self.after = self._accuracy(known & shifted & ~by_first & ~by_canary)

    def _accuracy(self, rows: npt.NDArray[np.bool_]) -> tuple[float, int]:
        n = int(rows.sum())
        return (float(self._tally.right[rows].mean()) if n else float("nan")), n

    @property
    def lost(self) -> int:
        return self.lost_events + self.lost_dead_letters

    @property
    def found(self) -> list[tuple[int, dict[str, Any]]]:
        """(events between the shift and the trigger, trigger) of each trigger on the first model."""
        # One event in BROKEN_EVERY is never decoded and still counts: the monitor counts records, not rows.
        tally = self._tally
        own = [t for t in tally.triggers if t["model_version"] == tally.version]
        return [(int(t["events_seen"]) - tally.plan.shift_at, t) for t in own]

    def problems(self) -> list[str]:
        """What went wrong, a line each."""
        found = [f"{count:,} {what}" for what, count in self._counts() if count]
        if not any(events >= 0 for events, _ in self.found):
            found.append("the monitor did not find the shift")
        found += [f"a false alarm, {-events:,} events before the shift" for events, _ in self.found if events < 0]
        refused = [report for report in self._tally.reports if not report["accepted"]]
        failed = [f"{check['name']}: {check['says']}" for r in refused for check in r["checks"] if not check["passed"]]
        found += [f"the gate refused the successor: {reason}" for reason in failed]
        found += [f"the canary was withdrawn: {r['reason']}" for r in self._tally.releases if r["action"] == "withdraw"]
        if not self.after[1]:
            found.append("no successor came into service")
        elif self.after[0] <= self.during[0]:
            found.append("the successor is no better than the first model was on the shifted events")
        return found

    def _counts(self) -> Iterator[tuple[str, int]]:
        yield "events have no prediction", self.lost_events
        yield "predictions too many", self.duplicates
        yield "broken records have no dead letter with their bytes", self.lost_dead_letters
        yield "dead letters for records that were not broken", self.extra_dead_letters
        yield "dead letters do not say the right reason", self.wrong_reasons
        yield "labelled predictions have no outcome", self.lost_outcomes
        yield "outcomes too many", self.extra_outcomes
        yield "events are not committed", self.uncommitted

    def summary(self) -> RenderableType:
        """The table a person reads at the end."""
        return pairs([*self._balance(), *self._loop()])

    def _balance(self) -> Iterator[tuple[str, str]]:
        tally = self._tally
        yield "events in", f"{self.sent:,}"
        yield "predictions out", f"{int(tally.predictions.sum()):,}"
        yield "dead letters", f"{len(tally.dead_values):,}: " + _reasons(tally.reasons)
        yield "outcomes", f"{int(tally.outcomes.sum()):,}, predictions with their label"
        yield "lost", f"{self.lost + self.lost_outcomes:,}"
        yield "duplicated", f"{self.duplicates + self.extra_dead_letters + self.extra_outcomes:,}"
        yield "uncommitted", f"{self.uncommitted:,}"
        yield "latency", f"{latency(tally)}, event to consumer"

    def _loop(self) -> Iterator[tuple[str, str]]:
        tally = self._tally
        yield "before the shift", _said(self.before, f"model {tally.version}")
        for events, trigger in self.found:
            place = f"{events:,} events after the shift" if events >= 0 else f"{-events:,} events BEFORE the shift"
            yield "trigger", f"{trigger['severity']}, {place}; id {trigger['trigger_id'][:16]}"
            yield from (("", _evidence(signal)) for signal in trigger["signals"])
        if not tally.triggers:
            yield "trigger", "NONE: the shift was not found"
        yield "after the shift", _said(self.during, f"the same model; {SHIFTED} reads {SHIFT} too high")
        for report in tally.reports:
            verdict = "accepted" if report["accepted"] else "REFUSED"
            yield "gate", f"{verdict} {report['challenger_version']}, judged by {report['rows']:,} labelled events"
            yield from (("", _check(check)) for check in report["checks"])
        yield "as canary", _said(self.canary, f"model {tally.successor}, with half of the events")
        yield "as champion", _said(self.after, f"model {tally.successor}")
        yield "since the shift", self._times()
        for release in tally.releases:
            yield "release", f"{release['model_version']} {release['action']}: {release['reason']}"

    def _times(self) -> str:
        start, seen = self._feed.shifted_at, self._tally.seen_at
        if start is None:
            return "-"
        order = sorted(STEPS.keys() & seen, key=seen.__getitem__)
        return ", ".join(f"{seen[what] - start:.1f} s {STEPS[what]}" for what in order) or "-"


def _said(accuracy: tuple[float, int], by: str) -> str:
    return f"accuracy {accuracy[0]:.4f} of {accuracy[1]:,} outcomes, {by}" if accuracy[1] else "no outcome"


def _reasons(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "none"


def _evidence(signal: Mapping[str, Any]) -> str:
    return (
        f"{signal['signal']}: mean {signal['before_mean']:.3f} -> {signal['after_mean']:.3f}, "
        f"PSI {signal['psi']:.2f}, KL {signal['kl']:.2f} ({signal['detector']})"
    )


def _check(check: Mapping[str, Any]) -> str:
    return f"{'passed' if check['passed'] else 'FAILED'}  {check['name']}: {check['says']}"
