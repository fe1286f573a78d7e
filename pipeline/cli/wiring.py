"""Settings to clients, for commands that only need Kafka."""

from dataclasses import replace

from confluent_kafka.admin import AdminClient

from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin, wait_for_broker
from pipeline.cli.context import BROKER_WAIT_S
from pipeline.errors import ContractError
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
