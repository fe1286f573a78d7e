"""The proxy between Kafka's clients and a broker: what each fault does to frames, and that nothing else is touched."""

import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.testing import Api, Proxy

PATIENCE_S = 10.0


class Upstream(socketserver.ThreadingTCPServer):
    """Speaks Kafka's framing: answers each request with its correlation id and what it said, and keeps the order."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.requests: list[bytes] = []
        self.torn = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Answering(socketserver.BaseRequestHandler):
    server: Upstream

    def handle(self) -> None:
        client = Client(self.request)
        while True:
            try:
                payload = client.receive()
            except (EOFError, OSError) as error:
                self.server.torn += "after" in str(error)
                return
            self.server.requests.append(payload)
            client.send(payload[4:8] + payload)


class Client:
    """One connection that sends and receives frames."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        connection.settimeout(PATIENCE_S)

    @classmethod
    def of(cls, proxy: Proxy) -> "Client":
        return cls(socket.create_connection(("127.0.0.1", proxy.port)))

    def send(self, payload: bytes) -> None:
        self.connection.sendall(len(payload).to_bytes(4) + payload)

    def ask(self, api: Api, correlation_id: int, body: bytes = b"", client: bytes = b"me") -> None:
        self.send(struct.pack(">hhih", api, 1, correlation_id, len(client)) + client + body)

    def receive(self) -> bytes:
        return self._exactly(int.from_bytes(self._exactly(4)))

    def answered(self) -> int:
        """Correlation id of the next answer."""
        return int.from_bytes(self.receive()[:4])

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            if not (more := self.connection.recv(size - len(data))):
                raise EOFError(f"the end after {len(data)} bytes" if data else "the end")
            data += more
        return data


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def proxy(upstream: Upstream) -> Iterator[Proxy]:
    with Proxy(upstream.address) as made:
        yield made


def is_reset(client: Client) -> bool:
    try:
        client.receive()
    except (EOFError, ConnectionError):
        return True
    return False


def until(condition: Any) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_without_rules_every_byte_passes_in_order(proxy: Proxy, upstream: Upstream) -> None:
    """Requests and answers go through unchanged, a large one and an empty client id too, and are counted."""
    client = Client.of(proxy)
    client.ask(Api.PRODUCE, 1, bytes(3_000_000))
    client.ask(Api.FETCH, 2, b"body", client=b"")
    assert (client.answered(), client.receive()) == (1, upstream.requests[1][4:8] + upstream.requests[1])
    assert (len(upstream.requests[0]), upstream.requests[1][-4:]) == (3_000_012, b"body")
    assert (proxy.asked[Api.PRODUCE], proxy.answered[Api.FETCH]) == (1, 1)


def test_a_held_request_holds_up_its_connection_and_no_other(proxy: Proxy, upstream: Upstream) -> None:
    """What comes behind it waits too; all is delivered in order when the rule is removed."""
    client, other = Client.of(proxy), Client.of(proxy)
    with proxy.hold(Api.END_TXN, times=1) as held:
        client.ask(Api.END_TXN, 1)
        client.ask(Api.PRODUCE, 2)
        held.await_seen()
        other.ask(Api.END_TXN, 3)  # the rule is spent
        assert other.answered() == 3
        assert len(upstream.requests) == 1
    assert (client.answered(), client.answered()) == (1, 2)
    assert held.await_answer().correlation_id == 1


def test_a_held_request_is_delivered_although_its_client_is_gone(proxy: Proxy, upstream: Upstream) -> None:
    """With cut=True the client sees a reset at once; the broker gets the request, and the rule its answer."""
    client = Client.of(proxy)
    with proxy.hold(Api.END_TXN, cut=True, times=1) as held:
        client.ask(Api.END_TXN, 7, b"late")
        assert is_reset(client)
        assert upstream.requests == []
    assert held.await_answer().payload.endswith(b"late")


def test_rules_choose_by_api_client_and_condition(proxy: Proxy) -> None:
    """Only frames that fit in every respect are concerned."""
    client = Client.of(proxy)
    with proxy.lose(Api.HEARTBEAT, client="worker", when=lambda frame: frame.payload.endswith(b"x")) as lost:
        client.ask(Api.HEARTBEAT, 1, b"x", client=b"other")
        client.ask(Api.HEARTBEAT, 2, b"y", client=b"my-worker-1")
        client.ask(Api.FETCH, 3, b"x", client=b"my-worker-1")
        client.ask(Api.HEARTBEAT, 4, b"x", client=b"my-worker-1")
        client.ask(Api.HEARTBEAT, 5, b"z", client=b"my-worker-1")
        assert [client.answered() for _ in range(4)] == [1, 2, 3, 5]
    assert lost.seen == 1


