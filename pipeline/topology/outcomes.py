"""The newest outcomes of one version, for those who judge it by them: read from the topic, nothing is joined."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import Admin, ClientOptions
from pipeline.bus.reading import Span, read, unless_silent
from pipeline.errors import DataError
from pipeline.measures.scored import Scored
from pipeline.quality.outcomes import Outcomes, joined, of_model, outcomes_of
from pipeline.records import ModelIdentity, OutputContract
from pipeline.settings import Settings

#: Outcomes of each partition that are looked at, at most, for those of one version: at 200,000/s some seconds.
LOOKED_AT_MAX = 1_000_000


def newest_outcomes(
    settings: Settings,
    options: ClientOptions,
    admin: Admin,
    identity: ModelIdentity,
    output: OutputContract,
    rows: int,
    *,
    published: bool = False,
    looked_at_max: int = LOOKED_AT_MAX,
) -> Scored:
    """The newest outcomes of a version in order of event time, outputs as the model itself gave them, or as published.

    Read further back until they are `rows`, or all that are looked at. Raises DataError if there are none,
    UnreachableError for an absent broker.
    """
    topic, back = settings.topic("outcomes"), rows
    while True:
        back = min(back, looked_at_max)
        marks = topics.watermarks(admin, topic)
        at = {tp.partition: Span(max(first, end - back), end) for tp, (first, end) in marks.items()}
        found = joined(list(_outcomes(settings, options, at, identity, output, published=published)), output)
        everything = all(at[tp.partition].start == first for tp, (first, _) in marks.items())
        if len(found) >= rows or back == looked_at_max or everything:
            break
        back *= 4  # other versions have outcomes there, transactions take offsets
    if not len(found):
        raise DataError(f"topic {topic}: no outcome of {identity.model_id} {identity.model_version} among the newest")
    order = np.argsort(found.event_times_ms, kind="stable")[-rows:]
    slices = {name: text.fill_null("").to_numpy(False)[order].astype(np.str_) for name, text in found.slices.items()}
    return Scored(found.outputs[order], found.truth[order], found.event_times_ms[order], slices)


def _outcomes(
    settings: Settings,
    options: ClientOptions,
    at: Mapping[int, Span],
    identity: ModelIdentity,
    output: OutputContract,
    *,
    published: bool,
) -> Iterator[Outcomes]:
    """Outcomes of one version, whatever slot it was in."""
    topic, group = settings.topic("outcomes"), settings.group("calibrate")
    decoder = codec.ColumnarDecoder(codec.registry_of(settings), codec.load_schema("outcome"))
    for messages in unless_silent(read(options, group, topic, at), topic):
        columns = decoder.decode([message.value() for message in messages]).columns
        columns = of_model(columns, identity, any_role=True)
        yield outcomes_of(columns if published else _uncalibrated(columns), output)


def _uncalibrated(columns: pa.RecordBatch) -> pa.RecordBatch:
    """The same outcomes, with the outputs that a calibration was made of, where there was one."""
    outputs = pc.coalesce(columns.column("uncalibrated_outputs"), columns.column("outputs"))
    at = columns.schema.get_field_index("outputs")
    return columns.set_column(at, pa.field("outputs", outputs.type), outputs)
