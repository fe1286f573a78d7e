"""`python -m tests.faults.crashing STEP ARGUMENTS`: the command `pipeline ARGUMENTS`, killed at a step of its work.

The passage of STEP that its table names (see STEPS) sends SIGKILL to the process: nothing is flushed, closed or said
any more, but for one line on standard error. The code of the pipeline is wrapped where it lives and otherwise
unchanged; the producer of librdkafka, a C type, is watched where the pipeline makes it.
"""

import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Never

from confluent_kafka import KafkaError, KafkaException

FLOW_OUT = "pipeline.scoring.publish:Publisher"
COMMITS = "pipeline.bus.commits:Commits"
POLLER = "pipeline.bus.poller:Poller"
LEDGER = "pipeline.bus.ledger:Ledger.committed"
CLIENT = "tests.faults.crashing:Client"
#: What a broker answers that has thrown this member out of its group: the transaction must be aborted.
ABORT = KafkaError(KafkaError.ILLEGAL_GENERATION, "said by the test", txn_requires_abort=True)
#: What librdkafka answers when the broker did not in time: the call is made again, and the producer replaced after.
RETRY = KafkaError(KafkaError._TIMED_OUT, "said by the test", retriable=True)


@dataclass(frozen=True)
class Step:
    """A place to die: before or after a function or method."""

    when: Literal["before", "after"]
    target: str
    #: Only while this one is running.
    within: str | None = None
    #: Client's method that fails once, at its third call, and how: this step is on the way out of a failure.
    failing: str | None = None
    error: KafkaError | None = None
    #: What is passed all the time is passed twice unharmed: the crash is in the middle of work.
    passage: int = 3


def around(target: str, **more: Any) -> dict[str, Step]:
    """The step before `target` and the one after."""
    name = target.rpartition(".")[2].strip("_").replace("_", " ")
    return {f"{when} {name}": Step(when, target, **more) for when in ("before", "after")}


def _named(prefix: str, steps: dict[str, Step]) -> dict[str, Step]:
    return {f"{prefix}{name}": step for name, step in steps.items()}


ONCE: dict[str, Any] = {"passage": 1}
ABORTING: dict[str, Any] = {"failing": "send_offsets_to_transaction", "error": ABORT, **ONCE}
DRAIN = f"{COMMITS}.wait_empty"

BOTH_MODES: dict[str, Step] = {
    **around(f"{FLOW_OUT}.predictions"),
    "after bookkeeping": Step("after", LEDGER),
    "in the drain, before bookkeeping": Step("before", LEDGER, within=DRAIN, passage=1),
}
AT_LEAST_ONCE: dict[str, Step] = {
    **BOTH_MODES,
    "before bookkeeping": Step("before", LEDGER),
    **around("pipeline.bus.producer:BatchProducer.flush"),
    "before committing offsets": Step("before", f"{COMMITS}._commit"),
    "in the drain, before committing offsets": Step("before", f"{COMMITS}._commit", within=DRAIN, passage=1),
}
EXACTLY_ONCE: dict[str, Step] = {
    **BOTH_MODES,
    **around(f"{CLIENT}.init_transactions", **ONCE),
    "after begin transaction": Step("after", f"{CLIENT}.begin_transaction"),
    **around(f"{CLIENT}.send_offsets_to_transaction"),
    **around(f"{CLIENT}.commit_transaction"),  # after it: before the bookkeeping
    **around(f"{CLIENT}.abort_transaction", **ABORTING),
    "in the replay, before seeking": Step("before", f"{COMMITS}._restart_from", f"{COMMITS}._replay", **ABORTING),
    "in the replay, after seeking": Step("after", f"{COMMITS}._restart_from", f"{COMMITS}._replay", **ABORTING),
    **_named(
        "in a replacement, ",
        around(
            f"{CLIENT}.init_transactions",
            within="pipeline.bus.transactions:TransactionalProducer._renew",
            failing="commit_transaction",
            error=RETRY,
            **ONCE,
        ),
    ),
    "in the drain, before commit transaction": Step("before", f"{CLIENT}.commit_transaction", within=DRAIN, passage=1),
}
REVOKE: dict[str, Step] = {
    "before the revoke handler": Step("before", f"{POLLER}._revoked", **ONCE),
    "in the revoke handler, after the drain": Step("after", f"{POLLER}._wait_for_owner", f"{POLLER}._revoked", **ONCE),
}
JOURNAL = "pipeline.bus.journal:Journal"
#: Of a change of the releases, one at a time: each is in a process of its own.
RELEASE: dict[str, Step] = _named(
    "in a change, ",
    {
        **around(f"{CLIENT}.init_transactions", within=f"{JOURNAL}.change", **ONCE),
        **around(f"{JOURNAL}._read_all", within=f"{JOURNAL}.change", **ONCE),
        "after begin transaction": Step("after", f"{CLIENT}.begin_transaction", **ONCE),
        **{
            f"after record {number}": Step(
                "after", "pipeline.bus.transactions:TransactionalProducer.send", passage=number
            )
            for number in (1, 2, 3)
        },
        "after flush": Step("after", "pipeline.bus.producer:BatchProducer._unacknowledged", **ONCE),
        **around(f"{CLIENT}.commit_transaction", **ONCE),
        "after change": Step("after", f"{JOURNAL}.change", **ONCE),
    },
)
SUCCESSION = "pipeline.topology.succession:Succession"
#: What a trigger leads to, in this order: each process goes on where the one before was killed.
SUCCESSIONS: dict[str, Step] = _named(
    "in a succession, ",
    {
        **around(f"{SUCCESSION}._train", **ONCE),
        "before release": Step("before", f"{SUCCESSION}._release", **ONCE),
        "before the change": Step("before", f"{JOURNAL}.change", f"{SUCCESSION}._release", **ONCE),
        "before the change's commit": Step("before", f"{CLIENT}.commit_transaction", f"{SUCCESSION}._release", **ONCE),
        # Not after `commit_transaction`: the role's own producer commits beside it.
        "after the change's commit": Step("after", f"{JOURNAL}._write", f"{SUCCESSION}._release", **ONCE),
        "after release": Step("after", f"{SUCCESSION}._release", **ONCE),
        "before the report's commit": Step("before", f"{CLIENT}.commit_transaction", **ONCE),
        "after the report's commit": Step("after", f"{CLIENT}.commit_transaction", **ONCE),
    },
)
ERRORS = "pipeline.drift.error_station:ErrorStation"
#: What a rise of errors leads to, in this order; the first commit has it in it.
ERROR_TRIGGER: dict[str, Step] = _named(
    "with a rise of errors, ",
    {
        "after the record": Step("after", "pipeline.bus.transactions:TransactionalProducer.send", **ONCE),
        "after writing ahead": Step("after", f"{ERRORS}._write", within=f"{ERRORS}.send", **ONCE),
        **around(f"{CLIENT}.commit_transaction", **ONCE),
    },
)
STEPS = {**AT_LEAST_ONCE, **EXACTLY_ONCE, **REVOKE, **RELEASE, **SUCCESSIONS, **ERROR_TRIGGER}


