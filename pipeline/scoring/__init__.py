"""The hot path, in the order a record goes through it:

flow.py          the loop: what waits -> decode -> each model in service -> publish -> acknowledge
serving.py       which models are in service, and whose an event is
lane.py          one model in service: validate -> score -> encode, and its drift summaries
validate.py      columns -> model inputs, by the bundle's feature contract; rejections and imputations
slices.py        event fields whose values travel with the prediction
engine.py        model inputs -> outputs: torch on CPU or CUDA
speed.py         how fast models score, measured in turns; not on the path, nor is
tuning.py        what a lower precision costs, and what to set
publish.py       outputs -> Kafka records: predictions, summaries
dead_letters.py  records that could not be used, and why
signals.py       what the drift monitor watches, one row a record
refusal.py       how much bad input is too much
"""
