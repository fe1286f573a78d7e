"""A few named files in a folder or archive: read within bounds, written whole or not at all.

An archive is .tar, .tar.gz (or .tgz) or .zip. Nothing is ever extracted to disk.
"""

import contextlib
import gzip
import io
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.errors import BundleError

MEBIBYTE = 1 << 20
#: Entries looked at in a folder or archive; a bundle has two.
ENTRIES_MAX = 64
#: Most bytes read at once: tar headers of variable length are held in memory, and real ones have a few hundred.
READ_BYTES_MAX = MEBIBYTE
#: What only a pickle, or a reader that falls back to one, could make a model of.
PICKLE_SUFFIXES = frozenset({".pt", ".pth", ".pt2", ".pkl", ".pickle", ".bin", ".ckpt", ".joblib", ".npy", ".npz"})
PICKLE_REFUSED = (
    "pickle and torch.export files can run code when they are loaded, and signed bundles, which could be "
    "trusted with that, are not supported yet; save the weights with safetensors and use `pipeline model pack`"
)


def read_files(path: Path, limits: Mapping[str, int]) -> dict[str, bytes]:
    """The files named in `limits`, none larger than its limit in bytes; all of them must be there, nothing else.

    Raises BundleError in one line, without the path.
    """
    try:
        found = dict(_entries(path, limits))
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RecursionError) as error:
        raise BundleError(f"damaged archive: {_one_line(error)}") from None
    except OSError as error:
        raise BundleError(f"cannot be read: {error.strerror or _one_line(error)}") from None
    if missing := [name for name in limits if name not in found]:
        raise BundleError(f"no {' and no '.join(missing)} in it; `pipeline model pack` makes a bundle")
    return found


