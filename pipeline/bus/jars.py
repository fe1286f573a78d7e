"""Apache Kafka's jars from Maven Central, with neither Maven nor Java. Needs the extra `broker` (jgo).

jgo walks the POMs; the download is ours. jgo writes straight to a file's final name, so that an interrupted
download looks complete for ever, and only warns when a checksum is wrong.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jgo.config import GlobalSettings
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import MavenContext, PythonResolver
from jgo.util import http

KAFKA_VERSION = "4.1.0"
COORDINATES = (
    f"org.apache.kafka:kafka_2.13:jar:{KAFKA_VERSION}:compile",
    # Kafka logs through SLF4J and brings no binding: a broker that fails would not say why.
    # 1.7.36 is the version of slf4j-api that Kafka 4.1.0 depends on.
    "org.slf4j:slf4j-simple:jar:1.7.36:compile",
)
#: Measured, 46 jars of 44 MB: 12 s over four connections, after 14 s for the POMs, which come one by one.
_CONNECTIONS = 4
_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = 30


def fetch_jars(progress: Callable[[str], None]) -> list[Path]:
    """Kafka's class path: from the Maven cache, or downloaded into it once (44 MB).

    `progress` gets a line per downloaded file, from several threads. Safe in several processes at once: one
    downloads, the others wait for it. A complete cache needs neither network nor write permission.
    Raises OSError, or RuntimeError when a repository does not have what is needed.
    """
    settings = GlobalSettings.load()
    cache = settings.repo_cache
    repositories = {"central": MAVEN_CENTRAL_URL, **settings.repositories}
    with suppress(RuntimeError):
        return _resolve(MavenContext(repo_cache=cache, remote_repos=repositories, offline=True))
    with _only_one(cache / ".pipeline-broker.lock"):
        return _resolve(MavenContext(_Resolver(progress), cache, remote_repos=repositories))


def _resolve(context: Any) -> list[Path]:
    wanted = [context.create_dependency(coordinates) for coordinates in COORDINATES]
    inputs, transitive = context.resolver.resolve(wanted)
    needed = [*inputs, *(found for found in transitive if found.scope in {"compile", "runtime"})]
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        return list(pool.map(lambda found: found.artifact.resolve(), needed))


class _Resolver(PythonResolver):
    """jgo's resolver with a download that is atomic and checked."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        super().__init__()
        self._progress = progress

    def download(self, artifact: Any) -> Path:
        """Fetch one file into the Maven cache, from the first repository that has it. Raises OSError."""
        self._progress(artifact.filename)
        prefix = artifact.component.path_prefix.as_posix()
        *others, last = [f"{url}/{prefix}/{artifact.filename}" for url in artifact.context.remote_repos.values()]
        for url in others:
            with suppress(OSError):
                return _fetch(url, artifact.cached_path)
        return _fetch(last, artifact.cached_path)


def _fetch(url: str, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    digest = hashlib.sha1(usedforsecurity=False)  # what every Maven repository publishes beside each file
    try:
        with http.get(url, stream=True, timeout=_TIMEOUT_S) as response, part.open("wb") as file:
            response.raise_for_status()
            for chunk in response.iter_content(_CHUNK_BYTES):
                digest.update(chunk)
                file.write(chunk)
        published = http.get(f"{url}.sha1", timeout=_TIMEOUT_S)
        published.raise_for_status()
        if published.text.split()[:1] != [digest.hexdigest()]:
            raise OSError(f"{url}: its SHA-1 is not the published one")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Hold `path` locked; a second process waits here, and finds the work done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
