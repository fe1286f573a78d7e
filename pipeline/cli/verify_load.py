"""What `verify` sends: the project's own data, or events made to fit it, at a steady rate, some broken on command."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

from pipeline.bus.clients import ClientOptions
from pipeline.bus.producer import BatchProducer
from pipeline.cli.events import EventEncoder
from pipeline.cli.replay import Encoded, Rate, chunk_rows, encode_rows, send
from pipeline.codec import RowCodec, event_schema, registry_of
from pipeline.errors import DataError, DrainTimeoutError
from pipeline.models import bundle as bundles
from pipeline.retraining import tables
from pipeline.settings import Settings
from pipeline.testing.breakage import FOREIGN_SCHEMA, WAYS
from pipeline.testing.inventing import KEYS, EventMaker

#: After the last event, the broker has this long to acknowledge everything.
FLUSH_TIMEOUT_S = 60.0
FLUSH_SLICE_S = 0.5


def foreign_subject(settings: Settings) -> str:
    """Under which a schema is registered that no event can be read with."""
    return f"{settings.name}.foreign-value"


def made_events(settings: Settings, bundle: bundles.Bundle, seed: int, chunk: int) -> Iterator[Encoded]:
    """Events that fit schema and model, for ever. Raises SchemaError if there can be none."""
    events, registry, schema = settings.events, registry_of(settings), event_schema(settings)
    schema_id = registry.register(f"{settings.topic('events')}-value", schema)
    maker = EventMaker(
        schema,
        bundle.contract,
        bundle.baseline,
        id_field=events.id_field,
        key_field=events.key_field,
        time_field=events.time_field,
        seed=seed,
    )
    rows, number = RowCodec(registry), 0
    while True:
        keys: list[bytes | None] = []
        values: list[bytes | None] = []
        for n in range(number, number + chunk):
            key, record = maker.event(n)
            keys.append(key)
            values.append(rows.encode(schema_id, schema, record))
        number += len(values)
        yield keys, values


def file_events(settings: Settings, file: Path, chunk: int) -> Iterator[Encoded]:
    """The rows of a file, again and again. Raises DataError for a file that does not fit the event schema."""
    events, schema = settings.events, event_schema(settings)
    schema_id = registry_of(settings).register(f"{settings.topic('events')}-value", schema)
    table = tables.read(file)
    if not table.num_rows:
        raise DataError(f"{file}: no rows")
    encoder = EventEncoder(schema, schema_id, events.id_field, events.key_field, events.time_field)
    try:
        encoder.columns(table)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    sent = 0
    for keys, values in encode_rows(encoder, table, 0, chunk, loop=True):
        if events.key_field is None:  # the id, of which each has one: there would be no order to keep
            yield [f"key-{n % KEYS}".encode() for n in range(sent, sent + len(values))], values
        else:
            yield keys, values
        sent += len(values)


class Load:
    """Sends on a thread of its own, from `start` until `finish`."""

    def __init__(
        self, settings: Settings, options: ClientOptions, events: Callable[[int], Iterator[Encoded]], rate: float
    ) -> None:
        self._topic, self._rate = settings.topic("events"), rate
        self._foreign_id = registry_of(settings).register(foreign_subject(settings), FOREIGN_SCHEMA)
        self._producer = BatchProducer(options.for_producer())
        self._encoded = self._spoiled(events(chunk_rows(rate)))
        self._stopped = threading.Event()
        self._to_spoil = 0
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="verify-load", daemon=True)
        self.sent = 0
        #: Events broken so far.
        self.broken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._producer.close()
        if self._thread.is_alive():
            self._thread.join()

    def start(self) -> None:
        self._thread.start()

    def spoil(self, records: int) -> None:
        """Break the next `records` events, each way in turn."""
        self._to_spoil += records

    def check(self) -> None:
        """Raise what ended the load."""
        if self._failure is not None:
            raise self._failure

    def finish(self, look: Callable[[], None]) -> int:
        """Stop, and wait until the broker has everything; how many events that is. `look` is called meanwhile.

        Raises DeliveryError if one was refused, DrainTimeoutError if the broker does not answer in time.
        """
        self._stopped.set()
        give_up = time.monotonic() + FLUSH_TIMEOUT_S
        while True:
            look()
            self._thread.join(FLUSH_SLICE_S)
            if not self._thread.is_alive():
                with suppress(DrainTimeoutError):
                    self._producer.flush(FLUSH_SLICE_S)
                    return self.sent
            if time.monotonic() > give_up:
                raise DrainTimeoutError(f"the broker did not acknowledge all events within {FLUSH_TIMEOUT_S:g} s")

    def _run(self) -> None:
        def note(sent: int) -> None:
            self.sent = sent

        try:
            send(self._producer, self._topic, self._encoded, Rate(self._rate), self._stopped.is_set, note)
        except DrainTimeoutError:  # closed
            pass
        except Exception as error:  # noqa: BLE001 (raised by `check`, on the main thread)
            self._failure = error

    def _spoiled(self, encoded: Iterator[Encoded]) -> Iterator[Encoded]:
        ways = list(WAYS.values())
        for keys, given in encoded:
            values = list(given)
            for at in range(min(self._to_spoil, len(values))):
                value = values[at]
                assert value is not None
                values[at] = ways[self.broken % len(ways)].spoil(value, self._foreign_id)
                self.broken += 1
                self._to_spoil -= 1
            yield keys, values
