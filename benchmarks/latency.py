"""`python -m benchmarks.latency`: how long until a read_committed consumer has an event's prediction.

Events go out at a steady rate; from the moment one is handed to its producer until its prediction has reached a
consumer, all on one clock: both run in this process, the worker in its own. Every prediction is checked.
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

#: A handful of events each: what is due by now. Finer ticks cost the machine more than the events do.
TICK_S = 0.002
#: Not counted: joining the group, the first model calls, and a broker that was just started: until its JVM has compiled
#: the way of a transaction, commits take 100 to 300 ms now and then (15 s on two cores).
WARM_UP_S = 20.0
QUANTILES = (0.5, 0.9, 0.99, 0.999)


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


def measure(bootstrap_servers: str, mode: str, rate: int, seconds: float, folder: Path) -> dict[str, Any]:
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
        try:
            sent_s = _send(bootstrap_servers, job_.input_topic, events, rate)
            give_up = time.monotonic() + 60.0
            while latencies.missing() and time.monotonic() < give_up:
                time.sleep(0.1)
        finally:
            worker.terminate()
            worker.wait()
            latencies.stop()
    measured = (latencies.arrived_s - sent_s)[int(rate * WARM_UP_S) :] * 1000
    return {
        "mode": mode,
        "rate": rate,
        "events": len(measured),
        "lost": latencies.missing(),
        "repeated": latencies.repeated,
        **{f"p{100 * q:g}_ms": round(float(np.nanquantile(measured, q)), 1) for q in QUANTILES},
        "max_ms": round(float(np.nanmax(measured)), 1),
    }


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
    parser.add_argument("--modes", default="at_least_once,exactly_once")
    parser.add_argument("--bootstrap-servers", help="a running broker; default: an embedded Kafka")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    arguments = parser.parse_args(given)
    found = []
    with tempfile.TemporaryDirectory(prefix="latency-") as folder, broker(arguments.bootstrap_servers) as (address, _):
        for mode in arguments.modes.split(","):
            found.append(measure(address, mode, arguments.rate, arguments.seconds, Path(folder)))
            print(", ".join(f"{key} {value}" for key, value in found[-1].items()), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0 if all(f["lost"] == 0 and f["repeated"] == 0 for f in found) else 1


if __name__ == "__main__":
    sys.exit(main())
