"""Files at the door, broken at random: each is taken, or refused with an error of ours; never anything else."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import codec
from pipeline import settings as settings_module
from pipeline.cli.events import EventEncoder
from pipeline.cli.inference import Columns, infer
from pipeline.errors import BundleError, DataError, SchemaError, SettingsError
from pipeline.models import manifest as manifests
from pipeline.retraining import tables
from tests.faults import bad_events as events
from tests.property.test_codec_avro import OneSchema
from tests.unit.test_models_bundle import make

QUICK = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = ["null", "record", "array", "map", "union", "enum", "int", "E", "", "a.b", "\x1b[31m", "id", "9", "é"]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "name", "fields", "items", "default", "size", "symbols"]), inner)
    ),
    max_leaves=8,
)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """JSON of the same shape, in which something is something else, or gone."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 5)) == 0:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: draw(changed(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(changed(value[at])), *value[at + 1 :]]
    return draw(JSON)


@pytest.mark.case("D2")
@QUICK
@given(schema=changed(json.loads(events.SCHEMA)))
def test_a_changed_schema_is_a_schema_or_refused(schema: Any) -> None:
    """Parsed, asked for its columns, compared, made a decoder and an encoder of: SchemaError, or all of it works."""
    text = json.dumps(schema)
    with contextlib.suppress(SchemaError, DataError):
        codec.incompatibilities(text, events.SCHEMA)
        codec.arrow_schema(text)
        decoder = codec.ColumnarDecoder(OneSchema(events.SCHEMA), text)
        decoder.decode([events.encode(events.good(n), 7) for n in range(3)])
        codec.ColumnarDecoder(OneSchema(text), events.SCHEMA).decode([events.encode(events.good(1), 7)])
        EventEncoder(text, 1)


@pytest.mark.case("D3")
@QUICK
@given(content=changed({k: v for k, v in json.loads(make().manifest.to_json()).items() if k != "digest"}))
def test_a_changed_manifest_is_a_manifest_or_refused(content: Any) -> None:
    """Whoever writes the digest anew, too."""
    if isinstance(content, dict):
        with contextlib.suppress(TypeError, ValueError):
            content["digest"] = manifests.digest(content)
    with contextlib.suppress(BundleError):
        found = manifests.parse(json.dumps(content).encode())
        assert manifests.parse(found.to_json()) == found


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(v) for v in value if v is not None) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


KEYS = [
    f"{section}.{key}"
    for section, field in settings_module.Settings.model_fields.items()
    for key in getattr(field.annotation, "model_fields", {})
] + ["name", "root", "kafka", "topics.x", "kafka.options.acks", "kafka.options.sasl_password"]


@pytest.mark.case("D1")
@QUICK
@given(given_=st.dictionaries(st.sampled_from(KEYS), JSON.filter(lambda v: v is not None), min_size=1, max_size=3))
def test_any_value_of_any_setting_is_taken_or_refused(tmp_path: Path, given_: dict[str, Any]) -> None:
    """From the file and from flags."""
    file = tmp_path / "pipeline.toml"
    file.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in given_.items()), "utf-8")
    for path, flags in ((file, {}), (None, given_)):
        with contextlib.suppress(SettingsError):
            settings_module.load(path, flags, environment={})


CSV = b"at,amount,shop,fraud\n" + b"".join(
    b"2024-01-%02d,%d,%c,%d\n" % (n + 1, n * 7, 97 + n % 2, n % 2) for n in range(20)
)


@pytest.mark.case("D5")
@QUICK
@given(data=st.data(), name=st.sampled_from(["rows.csv", "rows.tsv", "rows.csv.gz", "rows.parquet", "rows"]))
def test_a_damaged_data_file_is_read_or_refused(tmp_path: Path, data: st.DataObject, name: str) -> None:
    """CSV and Parquet, cut, flipped, spliced, under any name: a table, or a DataError."""
    content = CSV
    if data.draw(st.booleans()):
        buffer = io.BytesIO()
        columns = {"at": list(range(20)), "amount": [float(n) for n in range(20)], "fraud": [0, 1] * 10}
        pa.parquet.write_table(pa.table(columns), buffer)
        content = buffer.getvalue()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        some = data.draw(st.binary(max_size=6) | st.sampled_from([b"\n", b'"', b",", b"\x00", b"\xff", b"\r", b"PAR1"]))
        content = content[:at] if data.draw(st.integers(0, 3)) == 0 else content[:at] + some + content[at + 1 :]
    (tmp_path / name).write_bytes(content)
    with contextlib.suppress(DataError):
        infer(tables.read(tmp_path / name), Columns("fraud", None, None, None, ()), "shop")
