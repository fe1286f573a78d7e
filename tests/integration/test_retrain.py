"""`pipeline retrain` on a real Kafka: from events and outcomes on their topics to a bundle that says what made it."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from pipeline.cli.retrain_data import Request
from pipeline.cli.retrain_job import Retrained, retrain
from pipeline.errors import ContractError, DataError
from pipeline.models import bundle as bundles
from pipeline.models.bundle import Bundle
from pipeline.records import OffsetRange
from pipeline.retraining.window import Wanted
from pipeline.settings import load
from tests.integration.retraining_kit import CHANGE, PARTITIONS, ROWS, START_MS, STEP_MS, Market
from tests.pipelines import eventually

NOW_MS = 1_764_000_000_000


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory, kafka: str) -> Iterator[Market]:
    """All events sent; outcomes of all but the last 100, in an order of their own, those of a canary too."""
    made = Market(tmp_path_factory.mktemp("market"), kafka)
    made.send_events()
    rows = np.arange(ROWS - 100)
    # Labels come in any order, but not in any: each within 200 of its place.
    order = np.argsort(rows + np.random.default_rng(1).uniform(0, 200, len(rows)))
    made.send_outcomes(rows[order], roles=("champion", "canary"))
    yield made
    admin = AdminClient({"bootstrap.servers": kafka})
    for future in admin.delete_topics([n for n in admin.list_topics(timeout=10).topics if made.name in n]).values():
        future.result()


def retrained(
    market: Market,
    wanted: Wanted,
    *,
    seed: int = 0,
    parent: Bundle | None = None,
    trigger: str | None = None,
    **given: Any,
) -> Retrained:
    """What the process that trains comes to, in this one; given: settings of the section `retraining`."""
    settings = load(market.config, {f"retraining.{key}": value for key, value in given.items()}, environment={})
    parent = parent or bundles.read(settings.path(settings.model.bundle))
    return retrain(settings, parent, Request(wanted, "told", seed, trigger), lambda *_: None, NOW_MS)


def rows_of(found: Retrained) -> int:
    """All events of a window, whatever became of them."""
    rows: dict[str, int] = found.result["rows"]
    return sum(rows.values())


def test_a_successor_is_better_after_a_change_and_says_what_made_it(market: Market) -> None:
    """The parent learnt a rule that holds no more; the successor's provenance leads back to events, schemas, code."""
    out = market.folder / "candidate"
    code, said, errors = market.run("retrain", "--out", str(out), "--last", "3000", "--seed", "7", "--json")
    assert code == 0, errors
    result = json.loads(said)
    assert result["metrics"]["accuracy"] > 0.85
    assert result["metrics_of_parent"]["accuracy"] < 0.65
    bundle, parent = bundles.read(out), bundles.read(market.settings.path(market.settings.model.bundle))
    made_of = bundle.training.provenance
    assert made_of is not None
    assert bundle.model_id == parent.model_id
    assert (made_of.parent_version, made_of.seed, made_of.window) == (parent.model_version, 7, "--last 3000")
    assert made_of.parent_weights_sha256 == parent.manifest.files["weights.safetensors"].sha256
    assert [a.model_version for a in made_of.ancestors] == [parent.model_version]
    assert made_of.recipe["name"] == "fine-tune"
    assert made_of.code["pipeline"]
    assert all(len(ids) == 1 for ids in made_of.schema_ids.values())
    parts = {part.use: part for part in made_of.parts}
    assert list(parts) == ["fit", "stopping", "newest"]
    # 3,000 events before the last 100; of those before the newest fifth the last 24 had no label yet.
    first, newest = ROWS - 100 - 3000, ROWS - 100 - 600
    assert parts["fit"].first_time_ms == START_MS + first * STEP_MS
    assert parts["newest"].first_time_ms == START_MS + newest * STEP_MS
    assert parts["newest"].rows == 600
    assert made_of.rows_purged == 23
    assert parts["fit"].rows + parts["stopping"].rows == 2400 - 23
    assert parts["fit"].last_time_ms < parts["stopping"].first_time_ms
    assert parts["stopping"].last_time_ms == START_MS + (newest - 24) * STEP_MS
    of_newest = {(r.partition, r.first_offset, r.last_offset, r.rows) for r in parts["newest"].ranges}
    assert of_newest == {(p, newest // 2, (ROWS - 100) // 2 - 1, 300) for p in range(PARTITIONS)}
    assert (made_of.rows_gone, made_of.rows_refused, made_of.rows_unknown) == (0, 0, 0)
    assert all(finding["passed"] for finding in result["findings"]), result["findings"]
    assert market.groups() == []


def test_the_same_events_and_seed_are_the_same_version(market: Market) -> None:
    """Another seed makes another."""
    versions = [retrained(market, Wanted(last=600), seed=seed).bundle.model_version for seed in (1, 1, 2)]
    assert versions[0] == versions[1] != versions[2]


def test_windows_by_time_and_by_offsets(market: Market) -> None:
    """Each names the events it is of; there may be fewer outcomes than were asked for."""
    assert rows_of(retrained(market, Wanted(before_ms=20 * 48 * STEP_MS))) == 20 * 48 + 1
    assert rows_of(retrained(market, Wanted(from_ms=START_MS + 4000 * STEP_MS))) == ROWS - 100 - 4000
    ranges = (OffsetRange("e", 0, 1000, 1399), OffsetRange("e", 1, 1200, 1299))
    assert rows_of(retrained(market, Wanted(ranges=ranges))) == 500
    assert rows_of(retrained(market, Wanted(last=20_000), epochs_max=1)) == ROWS - 100


def test_the_window_of_a_trigger(market: Market) -> None:
    """Its offsets, some of them not labelled yet; the provenance names it."""
    market.send_trigger("drift-1", [(0, 1500, 2990), (1, 1500, 2990)], START_MS + 3000 * STEP_MS)
    found = retrained(market, Wanted(), trigger="drift-1")
    assert rows_of(found) == 2 * (2950 - 1500)
    made_of = found.bundle.training.provenance
    assert made_of is not None
    assert made_of.trigger_id == "drift-1"
    with pytest.raises(DataError, match=r"no trigger 'drift-2' among 1; the last one is drift-1"):
        retrained(market, Wanted(), trigger="drift-2")


def test_older_events_are_replayed(market: Market) -> None:
    """Half of what is learnt from comes from before the window, from as far back as was said."""
    found = retrained(market, Wanted(last=1000), replay_share=0.5, replay_reach=10.0)
    made_of = found.bundle.training.provenance
    assert made_of is not None
    parts = {part.use: part for part in made_of.parts}
    assert abs(parts["replay"].rows - parts["fit"].rows) <= 24
    assert parts["replay"].last_time_ms < parts["fit"].first_time_ms
    assert parts["replay"].first_time_ms < START_MS + CHANGE * STEP_MS
    near = retrained(market, Wanted(last=1000), replay_share=0.5, replay_reach=1.0).bundle.training.provenance
    assert near is not None
    first = {part.use: part.first_time_ms for part in near.parts}
    assert first["replay"] >= START_MS + (ROWS - 100 - 2000) * STEP_MS


def test_a_retrained_model_that_is_retrained_again(market: Market) -> None:
    """Its successor knows both ancestors, and that its parent had seen the newest events of this older window."""
    wide = tuple(OffsetRange("e", p, 1000, 2949) for p in range(PARTITIONS))
    first = retrained(market, Wanted(ranges=wide)).bundle
    older = tuple(OffsetRange("e", p, 1000, 2000) for p in range(PARTITIONS))
    again = retrained(market, Wanted(ranges=older), parent=first)
    made_of = again.bundle.training.provenance
    assert made_of is not None
    assert len(made_of.ancestors) == 2
    assert again.result["parent_learnt_from_newest"] == again.result["rows"]["newest"]
    newer = retrained(market, Wanted(last=800), parent=first)
    assert newer.result["parent_learnt_from_newest"] == 0


def test_guards_see_what_is_on_the_topics(market: Market) -> None:
    """Senders out of the keys or of a field; no event is later than its label."""
    found = {f["name"]: f for f in retrained(market, Wanted(last=900), producer_field="key").result["findings"]}
    share = found["producer_share"]
    assert (share["passed"], share["value"]) == (False, pytest.approx(2 / 3, abs=0.01))
    found = {f["name"]: f for f in retrained(market, Wanted(last=900), producer_field="period").result["findings"]}
    assert found["producer_share"]["value"] == pytest.approx(0.5, abs=0.03)
    assert found["late_fields"]["value"] == 0
    with pytest.raises(DataError, match="events have no field 'sender'"):
        retrained(market, Wanted(last=900), producer_field="sender")


def test_new_weights(market: Market) -> None:
    """`fresh` begins again, under a contract of what is in the window now."""
    found = retrained(market, Wanted(last=2000), start="fresh", epochs_max=40)
    made_of = found.bundle.training.provenance
    assert made_of is not None
    assert made_of.recipe["name"] == "fresh"
    assert found.result["metrics"]["accuracy"] > 0.85


OWN = """
from torch import nn
from pipeline.models.architectures import TabularMLP
from pipeline.retraining.recipes import Job, Trained, fresh_tabular

def train(job: Job) -> Trained:
    assert job.rows.column("outcome.label")[0].as_py() in job.contract.output.classes
    job.progress(1, 1, 0.5)
    return fresh_tabular(job, TabularMLP)

def noisy(inputs, goal, generator):
    import torch
    numbers = inputs["numbers"]
    return {**inputs, "numbers": numbers + 0.01 * torch.randn(numbers.shape, generator=generator)}, goal

def wrong(job):
    return job.module

def failing(job):
    raise RuntimeError("no luck")
"""


def test_with_functions_of_the_users_own(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `train` of an installed module, an augmentation hook; what a function must not do is said in one line."""
    (market.folder / "market_own.py").write_text(OWN, "utf-8")
    monkeypatch.syspath_prepend(str(market.folder))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": "market_own:train"}, "market_own:train"),
        ({"augment": "market_own:noisy"}, "fine-tune"),
    ]
    for given, name in cases:
        found = retrained(market, Wanted(last=2000), **given)
        assert found.result["provenance"]["recipe"]["name"] == name
        assert found.result["metrics"]["accuracy"] > 0.85
    for function, said in (
        ("wrong", "returned TabularMLP, not a Trained"),
        ("failing", "failed: RuntimeError: no luck"),
        ("absent", "market_own has no function absent"),
    ):
        with pytest.raises(ContractError, match=said):
            retrained(market, Wanted(last=500), train=f"market_own:{function}")


def test_elsewhere_by_a_command(market: Market) -> None:
    """Any command line that runs the request; nothing is left of the exchange."""
    run = f"{sys.executable} -m pipeline.cli --config {market.config} retrain --request {{request}}"
    sets = ("retraining.executor=command", f"retraining.command={run}")
    out = str(market.folder / "else.zip")
    code, said, errors = market.run("retrain", "--out", out, "--last", "600", "--json", sets=sets)
    assert code == 0, errors
    assert bundles.read(market.folder / "else.zip").weights == retrained(market, Wanted(last=600)).bundle.weights
    assert json.loads(said)["bundle"] == out
    assert list((market.folder / "project/state/retraining").iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "given", "said"),
    [
        (Wanted(last=40), {}, "40 labelled events in the window; it takes at least 50"),
        (Wanted(ranges=(OffsetRange("e", 0, 9000, 9100),)), {}, "none of the 5,900 labelled events lies in the window"),
        (Wanted(last=1000), {"label_delay_s": 9e8}, "only 0 of 800 events had their label"),
    ],
)
def test_too_little_to_learn_from(market: Market, wanted: Wanted, given: dict[str, Any], said: str) -> None:
    """It is said how much there is, and how much it takes."""
    with pytest.raises(DataError, match=said):
        retrained(market, wanted, **given)


def test_a_limit_ends_it_and_leaves_nothing(market: Market) -> None:
    """Exit code 10, one line, neither a bundle nor a request."""
    out = market.folder / "refused"
    code, _, errors = market.run("retrain", "--out", str(out), sets=("retraining.memory_max_mb=256",))
    assert (code, "more than retraining.memory_max_mb = 256" in errors) == (10, True), errors
    assert not out.exists()
    assert list((market.folder / "project/state/retraining").iterdir()) == []


def test_before_the_first_label(market: Market) -> None:
    """There are events, and no outcomes: it is said what is missing."""
    admin, topic = AdminClient({"bootstrap.servers": market.bootstrap_servers}), f"{market.name}.none"
    admin.create_topics([NewTopic(topic, 2)])[topic].result(20)
    eventually(lambda: topic in admin.list_topics(timeout=10).topics, "the topic")
    settings = load(market.config, {"topics.outcomes": topic}, environment={})
    parent = bundles.read(settings.path(settings.model.bundle))
    with pytest.raises(DataError, match="no outcomes yet"):
        retrain(settings, parent, Request(Wanted(last=100), "told"), lambda *_: None, NOW_MS)


def test_events_that_retention_removed_are_counted(market: Market) -> None:
    """The others are trained on. This test is the last one: it cuts the topic."""
    admin = AdminClient({"bootstrap.servers": market.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(f"{market.name}.events", 0, 2500)]).values():
        future.result(20)
    found = retrained(market, Wanted(last=1900))
    assert found.result["rows"]["gone"] == 2500 - 2000
    assert rows_of(found) == 1900
