"""Which models are in service, and which of them scores an event.

The champion scores all events but the canary's share. That goes by a hash of the Kafka key: all events of one key have
one model, so their order is kept, and whoever is served by the canary stays so while its share grows.
A shadow scores what the others have scored once more, for its own topic; see Flow.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipeline.records import Decoded, Longs, ModelRole
from pipeline.scoring.lane import Lane, Rows

_HASHES = 2**32


@dataclass(frozen=True, slots=True)
class Served:
    """The models in service."""

    champion: Lane
    canary: Lane | None = None
    #: Share of the keys that are the canary's, 0 to 1.
    share: float = 0.0
    shadow: Lane | None = None

    def without(self, role: ModelRole) -> "Served":
        """The same but for the canary, or the shadow."""
        return replace(self, canary=None) if role == "canary" else replace(self, shadow=None)

    def lanes(self) -> list[Lane]:
        """All of them."""
        return [lane for lane in (self.champion, self.canary, self.shadow) if lane is not None]


def canary_rows(rows: Rows, share: float) -> npt.NDArray[np.bool_]:
    """(n,) which rows are the canary's, by their keys; one without a key by its place in the log."""
    places = zip(rows.partitions.tolist(), rows.offsets.tolist(), strict=True)
    keys = (b"%d/%d" % place if key is None else key for key, place in zip(rows.keys, places, strict=True))
    return mixed(np.fromiter((zlib.crc32(key) for key in keys), np.uint32, len(rows))) < share * _HASHES


def mixed(hashes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Hashes whose every bit depends on all bits: CRC-32 is linear, and keys that count up leave gaps in it.

    The finaliser of MurmurHash3 (Appleby 2011), which is a bijection.
    """
    h = hashes ^ (hashes >> np.uint32(16))
    h = h * np.uint32(0x85EBCA6B)
    h = h ^ (h >> np.uint32(13))
    h = h * np.uint32(0xC2B2AE35)
    mixed_: npt.NDArray[np.uint32] = h ^ (h >> np.uint32(16))
    return mixed_


def part_of(decoded: Decoded, mine: npt.NDArray[np.bool_]) -> Decoded:
    """The decoded rows among `mine`, (input rows,); rejects are left out."""
    kept: Longs = np.flatnonzero(mine[decoded.rows])
    return Decoded(decoded.columns.take(kept), decoded.rows[kept], [])
