"""The systems that are measured: how each is started, and how its output is read."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ours, verify
from benchmarks.job import Job
from benchmarks.processes import STALL_S
from benchmarks.rivals import environments


def _same(group: str) -> str:
    return group


@dataclass(frozen=True, kw_only=True)
class System:
    """One row of the table."""

    label: str
    #: The command line of a run; the folder is the run's own.
    command: Callable[[Job, Path], list[str]]
    reader: Callable[[], verify.Reader] = lambda: verify.read_scores
    ends_itself: bool = True
    #: Slow systems get fewer events; the table says so.
    events_max: int | None = None
    #: Longest time without one more output, start-up included.
    stall_s: float = STALL_S
    #: Consumer group of a run, where the system makes the name itself; None: it commits to no group.
    group: Callable[[str], str] | None = _same
    #: Name of the environment it runs in (rivals/environments.py); None: the running interpreter.
    environment: str | None = None


def _module(name: str) -> Callable[[Job, Path], list[str]]:
    return lambda job, _folder: [sys.executable, "-m", f"benchmarks.{name}", *job.arguments()]


def _pipeline(label: str, settings: dict[str, Any] | None = None) -> System:
    return System(
        label=label,
        command=lambda job, folder: ours.command(job, folder, settings),
        reader=lambda: verify.read_predictions(ours.prediction_schema()),
        ends_itself=False,
        group=ours.group,
    )


def _rival(label: str, module: str, environment: str, events_max: int, **more: Any) -> System:
    def command(job: Job, _folder: Path) -> list[str]:
        return [str(environments.python(environment)), "-m", f"benchmarks.rivals.{module}", *job.arguments()]

    return System(label=label, command=command, events_max=events_max, environment=environment, **more)


SYSTEMS: dict[str, System] = {
    "echo": System(
        label="limit: raw consume → produce echo", command=_module("echo"), reader=lambda: verify.read_events
    ),
    "hand": System(label="hand-written loop", command=_module("hand_written")),
    "ours": _pipeline("pipeline"),
    "exact": _pipeline("pipeline, exactly once", {"delivery.mode": "exactly_once"}),
    "bare": _pipeline("pipeline, no drift summaries, no metrics", {"drift.enabled": False, "observe.enabled": False}),
    "faust": System(
        label="plain Faust (aiokafka, take 512, fastavro)",
        command=_module("plain_faust"),
        ends_itself=False,
        events_max=50_000,
    ),
    "quix": _rival("Quix Streams 3.28.1, per record (fastavro)", "quix_records", "quix", 50_000, ends_itself=False),
    "quix-batches": _rival(
        "Quix Streams 3.28.1, BatchingSink, our kind of codec", "quix_batches", "quix", 400_000, ends_itself=False
    ),
    "bytewax": _rival(
        "Bytewax 0.21.1, collect 512 (fastavro); offsets in its own snapshots",
        "bytewax_records",
        "bytewax",
        200_000,
        group=None,
    ),
    "bytewax-batches": _rival(
        "Bytewax 0.21.1, flat_map_batch, our kind of codec; offsets in its own snapshots",
        "bytewax_batches",
        "bytewax",
        400_000,
        group=None,
    ),
    "faststream": _rival(
        "FastStream 0.7.8, batch subscriber, publish_batch (fastavro)",
        "faststream_records",
        "faststream",
        50_000,
        ends_itself=False,
    ),
    "faststream-batches": _rival(
        "FastStream 0.7.8, consumer only, our kind of codec and producer",
        "faststream_batches",
        "faststream",
        400_000,
        ends_itself=False,
    ),
    "spark": _rival(
        "Spark 4.2.0 local[2], from_avro, predict_batch_udf, to_avro; offsets in its checkpoint",
        "spark",
        "spark",
        400_000,
        group=None,
        stall_s=300.0,  # it took more than three minutes to start where much else ran
    ),
}
#: What a quick run has: no rival of them needs an environment of its own.
CORE = ("echo", "hand", "ours", "faust")
