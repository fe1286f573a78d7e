"""`pipeline broker`: Apache Kafka on this machine, until Ctrl-C."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.bus.embedded import DEFAULT_DATA_DIR, EmbeddedKafka
from pipeline.cli.context import say, stderr
from pipeline.errors import EmbeddedBrokerError

_POLL_S = 0.2


def broker(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1. 0: any free one.")] = 9092,
    data_dir: Annotated[
        Path | None, typer.Option(help=f"Folder of its data, kept between runs.  [default: {DEFAULT_DATA_DIR}]")
    ] = None,
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Keep nothing: data goes when it stops.")] = False,
) -> None:
    """Run Apache Kafka on this machine until Ctrl-C; the first run downloads it (44 MB).

    Prints the address on standard output once it serves clients.
    """
    if ephemeral and data_dir is not None:
        raise typer.BadParameter("an --ephemeral broker keeps no data", param_hint="--data-dir")
    with _sigterm_as_ctrl_c():
        started_at = time.monotonic()
        with stderr().status("looking for Apache Kafka") as status:
            kafka = EmbeddedKafka(data_dir, port=port, ephemeral=ephemeral, progress=status.update)
            kafka.start()
        try:
            _introduce(kafka, time.monotonic() - started_at, ephemeral)
            while kafka.running:
                time.sleep(_POLL_S)
            raise EmbeddedBrokerError(f"Kafka ended by itself; {kafka.log_file}: {kafka.log_tail()}")
        except KeyboardInterrupt:
            say("stopping")
        finally:
            kafka.stop()


def _introduce(kafka: EmbeddedKafka, took_s: float, ephemeral: bool) -> None:
    kept = "nothing is kept" if ephemeral else f"data in {kafka.data_dir}"
    say(f"Apache Kafka is ready after {took_s:.1f} s; {kept}. Its address:")
    typer.echo(kafka.bootstrap_servers)
    if not kafka.bootstrap_servers.endswith(":9092"):
        say(f"Tell the pipeline: export PIPELINE__KAFKA__BOOTSTRAP_SERVERS={kafka.bootstrap_servers}")
    say("Ctrl-C stops it.")


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Both end the command in order; a second one, while it stops, ends it at once."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
