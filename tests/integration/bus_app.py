"""A real Faust app on `rdkafka://` as a process of its own, steered by the JSON in its first argument.

It copies batches from `source` to `target` (value unchanged, key kept, origin in no way altered) and prints one
JSON line for each thing a test may wait for: ready, batch, committed, fault, stopped. `how` says what the agent does:

    copy    send the batch, acknowledge
    slow    hold each batch for `hold_s` without blocking the loop, then as copy
    block   hold each batch for `hold_s` *blocking* the loop, then as copy
    hang    send the batch, never acknowledge
    raise   raise on the first batch
    plain   `async for batch in stream`: Faust's own acknowledgement

With `hold_batches` only so many batches are held.
"""

import asyncio
import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import faust
import structlog

from pipeline.bus import Configuration, Hooks, batch_topic, configure
from pipeline.bus.clients import ClientOptions
from pipeline.errors import PipelineError


def say(kind: str, **values: Any) -> None:
    sys.stdout.write(json.dumps({"kind": kind, **values}) + "\n")
    sys.stdout.flush()


def make_app(spec: dict[str, Any], fault: Callable[[Exception], None]) -> Any:
    app = faust.App(
        spec["group"],
        broker=f"rdkafka://{spec['servers']}",
        broker_commit_interval=spec.get("commit_interval_s", 0.1),
        stream_recovery_delay=0.0,
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        store="memory://",
        autodiscover=False,
    )
    hooks = Hooks(
        on_fault=fault,
        on_rebalance=lambda kind, n: say("rebalance", what=kind, partitions=n),
        on_commit=lambda outcome: say("commit", outcome=outcome),
    )
    configure(
        app,
        Configuration(
            ClientOptions(spec["servers"], consumer=spec.get("consumer", {}), producer=spec.get("producer", {})),
            hooks,
            poll_records=spec.get("poll_records", 200),
            in_flight_max=spec.get("in_flight_max", 32_768),
            drain_deadline_s=spec.get("drain_deadline_s", 10.0),
        ),
    )
    return app


async def work(app: Any, spec: dict[str, Any], batch: Any) -> None:
    how, hold_s, target = spec.get("how", "copy"), spec.get("hold_s", 0.0), spec.get("target")
    if how == "raise":
        raise PipelineError("the agent raised")
    spec["hold_batches"] = spec.get("hold_batches", 1_000_000) - 1
    held = spec["hold_batches"] >= 0
    if how == "slow" and held:
        await asyncio.sleep(hold_s)
    if how == "block" and held:
        time.sleep(hold_s)  # noqa: ASYNC251 (what a careless agent does)
    if target:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, app.producer.batch.send_batch, target, batch.keys, batch.values)
    say(
        "batch",
        partition=batch.partition,
        first=batch.first_offset,
        next=batch.next_offset,
        n=len(batch),
        in_flight=app.consumer.ledger.in_flight_records,
    )


def add_agent(app: Any, spec: dict[str, Any], fault: Callable[[Exception], None]) -> None:
    @app.agent(batch_topic(app, spec["source"]))
    async def copy(stream: Any) -> None:
        try:
            if spec.get("how") == "plain":
                async for batch in stream:
                    await work(app, spec, batch)
                return
            async for event in stream.noack().events():
                await work(app, spec, event.value)
                if spec.get("how") != "hang":
                    event.ack()
        except PipelineError as error:
            fault(error)
            await asyncio.Event().wait()


async def main(spec: dict[str, Any]) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    faults: list[Any] = []

    def fault(error: Exception) -> None:
        say("fault", error=type(error).__name__, message=str(error))
        faults.append(error)
        if app._consumer is not None:
            app.consumer.abandon()
        loop.call_soon_threadsafe(stop.set)

    app = make_app(spec, fault)
    add_agent(app, spec, fault)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await app.start()
    say("ready")
    ended = asyncio.ensure_future(app.wait_until_stopped())
    await asyncio.wait({asyncio.ensure_future(stop.wait()), ended}, return_when=asyncio.FIRST_COMPLETED)
    if app.crashed:
        fault(app.crash_reason)
    started = time.monotonic()
    await app.stop()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    say("stopped", took_s=time.monotonic() - started, peak_mib=peak_mib)
    return getattr(faults[0], "exit_code", 1) if faults else 0


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    sys.exit(asyncio.run(main(json.loads(sys.argv[1]))))
