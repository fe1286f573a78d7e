"""Schemas by id without a server: a folder of readable files with a Schema Registry's rules.

    DIR/ids/<id>.avsc             one schema, as registered
    DIR/subjects/<subject>.json   {"subject": ..., "ids": [1, 4]}: its versions, the oldest first

The same schema has the same id under every subject. A version must be able to read the one before it (BACKWARD,
a Schema Registry's default). Ids never change and are not given twice.
"""

import fcntl
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pipeline.codec.schemas import incompatibilities, parse
from pipeline.contracts import Registry
from pipeline.errors import SchemaError, UnreachableError

_ID_FILE = re.compile(r"^([1-9][0-9]{0,9})\.avsc$")


def open_registry(url: str | None, folder: Path, basic_auth: str | None) -> Registry:
    """The Schema Registry at `url`, or without one the file registry in `folder`.

    basic_auth: "user:password" for the Schema Registry.
    Raises SettingsError for a URL or credentials that cannot be meant.
    """
    if url is None:
        return FileRegistry(folder)
    # Only here: it brings an HTTP client, and commands without a server should not wait for that.
    from pipeline.codec.http_registry import HttpRegistry  # noqa: PLC0415

    return HttpRegistry(url, basic_auth)


class FileRegistry:
    """A registry in a folder, made when the first schema is registered; any number of processes may share it.

    Every call may raise UnreachableError when the folder cannot be read or written, SchemaError when a file in it
    is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids, self._subjects = folder / "ids", folder / "subjects"
        self._known: dict[int, str] = {}
        self._threads = threading.Lock()

    def schema(self, schema_id: int) -> str:
        """Avro JSON of `schema_id`. Raises SchemaError if no such id exists.

        A folder that is missing altogether is an absent registry, not an empty one: UnreachableError.
        """
        if schema_id not in self._known:
            path = self._ids / f"{schema_id}.avsc"
            text = self._read(path)
            if text is None:
                if not self._ids.is_dir():
                    raise UnreachableError(
                        f"registry {self._folder}: no such folder; set registry.dir, or register a schema first"
                    )
                raise SchemaError(f"registry {self._folder}: no schema has id {schema_id}")
            self._parse(path, text)
            self._known[schema_id] = text
        return self._known[schema_id]

    def register(self, subject: str, schema: str) -> int:
        """Id of `schema` under `subject`, registering it if new.

        Raises SchemaError if it is not valid, or not able to read what the subject's latest version wrote.
        """
        parse(schema)
        with self._locked():
            versions = self._versions(subject)
            same = _same_schema(schema)
            for version in versions:
                if same == _same_schema(self.schema(version)):
                    return version
            if versions and (found := incompatibilities(schema, self.schema(versions[-1]))):
                raise SchemaError(f"{subject}: cannot read what id {versions[-1]} wrote: {'; '.join(found)}")
            schema_id = self._id_of(same)
            if schema_id is None:
                schema_id = max((*self._all_ids(), *self._registered_ids()), default=0) + 1
                self._write(self._ids / f"{schema_id}.avsc", _readable(schema))
            entry = {"subject": subject, "ids": [*versions, schema_id]}
            self._write(self._subject_path(subject), json.dumps(entry, indent=2) + "\n")
            return schema_id

    def latest(self, subject: str) -> tuple[int, str] | None:
        """Id and Avro JSON of the newest version, or None for an unknown subject."""
        versions = self._versions(subject)
        return (versions[-1], self.schema(versions[-1])) if versions else None

    # -- files --------------------------------------------------------------------------------

    def _subject_path(self, subject: str) -> Path:
        return self._subjects / f"{quote(subject, safe='')}.json"

    def _versions(self, subject: str) -> list[int]:
        path = self._subject_path(subject)
        text = self._read(path)
        return [] if text is None else _version_ids(path, text)

    def _all_ids(self) -> list[int]:
        names = (_ID_FILE.match(path.name) for path in self._files(self._ids))
        return sorted(int(name[1]) for name in names if name)

    def _registered_ids(self) -> list[int]:
        """Ids in use by subjects, even if someone deleted their schemas."""
        paths = [path for path in self._files(self._subjects) if path.suffix == ".json"]
        return [i for path in paths for i in _version_ids(path, self._read(path) or "")]

    def _id_of(self, same: Any) -> int | None:
        return next((i for i in self._all_ids() if _same_schema(self.schema(i)) == same), None)

    def _files(self, folder: Path) -> list[Path]:
        try:
            return list(folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._away(error) from None

    def _read(self, path: Path) -> str | None:
        try:
            return path.read_text("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise SchemaError(f"{path}: damaged, no UTF-8; restore it from a copy") from None
        except OSError as error:
            raise self._away(error) from None

    @staticmethod
    def _parse(path: Path, text: str) -> None:
        try:
            parse(text)
        except SchemaError as error:
            raise SchemaError(f"{path}: damaged; restore it from a copy: {error}") from None

    def _write(self, path: Path, text: str) -> None:
        """All of it or nothing, also when the machine stops in between."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=path.parent, prefix=".", delete=False
            ) as temporary:
                temporary.write(text)
                temporary.flush()
                os.fsync(temporary.fileno())
            # Files of mkstemp are the user's alone; these are for every process of the pipeline.
            Path(temporary.name).chmod(0o644)
            Path(temporary.name).replace(path)
        except OSError as error:
            raise self._away(error) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among threads and processes."""
        with self._threads:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                lock = (self._folder / ".lock").open("a")
            except OSError as error:
                raise self._away(error) from None
            with lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # let go with the file
                yield

    def _away(self, error: OSError) -> UnreachableError:
        return UnreachableError(f"registry {self._folder}: {error.strerror or error}")


def _version_ids(path: Path, text: str) -> list[int]:
    try:
        ids = json.loads(text)["ids"]
    except (ValueError, KeyError, TypeError):
        ids = None
    if not isinstance(ids, list) or not all(isinstance(i, int) and i > 0 for i in ids):
        raise SchemaError(f'{path}: damaged, not {{"ids": [...]}}; restore it from a copy')
    return ids


def _same_schema(text: str) -> Any:
    """What two texts have in common that are one schema: everything but white space and the order of attributes."""
    return json.loads(text)


def _readable(schema: str) -> str:
    return json.dumps(json.loads(schema), indent=2, ensure_ascii=False) + "\n"
