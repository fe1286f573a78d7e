"""Where `verify` works: names, folders and topics of its own, so that nothing of the project's is touched.

The roles run on the project's own pipeline.toml; flags, which come before it and the environment, lead
everything they write elsewhere: topics, groups and transactional ids under a unique name, state and registry in a
temporary folder.
"""

import secrets
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.bus import topics
from pipeline.cli.context import Flags, say
from pipeline.cli.verify_load import foreign_subject
from pipeline.settings import Settings, load

#: Members of a group that were killed leave it with their session at the latest; twice the default.
GROUP_EMPTY_S = 20.0
REQUEST_TIMEOUT_S = 15.0
#: Room for the topics' own endings in Kafka's 249.
NAME_MAX = 150
LOGS = "logs"


@dataclass(frozen=True)
class Scratch:
    """A pipeline like the project's, and apart from it."""

    settings: Settings
    #: The global flags that make any command one of this pipeline.
    flags: Flags
    folder: Path

    @property
    def logs(self) -> Path:
        """What the roles say, a file for each start."""
        return self.folder / LOGS


class ScratchFolder:
    """A temporary folder, removed at the end: all of it, all but the logs, or nothing."""

    def __init__(self, keep: Literal["all", "logs", "nothing"] = "nothing") -> None:
        self._keep = keep
        self.path = Path(tempfile.mkdtemp(prefix="pipeline-verify-"))
        (self.path / LOGS).mkdir()

    def keep_logs(self) -> None:
        """They say what went wrong."""
        if self._keep == "nothing":
            self._keep = "logs"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._keep == "nothing":
            shutil.rmtree(self.path, ignore_errors=True)
            return
        say(f"the roles' logs: {self.path / LOGS}")
        for path in self.path.iterdir() if self._keep == "logs" else ():
            if path.name != LOGS:
                shutil.rmtree(path, ignore_errors=True)


def scratch_of(project: Settings, given: Flags, folder: Path, mode: str, bootstrap_servers: str | None) -> Scratch:
    """The project's pipeline under another name, in `folder`; `bootstrap_servers`: of a broker of our own."""
    name = f"verify-{secrets.token_hex(4)}-{project.name}"[:NAME_MAX].rstrip("._-")
    changed = {
        "name": name,
        **{f"topics.{role}": f"{name}.{role.replace('_', '-')}" for role in project.topic_names()},
        "topics.create": "true",
        "delivery.mode": mode,
        "delivery.transactional_id_prefix": f"{name}-worker",
        "drift.state_dir": str(folder / "state"),
        "observe.port": "0",
        "observe.log_format": "json",
    }
    if project.registry.url is None:
        changed["registry.dir"] = str(folder / "registry")
        with suppress(FileNotFoundError):
            shutil.copytree(project.path(project.registry.dir), folder / "registry")
    if bootstrap_servers is not None:
        changed["kafka.bootstrap_servers"] = bootstrap_servers
        changed["topics.replication_factor"] = "1"
        if "security.protocol" in project.kafka.options:  # ours listens on 127.0.0.1, in the clear
            changed["kafka.options.security.protocol"] = "plaintext"
    flags = Flags(given.config, {**given.overrides, **changed}, given.debug)
    return Scratch(load(flags.config, dict(flags.overrides)), flags, folder)


def clear_broker(settings: Settings, admin: AdminClient) -> list[str]:
    """Delete the scratch pipeline's topics and groups from a broker that is not ours; what could not be deleted."""
    ours = set(settings.topic_names().values()) & topics.partition_counts(admin).keys()
    left = []
    for topic, future in (
        admin.delete_topics(sorted(ours), operation_timeout=REQUEST_TIMEOUT_S) if ours else {}
    ).items():
        try:
            future.result()
        except KafkaException as error:
            left.append(f"topic {topic}: {error.args[0].str()}")
    give_up = time.monotonic() + GROUP_EMPTY_S
    for role in ("worker", "labels", "monitor"):
        while (fault := _delete_group(admin, settings.group(role))) and time.monotonic() < give_up:
            time.sleep(0.5)
        left += [fault] if fault else []
    return left


def _delete_group(admin: AdminClient, group: str) -> str | None:
    """Why the group is still there."""
    try:
        admin.delete_consumer_groups([group], request_timeout=REQUEST_TIMEOUT_S)[group].result()
    except KafkaException as error:
        if error.args[0].name() != "GROUP_ID_NOT_FOUND":
            return f"group {group}: {error.args[0].str()}"
    return None


def clear_registry(settings: Settings) -> list[str]:
    """Delete the scratch pipeline's subjects from a Schema Registry; what could not be deleted."""
    if settings.registry.url is None:
        return []
    from confluent_kafka.schema_registry import SchemaRegistryClient  # noqa: PLC0415 (brings an HTTP client)
    from confluent_kafka.schema_registry.error import SchemaRegistryError  # noqa: PLC0415

    options: dict[str, Any] = {"url": settings.registry.url, "timeout": REQUEST_TIMEOUT_S}
    if settings.registry.basic_auth is not None:
        options["basic.auth.user.info"] = settings.registry.basic_auth.get_secret_value()
    client, left = SchemaRegistryClient(options), []
    for subject in (*(f"{topic}-value" for topic in settings.topic_names().values()), foreign_subject(settings)):
        try:
            client.delete_subject(subject, permanent=True)
        except SchemaRegistryError as error:
            if error.http_status_code != 404:
                left.append(f"subject {subject}: HTTP {error.http_status_code}")
        except Exception as error:  # noqa: BLE001 (the HTTP client's errors are many; the rest is tried all the same)
            left.append(f"subject {subject}: {type(error).__name__}")
    return left
