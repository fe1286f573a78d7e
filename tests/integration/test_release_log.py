"""The log of releases on a real Kafka: changes are whole, the second of two that decide at once is told, all follow."""

import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions
from pipeline.bus.journal import Journal
from pipeline.bus.transactions import TransactionalProducer
from pipeline.cli.releasing import decide, open_releases
from pipeline.errors import ContractError, DeliveryError, FencedError, TransactionAbortedError, UnreachableError
from pipeline.models import releases
from pipeline.models.release_log import ReleaseLog
from pipeline.models.releases import Model, Releases
from pipeline.settings import Settings, load
from tests.pipelines import eventually


def model(version: str) -> Model:
    return Model("shop", version, f"releases/shop/{version}.tar", "0" * 64)


@pytest.fixture
def project(kafka: str, unique: Callable[[str], str], tmp_path: Path) -> Settings:
    """Settings of a pipeline of its own."""
    file = tmp_path / "pipeline.toml"
    file.write_text(f'name = "{unique("releases")}"\nkafka.bootstrap_servers = "{kafka}"\n', "utf-8")
    return load(file, environment={})


@pytest.fixture
def log(project: Settings) -> ReleaseLog:
    """Its log of releases, with champion v1 and canary v2."""
    made = open_releases(project, create=True)
    made.change(first := decide(project, "test", "the first"), lambda s: releases.release(s, model("v1"), first))
    made.change(second := decide(project, "test", ""), lambda s: releases.canary(s, model("v2"), 0.1, second))
    return made


def promote(project: Settings, log: ReleaseLog, before: Callable[[], Any] = lambda: None) -> Releases:
    """Promote the canary; `before` is called once it is decided."""
    decision = decide(project, "test", "")

    def transition(state: Releases) -> releases.Change:
        change = releases.promote(state, "canary", decision)
        before()
        return change

    return log.change(decision, transition)


def versions(state: Releases) -> dict[str, str | None]:
    return {slot: found and found.model_version for slot in releases.SLOTS for found in [state.slot(slot)]}


def test_changes_are_read_back_as_they_were_made(project: Settings, log: ReleaseLog) -> None:
    """Every field comes back; the topic is compacted, and kept without a time."""
    state = log.state()
    assert versions(state) == {"champion": "v1", "canary": "v2", "shadow": None}
    assert [(e.action, e.model_version, e.share, e.reason) for e in state.history] == [
        ("release", "v1", 1.0, "the first"),
        ("canary", "v2", 0.1, ""),
    ]
    promoted = promote(project, log)
    assert versions(promoted) == {"champion": "v2", "canary": None, "shadow": None}
    assert open_releases(project).state() == promoted
    (spec,) = [spec for spec in topics.specs(project) if spec.name == project.topic("model_releases")]
    assert (spec.partitions, dict(spec.config)) == (1, {"cleanup.policy": "compact"})


def test_of_two_that_promote_at_once_one_wins_and_the_other_is_told(project: Settings, log: ReleaseLog) -> None:
    """The second takes over while the first has decided and not committed: the first is fenced and writes nothing."""
    rival: list[Releases] = []
    with pytest.raises(FencedError, match="another change began meanwhile"):
        promote(project, log, before=lambda: rival.append(promote(project, open_releases(project))))
    state = log.state()
    assert state == rival[0]
    assert versions(state) == {"champion": "v2", "canary": None, "shadow": None}
    assert [e.action for e in state.history] == ["release", "canary", "promote"]
    with pytest.raises(ContractError, match="there is no canary"):
        promote(project, log)


def test_a_crowd_that_promotes_at_once_promotes_once(project: Settings, log: ReleaseLog) -> None:
    """Six threads, no order among them: exactly one succeeds, the others get one clear error each."""
    gate = threading.Barrier(6)

    def run(_number: int) -> str:
        own = open_releases(project)
        gate.wait()
        try:
            promote(project, own)
        except (FencedError, ContractError) as error:
            return str(error)
        return "promoted"

    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(run, range(6)))
    assert found.count("promoted") == 1, found
    assert all(re.fullmatch("promoted|there is no canary|topic .*: another change began .*", told) for told in found)
    assert [e.action for e in log.state().history] == ["release", "canary", "promote"]


