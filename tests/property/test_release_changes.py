"""Any sequence of changes of the releases, with crashes: one champion, complete history, exact rollbacks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.errors import ContractError
from pipeline.models import releases
from pipeline.models.releases import Change, Decision, Model, ModelRelease, Releases, fold

VERSIONS = [f"v{n}" for n in range(3)]
SHARES = (0.1, 0.5)


def model(version: str) -> Model:
    return Model("shop", version, f"releases/shop/{version}.tar", version.encode().hex().ljust(64, "0"))


class Log:
    """A compacted topic: transactions, of which those without an end are never seen, and compaction at any time."""

    def __init__(self) -> None:
        self.records: list[tuple[str, ModelRelease | None]] = []

    def commit(self, change: Change) -> None:
        self.records += change

    def compact(self) -> None:
        """Keep the last record of each key, where it is; a tombstone may go."""
        last = {key: at for at, (key, _) in enumerate(self.records)}
        self.records = [(k, r) for at, (k, r) in enumerate(self.records) if last[k] == at and r is not None]

    def state(self) -> Releases:
        return fold(self.records)


class Changes(RuleBasedStateMachine):
    """A model of what must hold, in plain lists, beside the state that is folded from the log."""

    def __init__(self) -> None:
        super().__init__()
        self.log = Log()
        self.slots: dict[str, str | None] = dict.fromkeys(releases.SLOTS)
        self.share: float | None = None
        #: The champions that rollbacks go back through, the present one last; all there ever were, and how they came.
        self.line: list[str] = []
        self.line_of: dict[str, list[str]] = {}
        self.count = 0
        self.changes = 0

    def decision(self) -> Decision:
        self.count += 1
        return Decision(f"r{self.count}", "shop", "test", self.count, f"reason {self.count}")

    def carry_out(self, allowed: bool, crash: bool, change: Callable[[Decision], Change]) -> bool:
        """Whether it was committed. What is not allowed raises and writes nothing; a crash leaves nothing."""
        if not allowed:
            with pytest.raises(ContractError) as caught:
                change(self.decision())
            assert "\n" not in str(caught.value)
            return False
        made = change(self.decision())
        assert made[-1][0] == f"release/r{self.count}", "the history entry is the last of its transaction"
        if crash:
            return False
        self.log.commit(made)
        self.changes += 1
        return True

    def crown(self, version: str, line: list[str]) -> None:
        self.slots = {slot: None if found == version else found for slot, found in self.slots.items()}
        self.slots["champion"] = version
        self.line = line
        self.line_of[version] = line

    # -- rules ----------------------------------------------------------------------------

    @rule(version=st.sampled_from(VERSIONS), crash=st.booleans())
    def release(self, version: str, crash: bool) -> None:
        allowed = version not in self.slots.values()
        if self.carry_out(allowed, crash, lambda d: releases.release(self.log.state(), model(version), d)):
            self.crown(version, [*self.line, version])

    @rule(version=st.sampled_from(VERSIONS), share=st.sampled_from((*SHARES, *SHARES, 0.0, 1.0)), crash=st.booleans())
    def canary(self, version: str, share: float, crash: bool) -> None:
        again = self.slots["canary"] == version and self.share != share
        free = version not in self.slots.values()
        allowed = share in SHARES and (again or free) and self.slots["champion"] is not None
        if self.carry_out(allowed, crash, lambda d: releases.canary(self.log.state(), model(version), share, d)):
            self.slots["canary"], self.share = version, share

    @rule(version=st.sampled_from(VERSIONS), crash=st.booleans())
    def shadow(self, version: str, crash: bool) -> None:
        allowed = version not in self.slots.values() and self.slots["champion"] is not None
        if self.carry_out(allowed, crash, lambda d: releases.shadow(self.log.state(), model(version), d)):
            self.slots["shadow"] = version

    @rule(slot=st.sampled_from(releases.SLOTS), crash=st.booleans())
    def promote(self, slot: Any, crash: bool) -> None:
        version = self.slots[slot]
        allowed = slot != "champion" and version is not None
        if self.carry_out(allowed, crash, lambda d: releases.promote(self.log.state(), slot, d)):
            assert version is not None
            self.crown(version, [*self.line, version])

    @rule(crash=st.booleans())
    def rollback(self, crash: bool) -> None:
        if self.carry_out(len(self.line) > 1, crash, lambda d: releases.rollback(self.log.state(), None, d)):
            self.crown(self.line[-2], self.line[:-1])

    @rule(version=st.sampled_from(VERSIONS), crash=st.booleans())
    def rollback_to(self, version: str, crash: bool) -> None:
        allowed = version in self.line_of and version != self.slots["champion"]
        if self.carry_out(allowed, crash, lambda d: releases.rollback(self.log.state(), version, d)):
            self.crown(version, self.line_of[version])

    @rule(slot=st.sampled_from(releases.SLOTS), crash=st.booleans())
    def withdraw(self, slot: Any, crash: bool) -> None:
        allowed = slot != "champion" and self.slots[slot] is not None
        if self.carry_out(allowed, crash, lambda d: releases.withdraw(self.log.state(), slot, d)):
            self.slots[slot] = None

    @rule()
    def repeat_a_decision(self) -> None:
        """One that was carried out is not again, even by who does not look first."""
        state = self.log.state()
        if state.history:
            done = Decision(state.history[-1].release_id, "shop", "test", 0)
            assert state.done(done.release_id)
            with pytest.raises(ContractError):
                releases.release(state, model("v9"), done)

    @rule(version=st.sampled_from(VERSIONS))
    def other_content_under_a_known_version(self, version: str) -> None:
        state = self.log.state()
        if any(entry.model_version == version for entry in state.history):
            with pytest.raises(ContractError):
                releases.release(state, dataclasses.replace(model(version), manifest_sha256="f" * 64), self.decision())

    @rule()
    def compact(self) -> None:
        self.log.compact()

    # -- what holds -----------------------------------------------------------------------

    @invariant()
    def state_is_as_expected(self) -> None:
        state = self.log.state()
        found = {slot: entry and entry.model_version for slot in releases.SLOTS for entry in [state.slot(slot)]}
        assert found == self.slots
        for slot in releases.SLOTS:
            if (entry := state.slot(slot)) is not None:
                assert entry.slot == slot
                assert Model(entry.model_id, entry.model_version, entry.uri, entry.manifest_sha256) == model(
                    entry.model_version
                )
                assert entry in state.history, "what holds is in the history"
                assert entry.share == (self.share if slot == "canary" else 1.0)
        versions = [version for version in self.slots.values() if version is not None]
        assert len(set(versions)) == len(versions), "no version is in two slots"

    @invariant()
    def history_is_complete_and_in_order(self) -> None:
        numbers = [int(entry.release_id[1:]) for entry in self.log.state().history]
        assert len(numbers) == self.changes
        assert numbers == sorted(numbers)


Changes.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestChanges = Changes.TestCase
