"""All settings, and the only place that reads pipeline.toml, the environment or flags.

Precedence: flags > environment (`PIPELINE__SECTION__KEY`) > pipeline.toml > defaults.
Each field's description is its documentation (`docs/settings.md` is generated from it).
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from pipeline.errors import SettingsError

ENVIRONMENT_PREFIX = "PIPELINE__"
DEFAULT_FILE = "pipeline.toml"
#: A long one has 5 kB.
FILE_BYTES_MAX = 1 << 20
#: Each value of each is a time series per metric: ten values of 16 fields are 160 already.
SLICE_FIELDS_MAX = 16

#: librdkafka options that carry secrets: never in pipeline.toml, never printed.
SECRET_OPTIONS = frozenset(
    {
        "sasl.password",
        "ssl.key.password",
        "ssl.key.pem",
        "ssl.keystore.password",
        "sasl.oauthbearer.client.secret",
        "sasl.oauthbearer.assertion.private.key.pem",
        "sasl.oauthbearer.assertion.private.key.passphrase",
        "https.proxy.password",
    }
)

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(_Section):
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


class RegistrySettings(_Section):
    """Where Avro schemas get their ids: a Schema Registry, or files in the project folder."""

    url: str | None = Field(None, description="Schema Registry URL; without one, the file registry in `dir` is used")
    dir: Path = Field(Path("registry"), description="Folder of the file registry")
    basic_auth: SecretStr | None = Field(None, description="user:password; environment only")


class TopicSettings(_Section):
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


#: The keys of TopicSettings that name a topic.
_TOPIC_ROLES = (
    "events",
    "predictions",
    "dead_letters",
    "batch_summaries",
    "retraining_triggers",
    "labels",
    "outcomes",
    "model_releases",
    "retraining_reports",
    "shadow_predictions",
)
_LABEL_TOPIC_ROLES = frozenset({"labels", "outcomes"})
#: Made when a shadow is released.
_ON_DEMAND_TOPIC_ROLES = frozenset({"shadow_predictions"})


class EventSettings(_Section):
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
        "value; with commas in the environment",
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


class InputSettings(_Section):
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


class ModelSettings(_Section):
    """Which model, and where it runs."""

    bundle: Path = Field(Path("models/champion"), description="Bundle directory or archive")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int = Field(1, ge=1, le=256, description="torch threads per worker; scale by workers first")


class ScoringSettings(_Section):
    """Micro-batching and what happens when the model fails."""

    batch_max: int = Field(1024, ge=1, le=65536, description="Most rows in one model call")
    step_max: int = Field(
        8192, ge=1, le=65536, description="Most records taken, decoded and published together; models see batch_max"
    )
    linger_ms: float = Field(0.0, ge=0, le=10_000, description="Wait this long for a fuller batch; 0: take what waits")
    retries_max: int = Field(3, ge=0, le=100, description="Tries after the first when the model raises")
    retry_backoff_ms: float = Field(200.0, ge=0, le=60_000, description="First wait; doubles each time")
    in_flight_max: int = Field(32_768, ge=1, description="Records fetched and not yet done; above it partitions pause")
    in_flight_max_bytes: int = Field(
        67_108_864, ge=1, description="The same in bytes of keys, values and headers; see docs/operating.md, Memory"
    )


class DeliverySettings(_Section):
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


class DriftSettings(_Section):
    """The drift monitor."""

    enabled: bool = True
    delta: float = Field(
        0.002, gt=0, lt=1, description="Expected false triggers in 10,000 events, over all signals together"
    )
    cooldown_events: int = Field(10_000, ge=0, description="Events after a trigger in which no further one is sent")
    window_events: int = Field(20_000, ge=1, description="Events since the change suggested for retraining")
    state_dir: Path = Field(Path("state"), description="Folder of the monitor's saved state")


class LabelSettings(_Section):
    """Labels that come later, joined to their predictions (role `labels`)."""

    enabled: bool = Field(False, description="Whether labels come: `run all` then runs the role that joins them")
    wait_hours: float = Field(
        168.0,
        gt=0,
        le=87_600,
        description="How long a prediction and a label wait for each other; after it a label is counted as an orphan",
    )
    state_dir: Path = Field(
        Path("state"), description="Folder of what waits; 130 bytes of disk for each waiting prediction"
    )


class QualitySettings(_Section):
    """How good models are by the labels that come, and triggers where the champion's errors rise (role `quality`)."""

    enabled: bool = Field(True, description="Whether outcomes are watched, where labels are joined; see drift.enabled")
    window_hours: float = Field(
        24.0, gt=0, le=87_600, description="Labels of so long ago are in the metrics; 24 panes of time"
    )


