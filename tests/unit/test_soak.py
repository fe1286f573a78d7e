"""The soak's own instruments: a verifier that could not count, or a fit that saw no growth, would pass everything."""

import numpy as np
import pytest

from tests.soak import report, watch
from tests.soak.stream import Pool
from tests.soak.supervisor import Plan, Record
from tests.soak.verdict import judge
from tests.soak.verifier import Verifier


@pytest.mark.parametrize(
    ("chunks", "lost", "duplicated", "reordered"),
    [
        ([[0, 1, 2], [3, 4]], 0, 0, 0),
        ([[0, 1, 4, 5]], 2, 0, 0),
        ([[0, 1], [4, 5]], 2, 0, 0),
        ([[0, 1, 1, 2]], 0, 1, 0),
        ([[0, 1], [1, 2]], 0, 1, 0),
        ([[0, 1, 2, 3], [1, 2, 3, 4]], 0, 3, 1),
        ([[2, 3]], 2, 0, 0),
    ],
)
def test_the_verifier_counts_what_is_not_in_its_turn(
    chunks: list[list[int]], lost: int, duplicated: int, reordered: int
) -> None:
    """A jump ahead is loss, an offset seen before a duplicate, a step back a reordering; across chunks as within."""
    verifier = Verifier(Pool.make(2))
    for chunk in chunks:
        verifier._in_turn(1, np.array(chunk))
    counts = verifier.counts
    assert (counts.lost, counts.duplicated, counts.reordered) == (lost, duplicated, reordered)
    assert counts.due == [0, max(map(max, chunks)) + 1]
    assert bool(counts.faults) == bool(lost or duplicated or reordered)


def test_the_pool_knows_every_event_by_its_place() -> None:
    """Partition and offset name one event, also when the pool has been sent before."""
    pool = Pool.make(3)
    sizes = [len(members) for members in pool.members]
    assert sum(sizes) == len(pool.values)
    for partition, size in enumerate(sizes):
        assert pool.at(partition, np.array([0, size, size + 1])).tolist() == [
            pool.members[partition][0],
            pool.members[partition][0],
            pool.members[partition][1],
        ]


def test_growth_is_a_slope_that_spikes_do_not_move() -> None:
    """100 MB that become 110 have grown by 10 %, whatever single samples say."""
    times = [float(t) for t in range(101)]
    rising = [100 + t / 10 for t in times]
    rising[50] = 900.0
    found = watch.growth(times, rising)
    assert found is not None
    assert found.percent == pytest.approx(10.0, abs=0.3)
    assert watch.growth(times[:3], rising[:3]) is None


def test_a_role_that_grows_fails_the_soak() -> None:
    """6 % in the judged time is a fault, with its figure; 4 % is none."""
    plan = Plan(steady_s=3600.0, kill_every_s=30.0)
    for percent, passes in ((6.0, False), (4.0, True)):
        record = Record(steady_until_s=3600.0, sent=7, counts={"predicted": 7})
        record.samples["monitor"] = [
            (0, watch.Sample(t, t, 200 * (1 + percent / 100 * (t - 360) / 3240), 20, 10))
            for t in np.arange(0.0, 3600.0, 5.0)
        ]
        found = judge(record, plan)
        assert found["passed"] is passes, found["faults"]
        assert all("monitor: rss_mb grew by 6" in fault for fault in found["faults"])
        assert found["roles"]["monitor"]["judged"]
        assert report.plot(found).count("<polyline") == 1
        assert ("Passed" in report.page(found)) is passes


def test_every_slot_has_one_kill() -> None:
    """As many kills as there are slots, each at a moment of its own, the same for the same seed."""
    moments = Plan(steady_s=90.0, kill_every_s=6.0).kill_moments_s()
    assert len(moments) == 15
    assert [int(moment // 6) for moment in moments] == list(range(15))
    assert moments == Plan(steady_s=90.0, kill_every_s=6.0).kill_moments_s()
    assert moments != Plan(steady_s=90.0, kill_every_s=6.0, seed=2).kill_moments_s()


@pytest.mark.parametrize("fault", ["lost", "duplicated", "reordered", "wrong"])
def test_one_event_that_is_not_right_fails_the_soak(fault: str) -> None:
    """Whatever the verifier counts must be 0, and everything sent must be predicted."""
    plan = Plan(steady_s=60.0, kill_every_s=6.0)
    assert judge(Record(sent=7, counts={"predicted": 7}), plan)["passed"]
    assert not judge(Record(sent=7, counts={"predicted": 7, fault: 1}), plan)["passed"]
    assert not judge(Record(sent=8, counts={"predicted": 7}), plan)["passed"]
    assert not judge(Record(sent=7, counts={"predicted": 7}, dead_letters=1), plan)["passed"]
