"""Events of every kind that a contract knows, what can be wrong with one, and what must become of it.

The schema contains itself (`tree`), so these events are read record by record; those of the standard job go by columns.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pipeline.codec.rows import encode_body
from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.manifest import Architecture
from pipeline.records import Feature, FeatureContract, OutputContract, Reason, Stage
from pipeline.testing.breakage import FOREIGN_SCHEMA, UNKNOWN_ID, WAYS, varint

_NODE = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
FIELDS: list[dict[str, Any]] = [
    {"name": "id", "type": "string"},
    {"name": "key", "type": "string"},
    {"name": "time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    {"name": "x", "type": "double"},
    {"name": "y", "type": ["null", "double"], "default": None},
    {"name": "shop", "type": "string"},
    {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
    {"name": "picture", "type": "bytes"},
    {"name": "curve", "type": {"type": "array", "items": "float"}},
    {"name": "either", "type": ["null", "long", "string"]},
    {"name": "nothings", "type": {"type": "array", "items": "null"}},
    {"name": "tags", "type": {"type": "map", "values": "int"}},
    {"name": "count", "type": "int"},
    {"name": "tree", "type": ["null", _NODE]},
]


def schema_of(*fields: dict[str, Any]) -> str:
    """Avro JSON of an event of these fields."""
    return json.dumps({"type": "record", "name": "Rich", "namespace": "tests", "fields": list(fields)})


SCHEMA = schema_of(*FIELDS)
#: As the events of an older producer, who does not know `x`: it has no default.
WITHOUT_X = schema_of(*(f for f in FIELDS if f["name"] != "x"))

CONTRACT = FeatureContract(
    (
        Feature("x", "number"),
        Feature("y", "number", range=(-10.0, 10.0), on_null="impute", impute=0.0),
        Feature("shop", "category", vocabulary=("a", "b")),
        Feature("kind", "category", vocabulary=("A",), on_unknown="reject"),
        Feature("picture", "bytes", (2, 2), "float32"),
        Feature("curve", "sequence", (8,)),
    ),
    OutputContract("regression", 1),
)


class Model(nn.Module):
    """Twice x, and the sums of all other inputs: float32, so that a large x overflows."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The score of each event, (n, 1)."""
        numbers, categories = inputs["numbers"], inputs["categories"]
        score = 2 * numbers[:, 0] + numbers[:, 1] + categories.sum(dim=1)
        return (score + inputs["picture"].sum(dim=(1, 2)) + inputs["curve"].sum(dim=1))[:, None]


class Loud(Model):
    """Fails on its first real batch, and says why in a way that no log should repeat as it is."""

    _calm = False

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """As Model, from the second try on."""
        if not self._calm and bool(inputs["numbers"].any()):
            self._calm = True
            raise RuntimeError(HOSTILE_TEXT)
        return super().forward(inputs)


class Visits(nn.Module):
    """x and the place of a category."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The score of each event, (n, 1)."""
        return inputs["numbers"] + inputs["categories"]


def bundle() -> bundles.Bundle:
    """The model, packed; drift is not watched."""
    return bundles.make(
        model_id="rich",
        architecture=Architecture(module="tests.faults.bad_events:Loud"),
        contract=CONTRACT,
        weights=loading.weights_of(Model()),
    )


def good(number: int) -> dict[str, Any]:
    """Event `number`, as a record."""
    return {
        "id": f"secret-{number}",
        "key": f"k{number % 100}",
        "time": 1_767_225_600_000 + number,
        "x": float(number % 50),
        "y": None if number % 7 == 0 else 1.5,
        "shop": "ab"[number % 2],
        "kind": "A",
        "picture": struct.pack("<4f", 1, 2, 3, 4),
        "curve": [0.5] * (1 + number % 8),
        "either": (None, 5, "five")[number % 3],
        "nothings": [None] * (number % 3),
        "tags": {"t": number % 5},
        "count": number,
        "tree": {"next": {"next": None}} if number % 2 else None,
    }


def score(event: dict[str, Any]) -> float:
    """What the model makes of a good event."""
    categories = {"a": 1, "b": 2}.get(event["shop"], 0) + {"A": 1}[event["kind"]]
    numbers = 2 * float(event["x"]) + float(event["y"] or 0.0)
    return numbers + categories + sum(struct.unpack("<4f", event["picture"])) + sum(event["curve"])


def encode(event: dict[str, Any], schema_id: int, schema: str = SCHEMA) -> bytes:
    """A Kafka value in the wire format."""
    return b"\0" + schema_id.to_bytes(4, "big") + encode_body(schema, event)


def with_field(number: int, schema_id: int, name: str, raw: bytes) -> bytes:
    """Event `number` in which the field `name` is spelled `raw`, and nothing follows."""
    at = next(i for i, f in enumerate(FIELDS) if f["name"] == name)
    event = good(number)
    head = encode_body(schema_of(*FIELDS[:at]), {f["name"]: event[f["name"]] for f in FIELDS[:at]})
    return b"\0" + schema_id.to_bytes(4, "big") + head + raw


