"""What a bundle needs of the environment it is used in. Nothing here runs code of the named module."""

import importlib.util
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

_CLAUSE = re.compile(r"^(>=|<=|==|!=|<|>)\s*(\d+(?:\.\d+)*)$")


def unmet(requires: Mapping[str, str]) -> list[str]:
    """One line per required distribution that is absent or has another version."""
    faults = []
    for name, wanted in requires.items():
        if (fault := specifier_fault(wanted)) is not None:
            faults.append(f"requires {name} {wanted!r}: {fault}")
            continue
        try:
            installed = metadata.version(name)
        except (metadata.PackageNotFoundError, ValueError):
            faults.append(f"requires {name} {wanted}, which is not installed; pip install '{name}{wanted}'")
            continue
        if not satisfies(installed, wanted):
            faults.append(f"requires {name} {wanted}, but {installed} is installed; pip install '{name}{wanted}'")
    return faults


def specifier_fault(specifier: str) -> str | None:
    """What is wrong with a version specifier, or None."""
    if all(_CLAUSE.match(clause.strip()) for clause in specifier.split(",")):
        return None
    return "not of the form '>=2.10,<3'"


def satisfies(installed: str, specifier: str) -> bool:
    """Whether the release part of a version ("2.15.0+cu132" -> 2.15.0) meets every clause."""
    found = re.match(r"\d+(\.\d+)*", installed)
    if found is None:
        return False
    have = _numbers(found[0])
    for clause in specifier.split(","):
        matched = _CLAUSE.match(clause.strip())
        if matched is None:
            return False
        operator, want = matched[1], _numbers(matched[2])
        length = max(len(have), len(want))
        left, right = (numbers + (0,) * (length - len(numbers)) for numbers in (have, want))
        holds = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "!=": left != right,
            "<": left < right,
            ">": left > right,
        }
        if not holds[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def module_exists(name: str) -> bool:
    """Whether `name` can be imported, found without running any of its code, parents included."""
    head, *rest = name.split(".")
    if head in sys.builtin_module_names:
        return not rest
    try:
        spec = importlib.util.find_spec(head)
    except (ImportError, ValueError):
        return False
    found, folders = head, _folders(spec)
    for part in rest:
        found = f"{found}.{part}"
        try:
            spec = _find(found, folders) if folders else None
            folders = _folders(spec)
        except KeyError:
            # A folder without __init__.py inside another: importlib wants to ask the parent, imported, for its path.
            folders = [str(Path(folder, part)) for folder in folders if Path(folder, part).is_dir()]
        except (ImportError, ValueError):
            return False
    return spec is not None


def _folders(spec: ModuleSpec | None) -> list[str]:
    return list(spec.submodule_search_locations or ()) if spec is not None else []


def _find(name: str, path: list[str]) -> ModuleSpec | None:
    """As the import system looks for a submodule, less the import of its parent."""
    for finder in sys.meta_path:
        spec = finder.find_spec(name, path, None)
        if spec is not None:
            return spec
    return None
