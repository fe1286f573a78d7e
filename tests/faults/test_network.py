"""A bad network, through a proxy that reads Kafka's frames: what is late, lost, cut and slow must not tear anything."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from benchmarks import clients
from pipeline.bus.embedded import EmbeddedKafka
from pipeline.testing import Api, Proxy
from tests.faults.network import FENCED, Network, Writer

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
