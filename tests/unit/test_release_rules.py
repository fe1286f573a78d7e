"""The releases by example: what a rollback goes back to, and rows that other tools wrote."""

import dataclasses
import json

import pytest

from pipeline import codec
from pipeline.errors import ContractError
from pipeline.models import releases
from pipeline.models.releases import Decision, Model, ModelRelease, Releases, fold


class Story:
    """Changes one after the other; `s.release("v1")` makes v1 champion."""

    def __init__(self) -> None:
        self.records: list[tuple[str, ModelRelease | None]] = []

    @property
    def state(self) -> Releases:
        return fold(self.records)

    def decision(self) -> Decision:
        return Decision(f"r{len(self.state.history)}", "shop", "ann", 1_000, "because", "report-7")

    def release(self, version: str) -> None:
        model = Model("shop", version, f"{version}.tar", version.ljust(64, "0"))
        self.records += releases.release(self.state, model, self.decision())

    def rollback(self, version: str | None = None) -> str:
        """The champion it leads to."""
        self.records += releases.rollback(self.state, version, self.decision())
        assert self.state.champion is not None
        return self.state.champion.model_version


def test_rollbacks_go_back_one_by_one_and_then_no_further() -> None:
    """Not to and fro between two: each goes to the champion before."""
    story = Story()
    for version in ("v1", "v2", "v3"):
        story.release(version)
    assert [story.rollback(), story.rollback()] == ["v2", "v1"]
    with pytest.raises(ContractError, match="there is no champion before v1 to go back to"):
        story.rollback()


def test_what_was_rolled_back_is_left_out_by_later_rollbacks() -> None:
    """v2 was a mistake: after v3, back is v1."""
    story = Story()
    story.release("v1")
    story.release("v2")
    story.rollback()
    story.release("v3")
    assert story.rollback() == "v1"


def test_a_rollback_to_a_version_is_to_its_latest_reign() -> None:
    """v1 came back after v2: from there, back is v2; its first reign had nothing before it."""
    story = Story()
    for version in ("v1", "v2", "v1", "v3"):
        story.release(version)
    assert story.rollback("v1") == "v1"
    assert story.rollback() == "v2"


def test_a_rollback_may_go_forward_again() -> None:
    """To a version that a rollback had left; from there back as before."""
    story = Story()
    story.release("v1")
    story.release("v2")
    story.rollback()
    assert [story.rollback("v2"), story.rollback()] == ["v2", "v1"]


def test_a_release_says_who_why_and_what_was_before() -> None:
    """Every field, as written and as read back from a row; one more field of a later version is let be."""
    story = Story()
    story.release("v1")
    story.release("v2")
    champion = story.state.champion
    assert champion == ModelRelease(
        "r1", "shop", "release", "champion", "shop", "v2", "v2.tar", "v2".ljust(64, "0"), 1.0, "v1", "r0", "report-7",
        "because", "ann", 1_000,
    )  # fmt: skip
    row = releases.to_row(champion)
    assert releases.from_row({**row, "later": 1}) == champion
    del row["uri"]
    with pytest.raises(ContractError, match="has no field 'uri'"):
        releases.from_row(row)


def test_the_schema_has_the_fields_of_a_release() -> None:
    """Names and order, each with its meaning: neither changes without the other."""
    schema = json.loads(codec.load_schema("model-release"))
    assert [f["name"] for f in schema["fields"]] == [f.name for f in dataclasses.fields(ModelRelease)]
    assert all(len(f["doc"]) > 10 for f in schema["fields"])
