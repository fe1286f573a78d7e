"""The data of one retraining: labelled events of a window and older ones to replay, joined, in order of time, cut."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.cli.retrain_log import Found, Log
from pipeline.errors import DataError
from pipeline.records import Longs, OutputContract
from pipeline.retraining import split, window
from pipeline.retraining.window import Wanted
from pipeline.settings import Settings

#: What is being done, how much of it is done, how much there is (0: unknown).
Show = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    wanted: Wanted
    #: The same as text, for the provenance.
    told: str
    seed: int = 0
    #: The trigger it is for; without a window of its own it is that one's.
    trigger_id: str | None = None
    #: Labelled events in the window, at least.
    rows_min: int = 0
    #: Whether the gate is to judge the successor, by the newest part.
    judge: bool = False
    #: Where the bundle will be, as the report says it.
    bundle_uri: str = ""
    #: Why it is asked for, as the report says it.
    cause: str | None = None
    #: Parameters of the calibration that the parent has in service (models/calibrations.py): it is judged with it.
    calibration: str | None = None


@dataclass(frozen=True, slots=True)
class Data:
    """Labelled events, in order of time: replayed ones, then the window; and how they are cut."""

    rows: pa.Table
    #: Indices of rows.
    replay: Longs
    fit: Longs
    stopping: Longs
    newest: Longs
    rows_purged: int
    found: Found

    @property
    def learnt(self) -> Longs:
        """Rows that are learnt from, replayed ones too."""
        return np.concatenate([self.replay, self.fit])

    @property
    def times_ms(self) -> Longs:
        times: Longs = self.rows.column(window.TIME_MS).to_numpy()
        return times


def read(settings: Settings, log: Log, request: Request, output: OutputContract, show: Show) -> Data:
    """Labelled events of the window and older ones to replay, joined and cut; output: what kind of label counts."""
    chosen = settings.retraining
    wanted, since_ms = request.wanted, None
    if request.trigger_id is not None and wanted == Wanted():
        ranges, since_ms = log.trigger(request.trigger_id)
        wanted = Wanted(ranges=ranges) if ranges else Wanted(from_ms=since_ms)  # errors that rose have a time only
    before = round((wanted.last or chosen.window_rows) * chosen.replay_reach) if chosen.replay_share else 0
    rows = log.labelled(wanted, before, lambda done, size: show("reading outcomes", done, size), since_ms)
    rows = window.with_truth(rows, output.kind)
    in_window, older = window.chosen(rows, wanted)
    if in_window.num_rows < request.rows_min:
        raise DataError(f"{in_window.num_rows:,} labelled events ({request.told}), and {request.rows_min:,} are needed")
    learnt = in_window.num_rows * (1 - chosen.newest_share) * (1 - chosen.stopping_share)
    older = older.slice(max(0, older.num_rows - round(in_window.num_rows * chosen.replay_reach)))
    replay = window.drawn(older, round(learnt * chosen.replay_share / (1 - chosen.replay_share)), request.seed)
    asked = pa.concat_tables([replay, in_window])
    found = log.events(asked, lambda done, size: show("reading events", done, size))
    joined = window.joined(asked, found.events)
    if not joined.num_rows:
        raise DataError(
            f"topic {settings.topic('events')}: none of the {asked.num_rows:,} labelled events is to be had: "
            f"{found.gone:,} are no longer on the topic, {found.refused:,} cannot be decoded"
        )
    replayed = int(np.isin(window.places(joined), window.places(replay)).sum())
    times = joined.column(window.TIME_MS).to_numpy()[replayed:]
    label_times = joined.column(window.LABEL_TIME_MS).to_numpy()[replayed:]
    delay_ms = None if chosen.label_delay_s is None else round(chosen.label_delay_s * 1000)
    cut = split.split(
        times, label_times, newest_share=chosen.newest_share, stopping_share=chosen.stopping_share, delay_ms=delay_ms
    )
    return Data(
        joined,
        np.arange(replayed),
        cut.fit + replayed,
        cut.stopping + replayed,
        cut.newest + replayed,
        len(cut.purged),
        found,
    )
