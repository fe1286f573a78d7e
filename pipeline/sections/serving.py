"""Sections of what scores a stream: Kafka, events, model, hot path, delivery, drift, processes."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator

from pipeline.sections.base import Name, Section

#: Each value of each is a time series per metric: ten values of 16 fields are 160 already.
SLICE_FIELDS_MAX = 16

Precision = Literal["float32", "bfloat16", "int8"]


class KafkaSettings(Section):
    """How to reach Kafka."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port[,host:port]")
    options: dict[str, str] = Field(
        default_factory=dict,
        description="Any librdkafka option, e.g. security.protocol; applies to every client. "
        "A secret is given as <option>_file (a path) or by environment only.",
    )
    consumer_options: dict[str, str] = Field(default_factory=dict, description="As options, consumers only.")
    producer_options: dict[str, str] = Field(default_factory=dict, description="As options, producers only.")
    secrets: dict[str, SecretStr] = Field(
        default_factory=dict, description="Filled from the environment or from <option>_file; not a key of the file."
    )

    @field_validator("bootstrap_servers")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        for part in value.split(","):
            host, _, port = part.strip().rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"{part.strip()!r} is not host:port")
        return value


class RegistrySettings(Section):
    """Where Avro schemas get their ids: a Schema Registry, or files in the project folder."""

    url: str | None = Field(None, description="Schema Registry URL; without one, the file registry in `dir` is used")
    dir: Path = Field(Path("registry"), description="Folder of the file registry")
    basic_auth: SecretStr | None = Field(None, description="user:password; environment only")


class TopicSettings(Section):
    """Topic names (default NAME.<role>) and how missing ones are created."""

    events: Name | None = None
    predictions: Name | None = None
    dead_letters: Name | None = None
    batch_summaries: Name | None = None
    retraining_triggers: Name | None = None
    labels: Name | None = None
    outcomes: Name | None = None
    model_releases: Name | None = None
    retraining_reports: Name | None = None
    shadow_predictions: Name | None = None
    partitions: int = Field(4, ge=1, le=10_000, description="Partitions of topics this pipeline creates")
    replication_factor: int = Field(1, ge=1, le=32767)
    retention_hours: float = Field(168.0, gt=0, le=1_000_000, description="Of topics this pipeline creates")
    create: bool = Field(True, description="Create missing topics at start-up")


class EventSettings(Section):
    """Which fields of the event mean what. Features come from the model bundle."""

    schema_file: Path = Field(Path("schemas/event.avsc"), description="Avro schema the pipeline reads events with")
    id_field: str = Field("id", description="Field that identifies an event")
    key_field: str | None = Field(None, description="Field whose text is the Kafka key on replay; default: the id")
    time_field: str | None = Field(None, description="timestamp-millis field; default: the broker's timestamp")
    label_field: str | None = Field(None, description="Field or column with the truth, for evaluation only")
    slice_fields: list[str] = Field(
        default_factory=list,
        max_length=SLICE_FIELDS_MAX,
        description=f"Up to {SLICE_FIELDS_MAX} fields whose values travel with each prediction, to tell accuracy per "
        "value; what the model was packed with is watched for drift; with commas in the environment",
    )

    @field_validator("slice_fields", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        """The environment and flags have no lists: commas part the names."""
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("slice_fields")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if twice := [name for name in dict.fromkeys(value) if value.count(name) > 1]:
            raise ValueError(f"{', '.join(twice)} is named twice")
        return value


class InputSettings(Section):
    """How much bad input a worker takes before it stops with exit code 3."""

    bad_share_max: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of dead letters among a worker's latest events above which it stops; 1: never",
    )
    window_events: int = Field(
        10_000, ge=10, le=10_000_000, description="How many of a worker's latest events are looked at"
    )
    events_min: int = Field(1_000, ge=1, description="A worker that has read fewer events does not stop for this")


