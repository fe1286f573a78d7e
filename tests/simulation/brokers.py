"""What Kafka's brokers do with transactions and groups, as far as exactly-once depends on it.

After Kafka 4.1's transaction and group coordinators with a client of protocol v1 (librdkafka: no epoch bump per
transaction): a request with the right epoch counts, however old it is. Errors are (code, is it final).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from confluent_kafka import KafkaError

from tests.simulation.virtual import World

Code = int
OK: Code = 0
State = Literal["empty", "ongoing", "committing", "aborting"]

SESSION_S = 3.0


@dataclass
class Output:
    """One appended record: which input it is of."""

    partition: int
    offset: int
    #: None while its transaction is open.
    visible: bool | None = None


@dataclass
class Transaction:
    """A transactional id at its coordinator."""

    producer_id: int
    epoch: int = 0
    state: State = "empty"
    #: How the one before ended.
    last: State = "empty"
    #: Counts the transactions of this id.
    number: int = 0
    timeout_s: float = 60.0
    outputs: list[Output] = field(default_factory=list)
    offsets: dict[int, int] = field(default_factory=dict)


@dataclass
class Member:
    """A group member."""

    name: str
    alive: Callable[[], bool]
    generation: int = 0
    owned: set[int] = field(default_factory=set)
    seen_at: float = 0.0


class Cluster:
    """Input partitions, one output partition for each, one group, and the transactions."""

    def __init__(self, world: World, partitions: int, records: int, within_s: float) -> None:
        """Each input partition gets `records` records, evenly `within_s`."""
        self.world = world
        self.partitions, self.records, self.within_s = partitions, records, within_s
        self.log: dict[int, list[Output]] = {p: [] for p in range(partitions)}
        self.committed: dict[int, int] = {}
        self.transactions: dict[str, Transaction] = {}
        self.generation = 0
        self.members: dict[str, Member] = {}
        self.target: dict[int, str] = {}
        self._producer_ids = 0
        world.after(1.0, self._expire)

    def written(self) -> int:
        """Records that each input partition has by now."""
        return min(self.records, int(self.records * self.world.now / self.within_s))

    # -- transactions ----------------------------------------------------------------------

    def init_producer(self, name: str, timeout_s: float) -> tuple[Code, int, int]:
        """Error, producer id, epoch. What the id's former producer left open is aborted first."""
        found = self.transactions.get(name)
        if found is None:
            self._producer_ids += 1
            found = self.transactions[name] = Transaction(self._producer_ids)
        if found.state != "empty":
            if found.state == "ongoing":
                found.epoch += 1
                self._end(found, "aborting")
            return KafkaError.CONCURRENT_TRANSACTIONS, -1, -1
        found.epoch += 1
        found.timeout_s = timeout_s
        return OK, found.producer_id, found.epoch

    def _of(self, name: str, epoch: int) -> tuple[Code, Transaction]:
        found = self.transactions[name]
        return (OK if found.epoch == epoch else KafkaError.INVALID_PRODUCER_EPOCH), found

    def _join(self, name: str, epoch: int) -> tuple[Code, Transaction]:
        """Into the open transaction, or begin one."""
        code, found = self._of(name, epoch)
        if code == OK and found.state in ("committing", "aborting"):
            return KafkaError.CONCURRENT_TRANSACTIONS, found
        if code == OK and found.state == "empty":
            found.state, number = "ongoing", found.number
            self.world.after(found.timeout_s, lambda: self._time_out(found, number))
        return code, found

    def append(self, name: str, epoch: int, outputs: list[tuple[int, int]]) -> Code:
        """Append records (partition, offset of their input) in the transaction."""
        code, found = self._join(name, epoch)
        if code == OK:
            entries = [Output(*output) for output in outputs]
            found.outputs += entries
            for entry in entries:
                self.log[entry.partition].append(entry)
        return code

    def append_plain(self, outputs: list[tuple[int, int]]) -> Code:
        """Append records outside any transaction: visible at once."""
        for partition, offset in outputs:
            self.log[partition].append(Output(partition, offset, visible=True))
        return OK

    def offset_commit(self, name: str, epoch: int, member: tuple[str, int], offsets: dict[int, int]) -> Code:
        """TxnOffsetCommit: refused for whoever is not a member of this generation."""
        if (code := self.member_fault(*member)) != OK:
            return code
        code, found = self._join(name, epoch)
        if code == OK:
            found.offsets |= offsets
        return code

    def end(self, name: str, epoch: int, *, commit: bool) -> Code:
        """EndTxn."""
        code, found = self._of(name, epoch)
        if code != OK:
            return code
        wanted: State = "committing" if commit else "aborting"
        if found.state == "ongoing":
            self._end(found, wanted)
            return OK
        if found.state == "empty":  # answered before? then the retry of the same request is told so
            return OK if found.last == wanted else KafkaError.INVALID_TXN_STATE
        return KafkaError.CONCURRENT_TRANSACTIONS if found.state == wanted else KafkaError.INVALID_TXN_STATE

    def _end(self, found: Transaction, state: State) -> None:
        found.state = state
        self.world.after(self.world.jitter(0.3), lambda: self._complete(found))

    def _complete(self, found: Transaction) -> None:
        commit = found.state == "committing"
        for output in found.outputs:
            output.visible = commit
        if commit:
            self.committed |= found.offsets
        found.last = found.state
        found.outputs, found.offsets = [], {}
        found.state, found.number = "empty", found.number + 1

    def _time_out(self, found: Transaction, number: int) -> None:
        if found.number == number and found.state == "ongoing":
            found.epoch += 1
            self._end(found, "aborting")

    def stable_offset(self, partition: int) -> int | None:
        """OffsetFetch with require_stable: None while a transaction holds an offset of this partition."""
        if any(partition in t.offsets for t in self.transactions.values()):
            return None
        return self.committed.get(partition, -1)

    # -- group -----------------------------------------------------------------------------

    def join(self, name: str, alive: Callable[[], bool]) -> Member:
        """A new member; everybody's generation is over."""
        member = self.members[name] = Member(name, alive, seen_at=self.world.now)
        self._rebalance()
        return member

    def leave(self, name: str) -> None:
        """Gone, with what it owned."""
        if self.members.pop(name, None) is not None:
            self._rebalance()

    def synchronise(self, member: Member) -> set[int]:
        """Called at every poll: the member's partitions in the present generation."""
        member.generation, member.seen_at = self.generation, self.world.now
        return {p for p, owner in self.target.items() if owner == member.name}

    def release(self, member: Member, partitions: set[int]) -> None:
        """After its revoke handler: somebody else may have them, in a new generation."""
        member.owned -= partitions
        if self.members.get(member.name) is member and partitions:
            self.generation += 1

    def is_free(self, partition: int) -> bool:
        """Nobody that is still a member owns it."""
        return not any(partition in member.owned for member in self.members.values())

    def member_fault(self, name: str, generation: int) -> Code:
        """What a commit by this member of this generation is told."""
        if name not in self.members:
            return KafkaError.UNKNOWN_MEMBER_ID
        return OK if generation == self.generation else KafkaError.ILLEGAL_GENERATION

    def commit_plain(self, member: tuple[str, int], offsets: dict[int, int]) -> Code:
        """OffsetCommit."""
        code = self.member_fault(*member)
        if code == OK:
            self.committed |= offsets
        return code

    def _rebalance(self) -> None:
        self.generation += 1
        names = sorted(self.members)
        self.world.random.shuffle(names)
        self.target = {p: names[p % len(names)] for p in range(self.partitions)} if names else {}

    def _expire(self) -> None:
        """Throw out who has not been heard of for a session."""
        for member in list(self.members.values()):
            if member.alive():
                member.seen_at = self.world.now
            elif self.world.now - member.seen_at > SESSION_S:
                self.leave(member.name)
        self.world.after(1.0, self._expire)

    # -- what a read_committed reader sees ---------------------------------------------------

    def seen(self) -> dict[int, list[int]]:
        """Partition -> offsets of the inputs of its visible outputs, in order."""
        return {p: [entry.offset for entry in log if entry.visible] for p, log in self.log.items()}

    def states(self) -> dict[str, State]:
        """Transactional id -> state."""
        return {name: t.state for name, t in self.transactions.items()}

    def finished(self) -> bool:
        """Everything committed, nothing open."""
        open_ = any(t.state != "empty" for t in self.transactions.values())
        return not open_ and all(self.committed.get(p, 0) == self.records for p in range(self.partitions))
