"""A real Kafka for every test that needs one, and names that no other test uses."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.matrix import Recorder, tell_cases

BOOTSTRAP_VARIABLE = "PIPELINE_TEST_BOOTSTRAP_SERVERS"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="replay one schedule of tests/property/test_simulation.py")
    parser.addoption("--matrix", metavar="FILE", help="write what the tests of the fault matrix found to FILE (JSON)")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--matrix")
    if path and not hasattr(config, "workerinput"):  # the workers of pytest-xdist report to the one that began them
        config.pluginmanager.register(Recorder(Path(path)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every report say which cases of the fault matrix its test shows."""
    for item in items:
        tell_cases(item)


@pytest.fixture
def counted(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Takes counts by name (mode, events, lost, ...) and notes them for the fault matrix."""

    def note(**counts: Any) -> None:
        record_property("counted", counts)

    return note


@pytest.fixture(scope="session")
def kafka() -> Iterator[str]:
    """Bootstrap servers of a real Kafka: the one named by the environment, or an embedded one for this session."""
    if given := os.environ.get(BOOTSTRAP_VARIABLE):
        yield given
        return
    from pipeline.bus.embedded import EmbeddedKafka

    with EmbeddedKafka(port=0, ephemeral=True) as broker:
        yield broker.bootstrap_servers


@pytest.fixture(scope="session", autouse=True)
def faust_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where a plain Faust app keeps its tables, in this process and in those it starts: not in the checkout."""
    os.environ["APP_DATADIR"] = str(tmp_path_factory.mktemp("faust"))


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """Whatever a test (a command run in this process, above all) makes of the logs ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    disabled = {name for name, found in logging.Logger.manager.loggerDict.items() if getattr(found, "disabled", False)}
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], root.level = handlers, level
    for name, found in logging.Logger.manager.loggerDict.items():
        if isinstance(found, logging.Logger):
            found.disabled = name in disabled


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Makes a topic or group name that no other test, and no earlier run against the same Kafka, has used."""
    return lambda name: f"{name}-{uuid.uuid4().hex[:10]}"
