"""How large a record may be: what its topic takes, and what our producers hand over."""

from collections.abc import Iterable

import structlog
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from pipeline.bus.clients import ClientOptions
from pipeline.bus.topics import REQUEST_TIMEOUT_S

log = structlog.get_logger(__name__)

#: Of a topic that is set to nothing else: 1 MiB and the header of a batch (`message.max.bytes` of brokers).
KAFKA_DEFAULT_BYTES = 1_048_588


def record_bytes_max(admin: AdminClient, options: ClientOptions, names: Iterable[str]) -> dict[str, int]:
    """Topic -> bytes of the largest batch that both the topic and our producers take.

    Where the broker does not say (it asks for the right DescribeConfigs), Kafka's default is assumed. A limit that is
    raised later counts from the next start on.
    """
    ours = int(options.for_producer()["message.max.bytes"])
    asked = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    found: dict[str, int] = {}
    for resource, future in admin.describe_configs(asked, request_timeout=REQUEST_TIMEOUT_S).items():
        try:
            limit = int(future.result()["max.message.bytes"].value)
        except (KafkaException, KeyError, TypeError, ValueError) as error:
            limit = KAFKA_DEFAULT_BYTES
            log.warning("max.message.bytes unknown, taking the default", topic=resource.name, error=str(error))
        found[resource.name] = min(limit, ours)
    return found
