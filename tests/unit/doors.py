"""A command that must refuse what it is given: in lines that a person can act on, with its exit code."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pipeline.cli import make_app

#: Of what a person typed, wrapped and framed by Typer; everything else is one line a fault.
USAGE = 2


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, without anything of this machine's environment."""
    monkeypatch.chdir(tmp_path)
    for variable in [v for v in os.environ if v.startswith("PIPELINE__")]:
        monkeypatch.delenv(variable)
    return tmp_path


def run(*arguments: str) -> Result:
    """`pipeline ARGUMENTS` in this process."""
    return CliRunner().invoke(make_app(), list(arguments))


def refused(*arguments: str, code: int) -> list[str]:
    """The error lines of a command that must fail with `code`: each says "error: ", none is a traceback or long."""
    result = run(*arguments)
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines, result.stderr
    assert all(line.isprintable() and len(line) < 1_500 for line in lines), lines
    return lines


def told(*arguments: str) -> str:
    """What a usage error says, its frame taken off."""
    result = run(*arguments)
    assert result.exit_code == USAGE, (result.output, result.exception)
    assert "Traceback" not in result.output
    return " ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in result.stderr.splitlines()).split())
