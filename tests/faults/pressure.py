"""Load that presses: large events, transactions of others, and what a process takes of memory meanwhile."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from benchmarks import clients, job
from pipeline import codec
from tests.pipelines import PATIENCE_S, Pipeline, Process

MIB = 1 << 20
#: The job's event with a field more, as large as one likes. Readers of the job's own schema leave it out.
PADDED_SCHEMA = json.dumps(
    {**job.EVENT_SCHEMA, "fields": [*job.EVENT_SCHEMA["fields"], {"name": "payload", "type": "bytes", "default": ""}]}
)

#: Of the varint before a payload of up to 128 MiB; events come out a byte smaller where it needs less.
LENGTH_BYTES_MAX = 4


class Memory:
    """Resident memory of a process from now on, in MiB, as Linux counts it (man 5 proc: VmRSS, VmHWM)."""

    def __init__(self, process: Process) -> None:
        self._folder = Path(f"/proc/{process.popen.pid}")
        (self._folder / "clear_refs").write_text("5")  # the peak begins anew
        self.base_mib = self._read("VmRSS")

    def grown_mib(self) -> int:
        """Peak beyond what it was at first."""
        return self._read("VmHWM") - self.base_mib

    def _read(self, name: str) -> int:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) // 1024
        raise ValueError(name)


def pad(pipeline: Pipeline, values: Sequence[bytes], size_bytes: int, *, read_it: bool = True) -> Iterator[bytes]:
    """`values` as events of PADDED_SCHEMA, `size_bytes` each, or a byte or two less; registers it.

    read_it: the project's event schema has the field too, so that it is decoded, not skipped.
    """
    project = pipeline.folder / "project"
    subject = f"{pipeline.job.input_topic}-value"
    schema_id = codec.open_registry(None, project / "registry", None).register(subject, PADDED_SCHEMA)
    if read_it:
        (project / "schemas" / "event.avsc").write_text(PADDED_SCHEMA, "utf-8")
    header = job.wire_header(schema_id)
    payload = bytes(size_bytes - len(values[0]) - LENGTH_BYTES_MAX)
    length = _varint(2 * len(payload))  # zigzag doubles
    return (header + value[job.HEADER_BYTES :] + length + payload for value in values)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


class Sender:
    """A producer for records of any size, alone or in transactions; see benchmarks.clients.Sender for small ones."""

    def __init__(self, pipeline: Pipeline, **options: Any) -> None:
        self._topic = pipeline.job.input_topic
        given = {name.replace("_", "."): value for name, value in options.items()}
        # 32 MiB queued: what a test sends must not fill the machine either.
        own = {"message.max.bytes": 64 * MIB, "queue.buffering.max.kbytes": 32_768}
        base = {**clients.PRODUCER, **own, "bootstrap.servers": pipeline.bootstrap_servers, **given}
        self._refused: list[str] = []
        self.producer = Producer({**base, "on_delivery": lambda e, _m: self._refused.append(str(e))})

    def send(self, key: bytes, value: bytes, partition: int = -1) -> None:
        """Enqueue, waiting for room."""
        while True:
            try:
                self.producer.produce(self._topic, value, key, partition)
            except BufferError:
                self.producer.poll(0.05)
            else:
                return

    def flush(self) -> None:
        """All acknowledged, or the test fails."""
        assert self.producer.flush(PATIENCE_S) == 0
        assert not self._refused, self._refused[0]


def send_padded(pipeline: Pipeline, events: int, size_bytes: int, **options: Any) -> None:
    """Send events 0 to `events` - 1, `size_bytes` each, all acknowledged."""
    sender = Sender(pipeline)
    values = job.encode_events(events)
    for key, value in zip(job.keys(events).tolist(), pad(pipeline, values, size_bytes, **options), strict=True):
        sender.send(key, value)
    sender.flush()
