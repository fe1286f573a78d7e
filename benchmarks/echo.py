"""The limit: consume and produce the same records, no decoding, no model."""

import gc
import time

from benchmarks import clients
from benchmarks.job import Job


def main() -> None:
    job = Job.parse()
    # Millions of short-lived dicts and messages, no cycles: the collector only costs.
    gc.disable()
    consumer, sender = clients.make_consumer(job.bootstrap_servers, job.group), clients.Sender(job.bootstrap_servers)
    consumer.subscribe([job.input_topic])
    done, next_commit = 0, time.monotonic() + clients.COMMIT_INTERVAL_S
    while done < job.events:
        messages = clients.consume(consumer)
        sender.send(job.output_topic, [m.value() for m in messages], [m.key() for m in messages])
        done += len(messages)
        if messages and time.monotonic() >= next_commit:
            sender.flush()
            clients.commit(consumer)
            next_commit = time.monotonic() + clients.COMMIT_INTERVAL_S
    sender.flush()
    clients.commit(consumer)
    consumer.close()


if __name__ == "__main__":
    main()
