"""The commit path over thousands of schedules of crash, pause, rebalance, late and lost requests, in virtual time.

A failing seed replays: `pytest tests/property/test_simulation.py --seed 1234`.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from unittest import mock

import pytest
import structlog

from pipeline.bus.commits import Commits
from pipeline.bus.consumer import Consumer
from pipeline.bus.ledger import Ledger
from pipeline.bus.transactions import TransactionalProducer
from pipeline.scoring.flow import Flow
from tests.simulation import schedule
from tests.simulation.brokers import Cluster

pytestmark = [pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore::RuntimeWarning")]

#: About 40 a second on an idle core, 10 while coverage is measured; what `make matrix` adds to them.
SEEDS, SEEDS_MORE = 200, 4_300
#: A defence that is missing shows within these; most within the first twenty.
SEEDS_WITHOUT = 400


@pytest.fixture(autouse=True)
def silent() -> None:
    """Schedules say more than a terminal holds; a single one (--seed) is for reading."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@pytest.mark.case("F41")
@pytest.mark.parametrize("mode", ["exactly_once", "at_least_once"])
def test_schedules_of_faults(mode: str, counted: Callable[..., None], request: pytest.FixtureRequest) -> None:
    """exactly_once: one visible output of each input, in order. Either mode: none lost, all committed, none open."""
    given = request.config.getoption("--seed")
    seeds = range(SEEDS if mode == "exactly_once" else SEEDS // 2) if given is None else [given]
    if given is not None:
        structlog.reset_defaults()
    _run(seeds, mode, counted)


@pytest.mark.long
@pytest.mark.case("F41")
def test_thousands_of_schedules(counted: Callable[..., None]) -> None:
    """The same, further on."""
    _run(range(SEEDS, SEEDS + SEEDS_MORE), "exactly_once", counted)


def _run(seeds: Sequence[int], mode: str, counted: Callable[..., None]) -> None:
    failed = {seed: fault for seed in seeds if (fault := schedule.run(seed, exactly_once=mode == "exactly_once"))}
    counted(mode=mode, schedules=len(seeds), failed=len(failed))
    assert not failed


def _offsets_of_what_was_fetched(self: Ledger) -> dict[Any, int]:
    """As consumer.position() would have it."""
    return {tp: p.ranges[-1].batch.next_offset for tp, p in self._partitions.items() if p.ranges}


@asynccontextmanager
async def _no_guard(_self: Flow) -> Any:
    yield


def _let_go(self: Consumer, partitions: set[Any]) -> None:
    self.ledger.revoke(partitions)


async def _replay_without_reading_again(self: Commits) -> None:
    self._tainted = False


_NEVER = property(lambda _self: None, lambda _self, _why: None)

WITHOUT: dict[str, tuple[Any, str, Any]] = {
    "the ledger's offsets": (Ledger, "committable", _offsets_of_what_was_fetched),
    "a step and a commit kept apart": (Flow, "between_steps", _no_guard),
    "an abort when partitions go with work undone": (Consumer, "_let_go", _let_go),
    "reading again after an abort": (Commits, "_replay", _replay_without_reading_again),
    "calling back what an abort made void": (Commits, "is_current", lambda _self, _message: True),
    "a new producer after a commit sent twice": (
        TransactionalProducer,
        "_renew_because",
        property(lambda _: None, lambda *_: None),
    ),
    "the group's fence": (Cluster, "member_fault", lambda *_: 0),
}


@pytest.mark.parametrize("defence", WITHOUT)
def test_each_defence_is_needed(defence: str) -> None:
    """Without any one of the defences some schedule repeats or loses: the simulation can fail."""
    owner, name, replacement = WITHOUT[defence]
    with mock.patch.object(owner, name, replacement, create=True):
        assert any(schedule.run(seed) for seed in range(SEEDS_WITHOUT))
