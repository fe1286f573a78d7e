"""Trials: the canary is promoted or withdrawn, a fresh champion kept or rolled back, by their outcomes.

Runs in the role `retrainer`, beside what triggers lead to, on a thread of its own. Nothing is kept on disk: a start
reads the outcomes since the release again. A decision has the id of the release that it is about, so it is carried out
once, whoever was killed on the way; and it is carried out on the state it was made of, or not at all.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import structlog
from confluent_kafka import Message

from pipeline import codec, observe
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.bus.reading import Span, read
from pipeline.errors import PipelineError, SchemaError
from pipeline.measures.scored import Scored
from pipeline.models import releases
from pipeline.models.release_log import ReleaseLog
from pipeline.models.releases import Change, Decision, ModelRelease, Releases
from pipeline.quality.outcomes import of_model, outcomes_of
from pipeline.records import ModelIdentity, OutputContract
from pipeline.retraining.trial import HOUR_MS, Trial, Verdict, Watch
from pipeline.settings import Settings
from pipeline.topology.releases import decided, released_bundle

log = structlog.get_logger(__name__)

#: How late a stop or a change of the releases is noticed while nothing is on trial.
STOP_POLL_S = 0.2
#: Outcomes of the champion before are looked for among those whose labels came from so long before its successor on.
REFERENCE_HOURS = 24
#: Outcomes added together while there are more to come.
CHUNK_ROWS = 4096
#: Batch summaries read at the start of a trial, the newest: minutes of them, a second or two of work. A worker repeats
#: that the canary failed, and compares times as long as the trial lasts.
SUMMARIES_MAX = 2_000


@dataclass(frozen=True)
class _Arm:
    """Which outcomes are a model's: those of predictions made within a time, [since_ms, until_ms)."""

    identity: ModelIdentity
    output: OutputContract
    since_ms: float
    until_ms: float = math.inf

    def of(self, columns: pa.RecordBatch) -> Scored:
        """Its outcomes among the decoded ones, in their order; `times_ms` is when they were predicted."""
        found = outcomes_of(of_model(columns, self.identity), self.output)
        made = found.predicted_at_ms
        kept = (made >= self.since_ms) & (made < self.until_ms)
        return Scored(found.outputs[kept], found.truth[kept], made[kept])


@dataclass
class _Case:
    """Two models that are compared, the second being the one that is judged."""

    judged: ModelRelease
    arms: tuple[_Arm, _Arm]
    add: Callable[[Scored, Scored], None]
    verdict: Callable[[], Verdict]
    #: Outcomes are read from this time on, as the broker has it.
    from_ms: int
    #: Told what a worker says of a canary: why it failed, its latency ratios. None where no canary is judged.
    tell: Callable[[str, Sequence[float]], None] | None = None
    settled: bool = False


def _change(action: str, now: Releases, judged: Releases, decision: Decision) -> Change:
    """Of what was decided on the state `judged`; nothing where somebody was faster."""
    if (now.champion, now.canary) != (judged.champion, judged.canary):
        return ()
    if action == "rollback":
        return releases.rollback(now, None, decision)
    carried_out = releases.promote if action == "promote" else releases.withdraw
    return carried_out(now, "canary", decision)


