"""The reference pages say what the code does."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pipeline.cli.reference import settings_markdown, settings_reference
from pipeline.observe import Metrics
from pipeline.settings import load

DOCS = Path(__file__).parents[2] / "docs"


def test_settings_page_is_up_to_date() -> None:
    """Whoever changes a setting writes the page anew: python -m pipeline.cli.reference > docs/settings.md."""
    assert (DOCS / "settings.md").read_text("utf-8") == settings_markdown()


def test_every_setting_is_listed_once() -> None:
    """All leaves of the settings, but none that only `load` fills in."""
    keys = [s.key for s in settings_reference()]
    assert len(set(keys)) == len(keys)
    assert {"name", "kafka.options", "drift.delta", "registry.basic_auth"} <= set(keys)
    assert not {"root", "kafka.secrets", "kafka"} & set(keys)


@pytest.mark.parametrize("setting", [s for s in settings_reference() if s.default != "-"], ids=lambda s: s.key)
def test_defaults_can_be_given_back(setting: object) -> None:
    """Each default, as it is shown, is accepted from the environment variable that is named for it."""
    environment = {setting.environment: setting.default}  # type: ignore[attr-defined]
    assert load(environment=environment) == load(environment={})


def test_limits_and_choices_are_shown() -> None:
    """A person sees what is allowed before the error message does."""
    values = {s.key: s.values for s in settings_reference()}
    assert values["scoring.batch_max"] == "integer, ≥ 1, ≤ 65,536"
    assert values["drift.delta"] == "number, > 0, < 1"
    assert values["observe.log_format"] == "`auto` or `json` or `console`"
    assert values["registry.basic_auth"] == "secret text"
    assert values["topics.events"] == "text"


def test_no_secret_is_a_default() -> None:
    """The page names secrets and shows none."""
    assert all(s.default == "-" for s in settings_reference() if "secret" in s.values)


def test_metrics_page_lists_every_series() -> None:
    """Neither a series without a line nor a line without a series."""
    listed = set(re.findall(r"^\| `(pipeline_\w+)` \|", (DOCS / "metrics.md").read_text("utf-8"), re.MULTILINE))
    exported = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Metrics(CollectorRegistry()).registry.collect()
    }
    assert listed == exported
