"""manifest.json: what a bundle says about its model.

Its `digest` is the SHA-256 of all the rest as canonical JSON (sorted keys, no spaces), the digests of the
other files included: one value vouches for the whole bundle. It shows damage and careless edits; it is no
signature, since whoever changes a bundle on purpose can write a new digest as well.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from pipeline.errors import BundleError
from pipeline.records import Baseline, Feature, FeatureContract, JointWeights, ModelIdentity, OutputContract, Season

FORMAT: Literal["pipeline-model-bundle"] = "pipeline-model-bundle"
FORMAT_VERSION: Literal[1] = 1
#: 12 hexadecimal digits are 48 bits: a thousand versions of one model collide with probability 2e-9.
VERSION_DIGITS = 12

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Architecture(_Part):
    """A class of the environment, and the keyword arguments (JSON) that it is made with."""

    module: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=400)]
    arguments: dict[str, Any] = {}

    @field_validator("arguments")
    @classmethod
    def _is_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        """Raises TypeError, which is no validation error, for what JSON has no form for."""
        json.dumps(value, allow_nan=False)
        return value


class DataRange(_Part):
    """Events of one partition, from the first to the last offset that was used, both inclusive."""

    topic: str
    partition: int
    first_offset: int
    last_offset: int
    #: Events used of them.
    rows: int


class DataPart(_Part):
    """What one part of the data was used for."""

    #: replay: fitted, from before the window; fit; stopping: said when to stop; newest: measured, never learnt from.
    use: Literal["replay", "fit", "stopping", "newest"]
    rows: int
    #: Event times, milliseconds since the epoch.
    first_time_ms: int
    last_time_ms: int
    ranges: tuple[DataRange, ...]


class Ancestor(_Part):
    """A model that this one descends from."""

    model_version: str
    created_at: str


class Provenance(_Part):
    """All that a retraining was made of: enough to make it again while the topic keeps its events."""

    #: The trigger that asked for it; None for a person or a schedule.
    trigger_id: str | None = None
    #: Which labelled events were asked for, as text.
    window: str
    parts: tuple[DataPart, ...]
    #: Events left out: labels that came too late to be known then, events that retention had removed, events that
    #: the decoder or the validator refused, labels of a class that the model does not know.
    rows_purged: int = 0
    rows_gone: int = 0
    rows_refused: int = 0
    rows_unknown: int = 0
    #: "events", "outcomes" -> ids of the Avro schemas that they were written with.
    schema_ids: dict[str, tuple[int, ...]] = {}
    #: "pipeline": its version; "git": what `git describe` says of the code that ran, where there is such.
    code: dict[str, str] = {}
    #: Name and parameters of the recipe, as plain data.
    recipe: dict[str, Any] = {}
    seed: int = 0
    parent_version: str
    parent_weights_sha256: Sha256
    #: The parent first.
    ancestors: tuple[Ancestor, ...] = ()
    #: Feature -> how well it alone told the labels apart (0.5 to 1), for the leakage guard of the next retraining.
    separation: dict[str, float] = {}


class Training(_Part):
    """Where the weights come from."""

    #: SHA-256 of the columns and rows used; None for a model that was trained elsewhere.
    data_sha256: Sha256 | None = None
    rows_train: int = 0
    rows_validation: int = 0
    metrics: dict[str, float] = {}
    #: Rows: true class, columns: predicted class; counts on the validation rows.
    confusion: tuple[tuple[int, ...], ...] = ()
    #: None for a model that was not made by `pipeline retrain`.
    provenance: Provenance | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A model without provenance is written, and gets its version, as before there was any."""
        found: dict[str, Any] = handler(self)
        if self.provenance is None:
            del found["provenance"]
        return found


