"""A model whose worker breaks its promises: what `pipeline verify` must find."""

from collections.abc import Sequence
from typing import Any

from benchmarks.ours import Mlp
from pipeline.scoring.publish import Publisher

#: One in so many predictions each: never sent, sent twice, sent very late.
EVERY = 1_000
#: How late: with 1,000 keys (pipeline.testing.inventing), others of the same key have gone by then.
LATE_BY = 5_000


class Careless(Mlp):
    """The job's model, and a publisher that loses, repeats and holds back predictions behind its worker's back.

    The inputs are acknowledged and committed all the same: a worker whose commits run ahead of its outputs.
    """

    def __init__(self) -> None:
        super().__init__()
        sent, held, original = 0, list[tuple[int, bytes | None, bytes]](), Publisher.predictions

        def predictions(self: Any, keys: Sequence[bytes | None], values: list[bytes]) -> None:
            nonlocal sent
            out: list[tuple[bytes | None, bytes]] = []
            for key, value in zip(keys, values, strict=True):
                sent += 1
                if sent % EVERY == 100:  # lost
                    continue
                if sent % EVERY == 500:  # late
                    held.append((sent + LATE_BY, key, value))
                    continue
                out += [(key, value)] * (2 if sent % EVERY == 900 else 1)  # twice
                while held and held[0][0] <= sent:
                    out.append(held.pop(0)[1:])
            original(self, [key for key, _ in out], [value for _, value in out])

        Publisher.predictions = predictions  # type: ignore[method-assign]
