"""What the settings say of schemas: the registry to ask, the event schema to read with."""

from pipeline.codec.registry import open_registry
from pipeline.codec.schemas import parse
from pipeline.contracts import Registry
from pipeline.errors import ContractError, SchemaError
from pipeline.settings import Settings


def registry_of(settings: Settings) -> Registry:
    """The Schema Registry or the file registry of these settings."""
    auth = settings.registry.basic_auth
    folder = settings.path(settings.registry.dir)
    return open_registry(settings.registry.url, folder, auth.get_secret_value() if auth else None)


def event_schema(settings: Settings) -> str:
    """Avro JSON of the event. Raises ContractError for an unreadable file, SchemaError for a bad schema."""
    path = settings.path(settings.events.schema_file)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ContractError(f"events.schema_file: {path}: cannot be read: {error}") from None
    try:
        parse(text)
    except SchemaError as error:
        raise SchemaError(f"events.schema_file: {path}: {error}") from None
    return text
