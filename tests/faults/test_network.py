"""A bad network, through a proxy that reads Kafka's frames: what is late, lost, cut and slow must not tear anything."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks import clients, job, ours
from pipeline.bus import transactions
from pipeline.bus.embedded import EmbeddedKafka
from pipeline.errors import TransactionAbortedError
from pipeline.testing import Api, Proxy
from tests.faults.conftest import Judge, Make
from tests.faults.network import FENCED, NOTHING, OF_THE_GROUP, Network, Writer, asks_for_a_group
from tests.faults.pressure import Memory, send_padded
from tests.pipelines import Pipeline, eventually

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    """One broker behind a proxy for all tests here; each removes its own rules."""
    with Proxy() as proxy, EmbeddedKafka(port=0, advertised_port=proxy.port, ephemeral=True) as broker:
        proxy.upstream = broker.bootstrap_servers
        yield Network(proxy, broker)


@pytest.fixture
def writer(network: Network, unique: Callable[[str], str]) -> Iterator[Writer]:
    """Our producer, alone."""
    made = Writer(network, unique("writer"))
    yield made
    made.close()


# -- F21: an EndTxn that is late -------------------------------------------------------------------


@pytest.mark.case("F21")
@pytest.mark.parametrize("ends", ["commit", "abort"])
def test_a_bare_producer_is_torn_by_a_late_end(network: Network, unique: Callable[[str], str], ends: str) -> None:
    """The control: without our defence Kafka 4.1 commits half of the next transaction, or loses it (Jepsen, KIP-890).

    Should this fail one day, because librdkafka or Kafka refuse the late EndTxn, the defence has become superfluous.
    """
    topic, group = unique("bare"), unique("group")
    clients.create_topic(clients.make_admin(network.servers), topic, 1)
    producer = Producer({"bootstrap.servers": network.servers, "client.id": topic, "transactional.id": topic})
    consumer = Consumer({"bootstrap.servers": network.servers, "group.id": group})
    producer.init_transactions()
    with network.proxy.hold(Api.END_TXN, client=topic, times=1, cut=True) as late:
        producer.begin_transaction()
        producer.produce(topic, b"first", partition=0)
        producer.flush()
        producer.commit_transaction() if ends == "commit" else producer.abort_transaction()
        producer.begin_transaction()
        producer.produce(topic, b"second", partition=0)
        producer.flush()
        before = network.values(topic)
    assert network.error_of(late.await_answer()) == 0, "refused"
    if ends == "commit":
        # The second transaction can be seen, and was never committed.
        assert (before, network.values(topic)) == ([b"first"], [b"first", b"second"])
    else:
        # The second transaction is gone behind its producer's back, whose commit of the offsets succeeds: a loss.
        producer.send_offsets_to_transaction([TopicPartition(topic, 0, 2)], consumer.consumer_group_metadata())
        producer.commit_transaction()
        assert consumer.committed([TopicPartition(topic, 0)], 15.0)[0].offset == 2
        assert network.values(topic) == []
    consumer.close()


@pytest.mark.case("F21")
@pytest.mark.parametrize("cut", [True, False], ids=["connection reset", "socket timeout"])
@pytest.mark.parametrize("ends", ["commit", "abort"])
def test_a_late_end_cannot_reach_our_next_transaction(
    writer: Writer, counted: Callable[..., None], ends: str, cut: bool
) -> None:
    """However its answer got lost, the late EndTxn is refused, and the open transaction is neither seen nor ended."""
    writer.send(b"first")
    with writer.network.proxy.hold(Api.END_TXN, client=writer.name, times=1, cut=cut) as late:
        if ends == "commit":
            writer.commit(1)
        else:
            writer.producer.abort()
        writer.send(b"second")
    code = writer.network.error_of(late.await_answer())
    kept = [b"first"] if ends == "commit" else []
    torn = writer.values() != kept
    writer.commit(2)
    counted(torn=torn, late_answer=code)
    assert code in FENCED
    assert not torn
    assert (writer.values(), writer.committed()) == ([*kept, b"second"], 2)


@pytest.mark.case("F21")
def test_late_offsets_cannot_reach_our_next_transaction(writer: Writer) -> None:
    """A TxnOffsetCommit that was sent twice, and is late by one transaction, does not take the offsets back."""
    proxy = writer.network.proxy
    writer.send(b"first")
    with proxy.hold(Api.TXN_OFFSET_COMMIT, client=writer.name, times=1, cut=True) as late:
        writer.commit(1)
        writer.send(b"second")
        with proxy.hold(Api.END_TXN, client=writer.name, times=1) as end, ThreadPoolExecutor() as pool:
            committing = pool.submit(writer.commit, 2)
            end.await_seen()
            late.remove()
            late.await_answer()
            end.remove()
            committing.result(30.0)
    assert (writer.values(), writer.committed()) == ([b"first", b"second"], 2)


@pytest.mark.case("F25")
def test_a_call_that_never_returns_is_left_behind(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """send_offsets_to_transaction may hang for ever (librdkafka issue 5511): a new producer goes on, nothing lost."""
    monkeypatch.setattr(transactions, "OFFSETS_S", 1.0)
    writer.send(b"aborted")
    with writer.network.proxy.lose(Api.TXN_OFFSET_COMMIT, client=writer.name) as lost:
        with pytest.raises(TransactionAbortedError, match="no answer from librdkafka within 1 s"):
            writer.commit(1)
        lost.await_seen()
    monkeypatch.undo()
    writer.producer.abort()  # as the consumer does before it goes back to the last commit
    assert (writer.values(), writer.committed()) == ([], NOTHING)
    writer.send(b"kept")
    writer.commit(1)
    assert (writer.values(), writer.committed()) == ([b"kept"], 1)


# -- F22, F23: records that are late ---------------------------------------------------------------


@pytest.mark.case("F22")
def test_a_late_record_of_an_aborted_transaction_is_refused(network: Network, writer: Writer) -> None:
    """Held past its transaction's abort and released inside the next: never seen, and readers are not held up."""
    writer.send(b"kept")
    writer.commit(1)
    with network.proxy.hold(Api.PRODUCE, client=writer.name, times=1, cut=True) as late:
        writer.producer.send(writer.name, None, b"late")
        late.await_seen()
        writer.producer.abort()
        writer.send(b"next")
    late.await_answer()
    assert writer.values() == [b"kept"]
    writer.commit(2)
    assert (writer.values(), writer.committed()) == ([b"kept", b"next"], 2)
    assert writer.held_up() == {}


