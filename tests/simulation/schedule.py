"""A schedule of faults out of a seed, and what must hold at its end."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from pipeline.bus import commits, consumer, producer, transactions, transport
from pipeline.scoring import flow
from tests.simulation.brokers import Cluster
from tests.simulation.clients import Network
from tests.simulation.virtual import World
from tests.simulation.worker import Worker

PARTITIONS, RECORDS = 3, 60
#: Faults happen within this time; then everything must come to its end by itself.
FAULTS_S, PATIENCE_S = 25.0, 600.0
MODULES = (commits, consumer, producer, transactions, transport, flow)


@contextmanager
def virtual_time(world: World) -> Iterator[None]:
    """Our modules look at the world's clock, and start no threads: no call hangs here."""
    patches = [mock.patch.object(module, "time", world.time) for module in MODULES if hasattr(module, "time")]
    patches.append(mock.patch.object(transactions, "_within", lambda _budget_s, call, *args: call(*args)))
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


def run(seed: int, *, exactly_once: bool = True) -> str | None:
    """What went wrong, or None."""
    world = World(seed)
    with virtual_time(world):
        cluster = Cluster(world, PARTITIONS, RECORDS, FAULTS_S)
        network = Network(world, cluster)
        slots = range(world.random.randint(1, 3))
        workers = [Worker(world, network, slot, exactly_once=exactly_once) for slot in slots]
        _plan(world, network, workers)
        ended = world.run(lambda: world.now > FAULTS_S and cluster.finished(), FAULTS_S + PATIENCE_S)
        for worker in workers:
            worker.kill()
    if world.failures:
        return world.failures[0]
    if not ended:
        return f"never finished: committed {cluster.committed}, transactions {cluster.states()}"
    seen = cluster.seen()
    for partition, offsets in seen.items():
        if exactly_once and offsets != list(range(RECORDS)):
            return f"partition {partition}: {_told(offsets)}"
        if set(offsets) != set(range(RECORDS)):
            return f"partition {partition}: lost {set(range(RECORDS)) - set(offsets)}"
    return None


def _plan(world: World, network: Network, workers: list[Worker]) -> None:
    """Faults at random times; each schedule has its own mixture."""
    rng = world.random
    network.stray, network.lost, network.moved = (rng.choice([0.0, 0.0, 0.1, 0.4]) for _ in range(3))

    def calm() -> None:
        network.stray = network.lost = network.moved = 0.0

    world.at(FAULTS_S, calm)
    for _ in range(rng.randint(0, 8)):
        worker, at = rng.choice(workers), rng.uniform(0, FAULTS_S)
        kind = rng.choice(["kill", "kill", "pause", "stop"])
        if kind == "kill":
            world.at(at, worker.kill)
        elif kind == "pause":
            world.at(at, lambda w=worker: w.pause(rng.choice([0.5, 5.0, 15.0])))
        else:
            world.at(at, worker.stop)
    for worker in workers:
        _supervise(world, worker)


def _supervise(world: World, worker: Worker) -> None:
    """Start it again, some time after it ended."""

    def look() -> None:
        if worker.loop.dead:
            worker.start()
        world.after(world.random.uniform(0.2, 3.0), look)

    world.after(1.0, look)


def _told(offsets: list[int]) -> str:
    """Where offsets are not 0, 1, 2, ..."""
    wrong = [f"{b} after {a}" for a, b in zip([-1, *offsets], offsets, strict=False) if b != a + 1]
    return ", ".join(wrong) or f"ends at {offsets[-1] if offsets else 'nothing'}"
