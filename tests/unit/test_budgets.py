"""The tables of retries and deadlines, and of memory, say what the code does; the first leaves none out."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from pipeline.bus.clients import COMMON_DEFAULTS, CONSUMER_DEFAULTS, PRODUCER_DEFAULTS
from pipeline.cli.reference import settings_reference
from pipeline.settings import Settings

ROOT = Path(__file__).parents[2]
#: What a name of a budget has in it. How often something is looked at (POLL_S) is none: nothing is given up then.
BUDGET = re.compile(
    r"TIMEOUT|BUDGET|RETRY|RETRIES|_TRY_|_TRIES|DEADLINE|GRACE|BACKOFF|ATTEMPTS|BROKER_WAIT|SECONDS_MAX"
)
#: Tools for development and for a look at things, where a person waits: not the pipeline at work.
TOOLS = re.compile(r"bus/(embedded|node|cluster|jars)\.py|cli/(demo|verify)|testing/")


def budgets() -> list[tuple[str, float]]:
    """Name and number of every budget in the tables."""
    page = (ROOT / "docs/operating.md").read_text("utf-8")
    sections = [page.split(f"## {title}\n")[1].split("\n## ")[0] for title in ("Retries and deadlines", "Memory")]
    return [(name, float(number)) for name, number in re.findall(r"`([\w.]+)` = (\d+(?:\.\d+)?)", "".join(sections))]


def in_the_code(name: str) -> float:
    """What the code has: a setting's default, a client's option, or a module's constant."""
    section, _, key = name.partition(".")
    if hasattr(Settings(), section) and hasattr(getattr(Settings(), section), key):
        return float(getattr(getattr(Settings(), section), key))
    options = {**COMMON_DEFAULTS, **CONSUMER_DEFAULTS, **PRODUCER_DEFAULTS}
    if name in options:
        return float(options[name])
    module, _, constant = name.rpartition(".")
    return float(getattr(import_module(f"pipeline.{module}"), constant))


@pytest.mark.parametrize(("name", "number"), sorted(set(budgets())))
def test_a_budget_is_what_the_table_says(name: str, number: float) -> None:
    """A number that changes in the code changes in the table, or this fails."""
    assert in_the_code(name) == number


def test_the_memory_budget_adds_up() -> None:
    """The page's sum is its formula, with the code's numbers."""
    page = (ROOT / "docs/operating.md").read_text("utf-8")
    fetched = CONSUMER_DEFAULTS["queued.max.messages.kbytes"] // 1024 + CONSUMER_DEFAULTS["fetch.max.bytes"] // 2**20
    held = fetched + Settings().scoring.in_flight_max_bytes // 2**20
    out = PRODUCER_DEFAULTS["queue.buffering.max.kbytes"] // 1024
    assert f"{fetched} + 3 \u00d7 {held} + {out} = {fetched + 3 * held + out} MiB" in page


def test_no_budget_is_left_out() -> None:
    """Each constant whose name is that of a budget has a row."""
    found = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        file = path.relative_to(ROOT / "pipeline").as_posix()
        if TOOLS.search(file):
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [t.id for t in targets if isinstance(t, ast.Name)]
            found |= {f"{file.removesuffix('.py').replace('/', '.')}.{n}" for n in names if BUDGET.search(n)}
    assert len(found) > 10
    assert found - {name for name, _ in budgets()} == set()


def test_every_setting_of_a_budget_is_in_the_table() -> None:
    """Deadlines and retries that a person can set, too."""
    told = {name for name, _ in budgets()}
    wanted = re.compile(r"timeout|retry|retries|deadline|backoff|restarts")
    settings = {setting.key for setting in settings_reference() if wanted.search(setting.key)}
    assert len(settings) > 4
    assert settings <= told
