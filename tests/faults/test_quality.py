"""Errors rise, and the role that watches outcomes is killed at every step: one trigger a rise, none without one."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import clients
from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.models import bundle as bundles
from tests.faults import crashing
from tests.integration.retraining_kit import ROWS, Market
from tests.pipelines import PATIENCE_S, eventually

pytestmark = [pytest.mark.timeout(400), pytest.mark.case("F45")]

#: The first commit comes after all outcomes that wait at the start.
SETS = ("delivery.commit_interval_ms=3000", "observe.enabled=false")


class Watched:
    """A market of which only outcomes are made, and what the role says of them."""

    def __init__(self, folder: Path, kafka: str) -> None:
        self.market = Market(folder, kafka)
        self.market.places = [(0, 0)] * ROWS
        bundle = bundles.read(self.market.settings.path(self.market.settings.model.bundle))
        self.version, self._classes = bundle.model_version, bundle.contract.output.classes

    def send(self, first: int, rates: list[float]) -> None:
        """Outcomes of rows first, ..., a thousand for each rate, of which so many are wrong."""
        rows = np.arange(first, first + 1_000 * len(rates))
        wrong = np.random.default_rng(first).random(len(rows)) < np.repeat(rates, 1_000)
        second = self.market.labels[rows] == self._classes[1]
        self.market.send_outcomes(rows, model_version=self.version, outputs=np.where(second ^ wrong, 0.9, 0.1))

    def start(self, *launcher: str) -> Any:
        options = {"launcher": ("tests.faults.crashing", *launcher)} if launcher else {}
        return self.market.start("run", "quality", sets=SETS, **options)

    def await_end(self, process: Any) -> None:
        """Until all outcomes are committed; then stop it in order."""
        topic = f"{self.market.name}.outcomes"
        admin = make_admin(ClientOptions(self.market.bootstrap_servers))

        def done() -> bool:
            assert process.poll() is None, self.market.log()[-3000:]
            return not any(topics.lag(admin, f"{self.market.name}-quality", topic).values())

        eventually(done, "all outcomes committed")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0, self.market.log()[-3000:]

    def triggers(self) -> list[dict[str, Any]]:
        """What a read_committed reader finds."""
        rows = codec.RowCodec(codec.registry_of(self.market.settings))
        topic = f"{self.market.name}.retraining-triggers"
        read = clients.read_all(self.market.bootstrap_servers, topic, "verify", PATIENCE_S)
        return [rows.decode(message.value()) for messages in read for message in messages]


@pytest.fixture
def watched(tmp_path: Path, kafka: str) -> Iterator[Watched]:
    """See Watched; what runs ends with the test."""
    made = Watched(tmp_path, kafka)
    yield made
    made.market.close()


def test_a_rise_of_errors_is_told_once_whenever_the_role_is_killed(
    watched: Watched, counted: Callable[..., None]
) -> None:
    """SIGKILL at each step in turn, a new process each time; then a further rise, which is a trigger of its own."""
    watched.send(0, [0.1, 0.1, 0.1, 0.4])
    for step in crashing.ERROR_TRIGGER:
        process = watched.start(step)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL, f"{step}: {watched.market.log()[-3000:]}"
    assert len(watched.triggers()) == 1
    watched.send(4_000, [0.4])
    watched.await_end(watched.start())
    (trigger,) = watched.triggers()
    assert (trigger["severity"], trigger["model_version"]) == ("critical", watched.version)
    assert [s["signal"] for s in trigger["signals"]] == ["error:wrong"]
    assert {r["topic"] for r in trigger["evidence"]} == {f"{watched.market.name}.outcomes"}
    assert "errors changed" in watched.market.log()

    watched.send(5_000, [0.8])
    watched.await_end(watched.start())
    counted(kills=len(crashing.ERROR_TRIGGER), rises=2, triggers=len(watched.triggers()))
    assert len(watched.triggers()) == 2


def test_a_steady_stream_makes_no_trigger(watched: Watched) -> None:
    """Also not where the role starts again in the middle, from its state and without it."""
    state = watched.market.folder / "project" / "state" / "quality.state"
    watched.send(0, [0.2, 0.2, 0.2])
    watched.await_end(watched.start())
    assert state.exists()
    watched.send(3_000, [0.2])
    watched.await_end(watched.start())
    state.unlink()
    watched.send(4_000, [0.2, 0.2])
    process = watched.start()
    watched.await_end(process)
    assert "state of the watch of errors is lost" in watched.market.log()
    assert watched.triggers() == []


def test_a_second_role_on_the_same_state_ends_at_once(watched: Watched) -> None:
    """Exit code 4; the first goes on."""
    watched.send(0, [0.2])
    first = watched.start()
    eventually(lambda: '"running"' in watched.market.log(), "the first at work")
    assert watched.start().wait(PATIENCE_S) == 4
    watched.await_end(first)