def test_a_decision_is_carried_out_once(project: Settings, log: ReleaseLog) -> None:
    """Repeated, as one who was killed does: nothing is written, and the state comes back."""
    decision = decide(project, "test", "")
    for _ in range(2):
        state = log.change(decision, lambda s: releases.promote(s, "canary", decision))
        assert versions(state) == {"champion": "v2", "canary": None, "shadow": None}
    assert len(log.state().history) == 3


@pytest.mark.parametrize("committed", [True, False])
def test_an_aborted_change_is_made_once(
    project: Settings, log: ReleaseLog, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """Whether the transaction that was reported as aborted had been committed after all, or not."""
    commit, calls = TransactionalProducer.commit, []

    def once_aborted(self: TransactionalProducer, *arguments: Any) -> None:
        calls.append(self)
        if len(calls) == 1:
            if committed:
                commit(self, *arguments)
            else:
                self.abort()
            raise TransactionAbortedError("said by the test")
        commit(self, *arguments)

    monkeypatch.setattr(TransactionalProducer, "commit", once_aborted)
    state = promote(project, log)
    assert versions(state) == {"champion": "v2", "canary": None, "shadow": None}
    assert (len(calls), len(state.history)) == (1 if committed else 2, 3)
    assert log.state() == state


def test_a_change_that_is_aborted_again_and_again_ends(
    project: Settings, log: ReleaseLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up with one line, and nothing is written."""
    before = log.state()

    def aborted(self: TransactionalProducer, *_: Any) -> None:
        self.abort()
        raise TransactionAbortedError("said by the test")

    monkeypatch.setattr(TransactionalProducer, "commit", aborted)
    with pytest.raises(DeliveryError, match="was not changed: the transaction was aborted again and again"):
        promote(project, log)
    assert log.state() == before


def test_what_a_change_refuses_writes_nothing(project: Settings, log: ReleaseLog) -> None:
    """The error is the transition's own; the log is as it was, and open to the next."""
    before = log.state()
    decision = decide(project, "test", "")
    with pytest.raises(ContractError, match="v1 is champion already"):
        log.change(decision, lambda s: releases.release(s, model("v1"), decision))
    assert log.state() == before
    promote(project, log)


def test_a_change_ends_what_a_dead_one_left_open(project: Settings, log: ReleaseLog) -> None:
    """Half a change in an open transaction is never seen; the next change does not wait for its timeout."""
    options = ClientOptions(project.kafka.bootstrap_servers)
    dead = TransactionalProducer(options.for_producer(), f"{project.name}-releases", timeout_ms=60_000)
    dead.send(project.topic("model_releases"), b"champion", b"half a change")
    assert dead._unacknowledged(10) == 0
    assert versions(promote(project, log)) == {"champion": "v2", "canary": None, "shadow": None}


def test_a_stranger_s_open_transaction_is_waited_for_and_then_said(
    project: Settings, log: ReleaseLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hides what is committed behind it: no decision is made on half the truth."""
    monkeypatch.setattr("pipeline.bus.journal.SETTLE_TIMEOUT_S", 0.3)
    options = ClientOptions(project.kafka.bootstrap_servers)
    stranger = TransactionalProducer(options.for_producer(), f"{project.name}-stranger", timeout_ms=60_000)
    stranger.send(project.topic("model_releases"), b"unknown", b"x")
    assert stranger._unacknowledged(10) == 0
    with pytest.raises(UnreachableError, match="transaction is open on it"):
        promote(project, log)
    assert versions(log.state()) == {"champion": "v1", "canary": "v2", "shadow": None}  # who only looks is told
    stranger.abort()
    promote(project, log)


def test_keys_of_a_later_version_are_let_be_and_garbage_is_named(project: Settings, log: ReleaseLog) -> None:
    """What is under other keys is not looked at; what is under ours and no release says where it is."""
    before = log.state()
    producer = Producer({"bootstrap.servers": project.kafka.bootstrap_servers})
    for key in (b"settings", b"\xff", None):
        producer.produce(project.topic("model_releases"), b"garbage", key=key)
    producer.flush(10)
    assert log.state() == before
    producer.produce(project.topic("model_releases"), b"garbage", key=b"shadow")
    producer.flush(10)
    with pytest.raises(ContractError, match=r"model-releases: key 'shadow': "):
        log.state()


class Follower:
    """What `follow` yields, in a thread of its own."""

    def __init__(self, log: ReleaseLog) -> None:
        self.seen: list[Releases] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(log,))
        self.thread.start()

    def _run(self, log: ReleaseLog) -> None:
        for state in log.follow(self.stop):
            self.seen += [state]

    def close(self) -> None:
        self.stop.set()
        self.thread.join(5)
        assert not self.thread.is_alive()


def test_followers_see_the_state_at_start_and_each_change_in_order(project: Settings, log: ReleaseLog) -> None:
    """From an empty log on, and from one with a history; every state is one that held."""
    followers = [Follower(open_releases(project)) for _ in range(2)]
    try:
        eventually(lambda: all(f.seen for f in followers), "the state at the start")
        states = [log.state()]
        for number in range(3, 6):
            states.append(promote(project, log))
            eventually(lambda: all(f.seen[-1] == states[-1] for f in followers), "the promotion seen")
            decision = decide(project, "test", "")
            version = model(f"v{number}")
            states.append(log.change(decision, lambda s: releases.canary(s, version, 0.5, decision)))  # noqa: B023
            eventually(lambda: all(f.seen[-1] == states[-1] for f in followers), "the canary seen")
    finally:
        for follower in followers:
            follower.close()
    assert all(f.seen == states for f in followers)


def test_a_follower_never_sees_half_a_change(
    project: Settings, log: ReleaseLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changes as fast as they go, read record by record: each state seen is one that held."""
    monkeypatch.setattr("pipeline.bus.reading.READ_MAX", 1)
    journal = Journal(
        ClientOptions(project.kafka.bootstrap_servers, producer={"linger.ms": "0", "batch.num.messages": "1"}),
        project.topic("model_releases"),
        group="test",
        transactional_id=f"{project.name}-test",
        transaction_timeout_ms=60_000,
    )
    stop, seen = threading.Event(), list[dict[bytes, bytes]]()

    def follow() -> None:
        seen.extend(table for table in journal.follow(stop) if b"first" in table)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        for number in range(15):
            text = str(number).encode()
            journal.change(lambda _table: [(b"first", text), (b"second", text), (b"last", text)])  # noqa: B023
    finally:
        stop.set()
        thread.join(10)
    assert len(seen) > 1
    for table in seen:
        assert len({table[b"first"], table[b"second"], table[b"last"]}) == 1, table
    assert [int(t[b"first"]) for t in seen] == sorted({int(t[b"first"]) for t in seen})


def test_following_an_empty_log_begins_with_nothing(project: Settings) -> None:
    """A worker that starts before the first release learns that there is none, and later of the first."""
    log = open_releases(project, create=True)
    follower = Follower(log)
    try:
        eventually(lambda: follower.seen == [Releases()], "an empty state")
        decision = decide(project, "test", "")
        made = log.change(decision, lambda s: releases.release(s, model("v1"), decision))
        eventually(lambda: follower.seen == [Releases(), made], "the first release")
    finally:
        follower.close()


def test_a_log_that_is_not_there_is_said(project: Settings) -> None:
    """Reading makes no topic; the error says how to make one."""
    with pytest.raises(ContractError, match="does not exist; `pipeline topics create` makes it"):
        open_releases(project).state()


def test_stock_clients_read_the_releases(project: Settings, log: ReleaseLog) -> None:
    """The value is Avro in the Confluent wire format, as the reference implementation reads it."""
    import io

    import avro.io
    import avro.schema

    registry = codec.registry_of(project)
    latest = registry.latest(f"{project.topic('model_releases')}-value")
    assert latest is not None
    schema = avro.schema.parse(latest[1])
    assert json.loads(latest[1]) == json.loads(codec.load_schema("model-release"))
    journal = Journal(
        ClientOptions(project.kafka.bootstrap_servers),
        project.topic("model_releases"),
        group="test",
        transactional_id="unused",
        transaction_timeout_ms=10_000,
    )
    table = journal.read()
    value = table[b"champion"]
    assert value[:5] == b"\0" + latest[0].to_bytes(4, "big")
    row = avro.io.DatumReader(schema).read(avro.io.BinaryDecoder(io.BytesIO(value[5:])))
    state = log.state()
    assert state.champion is not None
    assert row == releases.to_row(state.champion)
    assert list(table) == [
        b"champion",
        b"release/" + state.history[0].release_id.encode(),
        b"canary",
        b"release/" + state.history[1].release_id.encode(),
    ]
