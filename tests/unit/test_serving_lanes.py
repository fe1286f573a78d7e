"""Several models in service: whose an event is, what a failing one costs, and what is added up when one is replaced."""

import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Longs, ModelIdentity, ModelRole
from pipeline.scoring.lane import Lane, Rows
from pipeline.scoring.serving import Served, canary_rows, mixed
from pipeline.scoring.validate import Validator
from pipeline.testing import ScriptedModel, ScriptedSource, record_batch
from tests.unit.test_flow import CONTRACT, RecordingSummariser, Setup


@pytest.fixture
def setup(tmp_path: Path) -> Callable[..., Setup]:
    return lambda **settings: Setup(tmp_path / "registry", **settings)


def lane(s: Setup, role: ModelRole, version: str = "2", summariser: Any = None, **model: Any) -> Lane:
    """Another model in the same flow; model: how its scripted one fails."""
    scripted = ScriptedModel(CONTRACT, identity=ModelIdentity("scripted", version), **model)
    validator = Validator(CONTRACT, id_field="id", time_field="at")
    return Lane(scripted, validator, s.flow._publisher, role=role, batch_max=1024, summariser=summariser)


class Slow:
    """A model that takes 5 ms more."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def score(self, inputs: Any) -> Any:
        time.sleep(0.005)
        return self._model.score(inputs)


def keyed(s: Setup, n: int, x: float = 0.25) -> Any:
    """N events, each under a key of its own."""
    batch = s.events(*[x] * n)
    keys: list[bytes | None] = [b"k%d" % i for i in range(n)]
    return record_batch(batch.values, keys=keys, timestamp_ms=1_700_000_000_000)


def rows(keys: list[bytes | None]) -> Rows:
    n = len(keys)
    numbers: Longs = np.arange(n, dtype=np.int64)
    return Rows([], [b""] * n, keys, numbers * 0, numbers, numbers)


async def test_a_canary_has_its_share_of_the_keys_and_the_champion_the_rest(setup: Callable[..., Setup]) -> None:
    """Each event once, by one of the two; the champion's drift summaries are of its own events alone."""
    s = setup()
    champion = s.flow._served.champion
    assert await s.flow.serve(Served(champion, lane(s, "canary"), 0.3))
    assert not await s.flow.serve(s.flow._served)
    await s.run(ScriptedSource([keyed(s, 1_000)]))
    found = {(p["model_version"], p["role"]) for p in s.predictions()}
    assert found == {("1", "champion"), ("2", "canary")}
    assert sorted(p["offset"] for p in s.predictions()) == list(range(1_000))
    of_champion = sorted(p["offset"] for p in s.predictions() if p["role"] == "champion")
    assert 600 < len(of_champion) < 800
    ((_, _, offsets, _, matrix),) = s.summariser.added
    assert offsets == of_champion
    assert not matrix[:, -1].any()  # none of them counts as rejected


async def test_a_canary_that_raises_costs_no_event(setup: Callable[..., Setup]) -> None:
    """The champion scores its events, in this step and from then on; it is told of once."""
    s = setup()
    await s.flow.serve(Served(s.flow._served.champion, lane(s, "canary", raise_on=frozenset({0.25})), 0.5))
    await s.run(ScriptedSource([keyed(s, 100), keyed(s, 100)]))
    assert {p["role"] for p in s.predictions()} == {"champion"}
    assert len(s.predictions()) == 200
    assert s.observer.failed_trials == ["canary"]


async def test_what_a_canary_fails_with_is_told_with_the_champions_summaries(setup: Callable[..., Setup]) -> None:
    """With each until it comes back into service: an abort takes back what was told, and not that it failed."""
    s = setup()
    champion, canary = s.flow._served.champion, lane(s, "canary", raise_on=frozenset({0.25}))
    await s.flow.serve(Served(champion, canary, 0.5))
    s.flow._step([keyed(s, 100)])
    s.flow.forget()
    for _ in range(2):
        s.flow._step([keyed(s, 100)])
        (told,) = s.flow._drain()
        assert told.canary_version == "2"
        assert told.canary_failure == "the model was told to raise"
    assert s.flow._drain() == [], "nothing to tell it with"
    await s.flow.serve(Served(champion, canary, 0.6))
    s.flow._step([keyed(s, 10, x=0.5)])
    (told,) = s.flow._drain()
    assert told.canary_failure == ""
    await s.flow.serve(Served(champion))
    s.flow._step([keyed(s, 10, x=0.5)])
    (told,) = s.flow._drain()
    assert (told.canary_version, told.canary_latency_ratios) == ("", [])


