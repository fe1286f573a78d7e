"""`python -m benchmarks.run`: all systems on one broker, interleaved, verified; writes RESULTS.md and results.json."""

import argparse
import contextlib
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException

from benchmarks import clients, report, verify
from benchmarks.job import PARTITIONS, Job
from benchmarks.load import load
from benchmarks.processes import SystemFailedError, run_system
from benchmarks.rivals import environments
from benchmarks.systems import CORE, SYSTEMS

HERE = Path(__file__).parent
HEAP_MB = 1536


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    bootstrap_servers: str
    admin: Any
    folder: Path

    def run(self, name: str, number: int, events: int) -> report.Measurement:
        """One run of one system: fresh group, fresh output topic, own process, then verified."""
        system, run = SYSTEMS[name], f"benchmark.{name}.{number}.{time.time_ns()}"
        job = Job(self.bootstrap_servers, load(self.bootstrap_servers, events), f"{run}.outputs", run, events)
        clients.create_topic(self.admin, job.output_topic, PARTITIONS, message_timestamp_type="LogAppendTime")
        folder = self.folder / run
        folder.mkdir()
        try:
            usage = run_system(
                system.command(job, folder),
                folder / "log",
                lambda: sum(clients.end_offsets(self.admin, job.output_topic, PARTITIONS)),
                events,
                ends_itself=system.ends_itself,
                committed=lambda: self.committed(name, job),
                progress=_Progress(f"round {number} {name}", events),
                stall_s=system.stall_s,
            )
            outputs = verify.read(self.bootstrap_servers, job.output_topic, f"{run}.verify", system.reader())
        except (SystemFailedError, KafkaException, TimeoutError, ValueError) as error:
            return report.Measurement(name, number, events, fault=str(error))
        finally:
            clients.delete_topic(self.admin, job.output_topic)
        return report.Measurement(
            name,
            number,
            events,
            events_per_s=len(outputs.numbers) / outputs.span_s(),
            cpu_s=usage.cpu_s,
            cpu_working_s=usage.cpu_working_s,
            wall_s=usage.wall_s,
            rss_bytes=usage.rss_bytes,
            verdict=str(verify.compare(outputs, events)),
            uncommitted=events - self.committed(name, job),
        )

    def committed(self, name: str, job: Job) -> int:
        """Inputs that a run's group has committed; all of them, for a system that commits to no group."""
        group = SYSTEMS[name].group
        if group is None:
            return job.events
        return clients.committed(self.bootstrap_servers, group(job.group), job.input_topic, PARTITIONS)


class _Progress:
    """A line that counts, on a terminal only."""

    def __init__(self, what: str, events: int) -> None:
        self._what, self._events = what, events

    def __call__(self, done: int) -> None:
        if sys.stdout.isatty():
            print(f"\r{self._what}: {done:,} of {self._events:,}", end="\r" if done >= self._events else "", flush=True)


@contextlib.contextmanager
def broker(bootstrap_servers: str | None) -> Iterator[tuple[str, str]]:
    """Address and description of the broker given, or of an embedded Apache Kafka that lives as long as this."""
    if bootstrap_servers is not None:
        yield bootstrap_servers, "a running broker, given by --bootstrap-servers"
        return
    from pipeline.bus import embedded, jars  # noqa: PLC0415 (Java is needed only where no broker is given)

    kafka = embedded.EmbeddedKafka(port=0, ephemeral=True, heap_mb=HEAP_MB, fast_start=False)
    try:
        address = kafka.start()
        yield address, f"Apache Kafka {jars.KAFKA_VERSION}, one node, {HEAP_MB} MB heap"
    finally:
        kafka.stop()


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--systems", help=f"comma-separated, of {', '.join(SYSTEMS)}; default: all")
    parser.add_argument("--events", type=int, default=1_000_000, help="events a run (slow systems get fewer)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--quick", action="store_true", help=f"{', '.join(CORE)} only, 100,000 events, one round, slow systems 5,000"
    )
    parser.add_argument("--bootstrap-servers", help="a running broker; default: an embedded Kafka")
    parser.add_argument("--output-dir", type=Path, default=HERE, help="where RESULTS.md and results.json go")
    arguments = parser.parse_args(given)
    default = CORE if arguments.quick else tuple(SYSTEMS)
    arguments.systems = arguments.systems.split(",") if arguments.systems is not None else list(default)
    if unknown := set(arguments.systems) - set(SYSTEMS):
        parser.error(f"--systems: no such system: {', '.join(sorted(unknown))}; there are {', '.join(SYSTEMS)}")
    if arguments.quick:
        arguments.events, arguments.rounds = 100_000, 1
    if arguments.events < 1 or arguments.rounds < 1:
        parser.error("--events and --rounds must be at least 1")
    return arguments


def prepare(systems: Sequence[str]) -> dict[str | None, str]:
    """Make the environments that `systems` run in; why those that could not be made are not there, by name."""
    faults: dict[str | None, str] = {}
    for name in dict.fromkeys(SYSTEMS[system].environment for system in systems):
        try:
            if name is not None:
                environments.make(name)
        except environments.EnvironmentFailedError as error:
            faults[name] = str(error)
    return faults


def _events(name: str, events: int, quick: bool) -> int:
    """Events of a run of a system, of the `events` asked for."""
    most = SYSTEMS[name].events_max
    return events if most is None else min(events, 5_000 if quick else most)


def main(given: list[str] | None = None) -> int:
    """Exit code 0 when every run succeeded and every output was right."""
    arguments = _arguments(given)
    command = shlex.join(["python", "-m", "benchmarks.run", *(sys.argv[1:] if given is None else given)])
    measurements: list[report.Measurement] = []
    faults = prepare(arguments.systems)
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        broker(arguments.bootstrap_servers) as (address, kafka),
    ):
        bench, about = Bench(address, clients.make_admin(address), Path(folder)), report.machine(kafka)
        for number in range(1, arguments.rounds + 1):
            for name in arguments.systems:
                events = _events(name, arguments.events, arguments.quick)
                if fault := faults.get(SYSTEMS[name].environment):
                    measurements.append(report.Measurement(name, number, events, fault=fault))
                else:
                    measurements.append(bench.run(name, number, events))
                _show(measurements[-1])
    labels = {name: system.label for name, system in SYSTEMS.items()}
    summaries = report.summarise(measurements)
    print("\n" + report.table(summaries, labels))
    results = report.as_json(measurements, about, command)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    text = report.page(summaries, labels, about, command, arguments.rounds)
    (arguments.output_dir / "RESULTS.md").write_text(text, "utf-8")
    return 0 if all(m.fault is None and m.verdict == "right" for m in measurements) else 1


def _show(m: report.Measurement) -> None:
    if m.fault is not None:
        print(f"round {m.round} {m.system}: FAILED: {m.fault}", flush=True)
        return
    print(
        f"round {m.round} {m.system}: {m.events_per_s / 1000:,.1f}k events/s, "
        f"{m.cpu_s_per_million:.1f} CPU s per million, {m.rss_bytes / 2**20:,.0f} MiB, "
        f"{m.wall_s:.1f} s, {m.verdict}, {m.uncommitted:,} uncommitted",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
