"""A state on disk: whole after a crash at any moment, known to be whole, and one process's at a time."""

import fcntl
import hashlib
import os
from pathlib import Path

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