def test_a_lost_answer_was_a_request_done(proxy: Proxy, upstream: Upstream) -> None:
    """The broker did what was asked, the client never hears of it, and its connection goes on."""
    client = Client.of(proxy)
    with proxy.lose(Api.END_TXN, side="response") as lost:
        client.ask(Api.END_TXN, 1)
        lost.await_seen()
    client.ask(Api.PRODUCE, 2)
    assert client.answered() == 2
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("side", ["request", "response"])
def test_a_cut_connection_is_reset_and_the_next_one_works(proxy: Proxy, upstream: Upstream, side: Any) -> None:
    """Cut at the request, the broker gets nothing; at the response, it has done what was asked."""
    client = Client.of(proxy)
    with proxy.cut(Api.PRODUCE, side=side, times=1):
        client.ask(Api.PRODUCE, 1)
        assert is_reset(client)
        assert len(upstream.requests) == (side == "response")
        client = Client.of(proxy)
        client.ask(Api.PRODUCE, 2)
        assert client.answered() == 2


def test_a_torn_request_reaches_the_broker_by_half(proxy: Proxy, upstream: Upstream) -> None:
    """The broker sees the connection end within a frame, or be reset; so does the client."""
    client = Client.of(proxy)
    with proxy.tear(Api.PRODUCE, times=1):
        client.ask(Api.PRODUCE, 1, bytes(100))
        assert is_reset(client)
    until(lambda: proxy.connections == 0)
    assert upstream.requests == []


def test_a_stall_keeps_everything_for_later(proxy: Proxy) -> None:
    """Connections stay and can be made; what was sent meanwhile arrives afterwards."""
    early = Client.of(proxy)
    with proxy.stall() as stalled:
        early.ask(Api.FETCH, 1)
        late = Client.of(proxy)
        late.ask(Api.FETCH, 2)
        stalled.await_seen(2)
        assert (proxy.connections, proxy.answered.total()) == (2, 0)
    assert (early.answered(), late.answered()) == (1, 2)


def test_refused_connections_end_at_once(proxy: Proxy) -> None:
    """Old and new ones, until it is over; an upstream that is away looks the same."""
    old = Client.of(proxy)
    old.ask(Api.FETCH, 1)
    assert old.answered() == 1
    proxy.refuse()
    assert is_reset(old)
    assert is_reset(Client.of(proxy))
    proxy.refuse(False)
    proxy.upstream, upstream = "127.0.0.1:1", proxy.upstream
    assert is_reset(Client.of(proxy))
    proxy.upstream = upstream
    client = Client.of(proxy)
    client.ask(Api.FETCH, 2)
    assert client.answered() == 2


def test_delay_and_throttle_slow_down_and_lose_nothing(proxy: Proxy) -> None:
    """Each takes at least the time it must, and the order is kept."""
    client = Client.of(proxy)
    started = time.monotonic()
    with proxy.delay(seconds=0.1, jitter_s=0.05, side="both"):
        client.ask(Api.FETCH, 1)
        client.ask(Api.FETCH, 2)
        assert (client.answered(), client.answered()) == (1, 2)
    assert time.monotonic() - started > 4 * 0.05
    started = time.monotonic()
    proxy.throttle(100_000)
    client.ask(Api.FETCH, 3, bytes(10_000))
    assert client.answered() == 3
    assert time.monotonic() - started > 0.2  # 10 kB there and back
    proxy.throttle(None)


def test_closing_resets_what_is_open_and_ends_the_thread(upstream: Upstream) -> None:
    """Held frames are no obstacle; waiting for what never comes ends with an error that says what it was."""
    proxy = Proxy(upstream.address)
    held = proxy.hold(Api.PRODUCE)
    client = Client.of(proxy)
    client.ask(Api.PRODUCE, 1)
    held.await_seen()
    with pytest.raises(TimeoutError, match=r"1 answers of rule hold PRODUCE \(request\)"):
        held.await_answer(timeout_s=0.01)
    proxy.close()
    proxy.close()
    held.remove()
    assert is_reset(client)
    assert "kafka-proxy" not in {thread.name for thread in threading.enumerate()}
