"""Virtual time: event loops, blocking calls and brokers' events in one order that a seed decides.

Each simulated process has a loop of its own (so that it can be paused or killed as a whole) and runs what it
would run on threads as fibers: greenlets that give way where the real call would block. Nothing waits for real.
"""

import asyncio
import contextvars
import heapq
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import greenlet


class World:
    """The clock, the seed, and everything that will happen."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.failures: list[str] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self.loops: list[Loop] = []

    def next_number(self) -> int:
        """Breaks ties between what is due at the same time: first come, first served."""
        self._sequence += 1
        return self._sequence

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Something that happens outside all processes: in the network, on a broker."""
        heapq.heappush(self._events, (when, self.next_number(), event))

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        """`at`, from now."""
        self.at(self.now + seconds, event)

    def jitter(self, up_to_s: float) -> float:
        """Mostly short, now and then up to `up_to_s`."""
        return up_to_s * self.random.random() ** 4

    def run(self, done: Callable[[], bool], limit_s: float) -> bool:
        """Let things happen in the order of their times until `done()`; False at the limit or with nothing left."""
        while not done():
            due: list[tuple[float, int, Any]] = []
            if self._events:
                due.append((*self._events[0][:2], None))
            due += [(*key, loop) for loop in self.loops if (key := loop.next_due()) is not None]
            if not due:
                return False
            when, _, loop = min(due, key=lambda entry: entry[:2])
            if when > limit_s:
                return False
            self.now = max(self.now, when)
            if loop is None:
                heapq.heappop(self._events)[2]()
            else:
                loop.step()
            if self.failures:
                return False
        return True

    @property
    def time(self) -> Any:
        """In the place of the module `time`."""
        clock = lambda: self.now  # noqa: E731 (one clock under its four names)
        return SimpleNamespace(monotonic=clock, time=clock, perf_counter=clock, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        """Block the calling fiber."""
        fiber = greenlet.getcurrent()
        assert isinstance(fiber, Fiber), "only what runs on a thread may block"
        fiber.loop.call_later(seconds, fiber.switch)
        fiber.parent.switch()


class Fiber(greenlet.greenlet):
    """What a thread of a process would be."""

    def __init__(self, loop: "Loop", body: Callable[[], None]) -> None:
        super().__init__(body)
        self.loop = loop


class Loop(asyncio.AbstractEventLoop):
    """An event loop that `World.run` steps."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._handles: list[tuple[float, int, asyncio.Handle]] = []
        #: Not before: set while its process is paused.
        self.resumes_at = 0.0
        self.dead = False
        world.loops.append(self)

    def kill(self) -> None:
        """Nothing of this process ever runs again."""
        self.dead = True
        self._handles.clear()
        self.world.loops.remove(self)

    def next_due(self) -> tuple[float, int] | None:
        """When the next callback is due, and its number."""
        while self._handles and self._handles[0][2].cancelled():
            heapq.heappop(self._handles)
        if not self._handles:
            return None
        when, number, _ = self._handles[0]
        return max(when, self.resumes_at), number

    def step(self) -> None:
        """Run what is due next."""
        _, _, handle = heapq.heappop(self._handles)
        asyncio._set_running_loop(self)
        try:
            handle._run()
        finally:
            asyncio._set_running_loop(None)

    # -- what asyncio and our code call ----------------------------------------------------

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self.dead:
            heapq.heappush(self._handles, (when, self.world.next_number(), handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.world.now + delay, callback, *args, context=context)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        return self.call_at(self.world.now, callback, *args, context=context)

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]
        """Run `func` in a fiber, beginning and ending a little later."""
        future = self.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def body() -> None:
            try:
                result = func(*args)
            except BaseException as error:  # noqa: BLE001 (belongs to whoever awaits)
                self.call_soon(settle, None, error)
            else:
                self.call_soon(settle, result, None)

        self.call_later(self.world.jitter(0.002), Fiber(self, body).switch)
        return future

    def time(self) -> float:
        return self.world.now

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> "asyncio.Task[Any]":
        return asyncio.Task(coro, loop=self, name=name, context=context or contextvars.copy_context())

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.dead:  # else: a task of a killed process is collected
            self.world.failures.append(f"{context.get('message')}: {context.get('exception')!r}")

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self.dead

    def is_closed(self) -> bool:
        return self.dead

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass
