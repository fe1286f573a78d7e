"""The formats are the ecosystem's: the examples, which know nothing of this project, work against a running worker."""

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import codec
from tests.unit.schema_registry_server import SchemaRegistryServer

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
OWN_MODEL = EXAMPLES / "own_model"
ROWS = 1_500
#: Far above what any program here takes on two busy cores.
PATIENCE_S = 120
#: Rows sent by `pipeline replay`; the others by the stock producer.
REPLAYED = 100


def run(arguments: list[str], folder: Path, code: int = 0, **environment: str) -> str:
    """Standard output of a program that must end with `code`."""
    result = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert result.returncode == code, f"{arguments}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def example(name: str, folder: Path, *arguments: str, code: int = 0) -> str:
    return run([sys.executable, str(EXAMPLES / name), *arguments], folder, code)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made-up orders, and a project that `pipeline init` made of them."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "orders.csv").write_text(example("orders.py", folder, str(ROWS)), "utf-8")
    columns = ("--label", "fraud", "--time", "created_at", "--id", "order_no")
    run([sys.executable, "-m", "pipeline.cli", "init", "shop", "--data", "orders.csv", *columns], folder)
    return folder


class Shop:
    """A copy of that folder, under a name of its own on the Kafka of the tests."""

    def __init__(self, folder: Path, kafka: str, name: str) -> None:
        self.folder, self.kafka, self.name = folder, kafka, name
        self.orders, self.project = folder / "orders.csv", folder / "shop"
        self.environment = {
            "PIPELINE__NAME": name,
            "PIPELINE__KAFKA__BOOTSTRAP_SERVERS": kafka,
            "PIPELINE__OBSERVE__PORT": "0",
            "PYTHONPATH": str(OWN_MODEL),
        }
        self.command("topics", "create")

    def pipeline(self, *arguments: str) -> str:
        return run([sys.executable, "-m", "pipeline.cli", *arguments], self.folder, **self.environment)

    def command(self, *arguments: str) -> str:
        """A command in the project."""
        return self.pipeline("--config", "shop/pipeline.toml", *arguments)

    @contextmanager
    def worker(self, **environment: str) -> Iterator[None]:
        """A worker while the block runs; it must then stop in order."""
        log_file = self.folder / "worker.log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "run", "worker"],
                cwd=self.project,
                env={**os.environ, **self.environment, **environment},
                stdout=log,
                stderr=log,
            )
        try:
            yield
            process.terminate()
            assert process.wait(60) == 0, log_file.read_text("utf-8")[-4000:]
        finally:
            process.kill()
            process.wait()

    def topic(self, role: str) -> str:
        return f"{self.name}.{role}"

    def rows(self) -> list[dict[str, str]]:
        with self.orders.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def predictions(self, registry: str, group: str, count: int = ROWS) -> list[dict[str, Any]]:
        """What the example consumer prints."""
        at = ("--topic", self.topic("predictions"), "--registry", registry, "--bootstrap", self.kafka)
        shown = example("consumer.py", self.folder, *at, "--group", group, "--max", str(count))
        return [json.loads(line) for line in shown.splitlines()]


@pytest.fixture
def shop(made: Path, tmp_path: Path, kafka: str, unique: Callable[[str], str]) -> Shop:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Shop(tmp_path, kafka, unique("shop"))


def test_stock_producer_and_consumer_work_against_a_worker(shop: Shop, unique: Callable[[str], str]) -> None:
    """Events written with confluent-kafka and avro are scored beside replayed ones; avro alone reads every outcome.

    Slices are among it, those of the event itself.
    """
    shop.command("replay", "orders.csv", "--to", str(REPLAYED), "--rate", "0")
    rest = shop.folder / "rest.csv"
    head, *lines = shop.orders.read_text("utf-8").splitlines()
    rest.write_text("\n".join([head, *lines[REPLAYED:]]) + "\n", "utf-8")
    with shop.worker(PIPELINE__EVENTS__SLICE_FIELDS="country,card_present"):
        schema = ("--schema", "shop/schemas/event.avsc", "--registry", "shop/registry")
        at = ("--topic", shop.topic("events"), "--bootstrap", shop.kafka)
        assert f"sent {ROWS - REPLAYED} events" in example("producer.py", shop.folder, "rest.csv", *at, *schema)
        found = shop.predictions("shop/registry", unique("reader"))
    assert sorted(p["event_id"] for p in found) == sorted(row["order_no"] for row in shop.rows())
    rows = {row["order_no"]: row for row in shop.rows()}
    for prediction in found:
        row = rows[prediction["event_id"]]
        (score,) = prediction["outputs"]
        assert prediction["label"] == ("1" if score >= 0.5 else "0")
        assert prediction["event_time"].replace(" ", "T")[:23] == row["created_at"][:23]
        assert prediction["slices"] == {name: row[name] for name in ("country", "card_present")}
    assert json.loads(shop.command("status", "--json"))["lag"] == 0


def test_stock_clients_meet_the_worker_at_a_schema_registry(shop: Shop, unique: Callable[[str], str]) -> None:
    """With a Schema Registry the producer registers the event, AvroDeserializer reads predictions by what it finds."""
    with SchemaRegistryServer() as registry, shop.worker(PIPELINE__REGISTRY__URL=registry.url):
        at = ("--topic", shop.topic("events"), "--bootstrap", shop.kafka, "--registry", registry.url)
        example("producer.py", shop.folder, "orders.csv", *at, "--schema", "shop/schemas/event.avsc")
        found = shop.predictions(registry.url, unique("reader"))
    assert sorted(p["event_id"] for p in found) == sorted(row["order_no"] for row in shop.rows())
    assert {f"{shop.topic(role)}-value" for role in ("events", "predictions")} <= registry.subjects.keys()
    assert not (shop.project / "registry").exists()


