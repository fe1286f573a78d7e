"""Settings to clients, for commands that only need Kafka and schemas: `topology` would import torch and faust."""

from dataclasses import replace

from confluent_kafka.admin import AdminClient

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin, wait_for_broker
from pipeline.cli.context import BROKER_WAIT_S
from pipeline.contracts import Registry
from pipeline.errors import ContractError, SchemaError
from pipeline.settings import Settings


def client_options(settings: Settings) -> ClientOptions:
    """The `[kafka]` section, silent on stderr: a command says itself, once, that a broker is away."""
    options = ClientOptions.from_settings(settings)
    return replace(options, common={"log_level": "2", **options.common})


def connect(settings: Settings, wait_s: float = BROKER_WAIT_S) -> tuple[ClientOptions, AdminClient]:
    """Options and an admin client of a broker that answers. Raises UnreachableError after `wait_s`."""
    options = client_options(settings)
    wait_for_broker(options, wait_s)
    return options, make_admin(options)


def ensure_topics(settings: Settings, admin: AdminClient) -> list[str]:
    """Create missing topics if `topics.create` allows it; names of those created. Raises ContractError for misfits."""
    created = topics.create(admin, topics.specs(settings)) if settings.topics.create else []
    if problems := topics.problems(settings, topics.partition_counts(admin)):
        raise ContractError("\n".join(problems))
    return created


def open_registry(settings: Settings) -> Registry:
    """The Schema Registry or the file registry of these settings."""
    auth = settings.registry.basic_auth
    registry: Registry = codec.open_registry(
        settings.registry.url, settings.path(settings.registry.dir), auth.get_secret_value() if auth else None
    )
    return registry


def event_schema(settings: Settings) -> str:
    """Avro JSON of the event. Raises ContractError for an unreadable file, SchemaError for a bad schema."""
    path = settings.path(settings.events.schema_file)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"events.schema_file: {path}: cannot be read: {error}") from None
    try:
        codec.parse(text)
    except SchemaError as error:
        raise SchemaError(f"events.schema_file: {path}: {error}") from None
    return text