async def test_a_canarys_time_is_held_against_the_champions_for_the_same_rows(setup: Callable[..., Setup]) -> None:
    """Of one step in 16 that has rows of it; what the champion makes of them for that goes nowhere."""
    s = setup()
    champion = s.flow._served.champion
    slow = lane(s, "canary")
    slow.model = Slow(slow.model)
    await s.flow.serve(Served(champion, slow, 0.5))
    for step in range(33):
        s.flow._step([keyed(s, 100)])
        assert len(s.flow._tried._ratios) == 1 + step // 16
    s.flow._step([s.events(0.25)])  # one event, of the champion
    assert len(s.sink.to("predictions")) == 3_301
    (told,) = s.flow._drain()
    assert len(told.canary_latency_ratios) == 3
    assert min(told.canary_latency_ratios) > 2
    s.flow._step([keyed(s, 100)])
    (told,) = s.flow._drain()
    assert (told.canary_version, told.canary_latency_ratios) == ("", [])
    s.flow.close()


async def test_a_champion_that_fails_on_the_canarys_rows_costs_no_event(setup: Callable[..., Setup]) -> None:
    """It was asked for its time alone; there is none to tell."""
    s = setup()
    await s.flow.serve(Served(lane(s, "champion", "3", raise_on=frozenset({0.25})), lane(s, "canary"), 0.999999))
    s.flow._step([keyed(s, 20)])
    assert len(s.sink.to("predictions")) == 20
    assert s.flow._tried._ratios == []
    s.flow.close()


async def test_a_shadow_scores_the_same_events_for_its_own_topic(setup: Callable[..., Setup]) -> None:
    """Nobody else's predictions change; one that raises is put out of service."""
    s = setup(shadow_time_max=1.0, step_max=1)
    s.flow._publisher._shadow_topic = "shadow"
    await s.flow.serve(Served(s.flow._served.champion, shadow=lane(s, "shadow", raise_on=frozenset({0.5}))))
    await s.run(ScriptedSource([keyed(s, 10), keyed(s, 5, x=0.5), keyed(s, 5)]))
    assert [p["role"] for p in s.predictions()] == ["champion"] * 20
    shadowed = [s.rows.decode(record.value) for record in s.sink.to("shadow")]
    assert [(p["role"], p["model_version"]) for p in shadowed] == [("shadow", "2")] * 10
    assert s.observer.failed_trials == ["shadow"]


async def test_a_shadow_keeps_to_its_share_of_the_time(setup: Callable[..., Setup]) -> None:
    """What it may not score any more is skipped and counted."""
    s = setup(shadow_time_max=1e-9, step_max=1)
    s.flow._publisher._shadow_topic = "shadow"
    await s.flow.serve(Served(s.flow._served.champion, shadow=lane(s, "shadow")))
    await s.run(ScriptedSource([keyed(s, 1) for _ in range(10)]))
    assert len(s.sink.to("shadow")) == 1
    assert s.observer.skipped == 9


async def test_what_a_replaced_champion_added_up_is_sent_with_the_next_commit(setup: Callable[..., Setup]) -> None:
    """Its summaries and its successor's; after an abort neither's."""
    s = setup()
    await s.run(ScriptedSource([s.events(0.25, 0.5)]))
    successor = RecordingSummariser()
    await s.flow.serve(Served(lane(s, "champion", summariser=successor)))
    s.flow._step([s.events(0.25, 0.5, 0.75, first=2)])
    assert [summary.events for summary in s.flow._drain()] == [2, 3]
    assert s.flow._drain() == []
    await s.flow.serve(Served(lane(s, "champion", "3")))
    s.flow.forget()
    assert s.flow._drain() == []


@given(st.lists(st.one_of(st.none(), st.binary(max_size=12)), max_size=60), st.floats(0, 1), st.floats(0, 1))
def test_a_growing_share_keeps_those_it_had(keys: list[bytes | None], one: float, other: float) -> None:
    """Whose a key is depends on the key and the share alone."""
    less, more = sorted((one, other))
    found = rows(keys)
    assert not (canary_rows(found, less) & ~canary_rows(found, more)).any()
    assert not canary_rows(found, 0.0).any()
    assert canary_rows(found, 1.0).all()


@pytest.mark.parametrize("name", ["k%d", "user-%06d", "%d/%d"])
def test_the_share_is_a_share_of_the_keys(name: str) -> None:
    """Of keys that count up, too: within 4 standard errors."""
    n = 20_000
    keys: list[bytes | None] = [(name % ((i,) * name.count("%"))).encode() for i in range(n)]
    for share in (0.01, 0.1, 0.5):
        found = int(canary_rows(rows(keys), share).sum())
        assert abs(found - share * n) < 4 * np.sqrt(n * share * (1 - share))


def test_mixing_is_murmurs_finaliser() -> None:
    """As its author's C code gives it for these."""
    assert mixed(np.array([0, 1, 2], np.uint32)).tolist() == [0, 0x514E28B7, 0x30F4C306]
    hashes = np.array([zlib.crc32(b"%d" % i) for i in range(1_000)], np.uint32)
    assert len(set(mixed(hashes).tolist())) == len(set(hashes.tolist()))