def test_own_model_scores_as_plain_torch(shop: Shop, unique: Callable[[str], str]) -> None:
    """A user's own module, trained and packed as its README says, gives the outputs it gives outside the pipeline."""
    run([sys.executable, str(OWN_MODEL / "train.py"), "orders.csv", "build"], shop.folder)
    arguments = (shop.folder / "build/arguments.json").read_text("utf-8")
    files = ("--weights", "build/weights.safetensors", "--contract", "build/contract.json")
    data = ("--data", "build/held_out.csv", "--label", "fraud")
    out = ("--id", "order-net", "--out", "shop/models/order-net")
    shop.pipeline("model", "pack", "own_model:OrderNet", "--arguments", arguments, *files, *data, *out)
    assert "fits" in shop.command("model", "verify", "shop/models/order-net")
    shop.command("replay", "orders.csv", "--rate", "0")
    with shop.worker(PIPELINE__MODEL__BUNDLE="models/order-net"):
        found = shop.predictions("shop/registry", unique("reader"))
    assert {p["model_id"] for p in found} == {"order-net"}
    expected = json.loads(run([sys.executable, "-c", PLAIN_TORCH], shop.folder, PYTHONPATH=str(OWN_MODEL)))
    scores = {p["event_id"]: p["outputs"][0] for p in found}
    np.testing.assert_allclose(
        [scores[row["order_no"]] for row in shop.rows()], expected, rtol=0, atol=1e-6, err_msg="pipeline, plain torch"
    )


#: Scores of all orders by the module alone.
PLAIN_TORCH = """
import csv, json
import torch, train
from own_model import OrderNet
from safetensors.torch import load_file

contract = json.load(open("build/contract.json"))
vocabularies = [f["vocabulary"] for f in contract["features"] if f["kind"] == "category"]
model = OrderNet(**json.load(open("build/arguments.json"))).eval()
model.load_state_dict(load_file("build/weights.safetensors"))
inputs, _ = train.tensors(list(csv.DictReader(open("orders.csv"))), vocabularies)
with torch.inference_mode():
    print(json.dumps(torch.sigmoid(model(inputs))[:, 0].tolist()))
"""


# --------------------------------------------------------------------------- alerts


def trigger(number: int) -> dict[str, Any]:
    """A retraining trigger, as the monitor sends it."""
    signal = {"signal": "feature:amount", "detector": "adwin", "before_mean": 50.0, "after_mean": 80.0}
    span = {"topic": "shop.events", "partition": 0, "first_offset": 100, "last_offset": 900}
    return {
        "trigger_id": f"trigger-{number}",
        "pipeline": "shop",
        "model_id": "shop",
        "model_version": "1",
        "signals": [{**signal, "before_count": 1000, "after_count": 800, "kl": 0.3, "psi": 0.4}],
        "change_event_time_ms": 1_767_225_600_000,
        "change_events_ago": 800,
        "evidence": [span],
        "window": [span],
        "severity": "major",
        "advice": "retrain",
        "events_seen": 5_000,
        "detected_event_time_ms": 1_767_225_700_000,
        "next_allowed_after_events": 10_000,
        "produced_at_ms": 1_767_225_700_001,
    }


def test_alert_consumer_acts_once_and_again_after_a_failure(
    tmp_path: Path, kafka: str, unique: Callable[[str], str]
) -> None:
    """A trigger that came twice is acted on once; one whose command failed is acted on at the next start."""
    from confluent_kafka import Producer
    from confluent_kafka.admin import AdminClient, NewTopic

    topic, group = f"{unique('alerts')}.retraining-triggers", unique("alerts")
    registry = codec.open_registry(None, tmp_path / "registry", None)
    schema = codec.load_schema("retraining-trigger")
    schema_id = registry.register(f"{topic}-value", schema)
    rows = codec.RowCodec(registry)
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result()
    producer, refused = Producer({"bootstrap.servers": kafka}), []
    for number in (1, 1, 2):
        value = rows.encode(schema_id, schema, trigger(number))
        producer.produce(topic, value, on_delivery=lambda error, _: refused.append(error) if error else None)
    assert producer.flush(30) == 0
    assert refused == []

    at = ("--topic", topic, "--registry", "registry", "--bootstrap", kafka, "--group", group)

    def act(count: int, code: int, script: str) -> str:
        return example(
            "alert_consumer.py", tmp_path, *at, "--max", str(count), "--", sys.executable, "-c", script, code=code
        )

    note = "import json, sys; open('acted', 'a').write(json.load(sys.stdin)['trigger_id'] + ' ')"
    shown = act(1, 0, note)
    assert "major: feature:amount 50 -> 80: retrain" in shown
    act(1, 1, "import sys; sys.exit(3)")
    assert (tmp_path / "acted").read_text() == "trigger-1 "
    act(1, 0, note)
    assert (tmp_path / "acted").read_text() == "trigger-1 trigger-2 "


@pytest.mark.parametrize("name", ["orders.py", "producer.py", "consumer.py", "alert_consumer.py"])
def test_examples_import_nothing_of_ours(name: str) -> None:
    """They need the standard library, confluent-kafka and avro, as they say."""
    tree = ast.parse((EXAMPLES / name).read_text("utf-8"))
    modules = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    modules |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {m.split(".")[0] for m in modules} <= {*sys.stdlib_module_names, "confluent_kafka", "avro"}