@pytest.mark.case("F23")
def test_an_abort_while_the_first_record_is_in_flight_recovers(network: Network, writer: Writer) -> None:
    """librdkafka issue 4849: at every point between AddPartitionsToTxn and the first answer, abort and go on."""
    committed = 0
    for api in (Api.ADD_PARTITIONS_TO_TXN, Api.PRODUCE):
        for side in ("request", "response"):
            with network.proxy.delay(api, side=side, client=writer.name, times=1, seconds=0.3) as delayed:
                writer.producer.send(writer.name, None, b"aborted")
                delayed.await_seen()
                writer.producer.abort()
            writer.send(b"kept")
            committed += 1
            writer.commit(committed)
    assert (writer.values(), writer.committed()) == ([b"kept"] * committed, committed)
    assert writer.held_up() == {}


# -- the whole worker ------------------------------------------------------------------------------

SLICE = 20_000
#: A broker's least for a session, a connection's answers and a transaction; else these tests would take minutes.
QUICK = {
    "delivery.commit_interval_ms": 100,
    "delivery.transaction_timeout_ms": 10_000,
    "kafka.options": {"socket.timeout.ms": "2000"},
    "kafka.consumer_options": {"session.timeout.ms": "6000", "heartbeat.interval.ms": "1000"},
}
#: Of a worker while 200 MB wait: fetched and not read 64 MiB, and as much again for what is worked on.
GROWTH_MAX_MIB = 128
BEYOND_SOCKET_TIMEOUT_S = 3.0
EXACT = {**QUICK, "delivery.mode": "exactly_once"}
both_modes = pytest.mark.parametrize("mode", ["at_least_once", "exactly_once"])


class Feed:
    """A pipeline with one worker, which gets its events in slices, each under another fault."""

    def __init__(self, pipeline: Pipeline, events: int) -> None:
        self.pipeline, self.events, self.sent = pipeline, events, 0
        self._values = job.encode_events(events)
        self.worker = pipeline.start("run", "worker")

    @property
    def client(self) -> str:
        """Part of the client ids of the worker, and of nobody else's."""
        return f"{self.pipeline.name}-worker"

    def send(self, count: int = SLICE) -> None:
        self.pipeline.send(self._values[self.sent : self.sent + count], self.sent)
        self.sent += count

    def await_committed(self) -> None:
        self.pipeline.await_committed(self.sent)

    def finish(self) -> None:
        """Send what is left, wait until it is done, and stop the worker."""
        self.send(self.events - self.sent)
        self.await_committed()
        assert self.worker.terminate() == 0, self.worker.log()[-4000:]