class FileEntry(_Part):
    """One file beside the manifest."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Manifest(_Part):
    """All of manifest.json but its digest."""

    format: Literal["pipeline-model-bundle"] = FORMAT
    format_version: Literal[1] = FORMAT_VERSION
    model_id: Name
    model_version: Name
    #: RFC 3339, UTC; no part of the model's content.
    created_at: str
    architecture: Architecture
    contract: FeatureContract
    #: A baseline without signals means that drift is not watched.
    baseline: Baseline
    training: Training = Training()
    #: Distribution -> versions that will do, like ">=2.10,<3".
    requires: dict[str, str] = {}
    #: Distribution -> version at hand when it was packed; for the record only.
    made_with: dict[str, str] = {}
    files: dict[str, FileEntry]

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(self.model_id, self.model_version)

    def to_json(self) -> bytes:
        """The file: readable, the same bytes for the same manifest."""
        content = _dumped(self)
        content["digest"] = digest(content)
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def digest(content: Mapping[str, Any], *, without: tuple[str, ...] = ("digest",)) -> str:
    """SHA-256, in hexadecimal, of the canonical JSON of `content` less some keys."""
    kept = {key: value for key, value in content.items() if key not in without}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _dumped(manifest: Manifest) -> dict[str, Any]:
    # Without warnings: dataclasses made in Python may hold 1 where the type says 1.0.
    content: dict[str, Any] = manifest.model_dump(mode="json", warnings=False)
    for part in ("joint", "season"):
        if content["baseline"][part] is None:  # written, and given its version, as before there was any
            del content["baseline"][part]
    return content


def content_version(manifest: Manifest) -> str:
    """A version made of the content: the same model has the same one, whenever and wherever it was packed."""
    return digest(_dumped(manifest), without=("model_version", "created_at", "made_with"))[:VERSION_DIGITS]


def parse(text: bytes) -> Manifest:
    """A manifest whose digest, fields and output contract are right.

    Raises BundleError in one line, without the file's name.
    """
    try:
        content = json.loads(text)
        # In JSON a list may be a tuple and 1 a float, which strict validation of Python objects refuses.
        fields = json.dumps({k: v for k, v in content.items() if k != "digest"}) if isinstance(content, dict) else ""
    except (ValueError, RecursionError) as error:
        raise BundleError(f"not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"no model bundle: format is not {FORMAT!r}")
    version = content.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        mend = "install the version of `pipeline` that packed it, or pack it again"
        raise BundleError(f"format version {version!r:.40} is unknown, this release reads {FORMAT_VERSION}; {mend}")
    if content.get("digest") != digest(content):
        raise BundleError("was changed after packing: its digest does not match; pack the model again")
    try:
        manifest = Manifest.model_validate_json(fields)
    except ValidationError as error:
        raise BundleError(_explain(error)) from None
    if faults := output_faults(manifest.contract.output) + baseline_faults(manifest.baseline):
        raise BundleError("; ".join(faults))
    return manifest


class _ContractFile(_Part):
    features: tuple[Feature, ...]
    output: OutputContract


def parse_contract(text: bytes) -> FeatureContract:
    """A feature contract from JSON, with the fields of records.FeatureContract. Raises BundleError in one line."""
    try:
        found = _ContractFile.model_validate_json(text)
    except ValidationError as error:
        raise BundleError(_explain(error)) from None
    if faults := output_faults(found.output):
        raise BundleError("; ".join(faults))
    return FeatureContract(found.features, found.output)


def output_faults(output: OutputContract) -> list[str]:
    """One line per contradiction in an output contract."""
    width, classes = output.width, output.classes
    faults = []
    if width < 1:
        faults.append(f"output: width {width} is no output at all")
    if len(set(classes)) != len(classes):
        faults.append("output: a class is named twice")
    if output.kind == "regression":
        if classes:
            faults.append("output: a regression has no classes")
        if output.activation == "softmax":
            faults.append("output: softmax is for classification")
    elif width == 1:
        if len(classes) != 2:
            faults.append(f"output: one column is the probability of the second of two classes, not of {len(classes)}")
        if output.activation == "softmax":
            faults.append("output: softmax of one column is always 1; use sigmoid")
    elif len(classes) != width:
        faults.append(f"output: {width} columns, but {len(classes)} classes")
    return faults


def baseline_faults(baseline: Baseline) -> list[str]:
    """One line per contradiction in a baseline; that its numbers are finite was checked before."""
    faults = [] if baseline.block_events >= 1 else [f"baseline: block_events {baseline.block_events} is less than 1"]
    names = [signal.name for signal in baseline.signals]
    faults += [f"baseline: signal {name} is there twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    for signal in baseline.signals:
        edges = signal.edges
        if signal.histogram and len(edges) != len(signal.histogram) + 1:
            faults.append(f"baseline: signal {signal.name}: {len(edges)} edges for {len(signal.histogram)} bins")
        if any(left > right for left, right in itertools.pairwise(edges)):
            faults.append(f"baseline: signal {signal.name}: edges do not ascend")
        if signal.count < 0 or signal.variance < 0 or min(signal.histogram, default=0) < 0:
            faults.append(f"baseline: signal {signal.name}: a count or variance below 0")
    faults += _joint_faults(baseline.joint or JointWeights((), ()), names)
    return faults + (_season_faults(baseline.season, names) if baseline.season else [])


def _joint_faults(joint: JointWeights, names: list[str]) -> list[str]:
    size, together = len(joint.features), [f"joint:{name}" for name in joint.features]
    faults = []
    if [name for name in names if name.startswith("joint:")] != together or names[len(names) - size :] != together:
        faults.append(f"baseline: its last signals are not the {size} of joint.features")
    faults += [
        f"baseline: joint: no signal feature:{name}" for name in joint.features if f"feature:{name}" not in names
    ]
    if [len(row) for row in joint.weights] != [size] * size:
        faults.append(f"baseline: joint: weights are not {size} rows of {size}")
    return faults


def _season_faults(season: Season, names: list[str]) -> list[str]:
    faults = [] if season.period_s > 0 else [f"baseline: season: a period of {season.period_s} s"]
    faults += [] if season.seasons > 0 else [f"baseline: season: measured over {season.seasons} seasons"]
    faults += [f"baseline: season: no signal {name}" for name in season.signals if name not in names]
    phases = len(season.medians[0]) if season.medians else 0
    rows = [len(season.signals), len(season.medians), len(season.ranges)]
    if len(set(rows)) > 1 or any(len(row) != phases or not row for row in (*season.medians, *season.ranges)):
        faults.append("baseline: season: medians and ranges are not one row a signal and one column a phase")
    if any(width <= 0 for row in season.ranges for width in row):
        faults.append("baseline: season: a range of 0 or less")
    return faults


def _explain(error: ValidationError) -> str:
    """The first fault in one line: where, what, and how many more."""
    first, *more = error.errors(include_url=False)
    where = ".".join(str(part) for part in first["loc"])
    rest = f" (and {len(more)} more)" if more else ""
    return f"{where}: {first['msg']} (given: {first['input']!r:.60}){rest}"
