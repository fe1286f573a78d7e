"""An endless stream of events of which every one is known from its place: partition and offset.

A pool of the standard job's events is sent over and over, in order, by one idempotent producer. Keys decide
partitions, so event number k of partition p is the pool's event `members[p][k % len(members[p])]`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks import job
from pipeline.bus.partitioner import partition_for

#: Different events: more than the job's 10,000 keys, and only 10 MB in each process that knows them.
POOL_EVENTS = 50_000


@dataclass(frozen=True)
class Pool:
    """The events, in the order they are sent, and where each goes."""

    values: list[bytes]
    keys: npt.NDArray[np.bytes_]
    #: Partition -> numbers of the events that go there, ascending.
    members: list[npt.NDArray[np.int64]]

    @classmethod
    def make(cls, partitions: int) -> "Pool":
        """The pool as it falls on `partitions`."""
        keys = job.keys(POOL_EVENTS)
        owners = {key: partition_for(key, partitions) for key in set(keys.tolist())}
        homes = np.array([owners[key] for key in keys.tolist()])
        return cls(
            job.encode_events(POOL_EVENTS),
            keys,
            [np.flatnonzero(homes == partition) for partition in range(partitions)],
        )

    def at(self, partition: int, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Numbers of the events at these offsets; (n,) int64."""
        members = self.members[partition]
        numbers: npt.NDArray[np.int64] = members[offsets % len(members)]
        return numbers