@pytest.mark.case("F20")
def test_a_commit_whose_answer_is_lost_is_resumed(network: Network, make: Make, judge: Judge) -> None:
    """EndTxn is applied and its answer lost, by a reset and by silence: nothing twice, and a new producer each time."""
    feed = Feed(make(network.servers, settings=EXACT), 5 * SLICE)
    feed.send()
    feed.await_committed()
    for number, lose in enumerate((network.proxy.cut, network.proxy.lose), 1):
        with lose(Api.END_TXN, side="response", client=feed.client, times=1) as lost:
            feed.send()
            lost.await_seen()
            feed.await_committed()
        feed.send()
        # The broker has committed long before the worker knows: the next answer must not be lost to the same commit.
        eventually(lambda n=number: feed.worker.log().count("transactional producer replaced") >= n, "a new producer")
    feed.finish()
    assert feed.worker.log().count("transactional producer replaced") >= 2
    judge(feed.pipeline, feed.events, "exactly_once")


@pytest.mark.case("F21")
def test_a_late_commit_cannot_tear_the_workers_next_transaction(network: Network, make: Make, judge: Judge) -> None:
    """It dies in its next transaction, before the offsets are in it: were that one committed, all would be doubled."""
    feed = Feed(make(network.servers, settings=EXACT), 4 * SLICE)
    feed.send()
    feed.await_committed()
    with network.proxy.hold(Api.END_TXN, client=feed.client, times=1, cut=True) as late:
        feed.send()
        late.await_seen()
        feed.await_committed()
        with network.proxy.lose(Api.ADD_OFFSETS_TO_TXN, client=feed.client) as next_commit:
            feed.send()
            next_commit.await_seen()
            late.remove()
            code = network.error_of(late.await_answer())
            feed.worker.signal(signal.SIGKILL)
            feed.worker.wait()
    feed.worker = feed.pipeline.start("run", "worker")
    feed.finish()
    judge(feed.pipeline, feed.events, "exactly_once", late_answer=code)
    assert code in FENCED


@pytest.mark.case("F24")
@both_modes
def test_every_kind_of_bad_network_is_survived(network: Network, make: Make, judge: Judge, mode: str) -> None:
    """Requests torn, connections half-open, stalled and late by 200 +- 100 ms: no loss, no exit."""
    feed, proxy = Feed(make(network.servers, settings={**QUICK, "delivery.mode": mode}), 6 * SLICE), network.proxy
    feed.send()
    feed.await_committed()
    for torn in ((Api.PRODUCE,), (Api.FETCH, Api.TXN_OFFSET_COMMIT, Api.OFFSET_COMMIT)):
        with proxy.tear(*torn, client=feed.client, times=2) as tear:
            feed.send()
            tear.await_seen(2)
        feed.await_committed()
    for silence in (proxy.lose, proxy.stall):
        with silence(client=feed.client):
            feed.send()
            time.sleep(BEYOND_SOCKET_TIMEOUT_S)
        feed.await_committed()
    with proxy.delay(seconds=0.2, jitter_s=0.1, client=feed.client):
        feed.finish()
    judge(feed.pipeline, feed.events, mode)


@pytest.mark.case("F25")
@both_modes
def test_a_group_coordinator_cut_off_alone_costs_no_partial_commit(
    network: Network, make: Make, judge: Judge, mode: str
) -> None:
    """Everything else is reachable until the group has expelled the worker: what is visible is what is committed."""
    feed = Feed(make(network.servers, settings={**QUICK, "delivery.mode": mode}), 4 * SLICE)
    feed.send()
    feed.await_committed()
    proxy, client = network.proxy, feed.client
    with (
        proxy.lose(*OF_THE_GROUP, client=client),
        proxy.lose(Api.FIND_COORDINATOR, client=client, when=asks_for_a_group),
    ):
        feed.send()
        eventually(lambda: network.members(ours.group(feed.pipeline.name)) == 0, "the worker expelled")
        if mode == "exactly_once":
            feed.worker.await_log("transaction aborted")
            assert len(feed.pipeline.outputs().numbers) == feed.pipeline.committed() == SLICE
    feed.finish()
    judge(feed.pipeline, feed.events, mode)


@pytest.mark.case("P3")
def test_a_slow_broker_makes_lag_and_nothing_else(network: Network, make: Make, judge: Judge) -> None:
    """200 MB of events through a line of 20 MB/s: the backlog stays on the broker, the worker in its group."""
    events, size_bytes = 2_000, 100_000
    pipeline = make(network.servers, settings={"delivery.mode": "exactly_once"})
    send_padded(pipeline, events, size_bytes)
    network.proxy.throttle(20e6)
    try:
        worker = pipeline.start("run", "worker")
        worker.await_log('"in service"')
        memory = Memory(worker)
        pipeline.await_committed(events)
        grown_mib = memory.grown_mib()
    finally:
        network.proxy.throttle(None)
    assert worker.terminate() == 0, worker.log()[-4000:]
    assert worker.log().count('"rebalanced"') == 1
    judge(pipeline, events, "exactly_once", grown_mib=grown_mib)
    assert pipeline.outputs().span_s() > 5, "the line was not slow"
    assert grown_mib < GROWTH_MAX_MIB
