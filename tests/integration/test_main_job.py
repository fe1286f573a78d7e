"""The main job on a real Kafka, as a user runs it: every event counted, every byte compared."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks import job
from tests.pipelines import Pipeline, Spoiled, out_of_order

EVENTS = 400_000


@pytest.mark.timeout(400)
def test_every_event_has_exactly_one_outcome(kafka: str, tmp_path: Path, unique: Callable[[str], str]) -> None:
    """400,000 events, 1 in 1,000 broken in 18 ways, `run all --workers 2`.

    Each good one gets exactly one prediction, equal to plain torch's and under its key; each broken one exactly
    one dead letter with its original bytes and the right reason; per key the order is kept; every partition is
    committed to its end; SIGTERM ends all roles with exit code 0.
    """
    pipeline = Pipeline(tmp_path, kafka, unique("main"))
    try:
        spoiled = Spoiled.every(1_000, EVENTS, pipeline.foreign_schema_id())
        group = pipeline.start("run", "all", "--workers", "2")
        pipeline.send(spoiled.values)
        pipeline.await_committed(EVENTS)
        assert group.terminate() == 0, group.log()[-4000:]
        outputs, dead = pipeline.outputs(), pipeline.dead_letters()
        assert pipeline.uncommitted_partitions() == {}
    finally:
        pipeline.close()

    counts = np.bincount(outputs.numbers, minlength=EVENTS)
    np.testing.assert_array_equal(counts, spoiled.good().astype(np.int64))
    assert outputs.scores is not None
    np.testing.assert_allclose(outputs.scores, job.expected_scores(EVENTS)[outputs.numbers], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(outputs.keys, job.keys(EVENTS)[outputs.numbers])
    assert out_of_order(outputs) == 0
    assert Counter((d.key, d.value, d.reason) for d in dead) == spoiled.expected_dead_letters()
    for letter in dead:
        assert letter.headers["__connect.errors.topic"] == pipeline.job.input_topic.encode()
        assert {"__connect.errors.partition", "__connect.errors.offset", "__connect.errors.stage"} <= set(
            letter.headers
        )
