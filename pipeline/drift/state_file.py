"""A state on disk: whole after a crash at any moment, known to be whole, and one process's at a time."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from pipeline.errors import ContractError, FencedError

log = structlog.get_logger(__name__)


def write(path: Path, body: bytes) -> None:
    """Replace the file: a crash at any moment leaves the old one or the new one. Raises ContractError."""
    new = path.with_suffix(".new")
    try:
        with new.open("wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise ContractError(f"drift.state_dir: {path} cannot be written: {error}") from None


def read(path: Path) -> bytes | None:
    """What was written; None if it was damaged since. Raises ContractError when it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ContractError(f"drift.state_dir: {path} cannot be read: {error}") from None
    digest, _, body = content.partition(b"\n")
    return body if hashlib.sha256(body).hexdigest().encode() == digest else None


def head(layout: int, source: str) -> dict[str, Any]:
    """What a state begins with: its layout, River's version, and which cluster and topic its offsets are of."""
    return {"format": layout, "river": river_version(), "source": source}


def misfit(state: Mapping[str, Any], layout: int, source: str) -> str | None:
    """Why nothing of a whole state can be used, or None."""
    if state["format"] != layout:
        return f"its format is {state['format']}, not {layout}"
    if state["source"] != source:
        return "it belongs to another cluster or topic"
    if state["river"] != river_version():
        return f"its detectors are of River {state['river']}"
    return None


def set_aside(path: Path) -> str:
    """Keep the file under another name, which is returned; it is replaced by the next write, not before."""
    aside = path.with_suffix(".bad")
    shutil.copyfile(path, aside)
    return str(aside)


def river_version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 (reads package metadata: only when saving)

    return version("river")


def hold(path: Path) -> int | None:
    """Descriptor of the lock on the folder of the state `path`: the system lets go of it when this process ends."""
    lock = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ContractError(f"drift.state_dir: {path.parent} cannot be made or written: {error}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        mend = "stop it, or give this one a folder of its own"
        raise FencedError(f"drift.state_dir: {path.parent}: another monitor keeps its state there; {mend}") from None
    except OSError as error:  # a network file system without locks
        log.warning("monitor state cannot be locked: run no second monitor on it", path=str(lock), error=str(error))
    return descriptor


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
