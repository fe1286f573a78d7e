"""Labels for the standard job's events, and the count of the outcomes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks import clients, job
from pipeline import codec
from tests.pipelines import PATIENCE_S, Pipeline, eventually, held_up


class Labeller:
    """Writes labels of a pipeline's events, and reads its outcomes."""

    def __init__(self, pipeline: Pipeline, events: int, keys: Sequence[bytes] | None = None) -> None:
        """keys: of the events; by default the job's."""
        self._pipeline = pipeline
        self._ids, self._keys = job.ids(events), keys or job.keys(events).tolist()
        self._rows = codec.RowCodec(codec.open_registry(None, pipeline.folder / "project" / "registry", None))
        self._schema = codec.load_schema("label")
        registry = codec.open_registry(None, pipeline.folder / "project" / "registry", None)
        self._id = registry.register(f"{pipeline.name}.labels-value", self._schema)
        self._sender = clients.Sender(pipeline.bootstrap_servers)
        self.topic, self.outcomes_topic = f"{pipeline.name}.labels", f"{pipeline.name}.outcomes"

    def send_events(self, values: Sequence[bytes], first: int) -> None:
        """Events first, first + 1, ... under their keys, all acknowledged."""
        self._sender.send(self._pipeline.job.input_topic, values, self._keys[first : first + len(values)])
        self._sender.flush()

    def value(self, number: int, **fields: Any) -> bytes:
        """A label of event `number`: its number, unless `fields` say otherwise."""
        row = {"event_id": self._ids[number].decode(), "label": None, "value": float(number), "time": None}
        return self._rows.encode(self._id, self._schema, {**row, **fields})

    def send(self, numbers: Sequence[int]) -> None:
        """The label of each event, under its key, all acknowledged."""
        self.send_values([self.value(n) for n in numbers], numbers)

    def send_values(self, values: Sequence[bytes | None], numbers: Sequence[int]) -> None:
        """Any values under the keys of these events."""
        keys = [self._keys[n] for n in numbers]
        for at in range(0, len(values), 10_000):
            self._sender.send(self.topic, values[at : at + 10_000], keys[at : at + 10_000])
        self._sender.flush()

    def outcomes(self) -> list[dict[str, Any]]:
        """Every outcome that a read_committed reader finds."""
        read = clients.read_all(self._pipeline.bootstrap_servers, self.outcomes_topic, "verify", PATIENCE_S)
        return [self._rows.decode(message.value()) for messages in read for message in messages]

    def await_outcomes(self, events: int) -> None:
        """Until so many outcomes are there; a process that ends before fails the test."""

        def done() -> bool:
            for process in self._pipeline.processes:
                code = process.popen.poll()
                assert code in (None, 0, -9), f"ended with {code}:\n{process.log()[-4000:]}"
            # Markers take offsets, too: counting records comes second.
            if self._pipeline.count(self.outcomes_topic) < events:
                return False
            return len(self.outcomes()) >= events

        eventually(done, f"{events} outcomes")

    def balance(self, numbers: Sequence[int]) -> dict[str, int]:
        """Lost, duplicated and foreign outcomes, when exactly one is due for each of these events."""
        eventually(
            lambda: not held_up(self._pipeline.admin, self.outcomes_topic), "the outcomes' last transaction ended"
        )
        found = Counter(int(outcome["event_id"].removeprefix("e")) for outcome in self.outcomes())
        wanted = set(numbers)
        return {
            "lost": len(wanted - found.keys()),
            "duplicated": sum(n - 1 for n in found.values()),
            "foreign": len(found.keys() - wanted),
        }
