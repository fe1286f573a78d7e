"""A canary and a fresh champion on a real Kafka: promoted, withdrawn, rolled back by their outcomes, each once."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks import clients
from pipeline import codec
from pipeline.cli.releasing import decide, open_releases
from pipeline.models import bundle as bundles
from pipeline.models import fetching, releases
from pipeline.models.release_log import ReleaseLog
from pipeline.models.releases import Decision, Model, ModelRelease, Releases
from tests.faults.trial_steps import TRIALS
from tests.integration.retraining_kit import ROWS, Market
from tests.pipelines import PATIENCE_S, eventually

pytestmark = pytest.mark.timeout(400)

SETS = ("retraining.enabled=true", "trial.every_s=0.2", "observe.enabled=false")
HOUR_MS = 3_600_000


class Exchange(Market):
    """A market with models that are released, and outcomes of theirs with as many errors as are asked for."""

    def __init__(self, folder: Path, bootstrap_servers: str) -> None:
        super().__init__(folder, bootstrap_servers)
        self.log_of_releases: ReleaseLog = open_releases(self.settings, create=True)

    def model(self, version: str, module: str | None = None) -> Model:
        """The project's model under another version, where workers would fetch it; module: another class of it."""
        settings = self.settings
        found = bundles.read(settings.path(settings.model.bundle))
        architecture = found.manifest.architecture
        made_by = architecture.model_copy(update={"module": module or architecture.module})
        manifest = found.manifest.model_copy(update={"model_version": version, "architecture": made_by})
        path = self.folder / f"{version}.tar"
        bundles.write(bundles.Bundle(manifest, found.weights, ""), path)
        return fetching.publish(bundles.read(path), settings.releases.store, settings.root)

    def release(
        self, version: str, share: float | None = None, at_ms: int | None = None, module: str | None = None
    ) -> ModelRelease:
        """Make `version` champion, or canary with a share, at a time that may have passed."""
        model = self.model(version, module)
        made = decide(self.settings, "test", "")
        decision = Decision(made.release_id, made.pipeline, made.by, at_ms or made.at_ms)
        state = self.log_of_releases.change(
            decision,
            lambda now: (
                releases.release(now, model, decision)
                if share is None
                else releases.canary(now, model, share, decision)
            ),
        )
        found = state.champion if share is None else state.canary
        assert found is not None
        return found

    def outcomes(self, release: ModelRelease, n: int, error: float, since_ms: int | None = None) -> None:
        """n outcomes of predictions within a second, from the release or another time on; a share is wrong."""
        settings, topic = self.settings, f"{self.name}.outcomes"
        random = np.random.default_rng(n)
        wrong, up = random.random(n) < error, random.random(n) < 0.5
        sure = max(error, 1 - error)
        at = (release.released_at_ms if since_ms is None else since_ms) + np.arange(n) * 1000 // n
        stamp = pa.timestamp("ms", tz="UTC")
        labels = np.where(up, "UP", "DOWN")
        chances = np.where(up != wrong, sure, 1 - sure).astype(np.float32)
        made = {
            "event_id": pa.array([f"e{i}" for i in range(n)]),
            "event_time": pa.array(at).cast(stamp),
            "model_id": pa.array([release.model_id] * n),
            "model_version": pa.array([release.model_version] * n),
            "role": pa.array([release.slot] * n),
            "outputs": pa.array([[c] for c in chances], pa.list_(pa.float32())),
            "predicted": pa.array(np.where(chances >= 0.5, "UP", "DOWN")),
            "label": pa.array(labels),
            "value": pa.nulls(n, pa.float64()),
            "label_time": pa.array(at).cast(stamp),
            "predicted_at": pa.array(at).cast(stamp),
            "partition": pa.array([0] * n, pa.int32()),
            "offset": pa.array(np.arange(n), pa.int64()),
            "slices": pa.array([[]] * n, pa.map_(pa.string(), pa.string())),
        }
        schema = codec.load_schema("outcome")
        fields = codec.arrow_schema(schema)
        batch = pa.RecordBatch.from_arrays([made.get(f.name, pa.nulls(n)).cast(f.type) for f in fields], schema=fields)
        schema_id = codec.registry_of(settings).register(f"{topic}-value", schema)
        self._send(topic, codec.ColumnarEncoder(schema, schema_id).encode(batch))

    def count(self, topic: str) -> int:
        """Records that a read_committed reader finds."""
        return sum(map(len, clients.read_all(self.bootstrap_servers, f"{self.name}.{topic}", "verify", PATIENCE_S)))

    def retrainer(self, step: str | None = None) -> Any:
        """The role in a process of its own, which may be killed at a step."""
        launcher = ("tests.faults.trial_steps", step) if step else ("pipeline.cli",)
        return self.start("run", "retrainer", sets=SETS, launcher=launcher)

    def await_state(self, holds: Callable[[Releases], bool], what: str) -> Releases:
        """The releases once something holds of them; a process that ends before fails the test."""

        def done() -> bool:
            assert self.running[-1].poll() is None, self.log()[-3000:]
            return holds(self.log_of_releases.state())

        eventually(done, f"{what}: {self.log()[-1500:]}")
        return self.log_of_releases.state()

    def stop(self) -> None:
        """SIGTERM ends it with 0."""
        self.running[-1].send_signal(signal.SIGTERM)
        assert self.running[-1].wait(PATIENCE_S) == 0, self.log()[-3000:]