class GateSettings(_Section):
    """May a retrained model, the challenger, replace the champion? Both are scored on rows that neither has seen."""

    alpha: float = Field(
        0.05, ge=0.001, le=0.2, description="Chance that a challenger that is no better is accepted, at most"
    )
    loss: Literal["auto", "error", "balanced_error", "log_loss", "absolute_error", "squared_error"] = Field(
        "auto",
        description="What the challenger must have less of. auto: error for classes, absolute_error for regression; "
        "balanced_error and log_loss suit rare classes",
    )
    rows_min: int = Field(
        1000, ge=100, description="Labelled rows to judge by, at least; docs/gate.md says what so many can show"
    )
    slice_worse_max: float = Field(
        0.1, ge=0, description="How much worse a slice may get, as a share of the champion's mean loss on all rows"
    )
    log_loss_worse_max: float = Field(
        0.05, ge=0, description="How much worse the log loss may get, as a share of the champion's"
    )
    ece_worse_max: float = Field(
        0.02, ge=0, le=1, description="By how much the calibration error may grow; 1: by any amount"
    )
    refused_share_max: float = Field(
        0.001, ge=0, le=1, description="Share of the events that the champion takes which the challenger may refuse"
    )
    latency_ratio_max: float = Field(
        1.5, gt=0, description="Median time of a batch, as a multiple of the champion's on the same input"
    )
    approval: Literal["auto", "manual"] = Field(
        "auto", description="auto: an accepted challenger is released; manual: it waits for a person's yes"
    )
    release_as: Literal["champion", "canary"] = Field(
        "champion", description="What an accepted challenger becomes without a person's yes"
    )
    canary_share: float = Field(0.1, gt=0, lt=1, description="Share of the keys that a canary gets")


