"""What becomes of the values that reader.py reads, and what it says of those it cannot.

Logical types are conversions of the values beneath them, as the Avro specification names them.
"""

import datetime as dt
import uuid
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any

from avro.schema import Schema

from pipeline.codec.schemas import decimal_digits, logical_type
from pipeline.records import Reason

#: Names of a longer path to a field are left out of messages.
PATH_SHOWN = 6

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_EPOCH_LOCAL = dt.datetime(1970, 1, 1)  # noqa: DTZ001 (a local timestamp has no zone)
_EPOCH_DATE = dt.date(1970, 1, 1)


class Malformed(Exception):  # noqa: N818 (a finding about a record, never raised out of this room)
    """The bytes are no record of the schema; the message says in which field, why, and at which byte.

    It never says what a field holds: a message goes where the record's bytes must not.
    """

    def __init__(self, what: str, reason: Reason = Reason.UNDECODABLE) -> None:
        super().__init__(what)
        self.what = what
        self.reason = reason
        self.path: list[str] = []

    def __str__(self) -> str:
        if not self.path:
            return self.what
        path = self.path if len(self.path) <= PATH_SHOWN else [*self.path[:3], "...", self.path[-1]]
        return f"field {'.'.join(path)}: {self.what}"


class As(Enum):
    """What values a reader yields."""

    #: As a stock consumer gives them: datetime, Decimal, UUID; maps as dicts.
    OBJECTS = "objects"
    #: As `pyarrow.array` takes them for the types of `schemas.arrow_type`.
    ARROW = "arrow"
    #: For JSON: bytes as text of the code points 0 to 255, logical types as the numbers beneath them.
    JSON = "json"


def converter(schema: Schema, yields: As) -> Callable[[Any], Any] | None:
    """What turns a value into the one that its logical type means; None where it stays as it is."""
    if yields is As.JSON:
        return _as_text if schema.type in {"bytes", "fixed"} else None
    if digits := decimal_digits(schema):
        return _decimals(*digits)
    if yields is As.ARROW:
        return None
    return _OBJECTS.get((schema.type, logical_type(schema)))


def _as_text(raw: bytes) -> str:
    return raw.decode("latin-1")


def _decimals(precision: int, scale: int) -> Callable[[bytes], Decimal]:
    limit = 10**precision

    def convert(raw: bytes) -> Decimal:
        unscaled = int.from_bytes(raw, "big", signed=True)
        if abs(unscaled) >= limit:
            raise Malformed(f"a decimal of more than {precision} digits")
        digits = tuple(map(int, str(abs(unscaled))))
        return Decimal((int(unscaled < 0), digits, -scale))

    return convert


def _moment(epoch: dt.datetime, unit: str) -> Callable[[int], dt.datetime]:
    def convert(value: int) -> dt.datetime:
        try:
            return epoch + dt.timedelta(**{unit: value})
        except OverflowError:
            raise Malformed(f"{unit} since 1970 beyond the years 1 to 9999") from None

    return convert


def _date(days: int) -> dt.date:
    try:
        return _EPOCH_DATE + dt.timedelta(days=days)
    except OverflowError:
        raise Malformed("days since 1970 beyond the years 1 to 9999") from None


def _time_of_day(unit: str) -> Callable[[int], dt.time]:
    def convert(value: int) -> dt.time:
        if not dt.timedelta(0) <= (since := dt.timedelta(**{unit: value})) < dt.timedelta(days=1):
            raise Malformed(f"{unit} that are no time of the day")
        return (_EPOCH_LOCAL + since).time()

    return convert


def _uuid(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise Malformed("text that is no UUID") from None


_OBJECTS: dict[tuple[str, str], Callable[[Any], Any]] = {
    ("int", "date"): _date,
    ("int", "time-millis"): _time_of_day("milliseconds"),
    ("long", "time-micros"): _time_of_day("microseconds"),
    ("long", "timestamp-millis"): _moment(_EPOCH, "milliseconds"),
    ("long", "timestamp-micros"): _moment(_EPOCH, "microseconds"),
    ("long", "local-timestamp-millis"): _moment(_EPOCH_LOCAL, "milliseconds"),
    ("long", "local-timestamp-micros"): _moment(_EPOCH_LOCAL, "microseconds"),
    ("string", "uuid"): _uuid,
}
