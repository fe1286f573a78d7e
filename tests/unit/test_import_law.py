"""The import law: rooms know the vocabulary and themselves; only `topology` and `cli` wire rooms together.

Every import counts, also one inside a function or under TYPE_CHECKING.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[2] / "pipeline"

VOCABULARY = {"records", "contracts", "errors", "settings"}
#: Folders of the vocabulary: pure functions and plain data that every room may use, and that import no room.
SHARED = {"measures", "sections"}
#: They import rooms; `cli` may use `topology`, never the other way round.
WIRING = {"topology": {"topology"}, "cli": {"cli", "topology"}}

#: Library -> the only places that import it: folders end in "/".
LIBRARIES = {
    "faust": ("bus/", "topology/"),
    "mode": ("bus/", "topology/"),
    "river": ("drift/",),
    "rocksdict": ("labels/",),
    "torch": ("models/", "scoring/engine.py", "retraining/"),
}

#: What reads configuration: `settings.py` alone. "tomllib" stands for reading TOML files.
CONFIGURATION = ("os.environ", "os.environb", "os.getenv", "tomllib")
#: (file, name) -> why it is no configuration of ours. One that is not needed any more fails the test.
EXCEPTIONS = {
    ("observe/logs.py", "os.environ"): "NO_COLOR is a convention of terminals (no-color.org), no setting of ours",
}


class Use(NamedTuple):
    """One name that a file imports or reads; `file` is relative to the package."""

    file: str
    line: int
    name: str

    @property
    def place(self) -> str:
        """The room or top-level module the file is in."""
        return self.file.split("/")[0].removesuffix(".py")


def uses(package: Path) -> Iterator[Use]:
    """All imports of a package as absolute dotted names, and all reading of the environment."""
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for name in _names(node, parts):
                yield Use(file, node.lineno, name)  # type: ignore[attr-defined]


def _names(node: ast.AST, parts: tuple[str, ...]) -> list[str]:
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom():
            above = parts[: len(parts) - node.level] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            return [f"{base}.{alias.name}" for alias in node.names]
        case ast.Attribute(value=ast.Name(id="os")):
            return [f"os.{node.attr}"]
        case ast.Call(args=[ast.Constant(value=str(name)), *_]) if _imports_by_name(node.func):
            return [name]
    return []


def _imports_by_name(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in {"import_module", "__import__"}


def violations(package: Path, exceptions: dict[tuple[str, str], str]) -> list[str]:
    """One line per breach of the law, and per exception that nothing needs."""
    folders = {p.name for p in package.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    rooms = folders - SHARED
    found, excused = [], set()
    for use in uses(package):
        where = f"{package.name}/{use.file}:{use.line}"
        top, *rest = use.name.split(".")
        if top == package.name and rest and rest[0] in rooms and not _may_import(use.place, rest[0]):
            found.append(f"{where}: {use.place} must not import {package.name}.{rest[0]}")
        places = LIBRARIES.get(top)
        if places and not any(use.file == p or (p.endswith("/") and use.file.startswith(p)) for p in places):
            found.append(f"{where}: {top} belongs in {' and '.join(places)}")
        name = next((n for n in CONFIGURATION if use.name == n or use.name.startswith(f"{n}.")), None)
        if name and use.file != "settings.py":
            if (use.file, name) in exceptions:
                excused.add((use.file, name))
            else:
                found.append(f"{where}: {name}: only settings.py reads configuration")
    return found + [f"{file}: exception for {name} is not needed" for file, name in exceptions.keys() - excused]


def _may_import(place: str, room: str) -> bool:
    """Whether code in `place` may import `room`."""
    if place in WIRING:
        return room not in WIRING or room in WIRING[place]
    return place == room  # for a module of the vocabulary and for __init__: no room at all


# --------------------------------------------------------------------------- the law


def test_package_keeps_the_law() -> None:
    """No file of the package imports or reads what its place forbids."""
    assert violations(PACKAGE, EXCEPTIONS) == []


def test_vocabulary_is_where_it_is_said_to_be() -> None:
    """Each module that all rooms may use is a plain file of the package, or a folder that SHARED names."""
    assert all((PACKAGE / f"{name}.py").is_file() for name in VOCABULARY)
    assert all((PACKAGE / name / "__init__.py").is_file() for name in SHARED)
    top = {p.stem for p in PACKAGE.glob("*.py")}
    assert top == VOCABULARY | {"__init__"}


# --------------------------------------------------------------------------- the checker itself

LAWFUL = {
    "__init__.py": "__version__ = '1'",
    "records.py": "import enum",
    "settings.py": "import os, tomllib\nos.environ['A']\nfrom pipeline.records import x",
    "bus/__init__.py": "import faust\nfrom pipeline import errors\nfrom pipeline.bus import x\nfrom . import ledger",
    "bus/ledger.py": "from pipeline.records import x\nfrom ..settings import y\nimport os\nos.path.join('a')",
    "measures/__init__.py": "from pipeline.measures.scored import x\nfrom pipeline.errors import y",
    "drift/x.py": "from pipeline import measures\nfrom pipeline.measures import x",
    "drift/__init__.py": "from river.drift import ADWIN\nfrom pipeline import __version__",
    "scoring/engine.py": "import torch.nn",
    "topology/__init__.py": "import faust\nfrom pipeline import bus, drift",
    "cli/__init__.py": "from pipeline import topology\nfrom pipeline.bus.ledger import x",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small package that keeps the law."""
    made = tmp_path / "pipeline"
    for file, text in LAWFUL.items():
        write(made, file, text)
    return made


