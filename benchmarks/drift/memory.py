"""A stream of labelled rows as `pipeline retrain` finds them on its topics, in memory."""

import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import codec
from pipeline.cli.retrain_log import SENDER, Found, Log
from pipeline.cli.training import score
from pipeline.models import loading
from pipeline.models.bundle import Bundle
from pipeline.records import Decoded, Floats, Longs
from pipeline.retraining import window
from pipeline.retraining.window import Wanted
from pipeline.scoring.publish import prediction_labels
from pipeline.scoring.signals import SignalMatrix
from pipeline.scoring.validate import Validator
from pipeline.settings import Settings

Numbers = npt.NDArray[np.float64]


class TableLog(Log):
    """Events in one partition, row by row, and the outcomes of those whose label has come."""

    def __init__(
        self,
        settings: Settings,
        rows: pa.Table,
        label: str,
        times_ms: Longs,
        *,
        first: int,
        delay: int,
        delay_ms: int,
        senders: pa.Array | None = None,
    ) -> None:
        """rows: columns no (id), at (time), the label as text, and the features.

        first: row of the first outcome. A label comes `delay` rows, which are `delay_ms`, after its event.
        """
        self._settings = settings
        self._rows, self._label, self._times_ms = rows, label, times_ms
        self._first, self._delay, self._delay_ms = first, delay, delay_ms
        self._senders = senders if senders is not None else pa.nulls(rows.num_rows, pa.string())
        self.schema = codec.event_schema(settings)
        self.outcome_schema_ids = set()
        #: Rows before this one have happened.
        self.now = 0

    @functools.cached_property
    def _facts(self) -> pa.Table:
        n = self._rows.num_rows
        columns = {
            window.EVENT_ID: self._rows.column("no"),
            window.TIME_MS: pa.array(self._times_ms),
            window.LABEL: self._rows.column(self._label),
            window.VALUE: pa.nulls(n, pa.float64()),
            window.LABEL_TIME_MS: pa.array(self._times_ms + self._delay_ms),
            window.SLICES: pa.array([[]] * n, pa.map_(pa.string(), pa.string())),
            window.PARTITION: pa.array(np.zeros(n, np.int32)),
            window.OFFSET: pa.array(np.arange(n)),
        }
        return pa.table([columns[name] for name in window.FACTS.names], schema=window.FACTS)

    @functools.cached_property
    def events_table(self) -> pa.Table:
        """All rows as columns of the event schema."""
        fields = codec.arrow_schema(self.schema)
        named = {"id": self._rows.column("no"), "time": self._rows.column("at")}
        columns = [named[f.name] if f.name in named else self._rows.column(f.name) for f in fields]
        return pa.table([column.cast(f.type) for column, f in zip(columns, fields, strict=True)], schema=fields)

    def labelled(
        self, wanted: Wanted, rows_before: int, progress: Callable[[int, int], None], changed_ms: int | None = None
    ) -> pa.Table:
        """See Log: those whose label is known by now."""
        del wanted, rows_before, progress, changed_ms
        return self._facts.slice(self._first, max(0, self.now - self._delay - self._first))

    def events(self, rows: pa.Table, progress: Callable[[int, int], None]) -> Found:
        """See Log."""
        del progress
        at: Longs = rows.column(window.OFFSET).to_numpy()
        chosen = pa.array(at)
        table = self.events_table.take(chosen).append_column(SENDER, self._senders.take(chosen))
        return Found(window.Events(table, window.place([0] * len(at), at.tolist())), 0, 0, ())


def scored(log: TableLog, bundle: Bundle) -> tuple[Numbers, Floats]:
    """Of all rows: (n,) probabilities of a model's second class, and (n, signals) what it is watched by."""
    columns = log.events_table.combine_chunks().to_batches()[0]
    checked = Validator(bundle.contract, id_field="id", time_field=None).validate(
        Decoded(columns, np.arange(columns.num_rows), [])
    )
    rows, outputs = score(loading.load_module(bundle), bundle.contract, checked.inputs)
    labels = prediction_labels(outputs, bundle.contract)
    matrix = SignalMatrix(bundle.baseline.given, bundle.contract)
    signals = matrix.fill(len(rows), rows, checked.numbers, checked.nulls, rows, outputs, labels, checked.categories)
    return outputs[:, -1].astype(np.float64), signals
