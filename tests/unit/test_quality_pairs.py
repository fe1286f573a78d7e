"""Which outcomes of two models are of the same events."""

import pyarrow as pa

from pipeline import codec
from pipeline.quality.pairs import Pairs, Side
from pipeline.records import ModelIdentity, OutputContract

OUTPUT = OutputContract("classification", 1, ("no", "yes"), "sigmoid")
FIELDS = codec.arrow_schema(codec.load_schema("outcome"))
CHAMPION, SHADOW = (Side(ModelIdentity("shop", v, r), OUTPUT) for v, r in (("v1", "champion"), ("v2", "shadow")))  # type: ignore[arg-type]


def decoded(*rows: tuple[Side, int, int, int, float]) -> pa.RecordBatch:
    """(whose, partition, offset, time of event and prediction, output) of outcomes, as they are decoded."""
    n, stamp = len(rows), pa.timestamp("ms", tz="UTC")
    times = pa.array([time for _, _, _, time, _ in rows]).cast(stamp)
    made = {
        "event_id": pa.array(["same"] * n),
        "event_time": times,
        "model_id": pa.array(["shop"] * n),
        "model_version": pa.array([side.identity.model_version for side, *_ in rows]),
        "role": pa.array([side.identity.role for side, *_ in rows]),
        "outputs": pa.array([[output] for *_, output in rows], pa.list_(pa.float32())),
        "label": pa.array(["yes"] * n),
        "label_time": times,
        "predicted_at": times,
        "partition": pa.array([partition for _, partition, *_ in rows]),
        "offset": pa.array([offset for _, _, offset, *_ in rows]),
        "slices": pa.array([[]] * n, pa.map_(pa.string(), pa.string())),
    }
    return pa.RecordBatch.from_arrays([made.get(f.name, pa.nulls(n)).cast(f.type) for f in FIELDS], schema=FIELDS)


def test_pairs_are_of_one_partition_and_offset_in_order_of_time() -> None:
    """In whichever batch and order they come; what only one model scored, or before both were there, is in none."""
    canary = Side(ModelIdentity("shop", "v2", "canary"), OUTPUT)
    pairs = Pairs(CHAMPION, SHADOW, since_ms=10)
    pairs.add(decoded((CHAMPION, 0, 7, 30, 0.25), (CHAMPION, 1, 7, 20, 0.5), (SHADOW, 1, 7, 20, 0.75)))
    pairs.add(decoded((SHADOW, 0, 8, 31, 0.0), (CHAMPION, 0, 5, 9, 0.0), (SHADOW, 0, 5, 11, 0.0)))
    pairs.add(decoded((canary, 0, 7, 30, 0.0), (SHADOW, 0, 7, 32, 1.0)))
    champion, shadow = pairs.scored()
    assert champion.outputs[:, 0].tolist() == [0.5, 0.25]
    assert shadow.outputs[:, 0].tolist() == [0.75, 1.0]
    assert champion.times_ms.tolist() == [20, 30]
    assert champion.truth.tolist() == shadow.truth.tolist() == [1, 1]
    assert pairs.rows == (2, 4)


def test_no_outcomes_make_no_pairs() -> None:
    """Of none at all, and of one model alone."""
    pairs = Pairs(CHAMPION, SHADOW, 0)
    assert list(map(len, pairs.scored())) == [0, 0]
    pairs.add(decoded((CHAMPION, 0, 0, 1, 0.5)))
    assert list(map(len, pairs.scored())) == [0, 0]
    assert pairs.scored()[1].outputs.shape == (0, 1)


def test_the_last_offset_of_a_partition_is_not_the_first_of_the_next() -> None:
    """Two numbers in one stay two."""
    pairs = Pairs(CHAMPION, SHADOW, 0)
    pairs.add(decoded((CHAMPION, 0, 2**39, 1, 0.5), (SHADOW, 1, 0, 1, 0.5), (SHADOW, 2, 2**39, 1, 0.5)))
    assert len(pairs.scored()[0]) == 0
