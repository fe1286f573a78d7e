"""All settings, and the only place that reads pipeline.toml, the environment or flags.

Precedence: flags > environment (`PIPELINE__SECTION__KEY`) > pipeline.toml > defaults. What can be set is in sections/.
"""

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError, model_validator

from pipeline.errors import SettingsError
from pipeline.sections.base import Name, Section
from pipeline.sections.loop import (
    CalibrationSettings,
    GateSettings,
    LabelSettings,
    QualitySettings,
    ReleaseSettings,
    RetrainingSettings,
    TrialSettings,
)
from pipeline.sections.serving import (
    SLICE_FIELDS_MAX,
    DeliverySettings,
    DriftSettings,
    EventSettings,
    InputSettings,
    KafkaSettings,
    ModelSettings,
    ObserveSettings,
    RegistrySettings,
    ScoringSettings,
    SupervisorSettings,
    TopicSettings,
)

__all__ = [
    "DEFAULT_FILE",
    "ENVIRONMENT_PREFIX",
    "SECRET_OPTIONS",
    "SLICE_FIELDS_MAX",
    "CalibrationSettings",
    "DeliverySettings",
    "DriftSettings",
    "EventSettings",
    "GateSettings",
    "InputSettings",
    "KafkaSettings",
    "LabelSettings",
    "ModelSettings",
    "ObserveSettings",
    "QualitySettings",
    "RegistrySettings",
    "ReleaseSettings",
    "RetrainingSettings",
    "ScoringSettings",
    "Settings",
    "SupervisorSettings",
    "TopicSettings",
    "TrialSettings",
    "load",
]

ENVIRONMENT_PREFIX = "PIPELINE__"
DEFAULT_FILE = "pipeline.toml"
#: A long one has 5 kB.
FILE_BYTES_MAX = 1 << 20

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


class Settings(Section):
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
    calibration: CalibrationSettings = CalibrationSettings()
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

    @model_validator(mode="after")
    def _precision_is_the_devices(self) -> "Settings":
        if self.scoring.precision == "int8" and self.model.device.startswith("cuda"):
            raise ValueError(f"scoring.precision: int8 is for the CPU, and model.device is {self.model.device}")
        return self

    @model_validator(mode="after")
    def _schedule_is_remembered(self) -> "Settings":
        kept_s = self.topics.retention_hours * 3600
        if self.retraining.every_s >= kept_s:
            raise ValueError(
                f"retraining.every_s: the last training is known by its report, which topics.retention_hours keeps for "
                f"{kept_s:,.0f} s: less than that"
            )
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
