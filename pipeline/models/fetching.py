"""Bundles by URI: fetched into a folder of this machine, verified before they count; published for others to fetch.

A URI is a path, absolute or relative to the project folder, or a URL of any file system that fsspec knows: file, s3
(with the extra `s3`), gs, az, http. It names an archive, or a folder that holds the two files of a bundle.
"""

import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import fsspec.core

from pipeline.errors import BundleError, ExhaustedError, PipelineError, SettingsError, UnreachableError, explained
from pipeline.models import bundle as bundles
from pipeline.models import container
from pipeline.models.bundle import LIMITS, Bundle
from pipeline.models.manifest import content_version
from pipeline.models.releases import Model

#: Fetched bundles kept: champion, canary, shadow, and what a rollback or two go back to.
KEPT = 6
#: An archive's own headers are less than this.
ARCHIVE_BYTES_MAX = sum(LIMITS.values()) + 2 * container.MEBIBYTE
#: A half download this old belongs to no process that still runs: the largest bundle takes 5 minutes at 7 MB/s.
LEFTOVER_AGE_S = 3600.0
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(uri: str, digest: str, *, cache: Path, root: Path, keep: int = KEPT) -> Bundle:
    """The bundle at `uri` whose manifest has `digest`, out of `cache` if it is there; verified either way.

    1. Look into the cache; what is damaged there is thrown away.
    2. Download beside it, within a bundle's limits of size.
    3. Verify as `bundles.read` does, and compare the digest.
    4. Rename: only now is it in the cache, whole. Any number of processes may share one.
    5. Throw away all but the `keep` bundles that were used last.

    Raises BundleError for what is no such bundle, UnreachableError when a later try may succeed, SettingsError when
    the cache cannot be written.
    """
    if not _SHA256.fullmatch(digest):
        raise BundleError(f"{uri}: {digest!r:.80} is no SHA-256")
    suffix = container.kind_of(Path(uri))
    final = cache / f"{digest}{suffix}"
    if (found := _cached(final, digest)) is not None:
        return found
    part = cache / f".{digest}.{os.getpid()}.{uuid.uuid4().hex[:8]}{suffix}"
    try:
        _download(uri, root, part)
        bundle = _read(part, uri)
        if bundle.digest != digest:
            raise BundleError(f"{uri}: is another bundle than the one released: its digest is {bundle.digest}")
        _put_in_place(part, final)
    finally:
        container.remove(part)
    _sweep(cache, keep)
    return bundle


def read_at(uri: str, root: Path) -> Bundle:
    """The bundle at `uri`, whichever it is, verified; nothing of it is kept. Raises as `fetch`."""
    if (path := _local(uri, root)) is not None:
        return bundles.read(path)
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        part = Path(folder) / f"bundle{container.kind_of(Path(uri))}"
        _download(uri, root, part)
        return _read(part, uri)


def publish(bundle: Bundle, store: str, root: Path) -> Model:
    """Copy a bundle into `store` (a folder or URL) as ID/VERSION.tar, for `fetch`.

    What is there stays: of the same content packed twice, the first copy is the one. Raises BundleError when the
    version is there with other content or damaged, or the store cannot be written, UnreachableError when a later try
    may succeed.
    """
    uri = f"{store.rstrip('/')}/{bundle.model_id}/{bundle.model_version}.tar"
    there = _published(uri, root)
    if there is None:
        _upload(bundle, uri, root)
        there = read_at(uri, root)
    if content_version(there.manifest) != content_version(bundle.manifest):
        raise BundleError(f"{uri}: is there already with other content; give this bundle a version of its own")
    return Model(bundle.model_id, bundle.model_version, uri, there.digest)


# --------------------------------------------------------------------------- the cache


def _cached(path: Path, digest: str) -> Bundle | None:
    if not path.exists():
        return None
    try:
        found = bundles.read(path)
    except BundleError:
        found = None
    if found is None or found.digest != digest:
        container.remove(path)
        return None
    try:
        os.utime(path)
    except OSError:  # another process may have thrown it away: it is read already
        return found
    return found


def _put_in_place(part: Path, final: Path) -> None:
    try:
        part.replace(final)
    except OSError as error:
        if not final.exists():  # else another process was faster, with the same bundle
            raise _unwritable(final.parent, error) from None


