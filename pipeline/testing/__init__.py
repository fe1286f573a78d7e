"""Test doubles for pipelines, shipped and tested: for our tests, and for those of a user's own model or codec.

    sources    batches by script, with EOF, ABORT, PAUSE and VANISH between them
    sinks      remembers what it got; refuses, fills up, closes on command
    models     scores without weights; raises, hangs, returns NaN on chosen rows
    observers  adds up what the hot path reports
    clock      time that stands still
    breakage   ways to break an event
    proxy      a bad network between clients and a broker: holds, loses, cuts, slows
    faults     what can go wrong with a running pipeline, each as a function
    inventing  events that fit a schema and a model
    counting   what became of events: lost, repeated, out of order

`pipeline verify` is made of the last four. They need neither Kafka nor torch; the proxy is for a real Kafka.
"""

from pipeline.testing.clock import ManualClock
from pipeline.testing.models import ScriptedModel
from pipeline.testing.observers import RecordingObserver
from pipeline.testing.proxy import Proxy
from pipeline.testing.rules import Api, Frame, Rule
from pipeline.testing.sinks import RecordingSink, Sent
from pipeline.testing.sources import (
    ABORT,
    EOF,
    PAUSE,
    VANISH,
    AbortedError,
    Cue,
    ScriptedDelivery,
    ScriptedSource,
    record_batch,
)

__all__ = [
    "ABORT",
    "EOF",
    "PAUSE",
    "VANISH",
    "AbortedError",
    "Api",
    "Cue",
    "Frame",
    "ManualClock",
    "Proxy",
    "RecordingObserver",
    "RecordingSink",
    "Rule",
    "ScriptedDelivery",
    "ScriptedModel",
    "ScriptedSource",
    "Sent",
    "record_batch",
]
