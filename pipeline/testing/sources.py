"""A source that plays a script: batches, and what may happen between them."""

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Self

from pipeline.errors import PipelineError
from pipeline.records import Headers, RecordBatch


class Cue(Enum):
    """What happens instead of a next batch."""

    #: The source ends; nothing behind it is played.
    EOF = "eof"
    #: The source breaks: AbortedError.
    ABORT = "abort"
    #: Nothing is there until everything before has been acknowledged.
    PAUSE = "pause"
    #: As PAUSE, but something seemed to wait: a rebalance has emptied the queue behind the reader's back.
    VANISH = "vanish"


EOF, ABORT, PAUSE, VANISH = Cue.EOF, Cue.ABORT, Cue.PAUSE, Cue.VANISH


class AbortedError(PipelineError):
    """The script said ABORT."""


class ScriptedDelivery:
    """One batch in work, as Faust's event is one (contracts.Delivery); remembers whether it was acknowledged."""

    def __init__(self, value: RecordBatch, source: "ScriptedSource") -> None:
        self.value = value
        self.acked = False
        self._source = source

    def ack(self) -> bool:
        """Acknowledge. False if it was acknowledged before."""
        first, self.acked = not self.acked, True
        self._source._acknowledged()  # noqa: SLF001 (the two are one)
        return first


class ScriptedSource:
    """Yields a ScriptedDelivery for each batch of a script, and acts on its cues (an async iterator).

    `handed_out` has every delivery so far. `more_waiting` is whether the next one is at hand, as the hot path
    asks it. One reader, one event loop.

    ends: whether the source ends where the script does; else it waits there for `push`.
    """

    def __init__(self, script: Sequence[RecordBatch | Cue], *, ends: bool = True) -> None:
        self._script = list(script)
        self._ends = ends
        self._changed = asyncio.Condition()
        self.handed_out: list[ScriptedDelivery] = []

    @property
    def unacked(self) -> list[ScriptedDelivery]:
        """Handed out and not acknowledged, in order."""
        return [d for d in self.handed_out if not d.acked]

    def more_waiting(self) -> bool:
        """Whether a next batch is at hand; after VANISH: whether one seemed to be."""
        return bool(self._script) and (isinstance(self._script[0], RecordBatch) or self._script[0] is VANISH)

    async def push(self, *items: RecordBatch | Cue) -> None:
        """Write on the script while it is played."""
        self._script += items
        await self._tell()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is asked anew after each delivery, acknowledgement and push."""
        async with self._changed:
            await self._changed.wait_for(condition)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _acknowledged(self) -> None:
        self._telling = asyncio.ensure_future(self._tell())

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ScriptedDelivery:
        await asyncio.sleep(0)  # as any real source does
        while True:
            if not self._ends:
                await self.until(lambda: bool(self._script))
            if not self._script or self._script[0] is EOF:
                raise StopAsyncIteration
            item = self._script[0]
            if item is ABORT:
                raise AbortedError("the script said ABORT")
            if isinstance(item, Cue):
                await self.until(lambda: not self.unacked)
                self._script.pop(0)
                continue
            self._script.pop(0)
            delivery = ScriptedDelivery(item, self)
            self.handed_out.append(delivery)
            await self._tell()
            return delivery


def record_batch(
    values: Sequence[bytes | None],
    *,
    topic: str = "events",
    partition: int = 0,
    first_offset: int = 0,
    keys: Sequence[bytes | None] | None = None,
    headers: list[Headers] | None = None,
    timestamp_ms: int = 1_700_000_000_000,
) -> RecordBatch:
    """A batch of `values` at consecutive offsets, one millisecond apart; keys default to the offsets as text."""
    offsets = list(range(first_offset, first_offset + len(values)))
    return RecordBatch(
        topic,
        partition,
        offsets,
        list(keys) if keys is not None else [str(o).encode() for o in offsets],
        list(values),
        [timestamp_ms + i for i in range(len(values))],
        headers,
    )
