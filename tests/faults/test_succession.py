"""From a trigger to a released successor, killed at every step: one report a trigger, one champion, nothing half."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import clients
from pipeline import codec
from pipeline.cli.releasing import open_releases
from pipeline.models import bundle as bundles
from pipeline.models import fetching, releases
from pipeline.models.releases import Decision
from tests.faults import crashing
from tests.integration.retraining_kit import CHANGE, ROWS, START_MS, STEP_MS, Market
from tests.pipelines import PATIENCE_S, eventually

pytestmark = pytest.mark.timeout(400)

SETS = (
    "retraining.enabled=true",
    "gate.rows_min=300",
    # Models of microseconds: their times are those of the machine's other work.
    "gate.latency_ratio_max=100",
    "observe.enabled=false",
)


@pytest.fixture
def market(tmp_path: Path, kafka: str) -> Iterator[Market]:
    """All events and their outcomes; what runs in the background ends with the test."""
    made = Market(tmp_path, kafka)
    made.send_events()
    made.send_outcomes(np.arange(ROWS))
    yield made
    made.close()


def reports(market: Market) -> list[dict[str, Any]]:
    """All that a read_committed reader finds."""
    rows = codec.RowCodec(codec.registry_of(market.settings))
    topic = f"{market.name}.retraining-reports"
    read = clients.read_all(market.bootstrap_servers, topic, "verify", PATIENCE_S)
    return [rows.decode(message.value()) for messages in read for message in messages]


@pytest.mark.case("F43")
def test_a_succession_killed_at_every_step_is_carried_out_once(market: Market, counted: Callable[..., None]) -> None:
    """SIGKILL around training, release and report; each process goes on where the one before it was killed."""
    parent = bundles.read(market.settings.path(market.settings.model.bundle))
    market.send_trigger("t1", [], START_MS + CHANGE * STEP_MS, parent.model_version)
    for step in crashing.SUCCESSIONS:
        process = market.start("run", "retrainer", sets=SETS, launcher=("tests.faults.crashing", step))
        assert process.wait(PATIENCE_S) == -signal.SIGKILL, f"{step}: {market.log()[-3000:]}"
    process = market.start("run", "retrainer", sets=SETS)
    eventually(lambda: len(reports(market)) == 1, "the report")
    eventually(lambda: '"running"' in market.log().rpartition("killed at")[2], "the last process at work")
    time.sleep(3.0)  # for one that should not come
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0, market.log()[-3000:]
    (report,) = reports(market)
    assert report["accepted"], report["checks"]
    assert (report["trigger_id"], report["champion_version"]) == ("t1", parent.model_version)
    state = open_releases(market.settings).state()
    assert [entry.model_version for entry in state.history] == [parent.model_version, report["challenger_version"]]
    now = state.champion
    assert now is not None
    assert (now.model_version, now.report_id) == (report["challenger_version"], report["report_id"])
    counted(kills=len(crashing.SUCCESSIONS), reports=1, champions=1)
    assert report["champion_metrics"]["accuracy"] < 0.65
    assert report["challenger_metrics"]["accuracy"] > 0.85


def test_a_trigger_waits_for_labels_and_a_stop_does_not_wait_for_it(market: Market) -> None:
    """Too few labelled events since the change: it is tried again, and SIGTERM ends the role at once, with 0."""
    parent = bundles.read(market.settings.path(market.settings.model.bundle))
    market.send_trigger("t2", [], START_MS + (ROWS - 100) * STEP_MS, parent.model_version)
    process = market.start("run", "retrainer", sets=SETS)
    eventually(lambda: "successor has to wait" in market.log(), "a first try")
    assert "100 labelled events" in market.log()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10.0) == 0, market.log()[-3000:]
    assert reports(market) == []


def test_a_trigger_of_a_model_that_was_replaced_is_let_be(market: Market) -> None:
    """It is committed without a report: nothing in service is what it is about."""
    market.send_trigger("t3", [], START_MS + CHANGE * STEP_MS, "some other version")
    process = market.start("run", "retrainer", sets=SETS)
    eventually(lambda: "no longer in service" in market.log(), "a look at the trigger")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0, market.log()[-3000:]
    assert reports(market) == []


def test_a_trigger_of_inputs_where_accuracy_holds_is_let_be(market: Market) -> None:
    """By 2,000 labels since; one that errors have raised is answered, whatever the labels say."""
    parent = bundles.read(market.settings.path(market.settings.model.bundle))
    market.send_outcomes(np.arange(ROWS), model_version=parent.model_version)
    changed_ms = START_MS + (ROWS - 2_000) * STEP_MS
    market.send_trigger("t6", [], changed_ms, parent.model_version, ["feature:demand"])
    market.send_trigger("t7", [], changed_ms, parent.model_version, ["error:wrong", "feature:demand"])
    process = market.start("run", "retrainer", sets=SETS)
    eventually(lambda: len(reports(market)) == 1, "the report")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0, market.log()[-3000:]
    assert [report["trigger_id"] for report in reports(market)] == ["t7"]
    assert "inputs moved, accuracy holds (errors 5" in market.log()
    assert "2,000 labels" in market.log()


def test_a_second_trigger_of_one_drift_makes_no_second_challenger(market: Market) -> None:
    """Both came before the first was answered, and the champion stays, as a person is to decide: one report."""
    parent = bundles.read(market.settings.path(market.settings.model.bundle))
    for trigger_id in ("t4", "t5"):
        market.send_trigger(trigger_id, [], START_MS + CHANGE * STEP_MS, parent.model_version)
    process = market.start("run", "retrainer", sets=(*SETS, "gate.approval=manual"))
    eventually(lambda: "answered by a training since" in market.log(), "a look at the second")
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0, market.log()[-3000:]
    assert [report["trigger_id"] for report in reports(market)] == ["t4"]


@pytest.mark.case("F43")
def test_a_schedule_killed_at_every_step_trains_once(market: Market, counted: Callable[..., None]) -> None:
    """Without any trigger, an hour after a release; the next one is due in an hour, whoever was killed meanwhile."""
    settings = market.settings
    parent = bundles.read(settings.path(settings.model.bundle))
    log = open_releases(settings, create=True)
    model = fetching.publish(parent, settings.releases.store, settings.root)
    decision = Decision("first", settings.name, "test", int(time.time() * 1000) - 3_600_000)
    log.change(decision, lambda state: releases.release(state, model, decision))
    # All of the window lies behind the change: labels of both rules together would not pass the guard against flips.
    sets = (*SETS, "retraining.every_s=3600", f"retraining.window_rows={ROWS - CHANGE}")
    steps = [f"in a succession, after {step}" for step in ("train", "the change's commit", "the report's commit")]
    for step in steps:
        process = market.start("run", "retrainer", sets=sets, launcher=("tests.faults.crashing", step))
        assert process.wait(PATIENCE_S) == -signal.SIGKILL, f"{step}: {market.log()[-3000:]}"
    process = market.start("run", "retrainer", sets=sets)
    exchange = settings.path(settings.retraining.exchange)
    eventually(lambda: bool(list(exchange.glob("schedule-*/reported"))), "what was begun, ended")
    time.sleep(3.0)  # for a training or a report that should not come
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 0, market.log()[-3000:]
    (report,) = reports(market)
    assert (report["cause"], report["trigger_id"], report["accepted"]) == ("schedule", None, True)
    assert [entry.model_version for entry in log.state().history] == [
        parent.model_version,
        report["challenger_version"],
    ]
    assert len(list(exchange.glob("schedule-*"))) == 1
    counted(kills=len(steps), reports=1, champions=1)
