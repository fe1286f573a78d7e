"""The load: a process that sends as many events as its standard input allows.

Each line in is the number of events that may have been sent by now; each line out says how many were. The end of
the input ends the process once everything is acknowledged. Nothing here knows of rates: who grants decides.
"""

import json
import sys
import threading
import time

from benchmarks import clients
from tests.soak.stream import POOL_EVENTS, Pool

CHUNK = 1_000
IDLE_S = 0.005
REPORT_EVERY_S = 0.5


class Allowance:
    """How many events may have been sent by now, as read from standard input."""

    def __init__(self) -> None:
        self.events = 0
        self.ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self.events = int(line)
        self.ended = True


def main(bootstrap_servers: str, topic: str) -> None:
    """Send until the input ends."""
    pool, sender, allowance = Pool.make(1), clients.Sender(bootstrap_servers), Allowance()
    keys = pool.keys.tolist()
    sent, reported_at = 0, 0.0
    while not allowance.ended:
        if time.monotonic() - reported_at > REPORT_EVERY_S:
            _say(sent=sent)
            reported_at = time.monotonic()
        at = sent % POOL_EVENTS
        size = min(CHUNK, allowance.events - sent, POOL_EVENTS - at)
        if size <= 0:
            time.sleep(IDLE_S)
            continue
        sender.send(topic, pool.values[at : at + size], keys[at : at + size])
        sent += size
    sender.flush(timeout_s=120.0)
    _say(sent=sent, acknowledged=True)


def _say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