class RetrainingSettings(_Section):
    """How `pipeline retrain` and the role `retrainer` make a successor of the model in service."""

    enabled: bool = Field(
        False,
        description="Whether triggers are acted on: `run all` then runs the role `retrainer`; needs labels",
    )
    labels_wait_s: float = Field(
        604_800.0, gt=0, description="How long the retrainer waits for enough labels of events since a change"
    )

    window_rows: int = Field(
        20_000, ge=100, le=10_000_000, description="Newest labelled events to train on, unless told otherwise"
    )
    rows_max: int = Field(
        1_000_000, ge=100, le=100_000_000, description="Most labelled events held in memory, whatever is asked for"
    )
    newest_share: float = Field(
        0.2, gt=0, lt=1, description="Share of the window, its newest, that is only judged by and never learnt from"
    )
    stopping_share: float = Field(
        0.125, gt=0, lt=1, description="Share of the rest, its newest, that says when to stop learning"
    )
    label_delay_s: float | None = Field(
        None,
        ge=0,
        description="What a label needs, to keep out of training what was not known before the newest part; default: "
        "the labels' own times",
    )
    replay_share: float = Field(
        0.0, ge=0, lt=1, description="Share of what is learnt from that is drawn from before the window, so as not to "
        "forget it"
    )  # fmt: skip
    replay_reach: float = Field(
        5.0, gt=0, le=1000, description="How far back replay draws from, in lengths of the window"
    )
    start: Literal["warm", "fresh"] = Field(
        "warm",
        description="warm: from the weights of the model in service; fresh: from new ones, with new vocabularies and "
        "classes for the built-in model",
    )
    train: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="Function of your own to train with, my.module:function; see docs/retraining.md",
    )
    augment: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="Function of your own that the built-in recipe passes every batch through",
    )
    learning_rate: float = Field(1e-3, gt=0, le=1)
    epochs_max: int = Field(60, ge=1, le=100_000, description="Passes over the data, if it does not stop before")
    patience: int = Field(8, ge=1, description="Passes without a better loss on the stopping part before it stops")
    executor: Literal["process", "command"] = Field(
        "process",
        description="process: a process of its own on this machine, within the limits below; command: whatever "
        "`retraining.command` starts",
    )
    command: str | None = Field(
        None,
        description="Command line that runs `pipeline retrain --request {request}` elsewhere and waits for its end, "
        "e.g. ray job submit -- pipeline retrain --request {request}",
    )
    exchange: Path = Field(
        Path("state/retraining"), description="Folder for requests and results; with a command, one that both sides see"
    )
    nice: int = Field(10, ge=0, le=19, description="Niceness of the process: scoring goes first")
    threads: int = Field(1, ge=1, le=256, description="Threads of torch and Arrow")
    memory_max_mb: int = Field(4096, ge=256, description="Memory of the process and its children above which it ends")
    time_max_s: float = Field(3600.0, gt=0, description="Time after which it is ended; also for a command")
    producer_field: str | None = Field(
        None,
        description='Field that says who sent an event, for the guard against one sender flooding; "key" takes '
        "the Kafka key up to `producer_separator`",
    )
    producer_separator: str = Field(":", min_length=1, max_length=10)
    producer_share_max: float = Field(0.5, gt=0, le=1, description="Largest share of the window from one sender")
    duplicates_max: float = Field(0.01, ge=0, le=1, description="Largest share of events whose id came before")
    separation_max: float = Field(
        0.95, gt=0.5, le=1, description="How well one feature may tell the labels apart (AUC) that did not do so before"
    )
    late_share_max: float = Field(
        0.01, ge=0, le=1, description="Largest share of events with a time in them that is after their label's"
    )
    flips_max: float = Field(
        0.05, ge=0, le=1, description="Largest share of events whose label the new model denies with confidence, "
        "beyond what its confidence allows for"
    )  # fmt: skip
    outlier_influence_max: float = Field(
        0.3, gt=0, le=1, description="Largest share that the 1 % of events farthest out may have in the spread"
    )
    per_day_max: int = Field(24, ge=1, description="Successors of one model within 24 hours")

    @model_validator(mode="after")
    def _command_is_there(self) -> "RetrainingSettings":
        if self.executor == "command" and "{request}" not in (self.command or ""):
            raise ValueError('command: with executor = "command", a command line with {request} in it')
        return self


class ReleaseSettings(_Section):
    """Where released bundles are kept, for workers to fetch."""

    store: str = Field(
        "releases",
        min_length=1,
        description="Folder or URL (any of fsspec's, such as s3://bucket/models) that `pipeline model release` copies "
        "bundles to; a relative folder is each reader's own project folder's",
    )
    cache_dir: Path = Field(Path("state/models"), description="Folder of fetched bundles; the last few are kept")
    shadow_time_max: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of a worker's scoring time that a shadow may take; it skips the rest",
    )


class TrialSettings(_Section):
    """What the role `retrainer` makes of a canary, and of a fresh champion, by their outcomes."""

    enabled: bool = Field(True, description="Whether it promotes, withdraws and rolls back; false: a person does")
    alpha: float = Field(
        0.05, ge=0.001, le=0.2, description="Chance of a wrong promotion, and of a wrong withdrawal, at most"
    )
    worse_max: float = Field(
        0.1, ge=0, description="How much worse a canary may be, as a share of the champion's mean loss (`gate.loss`)"
    )
    outcomes_min: int = Field(500, ge=100, description="Outcomes of each model before anything is decided by them")
    hours_max: float = Field(
        168.0, gt=0, le=87_600, description="A canary is withdrawn when nothing could be decided for so long"
    )
    watch_outcomes: int = Field(
        20_000, ge=0, description="A fresh champion may be rolled back within so many of its outcomes. 0: never"
    )
    rollback_worse_max: float = Field(
        0.25, ge=0, description="How much worse it may be than the one before it was last, as a share of that loss"
    )
    every_s: float = Field(10.0, ge=0.1, le=3600, description="Time between two looks")


class SupervisorSettings(_Section):
    """What `run all` and `run worker --workers N` do about a process that ends by itself."""

    restarts_max: int = Field(
        5, ge=0, le=1000, description="Restarts of one process within `window_s`; then the whole group ends. 0: none"
    )
    window_s: float = Field(600.0, gt=0, description="An end longer ago than this is forgotten")
    backoff_s: float = Field(1.0, ge=0, le=3600, description="Wait before the first restart; doubles each time")
    backoff_max_s: float = Field(30.0, ge=0, le=3600, description="Longest wait before a restart")


