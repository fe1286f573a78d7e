"""A streaming inference pipeline on Kafka. The map, in the order the data goes:

records, contracts, errors, settings   the vocabulary; every room may use these, and nothing else
bus/        Kafka: a Faust transport on librdkafka, ledger, topics, embedded Apache Kafka
codec/      bytes <-> columns: wire format, registry, columnar Avro
scoring/    the hot path, read top to bottom: flow, validate, batching, engine, publish
models/     bundles: what a model is, how it is packed, verified and loaded
drift/      summaries, blocks, ADWIN detectors, evidence, triggers
labels/     late labels joined to predictions: store, join, outcomes; no role runs it yet
retraining/ training recipe
observe/    metrics, health, logs
topology    wires rooms together: which agent reads and writes which topic
cli/        one file a command
"""

__version__ = "0.1.0"