@dataclass(frozen=True)
class Ids:
    """Ids of the schemas that the registry knows."""

    event: int
    foreign: int
    without_x: int


@dataclass(frozen=True)
class Case:
    """One thing that is wrong, or only strange, with event `number`."""

    name: str
    #: (number, ids) -> value
    value: Callable[[int, Ids], bytes | None]
    #: None: it is to be scored.
    reason: Reason | None
    stage: Stage = Stage.DECODE
    key: bytes | None = b"k"
    headers: list[tuple[Any, bytes | None]] = field(default_factory=list)
    timestamp_ms: int | None = None
    #: Sent compressed: larger than its topic takes once it is unpacked.
    compressed: bool = False
    #: What the dead letter must say it lacks.
    left_out: str | None = None


def _changed(**changes: Any) -> Callable[[int, Ids], bytes]:
    return lambda number, ids: encode({**good(number), **changes}, ids.event)


def _spelled(name: str, raw: bytes) -> Callable[[int, Ids], bytes]:
    return lambda number, ids: with_field(number, ids.event, name, raw)


def _by_way(name: str) -> Callable[[int, Ids], bytes | None]:
    return lambda number, ids: WAYS[name].spoil(encode(good(number), ids.event), ids.foreign)


def _deep(depth: int) -> bytes:
    return varint(1) * depth + varint(0)


#: A line end, escape sequences in seven and eight bits, format codes of several languages, a right-to-left override.
HOSTILE_TEXT = "forged \x1b[2J\x1b]0;owned\x07 \x9b31m %s %n {0} ${jndi:ldap://x} \u202egnp.exe\u2028end\nline"
INFINITY, NAN = float("inf"), float("nan")
_VALIDATE, _SCORE = Stage.VALIDATE, Stage.SCORE

BROKEN: list[Case] = [
    *(Case(f"way: {name}", _by_way(name), way.reason) for name, way in WAYS.items()),
    Case("B5: unknown id", lambda n, _: encode(good(n), UNKNOWN_ID), Reason.UNKNOWN_SCHEMA),
    Case(
        "B8: id of another subject",
        lambda n, ids: encode({"id": n, "unrelated": 1.0}, ids.foreign, FOREIGN_SCHEMA),
        Reason.SCHEMA_MISMATCH,
    ),
    Case(
        "B9: a writer without x",
        lambda n, ids: encode({k: v for k, v in good(n).items() if k != "x"}, ids.without_x, WITHOUT_X),
        Reason.SCHEMA_MISMATCH,
    ),
    Case("B10: union branch beyond", _spelled("either", varint(3)), Reason.UNDECODABLE),
    Case("B10: union branch negative", _spelled("either", varint(-1)), Reason.UNDECODABLE),
    Case("B10: symbol beyond", _spelled("kind", varint(2)), Reason.UNDECODABLE),
    Case("B10: symbol negative", _spelled("kind", varint(-1)), Reason.UNDECODABLE),
    Case("B11: negative length of bytes", _spelled("picture", varint(-(2**63))), Reason.UNDECODABLE),
    Case("B12: 2^62 bytes", _spelled("picture", varint(2**62) + b"x"), Reason.UNDECODABLE),
    Case("B12: 2^62 items", _spelled("curve", varint(2**62) + bytes(8)), Reason.UNDECODABLE),
    Case("B12: 2^62 pairs", _spelled("tags", varint(2**62) + bytes(8)), Reason.UNDECODABLE),
    Case("B13: 2^60 nulls", _spelled("nothings", varint(2**60) + varint(0)), Reason.UNDECODABLE),
    Case("B13: 2^60 nulls, size given", _spelled("nothings", varint(-(2**60)) + bytes(2)), Reason.UNDECODABLE),
    Case("B14: a block whose count lies", _spelled("curve", varint(-9) + varint(4) + bytes(4)), Reason.UNDECODABLE),
    Case("B15: 100,000 deep", _spelled("tree", _deep(100_000)), Reason.UNDECODABLE),
    Case("B15: 900,000 deep", _spelled("tree", _deep(900_000)), Reason.UNDECODABLE),
    Case("B16: varint of 11 bytes", _spelled("count", b"\xff" * 10 + b"\x01"), Reason.UNDECODABLE),
    Case("B16: an int of 33 bits", _spelled("count", varint(2**32)), Reason.UNDECODABLE),
    Case("B17: invalid UTF-8", _spelled("shop", varint(2) + b"\xc3\x28"), Reason.UNDECODABLE),
    Case("B17: a surrogate", _spelled("shop", varint(3) + b"\xed\xa0\x80"), Reason.UNDECODABLE),
    Case("B18: NaN", _changed(x=NAN), Reason.NOT_FINITE, _VALIDATE),
    Case("B18: infinity", _changed(x=INFINITY), Reason.NOT_FINITE, _VALIDATE),
    Case("B18: -infinity", _changed(x=-INFINITY), Reason.NOT_FINITE, _VALIDATE),
    Case("B18: NaN in a sequence", _changed(curve=[1.0, NAN]), Reason.NOT_FINITE, _VALIDATE),
    Case("B18: NaN in bytes", _changed(picture=struct.pack("<4f", 1, NAN, 3, 4)), Reason.NOT_FINITE, _VALIDATE),
    Case("B19: beyond float32", _changed(x=1e39), Reason.NOT_FINITE, _VALIDATE),
    Case("B19: the output overflows", _changed(x=3e38), Reason.OUTPUT_NOT_FINITE, _SCORE),
    Case("B20: too few bytes", _changed(picture=b"123"), Reason.WRONG_SHAPE, _VALIDATE),
    Case("B20: too many bytes", _changed(picture=bytes(500_000)), Reason.WRONG_SHAPE, _VALIDATE),
    Case("B20: no item", _changed(curve=[]), Reason.WRONG_SHAPE, _VALIDATE),
    Case("B20: too many items", _changed(curve=[1.0] * 9), Reason.WRONG_SHAPE, _VALIDATE),
    Case("out of range", _changed(y=10.5), Reason.OUT_OF_RANGE, _VALIDATE),
    Case("unknown category", _changed(kind="B"), Reason.UNKNOWN_CATEGORY, _VALIDATE),
    # Compressed, so that the events topic takes it. The dead letters topic takes 2 MiB.
    Case("B21: a prediction of 1.5 MB", _changed(id="i" * 1_500_000), Reason.OUTPUT_TOO_LARGE, _SCORE, compressed=True),
    Case(
        "B21: a dead letter of 3 MB",
        _changed(id="i" * 3_000_000),
        Reason.OUTPUT_TOO_LARGE,
        _SCORE,
        compressed=True,
        left_out="headers, value",
    ),
    Case(
        "B21: a dead letter with a key of 3 MB",
        lambda *_: b"{}",
        Reason.WRONG_MAGIC,
        key=b"K" * 3_000_000,
        headers=[("mine", b"x")],
        compressed=True,
        left_out="headers, value, key",
    ),
    Case("B24: a bad event with a key of 1 MB", lambda *_: b"{}", Reason.WRONG_MAGIC, key=b"K" * 1_000_000),
    Case("B25: 10,000 headers", lambda *_: b"{}", Reason.WRONG_MAGIC, headers=[("h", b"x")] * 10_000),
    Case(
        "B26: spoofed headers",
        lambda *_: b"{}",
        Reason.WRONG_MAGIC,
        headers=[
            ("__connect.errors.topic", b"elsewhere"),
            ("__connect.errors.offset", b"0"),
            ("pipeline.reason", b"tombstone"),
            ("pipeline.left.out", b"value"),
            ("mine", b"kept"),
        ],
    ),
    Case(
        "B32: hostile text", _changed(kind="B", shop=HOSTILE_TEXT, id=HOSTILE_TEXT), Reason.UNKNOWN_CATEGORY, _VALIDATE
    ),
]

