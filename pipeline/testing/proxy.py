"""A bad network between Kafka's clients and a broker: a TCP proxy on 127.0.0.1 that reads Kafka's framing.

    with Proxy() as proxy, EmbeddedKafka(port=0, advertised_port=proxy.port, ephemeral=True) as broker:
        proxy.upstream = broker.bootstrap_servers
        ...                                            # clients start at proxy.bootstrap_servers
        with proxy.hold(Api.END_TXN, times=1) as held:
            held.await_seen()
            ...                                        # what the delayed commit must not hurt
        held.await_answer()                            # released, and answered by the broker

The broker must advertise the proxy's port, or its clients soon go past it.

Frames (rules.py) are held, lost, cut and slowed, never changed, in the order of their connection, as TCP would have
it. A frame that is held holds up what comes behind it on its connection. A request whose client is gone is delivered
all the same, as happens to bytes that are on their way or in the broker's queue.

Not for TLS, which hides the frames.
"""

import asyncio
import random
import socket
import struct
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Self

from pipeline.testing.rules import PATIENCE_S, Api, Fate, Frame, Rule, read_request

HOST = "127.0.0.1"
#: Frames read ahead of what may be delivered, a connection and direction. A client's death is noticed behind
#: held frames as long as there are fewer; librdkafka's producer has 5 requests out.
_FRAMES_MAX = 64
#: How long the answers to a dead client's requests are waited for before the broker is told of its death.
_LINGER_S = 5.0
#: A throttled frame goes out in pieces that take so long.
_PIECE_S = 0.05
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with 0 s: close sends RST