class ObserveSettings(_Section):
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


class Settings(_Section):
    """A whole pipeline."""

    name: Name = "pipeline"
    kafka: KafkaSettings = KafkaSettings()
    registry: RegistrySettings = RegistrySettings()
    topics: TopicSettings = TopicSettings()
    events: EventSettings = EventSettings()
    input: InputSettings = InputSettings()
    model: ModelSettings = ModelSettings()
    scoring: ScoringSettings = ScoringSettings()
    delivery: DeliverySettings = DeliverySettings()
    drift: DriftSettings = DriftSettings()
    labels: LabelSettings = LabelSettings()
    quality: QualitySettings = QualitySettings()
    gate: GateSettings = GateSettings()
    retraining: RetrainingSettings = RetrainingSettings()
    releases: ReleaseSettings = ReleaseSettings()
    trial: TrialSettings = TrialSettings()
    supervisor: SupervisorSettings = SupervisorSettings()
    observe: ObserveSettings = ObserveSettings()
    #: Folder that relative paths are relative to; set by `load`.
    root: Path = Path()

    @model_validator(mode="after")
    def _topics_differ(self) -> "Settings":
        names = [self.topic(role) for role in _TOPIC_ROLES]
        if len(set(names)) != len(names):
            raise ValueError("topics: two roles share one topic name")
        return self

    def topic_names(self) -> dict[str, str]:
        """Role -> topic name, for all topics that are in use: those of labels only where they are joined."""
        unused = _ON_DEMAND_TOPIC_ROLES | (frozenset() if self.labels.enabled else _LABEL_TOPIC_ROLES)
        roles = [role for role in _TOPIC_ROLES if role not in unused]
        return {role: self.topic(role) for role in roles}

    def topic(self, role: str) -> str:
        """Topic name of `role`, one of the keys of TopicSettings that name a topic."""
        return getattr(self.topics, role) or f"{self.name}.{role.replace('_', '-')}"

    def group(self, role: str) -> str:
        """Consumer group of a role, `<pipeline>-<role>`."""
        return f"{self.name}-{role}"

    def path(self, path: Path) -> Path:
        """`path` relative to the settings file's folder."""
        return path if path.is_absolute() else self.root / path


def load(
    file: Path | None = None,
    overrides: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
) -> Settings:
    """Read, merge and check all settings.

    file: path given by --config; without it ./pipeline.toml is read if it exists.
    overrides: flags, as dotted keys ("kafka.bootstrap_servers"); None values are ignored.

    Raises SettingsError naming the source and key of every fault, one line each.
    """
    environment = dict(os.environ) if environment is None else environment
    path = file or Path(DEFAULT_FILE)
    values: dict[str, Any] = {}
    if path.exists():
        values = _read_toml(path)
    elif file is not None:
        raise SettingsError(f"{file}: no such file; `pipeline init DIR --data FILE` writes one")
    sources = {_dotted(k): str(path) for k in _leaves(values)}
    _normalise_kafka(values, str(path), secrets_allowed=False, root=path.parent)
    if isinstance(values.get("registry"), dict) and "basic_auth" in values["registry"]:
        raise SettingsError(f"{path}: registry.basic_auth: a secret; set PIPELINE__REGISTRY__BASIC_AUTH instead")

    from_environment: dict[str, Any] = {}
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            keys = tuple(part.lower() for part in variable.removeprefix(ENVIRONMENT_PREFIX).split("__"))
            _put(from_environment, keys, text)
            sources[_dotted(keys)] = f"environment {variable}"
    _normalise_kafka(from_environment, "environment", secrets_allowed=True, root=path.parent)
    _merge(values, from_environment)

    from_flags: dict[str, Any] = {}
    for dotted, value in (overrides or {}).items():
        if value is not None:
            _put(from_flags, tuple(dotted.split(".")), value)
            sources[dotted] = "command line"
    if sources.get("registry.basic_auth") == "command line":
        raise SettingsError("command line: registry.basic_auth: a secret; set PIPELINE__REGISTRY__BASIC_AUTH instead")
    _normalise_kafka(from_flags, "command line", secrets_allowed=False, root=path.parent)
    _merge(values, from_flags)
    _set_root(values, path, sources)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(e, sources, str(path)) for e in error.errors())) from None


