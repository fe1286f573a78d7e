"""A command that must refuse what it is given: in lines that a person can act on, with its exit code."""

from typer.testing import CliRunner, Result

from pipeline.cli import make_app

#: Of what a person typed, wrapped and framed by Typer; everything else is one line a fault.
USAGE = 2


def run(*arguments: str) -> Result:
    """`pipeline ARGUMENTS` in this process."""
    return CliRunner().invoke(make_app(), list(arguments))


def failed(*arguments: str, code: int) -> list[str]:
    """What a command that must fail with `code`, and without a traceback, says on stderr."""
    result = run(*arguments)
    assert result.exit_code == code, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    return result.stderr.splitlines()


def refused(*arguments: str, code: int) -> list[str]:
    """The error lines of a command that must fail with `code`: each says "error: ", none is a traceback or long."""
    said = failed(*arguments, code=code)
    lines = [line for line in said if line.startswith("error: ")]
    assert lines, said
    assert all(line.isprintable() and len(line) < 1_500 for line in lines), lines
    return lines


def told(*arguments: str) -> str:
    """What a usage error says, its frame taken off."""
    result = run(*arguments)
    assert result.exit_code == USAGE, (result.output, result.exception)
    assert "Traceback" not in result.output
    return " ".join(" ".join(line.strip("│╭╮╰╯─ ") for line in result.stderr.splitlines()).split())