def write_files(path: Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """A folder, or an archive if the suffix says so; the same bytes for the same files. Makes parent folders.

    It appears whole under its name or not at all. Raises BundleError when it is there already and
    `overwrite` is not set, or cannot be written.
    """
    check_free(path, overwrite=overwrite)
    writer = _WRITERS.get(kind_of(path), _write_folder)
    new, old = (path.with_name(f".{path.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(new)
        writer(new, files)
        # A folder cannot be renamed over another: between these two lines there is none, but never half a one.
        if path.is_dir() and not path.is_symlink():
            path.rename(old)
        new.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        remove(new)
        if not path.exists() and old.exists():
            old.rename(path)
        remove(old)


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raises BundleError when something is at `path` that must not be overwritten."""
    if os.path.lexists(path) and not overwrite:
        raise BundleError(f"{path}: is there already; choose another name, or overwrite it with --force")


def kind_of(path: Path) -> str:
    """The archive suffix of a path (".tar", ".tar.gz", ".tgz", ".zip"), or "" for anything else."""
    return next((suffix for suffix in _READERS if path.name.lower().endswith(suffix)), "")


# --------------------------------------------------------------------------- reading


def _entries(path: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    if not path.exists():
        raise BundleError("no such file or folder")
    if path.is_dir():
        entries = _read_folder(path, limits)
    elif kind := kind_of(path):
        entries = _READERS[kind](path, limits)
    elif path.suffix.lower() in PICKLE_SUFFIXES:
        raise BundleError(f"is no bundle: {PICKLE_REFUSED}")
    else:
        raise BundleError(f"is no bundle: neither a folder nor one of {', '.join(_READERS)}")
    seen: set[str] = set()
    for name, content in entries:
        if name in seen:
            raise BundleError(f"{name}: is in it twice")
        seen.add(name)
        yield name, content


def _read_folder(path: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    with os.scandir(path) as entries:
        for entry in entries:
            _check_name(entry.name, limits)
            mode = entry.stat(follow_symlinks=False).st_mode
            if not stat.S_ISREG(mode):
                raise BundleError(f"{entry.name}: {'a link' if stat.S_ISLNK(mode) else 'no plain file'}; refused")
            # Were it exchanged for a link or a pipe just now, this would refuse and not wait.
            with open(entry.path, "rb", opener=_open_plainly) as file:
                yield entry.name, _read(file, entry.name, os.fstat(file.fileno()).st_size, limits)


def _open_plainly(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _read_tar(path: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    with path.open("rb") as file:
        yield from _read_tar_stream(file, limits)


def _read_tar_gz(path: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    with gzip.open(path, "rb") as file:
        yield from _read_tar_stream(file, limits)


def _read_tar_stream(file: Any, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    bounded: Any = _Bounded(file, sum(limits.values()) + 2 * MEBIBYTE)
    with tarfile.open(fileobj=bounded, mode="r:") as archive:
        for number, member in enumerate(archive):
            _check_count(number)
            name = _check_name(member.name, limits, folder=member.isdir())
            if name is None:
                continue
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
                what = "a link" if member.issym() or member.islnk() else "no plain file"
                raise BundleError(f"{name}: {what}; refused")
            content = archive.extractfile(member)
            assert content is not None
            yield name, _read(content, name, member.size, limits)


def _read_zip(path: Path, limits: Mapping[str, int]) -> Iterator[tuple[str, bytes]]:
    # The list of entries lies in memory as a whole; what it holds cannot be longer than the file.
    if path.stat().st_size > sum(limits.values()) + 2 * MEBIBYTE:
        raise BundleError("is larger than any bundle may be")
    with zipfile.ZipFile(path) as archive:
        for number, info in enumerate(archive.infolist()):
            _check_count(number)
            name = _check_name(info.filename, limits, folder=info.is_dir())
            if name is None:
                continue
            mode = info.external_attr >> 16
            if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
                raise BundleError(f"{name}: {'a link' if stat.S_ISLNK(mode) else 'no plain file'}; refused")
            if info.flag_bits & 1:
                raise BundleError(f"{name}: is encrypted; refused")
            with archive.open(info) as content:
                yield name, _read(content, name, info.file_size, limits)


def _check_count(number: int) -> None:
    if number >= ENTRIES_MAX:
        raise BundleError(f"has more than {ENTRIES_MAX} entries; a bundle has two")


def _check_name(name: str, limits: Mapping[str, int], *, folder: bool = False) -> str | None:
    """The plain name of an entry that a bundle may have; None for the top folder itself."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\\" in name or (len(name) > 1 and name[1] == ":"):
        raise BundleError(f"{name!r:.100}: leads out of the bundle; refused")
    plain = "/".join(parts)
    if folder and not plain:
        return None
    if plain in limits and not folder:
        return plain
    if PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES:
        raise BundleError(f"{name!r:.100}: {PICKLE_REFUSED}")
    raise BundleError(f"{name!r:.100}: does not belong here; a bundle holds {' and '.join(limits)} and nothing else")


def _read(file: IO[bytes], name: str, size: int, limits: Mapping[str, int]) -> bytes:
    """`size` bytes. Memory grows with what is really there, not with what a header claims."""
    if size > limits[name]:
        raise BundleError(f"{name}: {size:,} bytes, and at most {limits[name]:,} are read")
    content = io.BytesIO()
    while content.tell() < size:
        chunk = file.read(min(READ_BYTES_MAX, size - content.tell()))
        if not chunk:
            raise BundleError(f"{name}: ends after {content.tell():,} of {size:,} bytes")
        content.write(chunk)
    return content.getvalue()


class _Bounded:
    """A file for `tarfile` that is never read beyond `limit`, nor READ_BYTES_MAX at once."""

    def __init__(self, file: Any, limit: int) -> None:
        self._file, self._limit = file, limit

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= READ_BYTES_MAX:
            raise BundleError(f"a header of {size:,} bytes; refused")
        self._check(self._file.tell() + size)
        content: bytes = self._file.read(size)
        return content

    def seek(self, position: int) -> int:
        self._check(position)
        return int(self._file.seek(position))

    def tell(self) -> int:
        return int(self._file.tell())

    def _check(self, position: int) -> None:
        if position > self._limit:
            raise BundleError("is larger than any bundle may be")


# --------------------------------------------------------------------------- writing


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    path.mkdir()
    for name, content in files.items():
        _write_file(path / name, partial(_fill_plainly, content))
    _sync(path)


def _fill_plainly(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    _write_file(path, lambda file: _fill_tar(file, files))


def _write_tar_gz(path: Path, files: Mapping[str, bytes]) -> None:
    def fill(file: IO[bytes]) -> None:
        # Neither a name nor a time: both would make equal bundles differ.
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            _fill_tar(packed, files)

    _write_file(path, fill)


def _fill_tar(file: Any, files: Mapping[str, bytes]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)  # time 0, nobody's, mode 0644
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    def fill(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, content in files.items():
                info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                archive.writestr(info, content)

    _write_file(path, fill)


def _write_file(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    with path.open("xb") as file:
        fill(file)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Delete what is there, if anything is: a file, a link, a folder with all in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def _one_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_READERS = {".tar": _read_tar, ".tar.gz": _read_tar_gz, ".tgz": _read_tar_gz, ".zip": _read_zip}
_WRITERS = {".tar": _write_tar, ".tar.gz": _write_tar_gz, ".tgz": _write_tar_gz, ".zip": _write_zip}
