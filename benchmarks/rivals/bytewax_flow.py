"""What both Bytewax dataflows share: Kafka at either end, snapshots for recovery, a run that ends with the topic.

Bytewax keeps its offsets in snapshots of its own, in SQLite, and commits none to the consumer group. A snapshot is
made of what has passed the sink, which waits for the broker: at least once. Its sink does not look at delivery
reports, so a record that the broker refuses is lost without a word.
"""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from benchmarks import clients, job


def run(given: job.Job, score: Callable[[Any], Any]) -> None:
    """Events through `score`, a stream of KafkaSourceMessage -> one of KafkaSinkMessage; returns at the topic's end."""
    brokers = [given.bootstrap_servers]
    flow = Dataflow("scores")
    events = kop.input(
        "events",
        flow,
        brokers=brokers,
        topics=[given.input_topic],
        tail=False,
        add_config=clients.FETCHING,
        batch_size=clients.CONSUME_MAX,
    )
    kop.output("outputs", score(events.oks), brokers=brokers, topic=given.output_topic, add_config=clients.SENDING)
    with tempfile.TemporaryDirectory() as folder:
        init_db_dir(Path(folder), 1)
        interval = timedelta(seconds=clients.COMMIT_INTERVAL_S)
        cli_main(flow, epoch_interval=interval, recovery_config=RecoveryConfig(folder, timedelta(0)))
