"""Outputs and input offsets in one Kafka transaction (KIP-98), fenced by the consumer group (KIP-447).

What librdkafka says of a failed call decides, in this order (its rdkafka.h):

    needs an abort    abort; the inputs are read again from the last commit        TransactionAbortedError
    retriable         the same call again, within the budget
    anything else     this producer is done for. If the broker ended our transaction because it took too long
                      (a paused process), a new producer goes on from the last commit; else another
                      instance has our transactional.id, and this one stops at once         FencedError

librdkafka lacks the client's side of KIP-890: a request that was delayed on the way may hit a *later* transaction of
the same producer epoch, on Kafka 4.1 too (tests/faults/test_network.py shows it on a bare producer): EndTxn commits or
aborts half of it, TxnOffsetCommit takes the offsets back. So the producer is replaced by a new one with the same
transactional.id wherever a request may still be under way: after every abort, and after every commit of which one
was sent twice or the outcome is unknown. The new one's init_transactions waits for the old transaction's end and
raises the epoch, which fences whatever is late.

librdkafka does not say that it sent a request again, but it never does so at once (RETRY_BACKOFF_MS): a call that was
quicker sent each request once, and had its answer.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as _TopicPartition

from pipeline.bus.producer import BatchProducer
from pipeline.errors import DeliveryError, FencedError, TransactionAbortedError, UnreachableError
from pipeline.records import Headers, TopicPartition

log = structlog.get_logger(__name__)

#: librdkafka gives up on an answer after this long and sends the request again; 60 s by default.
SOCKET_TIMEOUT_MS = 10_000
#: It sends EndTxn and AddOffsetsToTxn again no sooner than 0.8 times this after their failure (rdkafka_broker.c,
#: rd_kafka_broker_buf_retry: 20 % of jitter), 0.56 s; TxnOffsetCommit after 0.5 s (rdkafka_txnmgr.c).
RETRY_BACKOFF_MS = 700
#: So no request of a call that took less was sent twice. Usual are 5 to 50 ms.
ONCE_SENT_S = 0.45
#: After this long send_offsets_to_transaction is taken to hang: it has no timeout of its own, and waits for ever for a
#: coordinator that was taken off the list of brokers (librdkafka issue 5511). Two tries of SOCKET_TIMEOUT_MS.
OFFSETS_S = 20.0
#: The other calls keep to timeouts of their own. One that is over it by so much is left behind, too: in a soak on a
#: starved machine a worker stood still in one of them for ten minutes, until it was ended.
HANGING_S = 20.0
#: A connection closed because it was idle wakes that call up, and it finds the new coordinator: once the old one was
#: killed and forgotten, it returned within 7 s in three of three tries, and without this in none.
IDLE_MS = 5_000
#: Before a call that fails with a retriable error is given up: as long as a broker's restart may take.
RETRY_BUDGET_S = 60.0
RETRY_PAUSE_S = 0.2
#: One try of init_transactions; it is repeated for as long as the broker is away.
INIT_TRY_S = 5.0

#: Aborts in a row for a reason that no waiting mends, before the worker ends: a right may be given back, and a topic be
#: made, while it tries. librdkafka takes 30 s (topic.metadata.propagation.max.ms) to be sure that a topic has gone.
REFUSALS_MAX = 3

_FENCING = frozenset(
    {
        KafkaError._FENCED,  # noqa: SLF001 (has no public name)
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
    }
)
_LASTING = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 (has no public name)
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 (has no public name)
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.POLICY_VIOLATION,
    }
)
_FATAL = _FENCING | {KafkaError._FATAL}  # noqa: SLF001 (has no public name)


class TransactionalProducer(BatchProducer):
    """A BatchProducer whose records become visible with `commit`, together with the input offsets, or never.

    A transaction begins with the first record. Thread-safe. The first call waits until the broker has ended
    whatever a former instance with the same transactional.id left open.

    A transaction that was aborted while records were sent stays `aborted` until `abort` is called: whoever
    reads the inputs must go back to the last commit first. Records sent meanwhile share its fate.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        transactional_id: str,
        *,
        timeout_ms: int,
        on_broker_error: Callable[[str], None] | None = None,
    ) -> None:
        own = {
            "transactional.id": transactional_id,
            "transaction.timeout.ms": timeout_ms,
            # librdkafka demands it; a record that takes longer aborts, and its input is read again.
            "message.timeout.ms": timeout_ms,
            "socket.timeout.ms": min(int(options.get("socket.timeout.ms", SOCKET_TIMEOUT_MS)), timeout_ms),
            # Else one lost connection to a lone broker is "all brokers down", and librdkafka 2.16 forgets the
            # group's coordinator in a way that send_offsets_to_transaction never returns from: see OFFSETS_S.
            "metadata.recovery.strategy": "none",
            "connections.max.idle.ms": IDLE_MS,
            "retry.backoff.ms": RETRY_BACKOFF_MS,
            "retry.backoff.max.ms": max(RETRY_BACKOFF_MS, 1_000),
        }
        super().__init__({**options, **own}, on_broker_error)
        self._timeout_s = timeout_ms / 1000
        #: Held by every call: the producer may be replaced in any of them.
        self._lock = threading.RLock()
        self._ready = False
        self._began_at: float | None = None
        self._renew_because: str | None = None
        #: Aborts since the last commit that no waiting mends, and why the next one would be.
        self._refusals = 0
        self._refused: DeliveryError | None = None
        self.aborted = False

    def take_over(self) -> None:
        """End what a former instance with this transactional.id left open, now and not at the first record.

        Else, until its timeout, the group's offsets in it hold up whoever is assigned their partitions, this
        instance too. Waits for an absent broker. Raises UnreachableError once closed, DeliveryError.
        """
        with self._lock:
            self._initialise()

    def send_batch(
        self,
        topic: str,
        keys: Sequence[bytes | None],
        values: Sequence[bytes | None],
        partitions: Sequence[int] | None = None,
    ) -> None:
        """As BatchProducer; raises TransactionAbortedError as well."""
        with self._lock:
            self._begin()
            self._sending(lambda: super(TransactionalProducer, self).send_batch(topic, keys, values, partitions))

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = None) -> None:
        """As BatchProducer; raises TransactionAbortedError as well."""
        with self._lock:
            self._begin()
            self._sending(lambda: super(TransactionalProducer, self).send(topic, key, value, headers))

    def commit(
        self,
        offsets: Mapping[TopicPartition, int] | None = None,
        group: Any = None,
        notes: Mapping[TopicPartition, str] | None = None,
    ) -> None:
        """Commit what was sent, together with `offsets` of the consumer group `group` (its metadata) if there are any.

        notes: kept with the offsets, for whoever asks for them (Kafka calls them metadata, too).

        1. Flush, so that the broker knows of every partition written to. To AddOffsetsToTxn while one is on its way to
           be added it says CONCURRENT_TRANSACTIONS, and librdkafka waits RETRY_BACKOFF_MS: offsets sent first made a
           commit last 0.6 to 1.5 s now and then. A record that cannot be delivered makes 3 abort.
        2. Send the offsets: the group's coordinator refuses those of a member that was thrown out.
        3. Commit.
        4. Have the producer replaced before its next transaction, if a request of 2 or 3 may have been sent twice.

        Raises TransactionAbortedError (nothing is visible, or it is unknown whether all is: the group's offsets
        tell), FencedError, DeliveryError.
        """
        with self._lock:
            self._begin()
            texts = notes or {}
            positions = [_TopicPartition(*tp, offset, texts.get(tp, "")) for tp, offset in (offsets or {}).items()]
            self._sending(lambda: self._unacknowledged(self._timeout_s))
            send_offsets = self._producer.send_offsets_to_transaction
            late = bool(positions) and self._call(min(OFFSETS_S, self._timeout_s), send_offsets, positions, group)
            # -1: any other timeout would leave librdkafka and the broker of two minds (rdkafka.h).
            late = self._call(self._timeout_s + HANGING_S, self._producer.commit_transaction, -1) or late
            self._began_at = None
            self._refusals = 0
            self._renew_because = "a request of the last commit may have been sent twice" if late else None
            self._check()
            self._errors.working()

    @property
    def open(self) -> bool:
        """Whether a transaction has begun and not ended."""
        return self._began_at is not None

    def abort(self) -> None:
        """Make what was sent since the last commit invisible for good. Raises FencedError."""
        with self._lock:
            self.aborted = False
            if self._began_at is None:
                return
            try:
                _within(self._timeout_s + HANGING_S, self._producer.abort_transaction, self._timeout_s)
            except KafkaException as error:
                self._refuse_twin(error.args[0])
                self._renew(f"abort failed: {error.args[0].str()}")
            else:
                self._renew_because = "the last transaction was aborted"
            self._failure = self._refused = None
            self._began_at = None

    # -- failures ---------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._began_at is not None:
            return
        if self._renew_because is not None:
            self._renew(self._renew_because, log.info)
        if not self._ready:
            self._initialise()
        self._call(HANGING_S, self._producer.begin_transaction)
        self._began_at = time.monotonic()

    def _sending(self, send: Callable[[], Any]) -> None:
        try:
            send()
        except (DeliveryError, FencedError) as error:
            known = error.__cause__.args[0] if isinstance(error.__cause__, KafkaException) else self._errors.fatal
            # Else a delivery report said so. The event that tells of something fatal may be late, and with any record
            # that was not delivered the transaction cannot be committed (_STATE).
            self._judge(known or self._reason() or KafkaError(KafkaError._STATE))  # noqa: SLF001 (has no public name)
            raise
        except KafkaException as error:  # raised by poll
            self._judge(error.args[0])
            raise DeliveryError(f"producer: {error.args[0].str()}") from error

    def _call(self, budget_s: float, call: Callable[..., Any], *args: Any) -> bool:
        """Call until it succeeds, each try within `budget_s`; whether a request of it may have been sent twice."""
        give_up, again = time.monotonic() + RETRY_BUDGET_S, False
        while True:
            started = time.monotonic()
            try:
                _within(budget_s, call, *args)
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                if cause.txn_requires_abort() or not cause.retriable() or time.monotonic() > give_up:
                    self._judge(cause)
                    raise DeliveryError(f"producer: {cause.str()}") from error
                again = True
                log.info("transaction call tried again", error=cause.str())
                time.sleep(RETRY_PAUSE_S)
            else:
                return again or time.monotonic() - started > ONCE_SENT_S

    def _judge(self, cause: KafkaError) -> None:
        """Raise what follows from a failed call; return if it does not concern the transaction."""
        if cause.code() == KafkaError._FATAL:  # noqa: SLF001 (has no public name)
            cause = self._reason() or self._errors.fatal or cause
        # _STATE: nothing more can be sent in this transaction, as something in it has failed already.
        if cause.txn_requires_abort() or (self.open and cause.code() == KafkaError._STATE):  # noqa: SLF001
            refused = self._refused or self._refusal(cause)
            log.warning("transaction aborted, its inputs are read again", error=str(refused or cause.str()))
            self.abort()
            if refused is not None:
                self._refusals += 1
                if self._refusals >= REFUSALS_MAX:
                    raise refused
        elif cause.fatal() or cause.retriable() or cause.code() in _FATAL:
            self._refuse_twin(cause)
            self._renew(cause.str())
        else:
            return
        self.aborted = True
        raise TransactionAbortedError(f"transaction aborted: {cause.str()}")

    def _reason(self) -> KafkaError | None:
        """Why nothing more can be sent: a twin, ourselves, a record; None if librdkafka does not say.

        It says so to whoever would begin a transaction (rdkafka_txnmgr.c, rd_kafka_txn_require_states0), at once. Its
        event about it may be late, and a producer made in ignorance would fence the twin that has fenced this one.
        """
        try:
            _within(HANGING_S, self._producer.begin_transaction)
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            return reason if reason.fatal() or reason.txn_requires_abort() else None
        return None

    def _refusal(self, cause: KafkaError) -> DeliveryError | None:
        """What ends this producer if it comes REFUSALS_MAX times; None for what may pass by itself."""
        return DeliveryError(f"transaction: {cause.str()}") if cause.code() in _LASTING else None

    def _refuse_twin(self, cause: KafkaError) -> None:
        """Raise FencedError if another instance raised the epoch, and not the broker because we were too slow."""
        if cause.code() not in _FENCING:
            return
        open_s = 0.0 if self._began_at is None else time.monotonic() - self._began_at
        if open_s < self._timeout_s:
            twin = "another instance runs with this transactional.id, so this one stops"
            raise FencedError(f"producer: {twin} ({cause.str()})")

    def _renew(self, why: str, say: Callable[..., Any] = log.warning) -> None:
        """A new producer with the same transactional.id, in the place of this one."""
        say("transactional producer replaced", reason=why)
        self._producer.purge(blocking=False)
        self._errors.fatal = self._failure = self._refused = self._began_at = self._renew_because = None
        self._producer = self._make()
        self._ready = False
        self._initialise()

    def _initialise(self) -> None:
        """Take the transactional.id over; waits for an absent broker until this producer is closed."""
        while not self._ready:
            try:
                _within(INIT_TRY_S + HANGING_S, self._producer.init_transactions, INIT_TRY_S)
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                if self._closed.is_set():
                    raise UnreachableError(f"transactions cannot begin: {cause.str()}") from error
                if cause.code() == KafkaError._TIMED_OUT and cause.fatal():  # noqa: SLF001 (from `_within`)
                    self._producer = self._make()
                elif not cause.retriable():
                    raise DeliveryError(self._cannot_begin(cause)) from error
                log.info("transactions cannot begin yet", error=cause.str())
            else:
                self._ready = True

    def _cannot_begin(self, cause: KafkaError) -> str:
        mend = ""
        if cause.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            mend = f"; allow this user Write and Describe on transactional id {self._options['transactional.id']}"
        return f"transactions cannot begin: {cause.str()}{mend}"

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        """Purged records belong to an aborted transaction: nothing is wrong with them."""
        purged = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)  # noqa: SLF001 (have no public names)
        if error is not None and error.code() not in purged:
            super()._on_delivery(error, message)
            if error.code() in _LASTING and isinstance(self._failure, DeliveryError):
                self._refused = self._failure


def _within(budget_s: float, call: Callable[..., Any], *args: Any) -> None:
    """Call; raises what it raises, and a fatal KafkaException after `budget_s`, leaving it behind on its thread."""
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            call(*args)
        except BaseException as error:  # noqa: BLE001 (raised by whoever waits)
            outcome.set_exception(error)
        else:
            outcome.set_result(None)

    threading.Thread(target=run, name="transaction", daemon=True).start()
    try:
        outcome.result(budget_s)
    except TimeoutError:
        told = f"no answer from librdkafka within {budget_s:g} s"
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, told, fatal=True)) from None  # noqa: SLF001