class Trials:
    """Follows the releases and judges what is on trial, until `stop` is set."""

    def __init__(
        self,
        settings: Settings,
        released: ReleaseLog,
        options: ClientOptions,
        stop: threading.Event,
        series: observe.LoopSeries,
    ) -> None:
        self._series = series
        self._settings, self._releases, self._options, self._stop = settings, released, options, stop
        self._schema = codec.event_schema(settings)
        self._decoder = codec.ColumnarDecoder(codec.registry_of(settings), codec.load_schema("outcome"))
        self._latest: Releases | None = None
        self._news = threading.Event()

    def told(self, state: Releases) -> None:
        """The releases are these now."""
        self._latest = state
        self._news.set()

    def run(self) -> None:
        """Blocks; for a thread of its own. What fails is tried again, on what holds by then."""
        while not self._stop.is_set():
            if not self._news.wait(STOP_POLL_S):
                continue
            self._news.clear()
            assert self._latest is not None
            try:
                self._judge(self._latest)
            except PipelineError as error:
                log.warning("trial has to wait", error=str(error))
                self._stop.wait(self._settings.trial.every_s)
                self._news.set()

    def _judge(self, state: Releases) -> None:
        """Until everything is settled, the releases have changed, or a stop. Raises what stands in the way."""
        cases = [case for case in (self._trial(state), self._watch(state)) if case is not None]
        self._show(cases)
        if not cases:
            return
        for case in cases:
            told = {"slot": case.judged.slot, "version": case.judged.model_version}
            log.info("on trial", **told, beside=case.arms[0].identity.model_version)
        look_at, summaries = 0.0, self._summaries(cases)
        for caught_up in self._outcomes(cases):
            if not caught_up or time.monotonic() < look_at:
                continue
            look_at = time.monotonic() + self._settings.trial.every_s
            next(summaries)
            for case in cases:
                self._look(case, state)
            self._show(cases)
            if all(case.settled for case in cases):
                return

    def _show(self, cases: list[_Case]) -> None:
        self._series.on_trial((case.judged.slot, case.judged.model_version) for case in cases if not case.settled)

    def _look(self, case: _Case, state: Releases) -> None:
        if case.settled or self._news.is_set():
            return
        action, reason = case.verdict()
        told = {"slot": case.judged.slot, "version": case.judged.model_version, "reason": reason}
        log.debug("trial", action=action, **told)
        if action == "wait":
            return
        case.settled = True
        log.info("trial decided", action=action, **told)
        self._series.trial_decided(action)
        if action != "keep":
            self._carry_out(action, reason, case.judged, state)

    def _carry_out(self, action: str, reason: str, judged: ModelRelease, state: Releases) -> None:
        decision = decided(self._settings, f"{action}-{judged.release_id}", reason, judged.report_id)
        self._releases.change(decision, lambda now: _change(action, now, state, decision))

    # -- who is compared -------------------------------------------------------------------------

    def _trial(self, state: Releases) -> _Case | None:
        champion, canary = state.champion, state.canary
        if champion is None or canary is None:
            return None
        since_ms = max(champion.released_at_ms, canary.released_at_ms)
        arms = self._arm(champion, since_ms), self._arm(canary, since_ms)
        bounds, gate = self._settings.trial, self._settings.gate
        trial = Trial(arms[0].output, arms[1].output, canary.share, since_ms, bounds=bounds, gate=gate)
        return _Case(canary, arms, trial.add, lambda: trial.verdict(int(time.time() * 1000)), since_ms, trial.tell)

    def _watch(self, state: Releases) -> _Case | None:
        """Of a champion that a release or a promotion made; one that a rollback did is not watched again."""
        now, bounds = state.champion, self._settings.trial
        if now is None or now.action == "rollback" or not bounds.watch_outcomes:
            return None
        before = next((entry for entry in state.history if entry.release_id == now.previous_release_id), None)
        since_ms = now.released_at_ms
        if before is None or time.time() * 1000 - since_ms > bounds.hours_max * HOUR_MS:
            return None
        arms = self._arm(before, before.released_at_ms, since_ms), self._arm(now, since_ms)
        watch = Watch(arms[0].output, arms[1].output, bounds=bounds, gate=self._settings.gate)
        return _Case(now, arms, watch.add, watch.verdict, since_ms - REFERENCE_HOURS * HOUR_MS)

    def _arm(self, release: ModelRelease, since_ms: float, until_ms: float = math.inf) -> _Arm:
        output = released_bundle(self._settings, release, self._schema).contract.output
        identity = ModelIdentity(release.model_id, release.model_version, release.slot)
        return _Arm(identity, output, since_ms, until_ms)

    # -- outcomes --------------------------------------------------------------------------------

    def _outcomes(self, cases: list[_Case]) -> Iterator[bool]:
        """Add outcomes to the cases as they come, and say whether all there were at the start have been added."""
        topic, group = self._settings.topic("outcomes"), self._settings.group("trials")
        admin, from_ms = make_admin(self._options), min(case.from_ms for case in cases)
        places = topics.watermarks(admin, topic)
        spans = {tp.partition: Span(topics.offset_since(admin, tp, from_ms), None) for tp in places}
        seen, waiting = set[int](), list[Message]()
        extra = {"auto_offset_reset": "earliest"}
        for messages in read(self._options, group, topic, spans, seen.add, **extra):
            if self._stop.is_set() or self._news.is_set():
                return
            waiting += messages
            if waiting and (not messages or len(waiting) >= CHUNK_ROWS):
                self._add(cases, waiting)
                waiting = []
            yield not waiting and len(seen) == len(spans)

    def _summaries(self, cases: list[_Case]) -> Iterator[None]:
        """Tell the cases what workers say of a canary; each step takes what has come until then."""
        case = next((case for case in cases if case.tell is not None), None)
        if case is None or (tell := case.tell) is None:
            while True:
                yield
        topic, rows = self._settings.topic("batch_summaries"), codec.RowCodec(codec.registry_of(self._settings))
        admin = make_admin(self._options)
        ((tp, (_, end)),) = topics.watermarks(admin, topic).items()
        start = max(topics.offset_since(admin, tp, case.from_ms), end - SUMMARIES_MAX)
        group, spans = self._settings.group("trials"), {tp.partition: Span(start, None)}
        for messages in read(self._options, group, topic, spans, auto_offset_reset="earliest"):
            for message in messages:
                if (found := told_of(rows, message.value(), case.judged.model_version)) is not None:
                    tell(*found)
            if not messages:
                yield

    def _add(self, cases: list[_Case], messages: list[Message]) -> None:
        columns = self._decoder.decode([message.value() for message in messages]).columns
        for case in cases:
            if not case.settled:
                case.add(case.arms[0].of(columns), case.arms[1].of(columns))


def told_of(rows: codec.RowCodec, value: bytes | None, version: str) -> tuple[str, list[float]] | None:
    """Failure and latency ratios of a canary in a batch summary; None where it tells nothing of this version."""
    try:
        row = rows.decode(value or b"")
    except SchemaError as error:
        log.warning("not a batch summary: skipped", error=str(error))
        return None
    if row.get("canary_version") != version:
        return None
    return str(row["canary_failure"]), list(row["canary_latency_ratios"])
