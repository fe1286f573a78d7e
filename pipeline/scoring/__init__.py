"""The hot path, in the order a record goes through it:

flow.py      the loop: what waits -> decode -> validate -> score -> encode -> publish -> acknowledge
validate.py  columns -> model inputs, by the bundle's feature contract; rejections and imputations
slices.py    event fields whose values travel with the prediction
engine.py    model inputs -> outputs: torch on CPU or CUDA
publish.py   outputs -> Kafka records: predictions, dead letters, summaries
dead_letters.py  records that could not be used, and why
signals.py   what the drift monitor watches, one row a record
"""