STRANGE: list[Case] = [
    Case("B23: an id again, same body", lambda _, ids: encode(good(1), ids.event), None, key=b"k1"),
    Case("B23: an id again, other body", lambda _, ids: encode({**good(1), "x": 7.0}, ids.event), None, key=b"k1"),
    Case("B24: null key", lambda n, ids: encode(good(n), ids.event), None, key=None),
    Case("B24: empty key", lambda n, ids: encode(good(n), ids.event), None, key=b""),
    Case("B24: key of 1 MB", lambda n, ids: encode(good(n), ids.event), None, key=b"K" * 1_000_000),
    Case("B25: 10,000 headers", lambda n, ids: encode(good(n), ids.event), None, headers=[("h", b"x")] * 10_000),
    Case(
        "B25: a header that is no text", lambda n, ids: encode(good(n), ids.event), None, headers=[("h", b"\xff\xfe")]
    ),
    Case("B25: a header without value", lambda n, ids: encode(good(n), ids.event), None, headers=[("h", None)]),
    Case("B26: spoofed headers", lambda n, ids: encode(good(n), ids.event), None, headers=[("pipeline.attempt", b"9")]),
    Case("B27: no timestamp", lambda n, ids: encode(good(n), ids.event), None, timestamp_ms=-1),
    Case("B27: 1970", lambda n, ids: encode({**good(n), "time": 0}, ids.event), None, timestamp_ms=1),
    Case("B27: the year 3000", _changed(time=32_503_680_000_000), None, timestamp_ms=32_503_680_000_000),
    Case("B27: the least time", _changed(time=-(2**63)), None),
    Case("B27: the last time", _changed(time=2**63 - 1), None),
    Case("B32: hostile text in what is no feature", _changed(id=HOSTILE_TEXT, either=HOSTILE_TEXT), None),
    Case("an unseen category", _changed(shop="never seen"), None),
]