def _sweep(cache: Path, keep: int) -> None:
    """Throw away what has not been used for long, and half downloads of processes that are gone."""
    whole, now = [], time.time()
    for path in cache.iterdir():
        try:
            used = path.stat().st_mtime
        except OSError:
            continue
        if not path.name.startswith("."):
            whole.append((used, path))
        elif now - used > LEFTOVER_AGE_S:
            container.remove(path)
    for _, path in sorted(whole, reverse=True)[keep:]:
        container.remove(path)


def _unwritable(folder: Path, error: OSError) -> PipelineError:
    known = explained(error)
    told = f"releases.cache_dir: {folder}: cannot be written: {error.strerror or error}"
    return known if isinstance(known, ExhaustedError) else SettingsError(told)


# --------------------------------------------------------------------------- sources


def _local(uri: str, root: Path) -> Path | None:
    """The path that a URI means, None for one of another machine."""
    if uri.startswith("file://"):
        return Path(uri.removeprefix("file://"))
    return None if "://" in uri or "::" in uri else root / uri


def _file_system(uri: str, root: Path) -> tuple[Any, str]:
    """The file system of `uri`, and the path there."""
    try:
        if "::" in uri or urlsplit(uri).password is not None:
            raise BundleError(f"{uri.rpartition('@')[2]}: neither chains of URLs nor passwords in them are accepted")
        path = _local(uri, root)
        found: tuple[Any, str] = fsspec.core.url_to_fs(uri if path is None else str(path))
    except ImportError as error:
        raise BundleError(f"{uri}: needs a package that is not installed: {error}") from None
    except ValueError as error:
        raise BundleError(f"{uri}: cannot be understood: {error}") from None
    return found


def _download(uri: str, root: Path, part: Path) -> None:
    files, path = _file_system(uri, root)
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if container.kind_of(part):
            _copy(uri, files, path, part, ARCHIVE_BYTES_MAX)
            return
        part.mkdir()
        for name, limit in LIMITS.items():
            _copy(f"{uri}/{name}", files, f"{path}/{name}", part / name, limit)
    except OSError as error:  # of this machine: those of the source are told apart in `_source`
        raise _unwritable(part.parent, error) from None


def _copy(uri: str, files: Any, path: str, to: Path, bytes_max: int) -> None:
    with _source(uri):
        source = files.open(path, "rb")
    size = 0
    with source, to.open("xb") as target:
        while True:
            with _source(uri):
                chunk = source.read(container.READ_BYTES_MAX)
            if not chunk:
                return
            size += len(chunk)
            if size > bytes_max:
                raise BundleError(f"{uri}: more than {bytes_max:,} bytes, and no bundle has so many")
            target.write(chunk)


@contextmanager
def _source(uri: str) -> Iterator[None]:
    """Turn what a file system raises into errors of ours: what waiting may mend, and what it will not."""
    try:
        yield
    except FileNotFoundError as error:
        # fsspec's http says so of every failure; its cause has the status, or none if nobody answered.
        cause = error.__cause__
        if cause is None or isinstance(cause, FileNotFoundError) or not uri.startswith("http"):
            raise BundleError(f"{uri}: no such file or folder") from None
        refused = 400 <= getattr(cause, "status", 0) < 500
        raise (BundleError if refused else UnreachableError)(f"{uri}: {_told(cause)}") from error
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise BundleError(f"{uri}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # each file system has errors of its own
        raise UnreachableError(f"{uri}: {_told(error)}") from error


def _told(error: BaseException) -> str:
    return " ".join(f"cannot be fetched: {type(error).__name__}: {error}".split())[:300]


def _read(part: Path, uri: str) -> Bundle:
    try:
        return bundles.read(part)
    except BundleError as error:
        raise BundleError(f"{uri}: {str(error).removeprefix(f'{part}: ')}") from None


# --------------------------------------------------------------------------- the store


def _published(uri: str, root: Path) -> Bundle | None:
    """What is in the store, None if there is nothing."""
    files, path = _file_system(uri, root)
    with _source(uri):
        there = files.exists(path)
    return read_at(uri, root) if there else None


def _upload(bundle: Bundle, uri: str, root: Path) -> None:
    if (path := _local(uri, root)) is not None:
        bundles.write(bundle, path, overwrite=True)
        return
    files, remote = _file_system(uri, root)
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        packed = Path(folder) / "bundle.tar"
        bundles.write(bundle, packed)
        with _source(uri):
            files.makedirs(remote.rpartition("/")[0], exist_ok=True)
            files.put_file(str(packed), remote)
