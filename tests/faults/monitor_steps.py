"""`pipeline` with a fault in the drift monitor: `python -m tests.faults.monitor_steps FAULT STEP ARGUMENTS...`.

When its monitor gets to STEP the process sends itself the signal FAULT (SIGKILL, SIGSTOP), or aborts the open
transaction, once. With the step "none" it is the pipeline itself.
"""

import os
import signal
import sys
from typing import Any

import confluent_kafka

from pipeline import cli
from pipeline.bus import clients
from pipeline.bus.transactions import TransactionalProducer
from pipeline.drift.monitor import DriftMonitor
from pipeline.drift.station import MonitorStation

#: In the order of the way from a summary to a saved state; all but the first and the last happen with a trigger
#: in work, "produced" with its record on the broker and the transaction open.
STEPS = ("taken", "raised", "sent", "produced", "offsets sent", "committed", "kept")


class Steps:
    """Knows what happens at which step, and whether a trigger was raised."""

    def __init__(self, fault: str, at: str) -> None:
        assert at in (*STEPS, "none"), at
        self._fault, self._at = fault, at
        self.raised = False

    def reached(self, step: str, producer: Any = None) -> None:
        """Have the fault, if this is its step and its first time."""
        if step != self._at or not (self.raised or step in ("taken", "kept")):
            return
        self._at = "none"
        if self._fault == "abort":
            producer.abort_transaction()
        else:
            os.kill(os.getpid(), signal.Signals[self._fault])


def install(steps: Steps) -> None:
    """Wrap each step's last call."""

    class Producer(confluent_kafka.Producer):
        def send_offsets_to_transaction(self, *args: Any) -> Any:
            super().send_offsets_to_transaction(*args)
            steps.reached("offsets sent", self)

        def commit_transaction(self, *args: Any) -> Any:
            super().commit_transaction(*args)
            steps.reached("committed")

    clients.Producer = Producer  # type: ignore[misc]
    station_take, monitor_take, keep = MonitorStation.take, DriftMonitor.take, MonitorStation.keep
    send = TransactionalProducer.send

    async def taking(self: Any, *args: Any) -> None:
        if self.events_seen:  # not the first: there is something to lose
            steps.reached("taken")
        await station_take(self, *args)

    def raising(self: Any, *args: Any) -> Any:
        trigger = monitor_take(self, *args)
        if trigger is not None:
            steps.raised = True
            steps.reached("raised")
        return trigger

    def sending(self: Any, *args: Any) -> None:
        send(self, *args)
        steps.reached("sent")
        if steps.raised and not self._producer.flush(10.0):
            steps.reached("produced")

    def keeping(self: Any) -> Any:
        published = keep(self)
        steps.reached("kept")
        return published

    MonitorStation.take, DriftMonitor.take, MonitorStation.keep = taking, raising, keeping  # type: ignore[method-assign]
    TransactionalProducer.send = sending  # type: ignore[method-assign]


if __name__ == "__main__":
    install(Steps(sys.argv.pop(1), sys.argv.pop(1)))
    cli.main()
