"""One role in this process: start it, wait for a signal or a fault, drain within one deadline."""

import asyncio
import gc
import signal
from collections.abc import Sequence
from typing import Any

import structlog

from pipeline import observe, topology
from pipeline.errors import InternalError, PipelineError
from pipeline.settings import Settings

log = structlog.get_logger(__name__)

#: A worker makes millions of short-lived objects and hardly a cycle. Left to itself the collector runs at every
#: few hundred of them: 200k events/s became 325k without it (`make bench`). So it runs by the clock, on what is
#: not there from the start: some milliseconds each time.
COLLECT_EVERY_S = 10.0
#: On top of the shutdown deadline, to which drain, flush and commit keep by themselves: closing of connections.
CLOSE_GRACE_S = 5.0


async def run_role(settings: Settings, name: str, slot: int = 1, flags: Sequence[str] = ()) -> PipelineError | None:
    """Run a role until SIGTERM, SIGINT or a fault; the fault, or None after a clean stop.

    1. Serve health and metrics, so that a slow start can be watched.
    2. Build: verify and load everything that can be wrong, before joining the group.
    3. Start the app; wait for a signal, a fault, or the app's own end.
    4. Stop: drain, flush, commit and leave the group within one deadline.
    """
    metrics = observe.Metrics()
    role = topology.Role(settings, name, slot, metrics, list(flags))
    stop = _stop_on_signals()
    server = None
    if settings.observe.enabled:
        port = settings.observe.port_of(name, slot)
        server = observe.ObserveServer(
            metrics, settings.observe.host, port, live=lambda: not role.fault.done(), ready=role.ready
        )
        server.start()
        log.info("metrics", url=f"http://{settings.observe.host}:{server.port}/metrics")
    try:
        building = asyncio.ensure_future(topology.build(role))
        await asyncio.wait({building, asyncio.ensure_future(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
        if not building.done():
            building.cancel()
            return None
        building.result()
        return await _run_app(role, stop)
    except PipelineError as error:
        return error
    finally:
        for close in role.closers:
            close()
        if server is not None:
            server.stop()


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _run_app(role: topology.Role, stop: asyncio.Event) -> PipelineError | None:
    app = role.app
    collecting = asyncio.ensure_future(_collect_by_the_clock())
    await app.start()
    role.agents_ready = True
    role.metrics.ready(True)
    log.info("running", group=role.settings.group(role.name))
    waits = [asyncio.ensure_future(w) for w in (stop.wait(), _wait(role.fault), app.wait_until_stopped())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    if app.crashed and not role.fault.done():
        role.fail(app.crash_reason or InternalError("the Faust app crashed without a reason. This is a bug."))
    if not role.fault.done():
        log.info("stopping: draining what is in flight", deadline_s=role.settings.delivery.shutdown_deadline_s)
    role.metrics.ready(False)
    app.transport.start_deadline()
    deadline_s = role.settings.delivery.shutdown_deadline_s
    _, late = await asyncio.wait({asyncio.ensure_future(app.stop())}, timeout=deadline_s + CLOSE_GRACE_S)
    if late:
        log.error("the app did not stop in time")
    for wait in (*waits, collecting):
        wait.cancel()
    return role.fault.result() if role.fault.done() else None


async def _collect_by_the_clock() -> None:
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        await asyncio.sleep(COLLECT_EVERY_S)
        gc.collect()


async def _wait(future: "asyncio.Future[Any]") -> None:
    await asyncio.shield(future)
