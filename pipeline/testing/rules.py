"""Kafka's frames as the proxy sees them, and the rules that say what becomes of them.

A request is `length i32, api_key i16, api_version i16, correlation_id i32, client_id string, ...`; a response is
`length i32, correlation_id i32, ...` (kafka.apache.org/protocol). Nothing else is parsed.
"""

import asyncio
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Literal, Protocol, Self

#: How long one waits for a frame.
PATIENCE_S = 60.0

Side = Literal["request", "response", "both"]


class Api(IntEnum):
    """Kinds of requests (kafka.apache.org/protocol#protocol_api_keys); those that faults are made of."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    LEAVE_GROUP = 13
    SYNC_GROUP = 14
    API_VERSIONS = 18
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    ADD_OFFSETS_TO_TXN = 25
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28
    CONSUMER_GROUP_HEARTBEAT = 68


@dataclass(frozen=True)
class Frame:
    """One request, or the `answer` to it with its request's api, version and client; `payload` lacks the length."""

    api: int
    version: int
    correlation_id: int
    client: str
    payload: bytes
    answer: bool = False


def read_request(payload: bytes) -> Frame:
    """Header version 1 and 2 both begin so. Raises struct.error if `payload` is too short for one."""
    api, version, correlation_id, size = struct.unpack_from(">hhih", payload)
    return Frame(api, version, correlation_id, payload[10 : 10 + max(size, 0)].decode("utf-8", "replace"), payload)


class Ruled(Protocol):
    """What a rule needs of its proxy."""

    def forget(self, rule: "Rule") -> None:
        """Apply `rule` to nothing more, and call its `release` on the proxy's thread."""

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Return once `condition` holds, which is looked at after every frame. Raises TimeoutError, naming `what`."""


class Fate(Enum):
    """What becomes of a frame."""

    DELIVER = "deliver"
    LOSE = "lose"
    #: The connection is reset and the frame lost.
    CUT = "cut"
    #: Half the frame arrives, then the connection is reset.
    TEAR = "tear"


class Rule:
    """A fault for the frames it matches, from its making until `remove` or the end of its `with` block.

    Made by the proxy's methods. Thread-safe.
    """

    def __init__(
        self,
        proxy: Ruled,
        apis: tuple[int, ...],
        fate: Fate = Fate.DELIVER,
        *,
        side: Side = "request",
        times: int | None = None,
        client: str = "",
        when: Callable[[Frame], bool] | None = None,
        hold: bool = False,
        cut: bool = False,
        delay_s: Callable[[], float] | None = None,
    ) -> None:
        self._proxy = proxy
        self._apis, self._side, self._times, self._client, self._when = apis, side, times, client, when
        self._fate, self._hold, self._cut, self._delay_s = fate, hold, cut, delay_s
        self._released = asyncio.Event()
        #: Frames it was applied to.
        self.seen = 0
        #: What the broker answered to requests that it was applied to, client gone or not.
        self.answers: list[Frame] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """End the fault; what is held is delivered now. Does nothing a second time."""
        self._proxy.forget(self)

    def await_seen(self, count: int = 1, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it was applied to `count` frames. Raises TimeoutError."""
        self._proxy.wait_for(lambda: self.seen >= count, f"{count} frames of rule {self}", timeout_s)

    def await_answer(self, count: int = 1, timeout_s: float = PATIENCE_S) -> Frame:
        """Wait for the broker's `count`-th answer to a request that it was applied to. Raises TimeoutError."""
        self._proxy.wait_for(lambda: len(self.answers) >= count, f"{count} answers of rule {self}", timeout_s)
        return self.answers[count - 1]

    def __str__(self) -> str:
        apis = [Api(api).name if api in Api.__members__.values() else str(api) for api in self._apis] or ["everything"]
        kind = "hold" if self._hold else "delay" if self._delay_s else self._fate.value
        return f"{kind} {'|'.join(apis)} ({self._side})"

    # -- on the proxy's thread ------------------------------------------------------------------

    def matches(self, frame: Frame) -> bool:
        """Whether it is to be applied to `frame`."""
        return (
            (not self._apis or frame.api in self._apis)
            and self._side in ("both", "response" if frame.answer else "request")
            and (self._times is None or self.seen < self._times)
            and self._client in frame.client
            and (self._when is None or self._when(frame))
        )

    async def apply(self, reset_client: Callable[[], None]) -> Fate:
        """Wait as long as the fault lasts; what becomes of the frame then."""
        if self._cut:
            reset_client()
        if self._hold:
            await self._released.wait()
        if self._delay_s is not None:
            await asyncio.sleep(self._delay_s())
        return self._fate

    def release(self) -> None:
        """Let go of what is held."""
        self._released.set()
