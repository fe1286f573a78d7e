"""`python -m benchmarks.latency`: how long until a read_committed consumer has an event's prediction.

Events go out at a steady rate; from the moment one is handed to its producer until its prediction has reached a
consumer, all on one clock: both run in this process, the worker in its own. Every prediction is checked.
With --swap another model is released half-way, and p99 is told of before, of the swap's SWAP_S, and of after.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import clients, job, ours, verify
from benchmarks.run import broker
from pipeline.cli import releasing
from pipeline.models import bundle as bundles
from pipeline.models import fetching, releases
from pipeline.settings import load

#: A handful of events each: what is due by now. Finer ticks cost the machine more than the events do.
TICK_S = 0.002
#: Not counted: joining the group, the first model calls, and a broker that was just started: until its JVM has compiled
#: the way of a transaction, commits take 100 to 300 ms now and then (15 s on two cores).
WARM_UP_S = 20.0
QUANTILES = (0.5, 0.9, 0.99, 0.999)
#: From the release on: fetching, loading, warming up and swapping take about one second of it.
SWAP_S = 5.0


class _Latencies:
    """Arrival of each prediction, by the number of its event."""

    def __init__(self, bootstrap_servers: str, topic: str, events: int) -> None:
        self.arrived_s = np.full(events, np.nan)
        self.repeated = 0
        self._reader = verify.read_predictions(ours.prediction_schema())
        self._consumer = clients.make_consumer(bootstrap_servers, f"{topic}.latency")
        self._consumer.subscribe([topic])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def missing(self) -> int:
        """Events without a prediction so far."""
        return int(np.isnan(self.arrived_s).sum())

    def stop(self) -> None:
        """End the consumer."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            messages = self._consumer.consume(1, 0.1) + self._consumer.consume(clients.CONSUME_MAX, 0)
            now = time.monotonic()
            good = [message.value() for message in messages if message.error() is None]
            if good:
                numbers = verify.event_numbers(self._reader(good)[0])
                self.repeated += int((~np.isnan(self.arrived_s[numbers])).sum())
                self.arrived_s[numbers] = now
        self._consumer.close()


def measure(
    bootstrap_servers: str, mode: str, rate: int, seconds: float, folder: Path, *, swap: bool = False
) -> dict[str, Any]:
    """One worker in `mode` under `rate` events/s for `seconds` after the warm-up; latencies in milliseconds."""
    name = f"latency.{mode}.{time.time_ns()}"
    job_ = job.Job(bootstrap_servers, f"{name}.events", f"{name}.predictions", name, 0)
    admin = clients.make_admin(bootstrap_servers)
    clients.create_topic(admin, job_.input_topic, job.PARTITIONS)
    clients.create_topic(admin, job_.output_topic, job.PARTITIONS)
    events = int(rate * (WARM_UP_S + seconds))
    latencies = _Latencies(bootstrap_servers, job_.output_topic, events)
    with (folder / f"{name}.log").open("wb") as log:
        worker = subprocess.Popen(
            ours.command(job_, folder / name, {"delivery.mode": mode}), stdout=log, stderr=subprocess.STDOUT
        )
        release = _Release(folder / name, WARM_UP_S + seconds / 2) if swap else None
        try:
            sent_s = _send(bootstrap_servers, job_.input_topic, events, rate)
            give_up = time.monotonic() + 60.0
            while latencies.missing() and time.monotonic() < give_up:
                time.sleep(0.1)
        finally:
            worker.terminate()
            worker.wait()
            latencies.stop()
    first = int(rate * WARM_UP_S)
    measured = (latencies.arrived_s - sent_s)[first:] * 1000
    swapped = release.told(sent_s[first:], measured, folder / f"{name}.log") if release else {}
    return {
        "mode": mode,
        "rate": rate,
        "events": len(measured),
        "lost": latencies.missing(),
        "repeated": latencies.repeated,
        **{f"p{100 * q:g}_ms": round(float(np.nanquantile(measured, q)), 1) for q in QUANTILES},
        "max_ms": round(float(np.nanmax(measured)), 1),
        **swapped,
    }


class _Release:
    """Releases another version of the model after some seconds, from a thread of this process."""

    VERSION = "2"

    def __init__(self, project: Path, after_s: float) -> None:
        self._project, self.at_s = project, np.inf
        self._timer = threading.Timer(after_s, self._release)
        self._timer.daemon = True
        self._timer.start()

    def _release(self) -> None:
        settings = load(self._project / "pipeline.toml", environment={})
        packed = ours.bundle()
        successor = bundles.make(
            model_id=packed.model_id,
            model_version=self.VERSION,
            architecture=packed.architecture,
            contract=packed.contract,
            weights=packed.weights,
            baseline=packed.baseline,
        )
        model = fetching.publish(successor, settings.releases.store, settings.root)
        decision = releasing.decide(settings, "benchmark", "swap")
        self.at_s = time.monotonic()
        releasing.open_releases(settings).change(decision, lambda state: releases.release(state, model, decision))

    def told(self, sent_s: npt.NDArray[np.float64], latencies_ms: npt.NDArray[np.float64], log: Path) -> dict[str, Any]:
        """p99 before, in and after the swap. Raises RuntimeError if there was none."""
        self._timer.join()
        if f'"version": "{self.VERSION}"' not in log.read_text("utf-8"):
            raise RuntimeError(f"no swap: {log.read_text('utf-8')[-2000:]}")
        parts = {
            "before": sent_s < self.at_s,
            "swap": (sent_s >= self.at_s) & (sent_s < self.at_s + SWAP_S),
            "after": sent_s >= self.at_s + SWAP_S,
        }
        p99 = {part: float(np.nanquantile(latencies_ms[rows], 0.99)) for part, rows in parts.items()}
        told = {f"p99_{part}_ms": round(value, 1) for part, value in p99.items()}
        return {**told, "p99_swap_to_before": round(p99["swap"] / p99["before"], 2)}


def _send(bootstrap_servers: str, topic: str, events: int, rate: int) -> npt.NDArray[np.float64]:
    """Send events 0..events-1 evenly; when each was handed over, (events,) seconds."""
    values, keys = job.encode_events(events), job.keys(events).tolist()
    sender, sent_s, done = clients.Sender(bootstrap_servers), np.zeros(events), 0
    began = time.monotonic()
    while done < events:
        due = min(events, int((time.monotonic() - began) * rate))
        if due > done:
            sent_s[done:due] = time.monotonic()
            sender.send(topic, values[done:due], keys[done:due])
            done = due
        time.sleep(TICK_S)
    sender.flush()
    return sent_s


def main(given: list[str] | None = None) -> int:
    """Exit code 0 when every event had its prediction, once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--rate", type=int, default=2_000, help="events a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measurement, after the warm-up")
    parser.add_argument("--swap", action="store_true", help="release another model half-way")
    parser.add_argument("--modes", default="at_least_once,exactly_once")
    parser.add_argument("--bootstrap-servers", help="a running broker; default: an embedded Kafka")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args(given)
    found = []
    with tempfile.TemporaryDirectory(prefix="latency-") as folder, broker(arguments.bootstrap_servers) as (address, _):
        for mode in arguments.modes.split(","):
            found.append(measure(address, mode, arguments.rate, arguments.seconds, Path(folder), swap=arguments.swap))
            print(", ".join(f"{key} {value}" for key, value in found[-1].items()), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0 if all(f["lost"] == 0 and f["repeated"] == 0 for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
