"""`pipeline run worker` with everything on, as one of the systems: its project folder and its command line."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import job
from pipeline import codec, drift
from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.manifest import Architecture
from pipeline.records import Baseline, Feature, FeatureContract, OutputContract
from pipeline.scoring.signals import SignalMatrix

#: Rows the drift baseline is measured on.
BASELINE_ROWS = 20_000
CONTRACT = FeatureContract(tuple(Feature(name, "number") for name in job.FEATURES), OutputContract("regression", 1))


class Mlp(torch.nn.Module):
    """The job's MLP behind the mapping of inputs that a bundle's module takes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = job.model()

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(n, 16) float32 under "numbers" -> (n, 1)."""
        scores: torch.Tensor = self.layers(inputs["numbers"])
        return scores


def command(job_: job.Job, folder: Path, settings: dict[str, Any] | None = None) -> list[str]:
    """Make a project in `folder` for the job; the command line of its one worker."""
    config = make_project(folder, job_, settings)
    return [sys.executable, "-m", "pipeline.cli", "--config", str(config), "run", "worker"]


def group(name: str) -> str:
    """Consumer group of the worker of pipeline `name`."""
    return f"{name}-worker"


def prediction_schema() -> str:
    """Avro JSON of what the worker writes."""
    return codec.load_schema("prediction")


def make_project(
    folder: Path,
    job_: job.Job,
    settings: dict[str, Any] | None = None,
    module: str = "benchmarks.ours:Mlp",
    arguments: dict[str, Any] | None = None,
) -> Path:
    """Settings, event schema, registry and model bundle; the path of pipeline.toml.

    settings: further ones, as dotted keys with TOML-able values. module, arguments: see `bundle`.
    """
    (folder / "schemas").mkdir(parents=True)
    (folder / "schemas" / "event.avsc").write_text(job.EVENT_SCHEMA_JSON, "utf-8")
    # The registry is empty, so the event schema gets the id that the events carry.
    schema_id = codec.open_registry(None, folder / "registry", None).register(
        f"{job_.input_topic}-value", job.EVENT_SCHEMA_JSON
    )
    assert schema_id == job.EVENT_SCHEMA_ID
    bundles.write(bundle(module, arguments), folder / "models" / "champion")
    given = {
        "name": job_.group,
        "kafka.bootstrap_servers": job_.bootstrap_servers,
        "topics.events": job_.input_topic,
        "topics.predictions": job_.output_topic,
        "events.time_field": "time",
        "events.key_field": "key",
        "observe.port": 0,
        **(settings or {}),
    }
    config = folder / "pipeline.toml"
    config.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in given.items()), "utf-8")
    return config


def _toml(value: Any) -> str:
    """A value as TOML; its basic strings and JSON's escape alike."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def bundle(
    module: str = "benchmarks.ours:Mlp", arguments: dict[str, Any] | None = None, version: str = job.MODEL_VERSION
) -> bundles.Bundle:
    """The job's model, packed, with a baseline of its features and scores.

    module: the class that wraps the layers; others must have the same weights.
    """
    return bundles.make(
        model_id=job.MODEL_ID,
        model_version=version,
        architecture=Architecture(module=module, arguments=arguments or {}),
        contract=CONTRACT,
        weights=loading.weights_of(Mlp()),
        baseline=_baseline(),
    )


def _baseline() -> Baseline:
    names = drift.signal_names(CONTRACT)
    rows = np.arange(BASELINE_ROWS)
    values = job.features(BASELINE_ROWS)
    nulls = np.zeros(values.shape, dtype=np.bool_)
    outputs = job.expected_scores(BASELINE_ROWS)[:, None]
    matrix = SignalMatrix(names, CONTRACT).fill(len(rows), rows, values, nulls, rows, outputs, None)
    return drift.measure_baseline(names, matrix)
