"""/metrics, /healthz and /readyz over HTTP. A slow, stuck or hostile client costs a thread for a while, no more."""

import socketserver
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socket import SHUT_RDWR, AddressFamily, socket
from threading import Lock, Thread
from typing import Any

import structlog
from prometheus_client.exposition import choose_encoder

from pipeline.errors import ExhaustedError, SettingsError, explained
from pipeline.observe.metrics import Metrics

log = structlog.get_logger(__name__)

#: A scrape takes milliseconds, Prometheus itself gives up after 10 s; whoever needs longer is cut off.
CONNECTION_SECONDS_MAX = 10.0
#: One scraper and one or two probes come at a time. One connection more cuts off the oldest.
CONNECTIONS_MAX = 8
#: How often connections past their deadline are looked for, and the longest that `stop` waits for the loop.
POLL_SECONDS = 0.2

TEXT = "text/plain; charset=utf-8"


class ObserveServer:
    """Serves until stopped, on threads of its own.

    live: whether the process is worth keeping; /healthz answers 200 or 503.
    ready: whether it does its work, and a word why not; /readyz answers 200 or 503.
    Both are called on a thread of the server, must return at once, and count as "no" when they raise.
    port: 0 takes a free one, see `port`.

    Raises SettingsError when the address cannot be listened on, ExhaustedError when no file may be opened.
    """

    def __init__(
        self, metrics: Metrics, host: str, port: int, live: Callable[[], bool], ready: Callable[[], tuple[bool, str]]
    ) -> None:
        handler = type("Handler", (_Handler,), {"pages": _Pages(metrics, live, ready)})
        try:
            self._server = _Server(host, port, handler)
        except (OSError, OverflowError) as error:
            if isinstance(known := explained(error), ExhaustedError):
                raise known from None
            reason = getattr(error, "strerror", None) or error
            mend = "set observe.host and observe.port to an address of this machine that is free (port 0: any)"
            raise SettingsError(f"observe.port: cannot listen on {host}:{port}: {reason}; {mend}") from None
        self._thread = Thread(target=self._server.serve_forever, args=(POLL_SECONDS,), name="observe", daemon=True)

    @property
    def port(self) -> int:
        """The port listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening and cut all connections; returns within about POLL_SECONDS. May be called twice."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Pages:
    """Status, content type and body of each path."""

    def __init__(self, metrics: Metrics, live: Callable[[], bool], ready: Callable[[], tuple[bool, str]]) -> None:
        self._metrics, self._live, self._ready = metrics, live, ready

    def get(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        match path.partition("?")[0]:
            case "/metrics":
                encode, content_type = choose_encoder(accept)
                return HTTPStatus.OK, content_type, encode(self._metrics.registry)
            case "/healthz":
                return _answer(lambda: (True, "live") if self._live() else (False, "failed"))
            case "/readyz":
                return _answer(self._ready)
            case _:
                return HTTPStatus.NOT_FOUND, TEXT, b"try /metrics, /healthz or /readyz\n"


def _answer(check: Callable[[], tuple[bool, str]]) -> tuple[HTTPStatus, str, bytes]:
    try:
        good, reason = check()
    except Exception as error:  # noqa: BLE001 (a broken check is a "no", and a probe needs an answer)
        good, reason = False, f"the check itself failed: {type(error).__name__}"
    return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, TEXT, f"{reason}\n".encode("utf-8", "replace")


class _Handler(BaseHTTPRequestHandler):
    """One request on one connection (HTTP/1.0)."""

    pages: _Pages
    server_version = "pipeline"
    sys_version = ""
    #: Of each read and of the whole answer; the server's deadline bounds their sum.
    timeout = CONNECTION_SECONDS_MAX

    def do_GET(self) -> None:
        status, content_type, body = self.pages.get(self.path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        log.debug("http", request=format % args)


class _Server(socketserver.ThreadingMixIn, HTTPServer):
    """At most CONNECTIONS_MAX connections, none older than CONNECTION_SECONDS_MAX."""

    daemon_threads = True
    block_on_close = False
    #: The default of 5 makes the sixth of a burst wait a second for TCP to try again.
    request_queue_size = 64

    def __init__(self, host: str, port: int, handler: type[_Handler]) -> None:
        self.address_family = AddressFamily.AF_INET6 if ":" in host else AddressFamily.AF_INET
        #: Open connections and when they came, oldest first.
        self._open: dict[socket, float] = {}
        self._lock = Lock()
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        # HTTPServer's own would ask the resolver for this machine's name, which can take seconds.
        socketserver.TCPServer.server_bind(self)

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError:
            # Out of file descriptors, most likely: the connection stays in the queue, so wait before asking again.
            time.sleep(POLL_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            while len(self._open) >= CONNECTIONS_MAX:
                self._cut(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called by serve_forever every POLL_SECONDS, and after each request."""
        oldest_allowed = time.monotonic() - CONNECTION_SECONDS_MAX
        with self._lock:
            for connection in [c for c, since in self._open.items() if since < oldest_allowed]:
                self._cut(connection)

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            for connection in list(self._open):
                self._cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        log.debug("http connection broke")

    def _cut(self, connection: socket) -> None:
        """End a connection; its thread wakes up with an error and closes the socket."""
        self._open.pop(connection, None)
        with suppress(OSError):  # it may be gone already
            connection.shutdown(SHUT_RDWR)
