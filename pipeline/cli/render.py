"""Records as text: JSON that any tool reads, and one aligned line for a person."""

import base64
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import Message

from pipeline.bus.messages import headers_of
from pipeline.cli.context import local_time, printable

Record = Mapping[str, Any]
#: Characters of a key in a line for a person: a key may have a megabyte.
KEY_SHOWN = 80
#: JSON is printable but for what stands in its strings.
_UNPRINTABLE = re.compile(r"[^ -~]")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def json_safe(value: Any) -> Any:
    """`value` with times as in Avro's own JSON, a number of milliseconds; the rest as protobuf's JSON has it:
    bytes as base64, NaN and infinities as text.
    """
    if isinstance(value, datetime):
        return (value - _EPOCH) // timedelta(milliseconds=1)
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(bytes(value)).decode("ascii")
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [json_safe(v) for v in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def to_json(record: Record) -> str:
    """One line of strict JSON; what a terminal would obey, or take for a line's end, is escaped."""
    text = json.dumps(json_safe(record), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text if text.isprintable() else _UNPRINTABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found[0])[1:-1] if not found[0].isprintable() else found[0]


def header_text(message: Message) -> dict[str, str]:
    """The headers of a record as text; of repeated names the last one."""
    return {name: (value or b"").decode("utf-8", "replace") for name, value in headers_of([message])[0] or ()}


def dead_letter(message: Message) -> dict[str, Any]:
    """A dead letter as fields: its headers under their own names, the original key and bytes."""
    return {**header_text(message), "key": message.key(), "value": message.value()}


def line(message: Message, record: Record, describe: Callable[[Record], str]) -> str:
    """One printable line: broker time, partition@offset, key, and what `describe` makes of the record."""
    _, timestamp_ms = message.timestamp()
    position = f"p{message.partition()}@{message.offset()}"
    return printable(f"{local_time(timestamp_ms)}  {position:<12}  {_key(message.key()):<20}  {describe(record)}")


def describe_event(record: Record) -> str:
    """All fields, name=value."""
    return "  ".join(f"{name}={_short(value)}" for name, value in record.items())


def describe_prediction(record: Record) -> str:
    """Event, label, outputs, which model said so, and slices if there are any (an older prediction has none)."""
    outputs = " ".join(f"{v:.4f}" for v in record["outputs"])
    label = "-" if record["label"] is None else str(record["label"])
    source = f"p{record['partition']}@{record['offset']}"
    model = f"{record['model_id']} {record['model_version']} {record['role']}"
    slices = "".join(f"  {name}={value}" for name, value in record.get("slices", {}).items())
    return f"{record['event_id']:<20}  {label:<12}  [{outputs}]  from {source:<12}  by {model}{slices}"


def describe_label(record: Record) -> str:
    """Event, what became of it, and when that was known."""
    known = "" if record["time"] is None else f"  known {local_time(json_safe(record['time']))}"
    return f"{record['event_id']:<20}  {_truth(record):<12}{known}"


def describe_outcome(record: Record) -> str:
    """Event, what was predicted and what became of it."""
    predicted = f"{record['outputs'][0]:.4g}" if record["predicted"] is None else str(record["predicted"])
    model = f"{record['model_id']} {record['model_version']} {record['role']}"
    source = f"p{record['partition']}@{record['offset']}"
    said = f"predicted {predicted:<12}  was {_truth(record):<12}"
    return f"{record['event_id']:<20}  {said}  from {source:<12}  by {model}"


def _truth(record: Record) -> str:
    return f"{record['value']:.6g}" if record["label"] is None else str(record["label"])


def describe_trigger(record: Record) -> str:
    """Severity, the signals that moved, and where."""
    signals = ", ".join(
        f"{s['signal']} {s['before_mean']:.3g}→{s['after_mean']:.3g} (PSI {s['psi']:.2f})" for s in record["signals"]
    )
    return (
        f"{record['severity']:<8}  {record['trigger_id']}  {record['model_id']} {record['model_version']}  "
        f"changed {record['change_events_ago']:,} of {record['events_seen']:,} events ago  {signals}"
    )


def describe_report(record: Record) -> str:
    """What the gate said of which challenger, and by which checks it was refused."""
    failed = "; ".join(f"{check['name']}: {check['says']}" for check in record["checks"] if not check["passed"])
    verdict = f"accepted ({record['approval']})" if record["accepted"] else "refused"
    versions = f"{record['model_id']} {record['champion_version']} → {record['challenger_version']}"
    versions += "  on schedule" if record.get("cause") == "schedule" else ""
    return f"{verdict:<22}  {record['report_id']}  {versions}  {failed}".rstrip()


def describe_summary(record: Record) -> str:
    """Which input range, how many events and rejections."""
    span = f"{record['topic']} p{record['partition']}@{record['first_offset']}-{record['last_offset']}"
    return f"{span:<40}  events {record['events']:>6,}  rejected {record['rejected']:>5,}  {record['model_version']}"


def describe_dead_letter(record: Record) -> str:
    """Why, where from, and how large it was."""
    where = f"{_header(record, 'topic')} p{_header(record, 'partition')}@{_header(record, 'offset')}"
    size = "tombstone" if record["value"] is None else f"{len(record['value'])} B"
    reason, stage = record.get("pipeline.reason", "?"), _header(record, "stage")
    return f"{reason:<18}  {stage:<8}  from {where:<24}  {size:>9}  {_header(record, 'exception.message')}"


def _header(record: Record, name: str) -> str:
    return str(record.get(f"__connect.errors.{name}", "?"))


def _key(key: bytes | None) -> str:
    if key is None:
        return "-"
    text = key.decode("utf-8", "replace")
    shown = text if text.isprintable() and "\ufffd" not in text else "0x" + key.hex()
    return shown if len(shown) <= KEY_SHOWN else shown[:KEY_SHOWN] + f"... ({len(key)} B)"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime):
        return local_time(json_safe(value))
    if isinstance(value, bytes):
        return f"<{len(value)} B>"
    if isinstance(value, list) and len(value) > 8:
        return f"[{len(value)} values]"
    return str(value)
