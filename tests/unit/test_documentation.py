"""The documentation says what the code does: links, commands, settings, exit codes, headers, reasons."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import errors
from pipeline.cli import COMMANDS
from pipeline.records import Reason, Reject, Stage
from pipeline.scoring.dead_letters import dead_letter_headers
from pipeline.settings import load

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
MARKDOWN = sorted({*DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md"), *ROOT.glob("*.md")})
each_page = pytest.mark.parametrize("page", MARKDOWN, ids=lambda p: p.relative_to(ROOT).as_posix())


def pages(nav: list[Any]) -> Iterator[str]:
    for entry in nav:
        for target in entry.values():
            if isinstance(target, str):
                yield target
            else:
                yield from pages(target)


def anchors(page: Path) -> set[str]:
    """Ids of a page's headings, as Python-Markdown's toc makes them."""
    heads = re.findall(r"^#+ (.+)$", _without_code(page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


def _without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def test_navigation_lists_every_page_once() -> None:
    """No page that nobody finds, no entry without a page."""
    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))
    assert sorted(listed) == sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that exists, and a heading of it where it names one."""
    for link in re.findall(r"\]\(([^)\s]+)\)", _without_code(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


@each_page
def test_documented_commands_exist(page: Path) -> None:
    """Each `pipeline COMMAND` in a code block or in backticks is a command."""
    text = page.read_text("utf-8")
    code = re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL) + re.findall(r"`([^`\n]+)`", _without_code(text))
    lines = [line.strip() for block in code for line in block.splitlines()]
    found = {
        m[1] for line in lines if (m := re.match(r"(?:\.venv/bin/)?pipeline(?: --config \S+)? ([a-z][a-z-]*)\b", line))
    }
    assert found <= set(COMMANDS), page


@each_page
def test_documented_settings_are_accepted(page: Path, tmp_path: Path) -> None:
    """Each TOML block is a settings file as it stands, once the secrets' files it names exist."""
    for block in re.findall(r"^```toml\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        for name in re.findall(r'^\w+_file = "([^"]+)"$', block, re.MULTILINE):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("secret", "utf-8")
        (tmp_path / "pipeline.toml").write_text(block, "utf-8")
        load(tmp_path / "pipeline.toml", environment={})


def table(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its head; backticks removed."""
    section = re.split(rf"^#+ {re.escape(heading)}$", (DOCS / page).read_text("utf-8"), flags=re.MULTILINE)[1]
    rows = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert rows is not None
    return [[cell.strip().strip("`") for cell in row.strip("| ").split("|")] for row in rows[0].splitlines()[2:]]


def test_exit_codes_are_the_errors_own() -> None:
    """A code that an error ends with is listed, and none that nothing ends with; so is what a supervisor does."""
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.PipelineError)]
    codes = {0, 130, *(kind.exit_code for kind in kinds)}
    rows = table("command-line.md", "Exit codes")
    assert [int(code) for code, _, _ in rows] == sorted(codes)
    restarted = {int(code): told == "yes" for code, _, told in rows}
    del restarted[130]  # Ctrl-C at a command in the foreground: nothing that a supervisor sees
    assert restarted == {code: errors.restart_mends(code) for code in restarted}


def test_commands_are_listed() -> None:
    """The table of commands has a row for each."""
    text = (DOCS / "command-line.md").read_text("utf-8")
    assert {name for name in COMMANDS if f"| `pipeline {name}" not in text} == set()


def test_dead_letter_headers_are_listed() -> None:
    """The headers of the table are those of a dead letter, in their order."""
    made = dead_letter_headers(Reject(0, Stage.DECODE, Reason.TOMBSTONE, "why"), "t", 0, 0, 0, 0.0)
    assert [row[0] for row in table("dead-letters.md", "What a dead letter says")] == [name for name, _ in made]


def test_reasons_are_listed() -> None:
    """Every reason has a row, with a stage that exists."""
    rows = table("dead-letters.md", "Reasons")
    assert [row[0] for row in rows] == list(Reason)
    assert {row[1] for row in rows} == set(Stage)
