"""Models swapped under load on a real Kafka: each event scored once, by one model, in the order of its key."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import clients, job, ours
from pipeline import codec
from pipeline.models import bundle as bundles
from pipeline.scoring.serving import mixed
from tests.pipelines import PATIENCE_S, Pipeline

pytestmark = pytest.mark.timeout(300)

EVENTS = 300_000


@pytest.fixture
def make(kafka: str, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Any]:
    """Makes the standard job's pipeline; its processes end with the test."""
    made: list[Pipeline] = []

    def new(**settings: Any) -> Pipeline:
        made.append(Pipeline(tmp_path, kafka, unique("serving"), settings=settings))
        return made[-1]

    yield new
    for pipeline in made:
        pipeline.close()


def challenger(pipeline: Pipeline, version: str, module: str = "tests.integration.serving_models:Shifted") -> Path:
    """A bundle whose scores are the job's plus one."""
    path = pipeline.folder / f"bundle-{version}"
    bundles.write(ours.bundle(module, {}, version), path)
    return path


def predictions(pipeline: Pipeline, topic: str) -> list[list[dict[str, Any]]]:
    """Decoded predictions, one list a partition."""
    rows = codec.RowCodec(codec.open_registry(None, pipeline.folder / "project" / "registry", None))
    found: dict[int, list[dict[str, Any]]] = {}
    for messages in clients.read_all(pipeline.bootstrap_servers, topic, "verify", PATIENCE_S):
        for message in messages:
            decoded = rows.decode(message.value())
            found.setdefault(message.partition(), []).append({**decoded, "key": message.key()})
    return list(found.values())


def command(pipeline: Pipeline, *arguments: str) -> str:
    """What `pipeline model ARGUMENTS` says."""
    process = pipeline.start("model", *arguments)
    assert process.wait() == 0, process.log()
    return process.log()


def check_scores(found: list[dict[str, Any]]) -> None:
    """Each prediction is its version's score of its event."""
    expected = job.expected_scores(EVENTS)
    numbers = np.array([int(p["event_id"].removeprefix("e")) for p in found])
    scores = np.array([p["outputs"][0] for p in found])
    shifted = np.array([p["model_version"] != job.MODEL_VERSION for p in found])
    np.testing.assert_allclose(scores, expected[numbers] + shifted, rtol=0, atol=1e-5)


def test_models_come_and_go_under_load(make: Any) -> None:
    """Canary, promotion, a canary that fails, a shadow: no event lost, doubled, out of order or scored by a mixture."""
    pipeline = make(**{"delivery.mode": "exactly_once", "delivery.commit_interval_ms": 100})
    worker = pipeline.start("run", "worker")
    worker.await_log('"running"')
    sent = 0
    values = job.encode_events(EVENTS)

    def load_until(log: str) -> None:
        """Events flow until the worker says so, and some more."""
        nonlocal sent
        while log not in worker.log() and sent < EVENTS - 40_000:
            pipeline.send(values[sent : sent + 2_000], sent)
            sent += 2_000
        worker.await_log(log)
        pipeline.send(values[sent : sent + 6_000], sent)
        sent += 6_000

    second, failing = challenger(pipeline, "2"), challenger(pipeline, "3", "tests.integration.serving_models:Failing")
    shadow = challenger(pipeline, "4")
    load_until('"version": "1"')
    command(pipeline, "release")
    command(pipeline, "canary", str(second), "--share", "0.25")
    load_until('"share": 0.25')
    command(pipeline, "promote")
    load_until('"slot": "champion", "model": "benchmark-mlp", "version": "2"')
    command(pipeline, "canary", str(failing), "--share", "0.5")
    load_until("model on trial failed")
    command(pipeline, "shadow", str(shadow))
    load_until('"slot": "shadow"')
    pipeline.send(values[sent:], sent)
    pipeline.await_committed(EVENTS)
    assert worker.terminate() == 0, worker.log()[-3000:]

    by_partition = predictions(pipeline, pipeline.job.output_topic)
    found = [p for partition in by_partition for p in partition]
    assert sorted(int(p["event_id"].removeprefix("e")) for p in found) == list(range(EVENTS))
    check_scores(found)
    in_order_per_key(found)
    assert {(p["model_version"], p["role"]) for p in found} == {("1", "champion"), ("2", "canary"), ("2", "champion")}
    canarys = {p["key"] for p in found if p["role"] == "canary"}
    hashes = mixed(np.array([zlib.crc32(key) for key in canarys], np.uint32))
    assert (hashes < 0.25 * 2**32).all()
    shadowed = [p for partition in predictions(pipeline, f"{pipeline.name}.shadow-predictions") for p in partition]
    assert {(p["model_version"], p["role"]) for p in shadowed} == {("4", "shadow")}
    check_scores(shadowed)
    assert len({p["event_id"] for p in shadowed}) == len(shadowed) > 1_000


def in_order_per_key(found: list[dict[str, Any]]) -> None:
    """Of each key, events in the order in which they were sent, whichever model scored them."""
    last: dict[bytes, int] = {}
    for prediction in found:
        number = int(prediction["event_id"].removeprefix("e"))
        assert last.get(prediction["key"], -1) < number
        last[prediction["key"]] = number
