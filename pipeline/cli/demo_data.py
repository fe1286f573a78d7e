"""What the demo sends: real telemetry, a sensor that shifts, a few broken records, and the labels of all."""

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from pipeline.cli.events import EventEncoder
from pipeline.codec import ColumnarEncoder, arrow_schema
from pipeline.errors import DataError
from pipeline.records import Reason
from pipeline.retraining import tables
from pipeline.testing.breakage import WAYS

LABEL = "anomaly"
#: Rows the first model is trained and measured on; the others are replayed.
TRAINING_ROWS = 14_000
#: The sensor that goes wrong, and by how much: it reads 1.5 of its own standard deviations (12.9) too high. The model
#: that was right in 99.9 % of the rows is right in 27 % of these: what it learnt of this sensor no longer holds.
SHIFTED, SHIFT = "f1", 19
#: Eighths of the rows: the shift comes after the first three. The seventh waits until the successor serves as canary,
#: the last until it is champion, so that there are rows to see it by, however long this machine takes to train it.
SHIFT_EIGHTHS, CANARY_EIGHTHS, CHAMPION_EIGHTHS = 3, 6, 7
#: One in so many events is broken, each way in turn.
BROKEN_EVERY = 1_000


def shuttle() -> pa.Table:
    """NASA Shuttle telemetry out of River's wheel: 49,097 rows, nine sensors f1..f9, anomaly 0 or 1.

    River itself is not imported: only drift/ does that. Raises DataError when its files are not there.
    """
    found = importlib.util.find_spec("river")
    if found is None or not found.submodule_search_locations:
        raise DataError("river: not installed; reinstall the package")
    return tables.read(Path(found.submodule_search_locations[0]) / "datasets" / "shuttle.csv.gz")


@dataclass
class Broken:
    """What was sent broken, and how each must be refused."""

    values: list[bytes | None] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """The rows to replay: shifted from `shift_at` on, those from `canary_at` and `champion_at` on for the successor."""

    table: pa.Table
    first_row: int
    shift_at: int
    canary_at: int
    champion_at: int

    @classmethod
    def of(cls, table: pa.Table, first_row: int, rows: int) -> "Plan":
        """`rows` rows from `first_row`, the sensor shifted in the later ones."""
        chosen = table.slice(first_row, rows)
        places = [chosen.num_rows * eighths // 8 for eighths in (SHIFT_EIGHTHS, CANARY_EIGHTHS, CHAMPION_EIGHTHS)]
        shifted = chosen.column(SHIFTED).to_numpy().copy()
        shifted[places[0] :] += SHIFT
        index = chosen.column_names.index(SHIFTED)
        return cls(chosen.set_column(index, SHIFTED, pa.array(shifted)), first_row, *places)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def labels(self) -> list[str]:
        """The truth of each row, as a prediction names it."""
        return [str(value) for value in self.table.column(LABEL).to_pylist()]

    def encoded_labels(self, schema: str, schema_id: int) -> tuple[list[bytes | None], list[bytes]]:
        """Keys and values of a label for each row; the key is that of the event, its id."""
        n = len(self)
        ids = [f"row-{self.first_row + row}" for row in range(n)]
        fields = arrow_schema(schema)
        made = {"event_id": pa.array(ids), "label": pa.array(self.labels()), "value": pa.nulls(n), "time": pa.nulls(n)}
        batch = pa.RecordBatch.from_arrays([made[field.name].cast(field.type) for field in fields], schema=fields)
        return [name.encode() for name in ids], ColumnarEncoder(schema, schema_id).encode(batch)

    def encoded(
        self, encoder: EventEncoder, foreign_id: int, broken: Broken, rows: range
    ) -> Iterator[tuple[list[bytes | None], list[bytes | None]]]:
        """Keys and values of `rows` in chunks of its step, some of them spoiled and noted in `broken`."""
        ways = list(WAYS.values())
        for start in rows:
            chunk = self.table.slice(start, min(rows.step, rows.stop - start))
            keys, good = encoder.encode(chunk, self.first_row + start)
            values: list[bytes | None] = [*good]
            for at in range(-start % BROKEN_EVERY, len(values), BROKEN_EVERY):
                if start + at == 0:
                    continue  # the first event is a good one
                way = ways[len(broken.rows) % len(ways)]
                values[at] = way.spoil(good[at], foreign_id)
                broken.values.append(values[at])
                broken.rows.append(start + at)
                broken.reasons.append(way.reason)
            yield keys, values


def row_number(event_id: str, first_row: int) -> int:
    """Index in the plan of the event `row-N`; -1 for an id that is none of ours."""
    prefix, _, number = event_id.partition("-")
    return int(number) - first_row if prefix == "row" and number.isdigit() else -1
