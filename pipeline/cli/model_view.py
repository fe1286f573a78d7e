"""A bundle in words, for `pipeline model show`."""

import json
from collections.abc import Iterator

from pipeline.cli.context import printable
from pipeline.drift.parts import SHARES, slice_score
from pipeline.models import bundle as bundles
from pipeline.records import Feature


def described(bundle: bundles.Bundle) -> Iterator[tuple[str, str]]:
    """What a person wants to know of a bundle, line by line."""
    manifest, output = bundle.manifest, bundle.contract.output
    yield "model", f"{manifest.model_id} {manifest.model_version}"
    yield "packed", manifest.created_at
    yield "architecture", f"{manifest.architecture.module} {json.dumps(manifest.architecture.arguments)}"
    classes = f" of {', '.join(output.classes)}" if output.classes else ""
    yield "output", f"{output.kind}{classes}; width {output.width}, activation {output.activation}"
    yield "weights", f"{len(bundle.weights):,} bytes in {len(bundles.weights_header(bundle.weights))} tensors"
    yield "requires", ", ".join(f"{name}{versions}" for name, versions in manifest.requires.items())
    yield "made with", ", ".join(f"{name} {version}" for name, version in manifest.made_with.items())
    signals = len(manifest.baseline.signals)
    blocks = f"{signals} signals in blocks of {manifest.baseline.block_events} events"
    yield "drift", blocks if signals else "not watched: packed without data"
    if parts := [s.name for s in manifest.baseline.signals if s.name.startswith(SHARES) or slice_score(s.name)]:
        yield "of them of parts", printable(", ".join(parts))
    if manifest.training.data_sha256:
        yield "data", f"SHA-256 {manifest.training.data_sha256}"


def shape(feature: Feature) -> str:
    """What values a feature has."""
    if feature.kind == "category":
        return f"{len(feature.vocabulary)} categories"
    span = f" in {list(feature.range)}" if feature.range else ""
    shape = "x".join(map(str, feature.shape))
    return {"number": f"number{span}", "bytes": f"{shape} {feature.dtype}", "sequence": f"up to {shape}{span}"}[
        feature.kind
    ]


def policy(feature: Feature) -> str:
    """What becomes of a value that is not as it should be."""
    null = f"null becomes {feature.impute!r}" if feature.on_null == "impute" else "null is refused"
    if feature.kind == "category":
        return f"{null}, unknown {'is refused' if feature.on_unknown == 'reject' else 'is its own category'}"
    beyond = {"reject": "is refused", "clip": "is clipped", "impute": f"becomes {feature.impute!r}"}[feature.on_range]
    return f"{null}, beyond the range {beyond}" if feature.range else null