class Client:
    """librdkafka's producer, with the calls of a transaction as methods that can be wrapped."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def __len__(self) -> int:
        return len(self._producer)

    def init_transactions(self, *arguments: Any) -> None:
        self._producer.init_transactions(*arguments)

    def begin_transaction(self) -> None:
        self._producer.begin_transaction()

    def send_offsets_to_transaction(self, *arguments: Any) -> None:
        self._producer.send_offsets_to_transaction(*arguments)

    def commit_transaction(self, *arguments: Any) -> None:
        self._producer.commit_transaction(*arguments)

    def abort_transaction(self, *arguments: Any) -> None:
        self._producer.abort_transaction(*arguments)


class CrashPoint:
    """Kills this process the last time it may be reached while its surroundings run."""

    def __init__(self, name: str) -> None:
        self._name, self._left = name, STEPS[name].passage
        self._running = 0
        self._everywhere = STEPS[name].within is None

    def enter(self) -> None:
        """The surroundings begin."""
        self._running += 1

    def leave(self) -> None:
        """The surroundings end."""
        self._running -= 1

    def reach(self) -> None:
        """The step."""
        if self._everywhere or self._running:
            self._left -= 1
            if self._left == 0:
                os.write(2, f"killed at {self._name}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)


def nothing() -> None:
    """Do nothing."""


def wrap(
    target: str,
    before: Callable[[], None] = nothing,
    after: Callable[[], None] = nothing,
    at_last: Callable[[], None] = nothing,
) -> None:
    """Have these called around the method `target`, "module:Class.method": `at_last` after an error too."""
    module, _, path = target.partition(":")
    owner, _, method = path.partition(".")
    holder = getattr(importlib.import_module(module), owner)
    original = getattr(holder, method)

    async def later(*arguments: Any, **named: Any) -> Any:
        before()
        try:
            result = await original(*arguments, **named)
            after()
            return result
        finally:
            at_last()

    def now(*arguments: Any, **named: Any) -> Any:
        before()
        try:
            result = original(*arguments, **named)
            after()
            return result
        finally:
            at_last()

    setattr(holder, method, later if inspect.iscoroutinefunction(original) else now)


def watch_producers() -> None:
    """Every producer that the pipeline makes from now on is a Client."""
    from pipeline.bus.producer import BatchProducer

    make = BatchProducer._make
    BatchProducer._make = lambda self: Client(make(self))  # type: ignore[method-assign, assignment, return-value]


def fail_once(method: str, error: KafkaError) -> None:
    """Client's `method` raises `error` instead of its third call."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KafkaException(error)

    wrap(f"{CLIENT}.{method}", before=count)


def main(name: str, arguments: list[str]) -> Never:
    """Run the command with one crash point."""
    step, point = STEPS[name], CrashPoint(name)
    watch_producers()
    if step.failing is not None and step.error is not None:
        fail_once(step.failing, step.error)
    if step.within is not None:
        wrap(step.within, point.enter, at_last=point.leave)
    wrap(step.target, **{step.when: point.reach})
    from pipeline import cli

    sys.argv[1:] = arguments
    cli.main()
    sys.exit("the command line returned")


if __name__ == "__main__":
    # Not as __main__: wrapped methods must be those of the module that STEPS names.
    from tests.faults import crashing

    crashing.main(sys.argv[1], sys.argv[2:])
