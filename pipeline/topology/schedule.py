"""Retraining on a schedule: a successor every `retraining.every_s`, by nobody's request.

When one is due follows from what is on the topics alone: so long after the newest report, whatever it was for, or after
the champion's release if that was later. Its folder has the name of that moment, so a process that is killed finds what
it began, and its report goes on the topic once, in a transaction that first looks whether it is there. Only then is the
next one thought of. So a restart neither repeats a training nor forgets one.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from pipeline.bus.clients import ClientOptions
from pipeline.bus.journal import Change, Journal, Table
from pipeline.errors import PipelineError, SchemaError
from pipeline.models.releases import ModelRelease, Releases
from pipeline.settings import Settings
from pipeline.topology.succession import RESULT, TRY_AGAIN_S, Asked, NotYetError, Succession, rows_min

log = structlog.get_logger(__name__)

Encode = Callable[[dict[str, Any]], bytes]
Decode = Callable[[bytes], dict[str, Any]]

#: How late it is noticed, at most, that a report or a release has put the next training off: nothing is done meanwhile.
LOOK_AGAIN_S = 600.0
#: After a training that failed, or for which there were too few labelled events: a try takes seconds of a core.
FAILED_AGAIN_S = 600.0
#: How late it is noticed that the triggers, and so the schedule, are this process's.
CHARGE_POLL_S = 1.0
#: In the folder of a training whose report is on the topic.
REPORTED = "reported"


class Schedule:
    """Follows the clock; one at a time with what triggers lead to."""

    def __init__(
        self, settings: Settings, options: ClientOptions, succession: Succession, encode: Encode, decode: Decode
    ) -> None:
        """encode, decode: a report, as a row of its schema, and back; decode raises SchemaError."""
        self._settings, self._succession = settings, succession
        self._encode, self._decode = encode, decode
        self._reports = Journal(
            options,
            settings.topic("retraining_reports"),
            group=settings.group("reports"),
            transactional_id=f"{settings.delivery.transactional_id_prefix or settings.name}-reports",
            transaction_timeout_ms=settings.delivery.transaction_timeout_ms,
        )

    async def run(self, in_charge: Callable[[], bool]) -> None:
        """Until a stop. in_charge: whether the triggers are this process's, and so the schedule is."""
        stop = self._succession.stop
        while not stop.is_set():
            wait_s = CHARGE_POLL_S
            if in_charge():
                async with self._succession.turn:
                    wait_s = await asyncio.to_thread(self._look)
            await asyncio.to_thread(stop.wait, wait_s)

    def _look(self) -> float:
        """Do what is due; seconds until the next look."""
        if self._succession.stop.is_set():
            return 0.0
        try:
            return self._turn()
        except NotYetError as error:
            log.info("training on schedule has to wait", error=str(error))
            return min(FAILED_AGAIN_S, self._settings.retraining.every_s)
        except PipelineError as error:
            log.warning("training on schedule has to wait", error=str(error))
            return TRY_AGAIN_S

    def _turn(self) -> float:
        every_s = self._settings.retraining.every_s
        state = self._succession.state()
        champion = state.champion
        assert champion is not None
        for name in unreported(self._succession.exchange):
            self._carry_out(name, state)
        since_ms = self._since_ms(champion)
        wait_s = since_ms / 1000 + every_s - time.time()
        if wait_s > 0:
            return min(wait_s, LOOK_AGAIN_S)
        if state.canary is not None and self._settings.trial.enabled:
            return TRY_AGAIN_S  # what becomes of it puts the schedule off, or does not
        done = self._carry_out(str(since_ms), state)
        return 0.0 if done else min(FAILED_AGAIN_S, every_s)

    def _since_ms(self, champion: ModelRelease) -> int:
        """What the period is counted from: the newest report, or the champion's release."""
        made = []
        for key, value in self._reports.read().items():
            try:
                made.append(int(self._decode(value)["created_at_ms"]))
            except (SchemaError, KeyError) as error:
                log.warning("not a report: skipped", key=key.decode("utf-8", "replace"), error=str(error))
        return max([champion.released_at_ms, *made])

    def _carry_out(self, name: str, state: Releases) -> bool:
        """Train, judge, release, report; whether there is a report. Raises as Succession.carry_out and Journal."""
        rows = max(self._settings.retraining.window_rows, rows_min(self._settings))
        told = f"the newest {rows:,}, on schedule every {self._settings.retraining.every_s:g} s"
        asked = Asked("schedule", name, {"last": rows}, told)
        report = self._succession.carry_out(asked, state)
        if report is None:
            return False
        key, value = report["report_id"].encode(), self._encode(report)

        def once(table: Table) -> Change:
            return [] if key in table else [(key, value)]

        self._reports.change(once)
        (self._succession.exchange / asked.name / REPORTED).touch()
        return True


def unreported(exchange: Path) -> list[str]:
    """Trainings on schedule that have a verdict, the oldest first, of which it is not certain that it was reported."""
    found = [path.parent for path in exchange.glob(f"schedule-*/{RESULT}")]
    return sorted(
        (folder.name.removeprefix("schedule-") for folder in found if not (folder / REPORTED).exists()), key=int
    )
