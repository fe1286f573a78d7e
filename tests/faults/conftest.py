"""Pipelines to attack, and the count of what came out of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.pipelines import Pipeline, balance

#: Attacked in both delivery modes in every run; elsewhere at_least_once, which differs in the commit alone, is for
#: `make matrix`: a run of all tests must stay below 40 minutes on two cores.
BOTH_MODES = {"test_cluster.py", "test_disk.py"}
#: Half a minute to two minutes each, mostly of waiting: they are for `make matrix`, too.
LONG = {
    "test_at_least_once_repeats_only_what_was_not_committed",
    "test_a_node_is_killed[group_coordinator]",
    "test_a_node_is_killed[controller]",
    "test_all_nodes_restart_one_after_the_other",
    "test_all_nodes_are_down",
    "test_two_of_three_nodes_are_down",
    "test_too_few_replicas_in_sync",
    "test_a_leader_is_paused",
    "test_a_worker_joins_while_the_model_is_slow",
    "test_a_model_slower_than_the_poll_interval",
    "test_many_keys_in_many_partitions",
    "test_a_transaction_that_outlived_its_time_is_begun_anew",
    "test_a_stop_keeps_its_deadline_while_no_node_answers",
    "test_a_schedule_killed_at_every_step_trains_once",
    "test_a_succession_killed_at_every_step_is_carried_out_once",
    "test_a_paused_monitor_that_was_replaced_sends_nothing",
    "test_a_slow_broker_makes_lag_and_nothing_else",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make matrix` alone runs as long."""
    for item in items:
        if item.name in LONG:
            item.add_marker(pytest.mark.long)
        mode = getattr(item, "callspec", None) and item.callspec.params.get("mode")  # type: ignore[attr-defined]
        if mode == "at_least_once" and item.path.parent.name == "faults" and item.path.name not in BOTH_MODES:
            item.add_marker(pytest.mark.long)


class Make(Protocol):
    """Makes a pipeline on the session's Kafka, or on another; its processes end with the test."""

    def __call__(self, bootstrap_servers: str | None = None, **options: Any) -> Pipeline: ...


class Judge(Protocol):
    """Counts what came out, holds it to what the delivery mode promises, and notes it for the matrix."""

    def __call__(self, pipeline: Pipeline, events: int, mode: str, **more: Any) -> dict[str, int]: ...


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path, unique: Callable[[str], str]) -> Iterator[Make]:
    """See Make."""
    made: list[Pipeline] = []

    def new(bootstrap_servers: str | None = None, **options: Any) -> Pipeline:
        servers = bootstrap_servers or request.getfixturevalue("kafka")
        made.append(Pipeline(tmp_path / str(len(made)), servers, unique("faults"), **options))
        return made[-1]

    yield new
    for pipeline in made:
        pipeline.close()


@pytest.fixture
def judge(counted: Callable[..., None]) -> Judge:
    """See Judge. Duplicates, and with them order, are the test's to bound in at_least_once."""

    def check(pipeline: Pipeline, events: int, mode: str, **more: Any) -> dict[str, int]:
        found = balance(pipeline, events)
        counted(mode=mode, events=events, **found, **more)
        assert found["lost"] == 0
        if mode == "exactly_once":
            assert (found["duplicated"], found["reordered"]) == (0, 0)
        return found

    return check