class ModelSettings(Section):
    """Which model, and where it runs."""

    bundle: Path = Field(Path("models/champion"), description="Bundle directory or archive")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int = Field(1, ge=1, le=256, description="torch threads per worker; scale by workers first")


class ScoringSettings(Section):
    """Micro-batching and what happens when the model fails."""

    batch_max: int = Field(1024, ge=1, le=65536, description="Most rows in one model call")
    step_max: int = Field(
        8192, ge=1, le=65536, description="Most records taken, decoded and published together; models see batch_max"
    )
    precision: Precision = Field(
        "float32",
        description="What the model computes in; int8: on the CPU only. `pipeline model tune` says what it gains",
    )
    linger_ms: float = Field(0.0, ge=0, le=10_000, description="Wait this long for a fuller batch; 0: take what waits")
    retries_max: int = Field(3, ge=0, le=100, description="Tries after the first when the model raises")
    retry_backoff_ms: float = Field(200.0, ge=0, le=60_000, description="First wait; doubles each time")
    in_flight_max: int = Field(32_768, ge=1, description="Records fetched and not yet done; above it partitions pause")
    in_flight_max_bytes: int = Field(
        67_108_864, ge=1, description="The same in bytes of keys, values and headers; see docs/operating.md, Memory"
    )


class DeliverySettings(Section):
    """When offsets are committed."""

    mode: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="at_least_once: outputs acknowledged, then offsets committed; exactly_once: in one transaction",
    )
    transaction_timeout_ms: int = Field(
        60_000, ge=5_000, le=900_000, description="exactly_once: the broker aborts what is open for longer"
    )
    transactional_id_prefix: Name | None = Field(
        None,
        description="exactly_once: each worker's id is <prefix>-<slot>, unique and stable; default NAME-worker-<host>",
    )
    commit_interval_ms: int = Field(500, ge=10, le=60_000)
    shutdown_deadline_s: float = Field(25.0, gt=0, le=600, description="One budget for drain, flush and commit")


class DriftSettings(Section):
    """The drift monitor."""

    enabled: bool = True
    delta: float = Field(
        0.002, gt=0, lt=1, description="Expected false triggers in 10,000 events, over all signals together"
    )
    cooldown_events: int = Field(10_000, ge=0, description="Events after a trigger in which no further one is sent")
    window_events: int = Field(20_000, ge=1, description="Events since the change suggested for retraining")
    state_dir: Path = Field(Path("state"), description="Folder of the monitor's saved state")
    season_s: float = Field(
        0.0,
        ge=0,
        le=366 * 86_400,
        description="Length of a season that is no drift, such as 86400; measured when a model is packed. 0: none",
    )
    season_phases: int = Field(
        24, ge=2, le=1000, description="Parts of a season in which values are alike, such as the hours of a day"
    )


class SupervisorSettings(Section):
    """What `run all` and `run worker --workers N` do about a process that ends by itself."""

    restarts_max: int = Field(
        5, ge=0, le=1000, description="Restarts of one process within `window_s`; then the whole group ends. 0: none"
    )
    window_s: float = Field(600.0, gt=0, description="An end longer ago than this is forgotten")
    backoff_s: float = Field(1.0, ge=0, le=3600, description="Wait before the first restart; doubles each time")
    backoff_max_s: float = Field(30.0, ge=0, le=3600, description="Longest wait before a restart")


class ObserveSettings(Section):
    """Metrics, health and logs."""

    host: str = Field("127.0.0.1", description="Address of /metrics, /healthz and /readyz")
    port: int = Field(
        9464,
        ge=0,
        le=65435,
        description="Monitor's port; worker i serves on port + i (i from 1), quality on port + 70, the retrainer "
        "on port + 80, labels i on port + 80 + i. 0: a free port, named in the log",
    )
    enabled: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"

    def port_of(self, role: str, slot: int) -> int:
        """Where a role's process serves."""
        places = {"monitor": 0, "worker": slot, "quality": 70, "retrainer": 80, "labels": 80 + slot}
        return self.port + places[role] if self.port else 0