class Proxy:
    """The proxy; listens from the start on, on a thread of its own. Rules are added and removed at any time.

    upstream: `host:port` of the broker; may be set later, and anew: it is looked at with every new connection.
    port: of 127.0.0.1; 0 takes a free one.

    All rules take `apis` (none: every frame), and of the options `times` (frames it is applied to, then it is spent),
    `client` (part of the client id) and `when` (any further condition on the frame).
    """

    def __init__(self, upstream: str | None = None, port: int = 0, seed: int = 0) -> None:
        self.upstream = upstream
        self._socket = _listen(port)
        self.port: int = self._socket.getsockname()[1]
        self._random = random.Random(seed)  # noqa: S311  makes jitter, no secrets
        self._changed = threading.Condition()
        #: Replaced, never changed: read on the proxy's thread, written on any.
        self._rules: tuple[Rule, ...] = ()
        self._links: set[_Link] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._bytes_per_s: float | None = None
        self._line_free_at_s = 0.0
        self._refusing = False
        #: Requests passed on to the broker and answers it gave, by api.
        self.asked: Counter[int] = Counter()
        self.answered: Counter[int] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="kafka-proxy", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:PORT`, for clients."""
        return f"{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """Connections of clients that are open now."""
        return sum(link.open for link in tuple(self._links))

    def close(self) -> None:
        """Reset all connections and stop listening. Does nothing a second time."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE_S)

    # -- faults ---------------------------------------------------------------------------------

    def hold(self, *apis: Api, cut: bool = False, **options: Any) -> Rule:
        """Hold frames back until the rule is removed, and with each what follows on its connection.

        Without apis and with side="both": a stalled network, to which new connections can still be made.
        cut: reset the client's connection at once; the request is delivered late all the same.
        """
        return self._add(Rule(self, apis, hold=True, cut=cut, **options))

    def stall(self, **options: Any) -> Rule:
        """Nothing passes in either direction until the rule is removed; no connection ends."""
        return self.hold(**{"side": "both", **options})

    def lose(self, *apis: Api, **options: Any) -> Rule:
        """Lose frames for good; connections stay. Without apis: half-open, connections are made and nothing answers."""
        return self._add(Rule(self, apis, Fate.LOSE, **options))

    def cut(self, *apis: Api, **options: Any) -> Rule:
        """Reset the connection in the place of a frame; with side="response" the broker has done what was asked."""
        return self._add(Rule(self, apis, Fate.CUT, **options))

    def tear(self, *apis: Api, **options: Any) -> Rule:
        """Reset the connection in the middle of a frame."""
        return self._add(Rule(self, apis, Fate.TEAR, **options))

    def delay(self, *apis: Api, seconds: float, jitter_s: float = 0.0, **options: Any) -> Rule:
        """Deliver frames `seconds` +- `jitter_s` (uniform) late, in order."""
        return self._add(
            Rule(self, apis, delay_s=lambda: seconds + self._random.uniform(-jitter_s, jitter_s), **options)
        )

    def throttle(self, bytes_per_s: float | None) -> None:
        """Let no more than this through, both directions and all connections together; None ends it."""
        self._bytes_per_s = bytes_per_s

    def refuse(self, refusing: bool = True) -> None:
        """Reset every connection there is and every new one, until `refuse(False)`."""
        self._refusing = refusing
        if refusing:
            self.cut_all()

    def cut_all(self) -> None:
        """Reset every connection there is now."""
        self._on_loop(self._cut_all())

    def wait_for(self, condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until `condition` holds; it is looked at after every frame. Raises TimeoutError, naming `what`."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout_s):
                raise TimeoutError(f"proxy: never in {timeout_s:g} s: {what}")

    # -- on the proxy's thread ------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, sock=self._socket))
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._cut_all())
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def _add(self, rule: Rule) -> Rule:
        with self._changed:
            self._rules = (*self._rules, rule)
        return rule

    def forget(self, rule: Rule) -> None:
        """See `Rule.remove`."""
        with self._changed:
            self._rules = tuple(r for r in self._rules if r is not rule)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(rule.release)

    async def _cut_all(self) -> None:
        for link in tuple(self._links):
            link.reset()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving = self._loop.create_task(self._serve(reader, writer))
        self._serving.add(serving)  # a loop holds its tasks weakly
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing or self.upstream is None:
            _reset(writer)
            return
        host, _, port = self.upstream.rpartition(":")
        try:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            _reset(writer)
            return
        link = _Link(self, writer, up_writer)
        self._links.add(link)
        try:
            await link.run(reader, up_reader)
        finally:
            self._links.discard(link)

    async def fate_of(self, frame: Frame, link: "_Link") -> Fate:
        """Apply every rule that matches; the first that does not let the frame pass decides."""
        for rule in self._rules:
            if not rule.matches(frame):
                continue
            if not frame.answer:
                link.touched[frame.correlation_id].append(rule)
            with self._changed:
                rule.seen += 1
                self._changed.notify_all()
            fate = await rule.apply(link.reset_client)
            if fate is not Fate.DELIVER:
                return fate
        return Fate.DELIVER

    def note(self, frame: Frame, touched: list[Rule]) -> None:
        """Count it, and tell rules what the broker said to their requests."""
        with self._changed:
            (self.answered if frame.answer else self.asked)[frame.api] += 1
            for rule in touched:
                rule.answers.append(frame)
            self._changed.notify_all()

    async def in_line(self, size: int) -> None:
        """Wait until `size` bytes may pass."""
        if self._bytes_per_s is not None:
            now = self._loop.time()
            self._line_free_at_s = max(now, self._line_free_at_s) + size / self._bytes_per_s
            await asyncio.sleep(self._line_free_at_s - now)

    def piece_bytes(self) -> int:
        """What of a frame may be written at once."""
        return 1 << 20 if self._bytes_per_s is None else max(int(self._bytes_per_s * _PIECE_S), 1)


class _Link:
    """A client's connection and the one to the broker behind it."""

    def __init__(self, proxy: Proxy, client: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self._proxy, self._client, self._broker = proxy, client, broker
        #: Requests delivered and not answered, in their order, which is that of Kafka's answers.
        self._asked: deque[Frame] = deque()
        self._answered = asyncio.Event()
        #: Correlation id -> the rules that were applied to that request.
        self.touched: defaultdict[int, list[Rule]] = defaultdict(list)

    @property
    def open(self) -> bool:
        return not self._client.is_closing()

    async def run(self, client: asyncio.StreamReader, broker: asyncio.StreamReader) -> None:
        """Until either side is gone, and what its requests had still to do is done."""
        answers = asyncio.ensure_future(self._flow(broker, self._client, self._to_client))
        asking = asyncio.ensure_future(self._flow(client, self._broker, self._to_broker))
        try:
            await asyncio.wait({answers, asking}, return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():  # the client is gone
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._all_answered(), _LINGER_S)
        finally:
            asking.cancel()
            answers.cancel()
            await asyncio.gather(asking, answers, return_exceptions=True)
            self._client.close()
            self._broker.close()

    async def _all_answered(self) -> None:
        while self._asked:
            self._answered.clear()
            await self._answered.wait()

    async def _flow(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        parse: Callable[[bytes], tuple[Frame, list[Rule]]],
    ) -> None:
        """One direction: read ahead, so that the end is noticed; deliver each frame as the rules say."""
        frames: asyncio.Queue[bytes | None] = asyncio.Queue(_FRAMES_MAX)
        reading = asyncio.ensure_future(_read(reader, frames))
        try:
            while (payload := await frames.get()) is not None:
                frame, touched = parse(payload)
                if frame.answer:
                    self._proxy.note(frame, touched)
                fate = await self._proxy.fate_of(frame, self)
                if fate is Fate.LOSE:
                    continue
                if fate in (Fate.DELIVER, Fate.TEAR):
                    if not frame.answer:
                        self._asked.append(frame)
                        self._proxy.note(frame, [])
                    whole = len(payload).to_bytes(4) + payload
                    await self._write(writer, whole if fate is Fate.DELIVER else whole[: len(whole) // 2])
                if fate is not Fate.DELIVER:
                    self.reset()
                    return
        finally:
            reading.cancel()

    def _to_broker(self, payload: bytes) -> tuple[Frame, list[Rule]]:
        return read_request(payload), []

    def _to_client(self, payload: bytes) -> tuple[Frame, list[Rule]]:
        correlation_id = int.from_bytes(payload[:4], signed=True)
        while (request := self._asked.popleft()).correlation_id != correlation_id:
            pass  # produced with acks=0: there is no answer
        self._answered.set()
        frame = Frame(request.api, request.version, correlation_id, request.client, payload, answer=True)
        return frame, self.touched.pop(correlation_id, [])

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        with suppress(OSError):  # the other side is gone, which its reader notices
            while data and not writer.is_closing():
                piece, data = data[: (size := self._proxy.piece_bytes())], data[size:]
                await self._proxy.in_line(len(piece))
                writer.write(piece)
                await writer.drain()

    def reset_client(self) -> None:
        """Reset the client's connection; the broker's goes on."""
        _reset(self._client)

    def reset(self) -> None:
        """Reset both connections."""
        _reset(self._client)
        _reset(self._broker)


async def _read(reader: asyncio.StreamReader, frames: "asyncio.Queue[bytes | None]") -> None:
    try:
        while True:
            size = int.from_bytes(await reader.readexactly(4))
            await frames.put(await reader.readexactly(size))
    except (asyncio.IncompleteReadError, OSError):
        await frames.put(None)


def _reset(writer: asyncio.StreamWriter) -> None:
    if not writer.is_closing():
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        writer.transport.abort()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    listener.listen()
    return listener
