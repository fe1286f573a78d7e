"""`python -m benchmarks.latency`: how long until a read_committed consumer has an event's prediction.

Events go out at a steady rate; from the moment one is handed to its producer until its prediction has reached a
consumer, all on one clock: both run in this process, the worker in its own. Every prediction is checked.
With --swap another model is released every SWAP_EVERY_S, and p99 is told of the SWAP_S from each release on, of all
swaps together, and of the time between them.
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
from pipeline.models import fetching, releases
from pipeline.settings import load

#: A handful of events each: what is due by now. Finer ticks cost the machine more than the events do.
TICK_S = 0.002
#: Not counted: joining the group, the first model calls, and a broker that was just started: until its JVM has compiled
#: the way of a transaction, commits take 100 to 300 ms now and then (15 s on two cores).
WARM_UP_S = 20.0
QUANTILES = (0.5, 0.9, 0.99, 0.999)
#: From the release on: fetching, loading, warming up and swapping take about one second of it.
SWAP_S = 3.0
#: One swap alone is at the mercy of what else the machine does in its seconds; of several, and as much time between.
SWAP_EVERY_S = 8.0


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
        release = _Releases(folder / name, max(1, int(seconds / SWAP_EVERY_S))) if swap else None
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


class _Releases:
    """Releases other versions of the model, one after the other, from a thread of this process."""

    def __init__(self, project: Path, swaps: int) -> None:
        self._project, self._swaps, self.at_s = project, swaps, list[float]()
        self._thread = threading.Thread(target=self._release, daemon=True)
        self._thread.start()

    def _release(self) -> None:
        began = time.monotonic()
        settings = load(self._project / "pipeline.toml", environment={})
        log = releasing.open_releases(settings)
        successors = [ours.bundle(version=f"{job.MODEL_VERSION}.{number}") for number in range(self._swaps)]
        models = [fetching.publish(made, settings.releases.store, settings.root) for made in successors]
        for number, model in enumerate(models):
            decision = releasing.decide(settings, "benchmark", "swap")
            time.sleep(max(0.0, began + WARM_UP_S + (number + 0.5) * SWAP_EVERY_S - time.monotonic()))
            self.at_s.append(time.monotonic())
            log.change(decision, lambda state, model=model, decision=decision: releases.release(state, model, decision))  # type: ignore[misc]

    def told(self, sent_s: npt.NDArray[np.float64], latencies_ms: npt.NDArray[np.float64], log: Path) -> dict[str, Any]:
        """p99 in the swaps and between them. Raises RuntimeError if one did not come about."""
        self._thread.join()
        if log.read_text("utf-8").count('"event": "in service"') < 1 + self._swaps:
            raise RuntimeError(f"no swap: {log.read_text('utf-8')[-2000:]}")
        swapping = np.any([(sent_s >= at) & (sent_s < at + SWAP_S) for at in self.at_s], axis=0)
        p99 = {
            "between": float(np.nanquantile(latencies_ms[~swapping], 0.99)),
            "swap": float(np.nanquantile(latencies_ms[swapping], 0.99)),
        }
        told = {f"p99_{part}_ms": round(value, 1) for part, value in p99.items()}
        return {"swaps": self._swaps, **told, "p99_swap_to_between": round(p99["swap"] / p99["between"], 2)}


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
    parser.add_argument("--swap", action="store_true", help="release another model every few seconds")
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
