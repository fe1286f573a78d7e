"""Events out of nothing: they fit an Avro schema and what a model expects, and a seed makes the same ones again."""

import json
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.contracts import Clock
from pipeline.errors import SchemaError
from pipeline.records import Baseline, Feature, FeatureContract

#: Different events; further ones repeat them under new ids and times. Making one takes 0.1 ms, changing one 1 us.
DIFFERENT = 1_000
#: Keys of the events, so that each has many and order means something.
KEYS = 997
#: Longest sequence made, where the model would take longer ones.
SEQUENCE_MAX = 32
#: How deep optional fields are filled, and how deep records may lie: one may contain itself.
OPTIONAL_DEPTH_MAX, DEPTH_MAX = 3, 32

_TICKS = {"timestamp-millis": 1_000, "timestamp-micros": 1_000_000, "timestamp-nanos": 1_000_000_000}


class EventMaker:
    """Makes event 0, 1, 2, ... of `seed` as dicts for an Avro writer.

    Numbers lie in the feature's range, else within the baseline's; categories come out of the vocabulary; everything
    else is any value of its type. id_field, key_field, time_field: as in the settings; may be paths ("meta.id").

    Raises SchemaError for a schema it can make no event of.
    """

    def __init__(
        self,
        schema: str,
        contract: FeatureContract,
        baseline: Baseline,
        *,
        id_field: str,
        key_field: str | None = None,
        time_field: str | None = None,
        seed: int = 0,
        clock: Clock = time.time,
    ) -> None:
        self._features = {feature.name: feature for feature in contract.features}
        self._limits = {s.name.removeprefix("feature:"): (s.minimum, s.maximum) for s in baseline.signals if s.count}
        self._named: dict[str, Any] = {}
        self._kinds: dict[str, Any] = {}
        self._id, self._key, self._time = id_field, key_field, time_field
        self._seed, self._clock = seed, clock
        self._rng = np.random.default_rng(seed)
        parsed = json.loads(schema)
        self._events = [self._value(parsed, "", 0) for _ in range(DIFFERENT)]
        missing = {id_field, key_field or id_field, *self._features} - self._kinds.keys()
        if missing:
            raise SchemaError(f"no event can be made: the event schema has no field {', '.join(sorted(missing))}")

    def event(self, number: int) -> tuple[bytes, dict[str, Any]]:
        """Kafka key and record of one event. The record is valid until the next call."""
        record: dict[str, Any] = self._events[number % DIFFERENT]
        kind = _kind(self._kinds[self._id])
        _put(record, self._id, number if kind in {"int", "long"} else f"verify-{self._seed}-{number}")
        if self._time in self._kinds:
            ticks = _TICKS.get(_logical(self._kinds[self._time]), 1_000)
            _put(record, self._time, int(self._clock() * ticks))
        key = f"key-{number % KEYS}" if self._key in {None, self._id} else str(_get(record, str(self._key)))
        return key.encode(), record

    def _value(self, avro: Any, path: str, depth: int) -> Any:  # noqa: C901, PLR0911, PLR0912 (one rule a type)
        if isinstance(avro, str) and avro in self._named:
            avro = self._named[avro]
        if isinstance(avro, list):
            avro = _branch(avro, path, self._named, depth)
            return self._value(avro, path, depth)
        self._kinds[path] = avro
        kind = _kind(avro)
        if isinstance(avro, dict) and "name" in avro:
            self._named[avro["name"]] = avro
            self._named[f"{avro.get('namespace', '')}.{avro['name']}".lstrip(".")] = avro
        if path in self._features:
            return self._feature(self._features[path], avro)
        if path == self._key and path != self._id:
            n = int(self._rng.integers(KEYS))
            return n if kind in {"int", "long"} else self._category(avro, [f"key-{n}"])
        match kind:
            case "null":
                return None
            case "record":
                if depth > DEPTH_MAX:
                    raise SchemaError(f"no event can be made: field {path} contains itself without end")
                inside = f"{path}." if path else ""
                return {f["name"]: self._value(f["type"], f"{inside}{f['name']}", depth + 1) for f in avro["fields"]}
            case "boolean":
                return bool(self._rng.integers(2))
            case "int" | "long":
                return int(self._rng.integers(1_000))
            case "float" | "double":
                return float(self._rng.normal())
            case "bytes":
                return b"\x01"
            case "fixed":
                return bytes(avro["size"])
            case "enum":
                return str(self._rng.choice(avro["symbols"]))
            case "array":
                return []
            case "map":
                return {}
            case "string":
                named = _logical(avro) == "uuid"
                return str(uuid.UUID(bytes=self._rng.bytes(16), version=4)) if named else "made up"
        raise SchemaError(f"no event can be made: field {path or 'at the root'} has the unknown type {avro!r}")

    def _feature(self, feature: Feature, avro: Any) -> Any:
        match feature.kind:
            case "number":
                return self._number(feature, _kind(avro))
            case "category":
                return self._category(avro, feature.vocabulary)
            case "sequence":
                length = int(self._rng.integers(1, min(feature.shape[0], SEQUENCE_MAX) + 1))
                item = _kind(_branch(avro["items"], feature.name, self._named, 0))
                return [self._number(feature, item) for _ in range(length)]
            case "bytes":
                values = self._rng.random(math.prod(feature.shape))
                if feature.dtype != "float32":
                    values *= np.iinfo(feature.dtype).max
                return values.astype(np.dtype(feature.dtype).newbyteorder("<")).tobytes()

    def _number(self, feature: Feature, kind: str) -> Any:
        if kind == "boolean":
            return bool(self._rng.integers(2))
        low, high = feature.range or self._limits.get(feature.name, (-1.0, 1.0))
        value = float(self._rng.uniform(low, high))
        if kind in {"int", "long"}:
            return min(max(round(value), math.ceil(low)), math.floor(high))
        return value

    def _category(self, avro: Any, words: Sequence[str]) -> Any:
        kind = _kind(avro)
        if kind == "enum":
            words = [word for word in avro["symbols"] if word in words] or avro["symbols"]
        word = str(self._rng.choice(words))
        if kind == "boolean":
            return word == "true"
        return int(word) if kind in {"int", "long"} else word


def _branch(avro: Any, path: str, named: dict[str, Any], depth: int) -> Any:
    """What a union is made as: its first branch that is not null, null where it would go too deep."""
    if not isinstance(avro, list):
        return named.get(avro, avro) if isinstance(avro, str) else avro
    if "null" in avro and depth > OPTIONAL_DEPTH_MAX:
        return "null"
    others = [branch for branch in avro if branch != "null"]
    if not others and not avro:
        raise SchemaError(f"no event can be made: field {path} is a union of nothing")
    return _branch((others or avro)[0], path, named, depth)


def _kind(avro: Any) -> str:
    kind = avro["type"] if isinstance(avro, dict) else avro
    return _kind(kind) if isinstance(kind, dict) else str(kind)


def _logical(avro: Any) -> str:
    return str(avro.get("logicalType", "")) if isinstance(avro, dict) else ""


def _put(record: dict[str, Any], path: str | None, value: Any) -> None:
    *above, name = str(path).split(".")
    for part in above:
        record = record[part]
    record[name] = value


def _get(record: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        record = record[part]
    return record
