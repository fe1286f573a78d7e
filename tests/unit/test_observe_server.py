"""The observe server: its pages, and clients that misbehave."""

import http.client
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry

from pipeline.errors import SettingsError
from pipeline.observe import server as module
from pipeline.observe.metrics import Metrics
from pipeline.observe.server import ObserveServer

Start = Callable[..., ObserveServer]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a server on a free loopback port; stopped after the test."""
    servers: list[ObserveServer] = []

    def start_one(
        live: Callable[[], bool] = lambda: True, ready: Callable[[], tuple[bool, str]] = lambda: (True, "ready")
    ) -> ObserveServer:
        metrics = Metrics(CollectorRegistry())
        metrics.events_read("shop.events", 42)
        server = ObserveServer(metrics, "127.0.0.1", 0, live, ready)
        servers.append(server)
        server.start()
        return server

    yield start_one
    for server in servers:
        server.stop()


def get(server: ObserveServer, path: str, accept: str = "*/*") -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", path, headers={"Accept": accept})
    response = connection.getresponse()
    return response.status, response.headers["Content-Type"], response.read().decode()


def test_metrics_come_as_text_by_default(start: Start) -> None:
    """What curl and an old Prometheus can read."""
    status, content_type, body = get(start(), "/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    assert 'pipeline_events_total{topic="shop.events"} 42.0' in body


def test_metrics_come_as_open_metrics_on_request(start: Start) -> None:
    """The Accept header decides; a query string is ignored."""
    accept = "application/openmetrics-text; version=1.0.0"
    status, content_type, body = get(start(), "/metrics?x=1", accept)
    assert status == 200
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


@pytest.mark.parametrize(("live", "expected"), [(True, (200, "live\n")), (False, (503, "failed\n"))])
def test_healthz_follows_live(start: Start, live: bool, expected: tuple[int, str]) -> None:
    """200 while the process is worth keeping, 503 after a fault."""
    status, _, body = get(start(live=lambda: live), "/healthz")
    assert (status, body) == expected


def test_readyz_says_why_not(start: Start) -> None:
    """The answer changes with the state; the reason is in the body."""
    state = [(False, "no partitions assigned")]
    server = start(ready=lambda: state[0])
    assert get(server, "/readyz")[::2] == (503, "no partitions assigned\n")
    state[0] = (True, "ready")
    assert get(server, "/readyz")[::2] == (200, "ready\n")


def test_a_broken_check_is_a_no(start: Start) -> None:
    """A probe gets an answer, without what the exception holds."""

    def broken() -> tuple[bool, str]:
        raise RuntimeError("password=hunter2")

    status, _, body = get(start(ready=broken), "/readyz")
    assert status == 503
    assert "RuntimeError" in body
    assert "hunter2" not in body


@pytest.mark.parametrize("path", ["/", "/metrics/..", "/../etc/passwd", "/Healthz"])
def test_other_paths_are_not_found(start: Start, path: str) -> None:
    """There is nothing else here."""
    assert get(start(), path)[0] == 404


def test_other_methods_are_refused(start: Start) -> None:
    """Nothing can be posted."""
    connection = http.client.HTTPConnection("127.0.0.1", start().port, timeout=5)
    connection.request("POST", "/metrics", body=b"x")
    assert connection.getresponse().status == 501


def test_a_taken_port_is_a_settings_error(start: Start) -> None:
    """One line that names the key, the address and the mend."""
    port = start().port
    with pytest.raises(SettingsError, match=rf"^observe\.port: cannot listen on 127\.0\.0\.1:{port}: .*free") as caught:
        ObserveServer(Metrics(CollectorRegistry()), "127.0.0.1", port, lambda: True, lambda: (True, ""))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("host", "port"), [("no such host", 0), ("127.0.0.1", 99_999), ("203.0.113.1", 0)])
def test_an_impossible_address_is_a_settings_error(host: str, port: int) -> None:
    """A host that is not of this machine, or a port that is none."""
    with pytest.raises(SettingsError, match="cannot listen on"):
        ObserveServer(Metrics(CollectorRegistry()), host, port, lambda: True, lambda: (True, ""))


def test_idle_connections_do_not_keep_others_out(start: Start) -> None:
    """More silent clients than the server has room for: the oldest are cut off, a scrape still gets its answer."""
    server = start()
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(module.CONNECTIONS_MAX * 3)]
    try:
        assert get(server, "/metrics")[0] == 200
        assert idle[0].recv(1) == b""
    finally:
        for connection in idle:
            connection.close()


def test_without_file_descriptors_the_server_waits(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process out of descriptors neither spins nor loses its server: the next try succeeds."""
    server = start()
    real = socket.socket.accept
    failures = iter([OSError(24, "Too many open files")] * 2)
    tries: list[float] = []

    def accept(listening: socket.socket) -> object:
        tries.append(time.monotonic())
        for failure in failures:
            raise failure
        return real(listening)

    monkeypatch.setattr(socket.socket, "accept", accept)
    assert get(server, "/healthz")[0] == 200
    assert len(tries) == 3
    assert tries[2] - tries[0] >= module.POLL_SECONDS


def test_a_dripping_client_is_cut_off_at_the_deadline(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then resets no clock: the whole connection has one deadline."""
    monkeypatch.setattr(module, "CONNECTION_SECONDS_MAX", 0.3)
    server = start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as slow:
        slow.settimeout(0.05)
        ended = False
        give_up = time.monotonic() + 5
        while not ended and time.monotonic() < give_up:
            try:
                slow.sendall(b"G")
                ended = slow.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
    assert ended


def test_stop_does_not_wait_for_clients(start: Start) -> None:
    """A connected, silent client is cut off; the port is free at once; stopping twice is fine."""
    server = start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as silent:
        silent.sendall(b"GET /metr")
        get(server, "/healthz")
        server.stop()
        assert silent.recv(1) == b""
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        get(server, "/healthz")


def test_a_server_that_never_started_can_be_stopped() -> None:
    """A role that fails between the two leaves nothing behind."""
    ObserveServer(Metrics(CollectorRegistry()), "127.0.0.1", 0, lambda: True, lambda: (True, "")).stop()
