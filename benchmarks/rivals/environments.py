"""A virtual environment for each rival, made on first use: what rivals need contradicts, among them and with us.

What the running interpreter has and a rival's pins allow is not installed again: torch alone would be gigabytes each.
A path file shows it to the environment, behind the environment's own packages; pip sees it there, and installs
beside it only what is missing or of a version that the rival does not allow.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import tail

REQUIREMENTS = Path(__file__).parent / "requirements"
FOLDER = Path(__file__).parent.parent / ".environments"
#: What an environment needs besides packages, as Python to run in it: a system must not fetch while it is measured.
PREPARATIONS = {"spark": "from benchmarks.rivals import spark; spark.session().stop()"}
#: Longest time for pip to end; a slow network takes a few minutes for the largest of them.
INSTALL_S = 1_800.0


class EnvironmentFailedError(Exception):
    """An environment could not be made; the message has the end of the log."""


def python(name: str) -> Path:
    """The interpreter in the environment `name`, whether it is there yet or not."""
    return FOLDER / name / "bin" / "python"


def make(name: str, progress: Callable[[str], None] = print) -> None:
    """Make the environment of requirements/NAME.txt, unless it is there and neither file nor interpreter has changed.

    Raises EnvironmentFailedError.
    """
    folder, wanted = FOLDER / name, _wanted(name)
    stamp = folder / "made-of"
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return
    progress(f"{name}: installing into {os.path.relpath(folder)}, once; pip may take some minutes")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "running-interpreter.pth").write_text("\n".join(_packages()) + "\n", "utf-8")
        for command in (install_command(name), *_preparation(name)):
            _execute(name, command, folder / "log")
        stamp.write_text(wanted, "utf-8")
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentFailedError(f"{name}: no environment: {error}") from error
    progress(f"{name}: installed")


def _execute(name: str, command: list[str], log: Path) -> None:
    with log.open("ab") as sink:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, timeout=INSTALL_S, check=False
        )
    if done.returncode != 0:
        raise EnvironmentFailedError(f"{name}: {shlex.join(command)} ended with status {done.returncode}; {tail(log)}")


def install_command(name: str) -> list[str]:
    """The command line that fills the environment `name`, by the pip of the running interpreter (22.3 or newer)."""
    pip = [sys.executable, "-m", "pip", "--python", str(python(name)), "--disable-pip-version-check", "--no-input"]
    return [*pip, "install", "--requirement", str(REQUIREMENTS / f"{name}.txt")]


def _preparation(name: str) -> list[list[str]]:
    return [[str(python(name)), "-c", PREPARATIONS[name]]] if name in PREPARATIONS else []


def _packages() -> list[str]:
    """Folders of the running interpreter's packages."""
    return list(dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib")))


def _wanted(name: str) -> str:
    """All that an environment is made of; another text, another environment."""
    requirements = (REQUIREMENTS / f"{name}.txt").read_text("utf-8")
    return "\n".join([sys.version, *_packages(), requirements, PREPARATIONS.get(name, "")])
