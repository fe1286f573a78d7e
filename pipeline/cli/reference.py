"""The settings as a reference. `python -m pipeline.cli.reference > docs/settings.md` writes the page."""

from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from pipeline.settings import DEFAULT_FILE, ENVIRONMENT_PREFIX, SECRET_OPTIONS, Settings

#: Not for a person to set: `load` fills them in.
_FILLED_IN = {"root", "kafka.secrets"}
_TYPES = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", SecretStr: "secret text"}


class Setting(NamedTuple):
    """One key a person may set; all texts are plain, "-" for no default."""

    key: str
    values: str
    default: str
    meaning: str

    @property
    def environment(self) -> str:
        """The environment variable that sets it."""
        return ENVIRONMENT_PREFIX + self.key.upper().replace(".", "__")


def settings_reference(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[Setting]:
    """All settings, in the order of their definition."""
    for name, info in model.model_fields.items():
        section, key = _section(info), prefix + name
        if section is not None:
            yield from settings_reference(section, f"{key}.")
        elif key not in _FILLED_IN:
            yield Setting(key, _values(info), _default(info), (info.description or "").rstrip("."))


def settings_markdown() -> str:
    """The page: how settings are given, then one table a section."""
    lines = [
        "# Settings",
        "",
        "<!-- Written by `python -m pipeline.cli.reference > docs/settings.md`; edit pipeline/sections/ instead. -->",
        "",
        f"Settings come from `{DEFAULT_FILE}` in the current folder, or from the file given with `--config`. An",
        f"environment variable `{ENVIRONMENT_PREFIX}SECTION__KEY` overrides the file, and a flag overrides both.",
        "Relative paths are relative to the file's folder. `pipeline check` says what is wrong with them.",
        "",
        *_table("General", "", [s for s in settings_reference() if "." not in s.key]),
    ]
    for name, info in Settings.model_fields.items():
        section = _section(info)
        if section is not None:
            lines += _table(f"[{name}]", section.__doc__ or "", list(settings_reference(section, f"{name}.")))
    lines += [
        "## Secrets",
        "",
        "These librdkafka options, and `registry.basic_auth`, are refused in the file and on the command line. An",
        "option is read from a file of its own (`sasl_password_file = PATH`) or from the environment:",
        "",
        *(
            f"- `{option}`: `{ENVIRONMENT_PREFIX}KAFKA__OPTIONS__{option.upper().replace('.', '_')}`"
            for option in sorted(SECRET_OPTIONS)
        ),
    ]
    return "\n".join(lines) + "\n"


def _table(title: str, about: str, settings: list[Setting]) -> list[str]:
    rows = [("setting", "values", "default", "meaning"), ("---",) * 4]
    for setting in settings:
        default = "-" if setting.default == "-" else f"`{setting.default}`"
        rows.append((f"`{setting.key}`", setting.values, default, _plain(setting.meaning)))
    heading = [f"## {title}", "", *([_plain(about), ""] if about else [])]
    return [*heading, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _plain(text: str) -> str:
    """`text` without a meaning to Markdown tables and HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def _section(info: FieldInfo) -> type[BaseModel] | None:
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    if value in (None, {}, []):
        return "-"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _values(info: FieldInfo) -> str:
    """Which values are allowed, for a person."""
    signs = {annotated_types.Ge: ("≥", "ge"), annotated_types.Gt: (">", "gt")}
    signs |= {annotated_types.Le: ("≤", "le"), annotated_types.Lt: ("<", "lt")}
    limits = [
        f"{sign} {getattr(constraint, attribute):,}"
        for constraint in info.metadata
        for sign, attribute in [signs.get(type(constraint), ("", ""))]
        if sign
    ]
    return ", ".join([_type_text(info.annotation), *limits])


def _type_text(kind: Any) -> str:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in parts)
    if origin in {Union, UnionType}:
        return " or ".join(_type_text(part) for part in parts if part is not NoneType)
    if origin is dict:
        return "table"
    if origin is list:
        return f"list of {_type_text(parts[0])}s"
    if hasattr(kind, "__metadata__"):
        return _type_text(kind.__origin__)
    return _TYPES[kind]


if __name__ == "__main__":
    typer.echo(settings_markdown(), nl=False)
