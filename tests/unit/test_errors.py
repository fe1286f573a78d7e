"""Every end has its cause and its code: what nobody raised on purpose becomes an error of ours."""

import errno
import subprocess
import sys

import pytest

from pipeline.errors import ExhaustedError, InternalError, ScoringError, explained

#: The console command with a command that fails in a way nobody thought of.
BROKEN = """
import sys
from pipeline import cli
from pipeline.cli import topics
def broken(*_): raise {error}
topics.settings_of = broken
sys.argv = ["pipeline", "topics", "list"]
cli.main()
"""


def test_our_own_errors_stay_what_they_are() -> None:
    """Not wrapped again."""
    error = ScoringError("x")
    assert explained(error) is error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 3 GiB"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("can't start new thread"),
    ],
)
def test_what_ran_out_is_no_bug(error: Exception) -> None:
    """The cause is in the one line, and what to do about it."""
    known = explained(error)
    assert isinstance(known, ExhaustedError)
    assert str(error) in str(known)
    assert "bug" not in str(known)


def test_anything_else_is_a_bug_in_one_line() -> None:
    """Its type and text, without line breaks."""
    known = explained(KeyError("a\nb"))
    assert isinstance(known, InternalError)
    assert str(known) == r"KeyError: 'a\nb'. This is a bug."
    assert "\n" not in str(explained(ValueError("a\nb")))


@pytest.mark.parametrize(
    ("error", "code", "said"), [("ZeroDivisionError('oops')", 70, "bug"), ("MemoryError()", 10, "memory")]
)
def test_a_command_that_crashes_says_so_last(error: str, code: int, said: str) -> None:
    """Traceback, then the cause in the last line; a code that no error on purpose has."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN.format(error=error)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert said in last