def write(package: Path, file: str, text: str) -> None:
    (package / file).parent.mkdir(parents=True, exist_ok=True)
    (package / file).write_text(text + "\n", "utf-8")


def test_lawful_package_passes(package: Path) -> None:
    """Vocabulary, own room, wiring and the places of libraries are no breach."""
    assert violations(package, {}) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("bus/x.py", "from pipeline import drift", "bus must not import pipeline.drift"),
        ("bus/x.py", "from pipeline.drift.blocks import a", "bus must not import pipeline.drift"),
        ("bus/x.py", "import pipeline.drift as d", "bus must not import pipeline.drift"),
        ("bus/x.py", "from ..drift import a", "bus must not import pipeline.drift"),
        ("bus/deep/x.py", "from ...drift import a", "bus must not import pipeline.drift"),
        ("bus/x.py", "from .. import drift", "bus must not import pipeline.drift"),
        ("bus/x.py", "def f():\n    from pipeline import drift", "bus must not import pipeline.drift"),
        (
            "bus/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline.drift import a",
            "bus must not import pipeline.drift",
        ),
        (
            "bus/x.py",
            "import importlib as i\ni.import_module('pipeline.drift')",
            "bus must not import pipeline.drift",
        ),
        ("bus/x.py", "__import__('river')", "river belongs in drift/"),
        ("bus/x.py", "from pipeline.topology import a", "bus must not import pipeline.topology"),
        ("bus/x.py", "from pipeline.cli import a", "bus must not import pipeline.cli"),
        ("records.py", "from pipeline.bus import a", "records must not import pipeline.bus"),
        ("measures/x.py", "from pipeline.bus import a", "measures must not import pipeline.bus"),
        ("__init__.py", "from pipeline import bus", "__init__ must not import pipeline.bus"),
        ("topology/x.py", "from pipeline.cli import a", "topology must not import pipeline.cli"),
        ("cli/x.py", "import faust", "faust belongs in bus/ and topology/"),
        ("cli/x.py", "from mode.utils import a", "mode belongs in bus/ and topology/"),
        ("scoring/flow.py", "import torch", "torch belongs in models/ and scoring/engine.py and retraining/"),
        ("scoring/engine2.py", "import torch", "torch belongs in models/ and scoring/engine.py and retraining/"),
        ("drift2/__init__.py", "import river", "river belongs in drift/"),
        ("bus/x.py", "import os\nos.environ.get('A')", "os.environ: only settings.py reads configuration"),
        ("bus/x.py", "from os import environ", "os.environ: only settings.py reads configuration"),
        ("bus/x.py", "import os\nos.getenv('A')", "os.getenv: only settings.py reads configuration"),
        ("bus/x.py", "import tomllib", "tomllib: only settings.py reads configuration"),
        ("bus/x.py", "from tomllib import loads", "tomllib: only settings.py reads configuration"),
    ],
)
def test_planted_violation_is_found(package: Path, file: str, text: str, expected: str) -> None:
    """Each way around the law is named with its file and line."""
    write(package, file, text)
    found = violations(package, {})
    assert len(found) == 1, found
    assert found[0].startswith(f"pipeline/{file}:")
    assert found[0].endswith(expected)


def test_exceptions_hold_for_one_file_and_only_while_needed(package: Path) -> None:
    """An exception excuses its own file; once that file needs it no more, the exception is the breach."""
    exceptions = {("bus/x.py", "os.environ"): "a reason"}
    assert violations(package, exceptions) == ["bus/x.py: exception for os.environ is not needed"]
    write(package, "bus/x.py", "import os\nos.environ['NO_COLOR']")
    assert violations(package, exceptions) == []
    write(package, "drift/x.py", "import os\nos.environ['NO_COLOR']")
    assert len(violations(package, exceptions)) == 1