@pytest.fixture
def exchange(tmp_path: Path, kafka: str) -> Iterator[Exchange]:
    """What runs in the background ends with the test."""
    made = Exchange(tmp_path, kafka)
    yield made
    made.close()


@pytest.mark.case("F46")
def test_a_good_canary_is_promoted_once_whoever_is_killed(exchange: Exchange, counted: Callable[..., None]) -> None:
    """SIGKILL around the change; the next process decides the same, and what was carried out is not again."""
    champion = exchange.release("v1", at_ms=int(time.time() * 1000) - HOUR_MS)
    canary = exchange.release("v2", share=0.2)
    exchange.outcomes(champion, 4_000, 0.2, canary.released_at_ms)
    exchange.outcomes(canary, 1_000, 0.1)
    for step in TRIALS:
        process = exchange.retrainer(step)
        assert process.wait(PATIENCE_S) == -signal.SIGKILL, f"{step}: {exchange.log()[-3000:]}"
        done = exchange.log_of_releases.state().done(f"promote-{canary.release_id}")
        assert done == step.startswith("in a trial, after"), step
    exchange.retrainer()
    eventually(lambda: "on trial" in exchange.log().rpartition("killed at")[2], "a watch of the new champion")
    time.sleep(3.0)  # for a change that should not come
    exchange.stop()
    state = exchange.log_of_releases.state()
    assert [entry.action for entry in state.history] == ["release", "canary", "promote"]
    assert state.champion is not None
    assert (state.champion.model_version, state.canary) == ("v2", None)
    assert " of 1,000 outcomes, of the champion 0.2" in state.champion.reason
    counted(kills=len(TRIALS), promotions=1)


def test_a_bad_canary_is_withdrawn_and_a_bad_champion_rolled_back(exchange: Exchange) -> None:
    """By one process, as outcomes come; a champion that a rollback made stays, whatever its outcomes."""
    now_ms = int(time.time() * 1000)
    before = exchange.release("v1", at_ms=now_ms - 2 * HOUR_MS)
    fresh = exchange.release("v2", at_ms=now_ms - HOUR_MS)
    canary = exchange.release("v3", share=0.2)
    exchange.outcomes(before, 3_000, 0.2)
    exchange.retrainer()
    exchange.outcomes(fresh, 2_000, 0.2, canary.released_at_ms)
    exchange.outcomes(canary, 600, 0.45)
    state = exchange.await_state(lambda now: now.canary is None, "the canary's withdrawal")
    assert state.history[-1].release_id == f"withdraw-{canary.release_id}"
    assert state.champion == fresh, "2,000 outcomes as good as those before are no reason to go back"
    bad = exchange.release("v4")
    exchange.outcomes(bad, 2_000, 0.6)
    state = exchange.await_state(lambda now: now.champion != bad, "the rollback")
    assert state.history[-1].release_id == f"rollback-{bad.release_id}"
    assert state.champion is not None
    assert (state.champion.model_version, state.champion.action) == ("v2", "rollback")
    assert "of the champion before it 0.2" in state.champion.reason
    exchange.outcomes(state.champion, 2_000, 0.9)
    time.sleep(3.0)  # for a change that should not come
    exchange.stop()
    assert exchange.log_of_releases.state() == state


def test_a_canary_that_raises_is_withdrawn_and_the_report_says_why(exchange: Exchange) -> None:
    """By a worker's word, before any label has come; the champion scores every event."""
    exchange.release("v1")
    canary = exchange.release("v2", share=0.5, module="tests.faults.trial_steps:Raising")
    exchange.start("run", "worker", sets=SETS)
    exchange.retrainer()
    exchange.send_events()
    state = exchange.await_state(lambda now: now.canary is None, "the canary's withdrawal")
    assert state.history[-1].release_id == f"withdraw-{canary.release_id}"
    assert "RuntimeError: made to raise" in state.history[-1].reason
    eventually(lambda: exchange.count("predictions") == ROWS, "a prediction for each event")
    exchange.stop()
