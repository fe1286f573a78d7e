"""Every setting, its default, its bounds and its meaning, in sections as pipeline.toml has them.

base.py     what all sections have in common
serving.py  what scores a stream: Kafka, events, model, hot path, delivery, drift, processes
loop.py     what follows from labels: quality, retraining, gate, releases, trials

Each field's description is its documentation (`docs/settings.md` is generated from it). settings.py reads them.
"""
