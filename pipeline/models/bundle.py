"""A model on disk: manifest.json and weights.safetensors, in a folder or an archive.

Code comes from the environment, never out of a bundle: the manifest names a class of an installed module,
the weights are safetensors, which hold numbers and nothing that runs. Needs no torch.
"""

import hashlib
import json
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import BundleError
from pipeline.models import container, environment, fitting
from pipeline.models import manifest as manifests
from pipeline.models.manifest import Architecture, FileEntry, Manifest, Training
from pipeline.records import Baseline, FeatureContract, ModelIdentity

MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"
#: A signal of a baseline is about 2 kB of JSON: this is room for some thousands.
MANIFEST_BYTES_MAX = 16 << 20
#: The weights of a model lie in memory twice while it loads; a stream's model is far smaller.
WEIGHTS_BYTES_MAX = 2 << 30
#: About 100 bytes a tensor: ten thousand tensors.
HEADER_BYTES_MAX = 1 << 20
LIMITS = {MANIFEST: MANIFEST_BYTES_MAX, WEIGHTS: WEIGHTS_BYTES_MAX}

#: What a model of built-in parts needs, unless it says otherwise: as pyproject.toml, and no release that breaks.
DEFAULT_REQUIRES = {"pipeline": ">=0.1", "torch": ">=2.10,<3"}
NO_BASELINE = Baseline((), 1)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified manifest, and the weights it vouches for."""

    manifest: Manifest
    #: The bytes of weights.safetensors.
    weights: bytes = field(repr=False)
    #: SHA-256 of the manifest, as its file says: it vouches for the whole bundle.
    digest: str

    @property
    def identity(self) -> ModelIdentity:
        return self.manifest.identity

    @property
    def model_id(self) -> str:
        return self.manifest.model_id

    @property
    def model_version(self) -> str:
        return self.manifest.model_version

    @property
    def architecture(self) -> Architecture:
        return self.manifest.architecture

    @property
    def contract(self) -> FeatureContract:
        return self.manifest.contract

    @property
    def baseline(self) -> Baseline:
        return self.manifest.baseline

    @property
    def training(self) -> Training:
        return self.manifest.training


def read(path: Path) -> Bundle:
    """The bundle at `path`: every digest right, everything it needs at hand.

    1. Read the two files within their limits; refuse any other, links and paths that lead elsewhere.
    2. Parse the manifest: format version, its own digest, every field.
    3. Compare size and SHA-256 of the weights; look at their header.
    4. Look for the library versions and the architecture's module that it names; import none of it.

    Raises BundleError in one line that begins with the path.
    """
    try:
        files = container.read_files(path, LIMITS)
        try:
            manifest = manifests.parse(files[MANIFEST])
        except BundleError as error:
            raise BundleError(f"{MANIFEST}: {error}") from None
        weights = files[WEIGHTS]
        _check_files(manifest, weights)
        _check_environment(manifest)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    return Bundle(manifest, weights, _digest(files[MANIFEST]))


def make(
    *,
    model_id: str,
    architecture: Architecture,
    contract: FeatureContract,
    weights: bytes,
    baseline: Baseline = NO_BASELINE,
    training: Training | None = None,
    model_version: str | None = None,
    requires: Mapping[str, str] = DEFAULT_REQUIRES,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Bundle:
    """A bundle in memory.

    weights: the bytes of a safetensors file. model_version: else made of the content, so that the same
    content has the same version. Raises BundleError for what `read` would refuse.
    """
    try:
        manifest = Manifest(
            model_id=model_id,
            model_version=model_version or "0",
            created_at=clock().astimezone(UTC).isoformat(timespec="seconds"),
            architecture=architecture,
            contract=contract,
            baseline=baseline,
            training=training or Training(),
            requires=dict(requires),
            made_with=_versions(requires),
            files={WEIGHTS: FileEntry(sha256=hashlib.sha256(weights).hexdigest(), bytes=len(weights))},
        )
        # What is written must be readable: the same checks, before it is too late.
        manifest = manifests.parse(manifest.to_json())
        if model_version is None:
            manifest = manifest.model_copy(update={"model_version": manifests.content_version(manifest)})
    except (ValidationError, TypeError, ValueError) as error:
        raise BundleError(f"cannot be packed: {' '.join(str(error).split())}") from None
    _check_files(manifest, weights)
    _check_environment(manifest)
    return Bundle(manifest, weights, _digest(manifest.to_json()))


def write(bundle: Bundle, path: Path, *, overwrite: bool = False) -> None:
    """Write a folder, or an archive if the name ends in .tar, .tar.gz, .tgz or .zip; whole or not at all.

    The same bundle gives the same bytes. Raises BundleError when the path is taken or cannot be written.
    """
    # The manifest first: whoever reads an archive in order meets it before the weights.
    container.write_files(path, {MANIFEST: bundle.manifest.to_json(), WEIGHTS: bundle.weights}, overwrite=overwrite)


def check_free(path: Path, *, overwrite: bool = False) -> None:
    """What `write` would say of a path that is taken, before the work that leads to it."""
    container.check_free(path, overwrite=overwrite)


def check_fits(bundle: Bundle, schema_json: str) -> list[str]:
    """One line per feature that events of this Avro schema (JSON) cannot give; empty if the bundle fits."""
    return fitting.misfits(bundle.contract, schema_json)


def weights_header(weights: bytes) -> dict[str, Any]:
    """Name -> {"dtype", "shape", "data_offsets"} of the tensors of a safetensors file.

    Format: 8 bytes little-endian length of the header, the header as JSON, the tensors
    (https://huggingface.co/docs/safetensors). Raises BundleError for what is no such file.
    """
    if weights[:4] == b"PK\x03\x04" or weights[:1] == b"\x80":
        raise BundleError(f"{WEIGHTS}: is no safetensors file: {container.PICKLE_REFUSED}")
    length = struct.unpack("<Q", weights[:8])[0] if len(weights) >= 8 else 0
    if length > HEADER_BYTES_MAX:
        raise BundleError(f"{WEIGHTS}: a header of {length:,} bytes, and at most {HEADER_BYTES_MAX:,} are read")
    try:
        header = json.loads(weights[8 : 8 + length])
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise BundleError(f"{WEIGHTS}: is no safetensors file")
    header.pop("__metadata__", None)
    return header


def _check_files(manifest: Manifest, weights: bytes) -> None:
    if set(manifest.files) != {WEIGHTS}:
        listed = ", ".join(manifest.files) or "nothing"
        raise BundleError(f"{MANIFEST}: files: lists {listed}, and a bundle holds {WEIGHTS}")
    entry = manifest.files[WEIGHTS]
    if len(weights) != entry.bytes or hashlib.sha256(weights).hexdigest() != entry.sha256:
        raise BundleError(f"{WEIGHTS}: was changed after packing: its SHA-256 does not match; pack the model again")
    weights_header(weights)


def _check_environment(manifest: Manifest) -> None:
    if faults := environment.unmet(manifest.requires):
        raise BundleError("; ".join(faults))
    module = manifest.architecture.module.partition(":")[0]
    if not environment.module_exists(module):
        raise BundleError(
            f"architecture {manifest.architecture.module}: there is no module {module}; install its package"
        )


def _digest(manifest_file: bytes) -> str:
    """As a parsed manifest's file says, not anew: a later release of this software may dump a field more."""
    digest: str = json.loads(manifest_file)["digest"]
    return digest


def _versions(requires: Mapping[str, str]) -> dict[str, str]:
    """Versions at hand of what is required, and of Python."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in requires:
        try:
            found[name] = metadata.version(name)
        except (metadata.PackageNotFoundError, ValueError):
            continue
    return found
