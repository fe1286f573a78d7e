"""Fill the input topic, once for all systems and rounds."""

from benchmarks import clients, job


def topic_of(events: int) -> str:
    return f"benchmark.events.{events}"


def load(bootstrap_servers: str, events: int) -> str:
    """Make sure a topic of PARTITIONS partitions holds events 0..events-1; its name.

    A complete topic of an earlier run is used again; an incomplete one raises RuntimeError.
    """
    admin, topic = clients.make_admin(bootstrap_servers), topic_of(events)
    if count := clients.partition_count(admin, topic):
        found = sum(clients.end_offsets(admin, topic, count))
        if found != events or count != job.PARTITIONS:
            raise RuntimeError(f"{topic}: holds {found} records in {count} partitions: delete the topic and run again")
        return topic
    clients.create_topic(admin, topic, job.PARTITIONS, retention_ms="-1")
    sender = clients.Sender(bootstrap_servers)
    values, keys = job.encode_events(events), job.keys(events).tolist()
    for first in range(0, events, clients.CONSUME_MAX):
        chunk = slice(first, first + clients.CONSUME_MAX)
        sender.send(topic, values[chunk], keys[chunk])
    sender.flush()
    found = sum(clients.end_offsets(admin, topic, job.PARTITIONS))
    if found != events:
        raise RuntimeError(f"{topic}: {found} of {events} records arrived")
    return topic