def _set_root(values: dict[str, Any], path: Path, sources: dict[str, str]) -> None:
    if "root" in values:
        raise SettingsError(f"{sources.get('root', path)}: root: no such setting; it is the folder of the file")
    values["root"] = path.parent


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise SettingsError(f"{path}: cannot be read: larger than any settings file ({FILE_BYTES_MAX:,} bytes)")
        return tomllib.loads(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and what Python says of a number of 5,000 digits
        raise SettingsError(f"{path}: not valid TOML: {error}") from None


def _normalise_kafka(values: dict[str, Any], source: str, *, secrets_allowed: bool, root: Path) -> None:
    """Spell option names with dots, move secrets out of `options`, read *_file secrets."""
    kafka = values.get("kafka")
    if not isinstance(kafka, dict):
        return
    if "secrets" in kafka:
        mend = "set PIPELINE__KAFKA__OPTIONS__<OPTION>, or <option>_file = PATH"
        raise SettingsError(f"{source}: kafka.secrets: not a key; {mend}")
    secrets: dict[str, str] = {}
    for table in ("options", "consumer_options", "producer_options"):
        options = kafka.get(table)
        if not isinstance(options, dict):
            continue
        clean: dict[str, str] = {}
        for name, value in _flatten(options):
            key = name.replace("_", ".")
            if key.endswith(".file") and key.removesuffix(".file") in SECRET_OPTIONS:
                secrets[key.removesuffix(".file")] = _read_secret(source, f"kafka.{table}.{name}", root / str(value))
            elif key in SECRET_OPTIONS:
                if not secrets_allowed:
                    variable = f"{ENVIRONMENT_PREFIX}KAFKA__OPTIONS__{key.upper().replace('.', '_')}"
                    mend = f"set {variable}, or {key.replace('.', '_')}_file = PATH"
                    raise SettingsError(f"{source}: kafka.{table}.{key}: a secret; {mend}")
                secrets[key] = str(value)
            else:
                clean[key] = _option_text(f"{source}: kafka.{table}.{key}", value)
        kafka[table] = clean
    if secrets:
        kafka["secrets"] = secrets


def _option_text(where: str, value: Any) -> str:
    if isinstance(value, list):
        raise SettingsError(f"{where}: a list; write it as librdkafka does, 'a,b,c'")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_secret(source: str, key: str, path: Path) -> str:
    try:
        return path.read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{source}: {key}: {path} cannot be read: {error}") from None


def _flatten(table: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """TOML reads an unquoted a.b.c key as nested tables: join them again."""
    pairs: list[tuple[str, Any]] = []
    for key, value in table.items():
        name = f"{prefix}{key}"
        pairs += _flatten(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return pairs


def _leaves(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    leaves: list[tuple[str, ...]] = []
    for key, value in values.items():
        path = (*prefix, key)
        leaves += _leaves(value, path) if isinstance(value, dict) else [path]
    return leaves


def _dotted(keys: tuple[str, ...]) -> str:
    return ".".join(keys)


def _put(values: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        child = values.setdefault(key, {})
        if not isinstance(child, dict):
            raise SettingsError(f"{_dotted(keys)}: {key!r} is a value, not a section")
        values = child
    values[keys[-1]] = value


def _merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _explain(error: Any, sources: dict[str, str], default: str) -> str:
    """One line for one pydantic error: source: key: what is wrong (and what was given)."""
    key = _dotted(tuple(str(part) for part in error["loc"]))
    # What a section or list holds may be told of the whole of it.
    source = next((s for k, s in sources.items() if k == key or k.startswith(f"{key}.")), default)
    if error["type"] == "extra_forbidden":
        return f"{source}: {key}: no such setting; `pipeline check --settings` lists them all"
    given = error.get("input")
    shown = "" if isinstance(given, dict | SecretStr) else f" (given: {given!r})"
    message = error["msg"].removeprefix("Value error, ")
    return f"{source}: {key}: {message}{shown}" if key else f"{source}: {message}"
