"""Logs: one line an event, for a person at a terminal or as JSON for a machine; ours and our libraries' alike.

What a value holds cannot break its line: control characters and escape sequences are escaped. What is named like
a secret is masked, and so are passwords in URLs.
"""

import logging
import math
import os
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from pipeline.settings import SECRET_OPTIONS

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

MASK = "**********"
#: Libraries that log each step they take at level info.
NOISY = ("faust", "mode", "aiokafka", "asyncio", "urllib3", "httpx", "httpx2")
#: Warns at each commit that takes longer than the commit interval; then the next one is later, and nothing is wrong.
IDLE_TALK = ("mode.timers",)
#: A traceback of 50 frames fits; a record's bytes pasted into a message by some library do not flood the log.
VALUE_CHARACTERS_MAX = 16_384

_SECRET_NAME = re.compile(
    r"passw|secret|token|credential|api_?key|private_?key|basic_auth|authorization", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")


def get_logger(name: str) -> Any:
    """A structlog logger: `log.info("what happened", key=value)`."""
    return structlog.get_logger(name)


def configure(level: Level = "info", format: Format = "auto", stream: TextIO | None = None) -> None:  # noqa: A002
    """Route structlog and the standard library's logging to `stream` (default: stderr). May be called again.

    format: "auto" is "console" on a terminal and "json" elsewhere. NO_COLOR (any value) turns colours off.
    """
    stream = sys.stderr if stream is None else stream
    number = logging.getLevelNamesMapping()[level.upper()]
    is_terminal = stream.isatty()
    as_json = format == "json" or (format == "auto" and not is_terminal)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        _time,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _mask_and_cut,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    render = [_head_first, structlog.processors.JSONRenderer()] if as_json else [_one_line, _console(is_terminal)]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
            foreign_pre_chain=[structlog.stdlib.PositionalArgumentsFormatter(), *shared],
        )
    )
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for name in NOISY:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    for name in IDLE_TALK:
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)


def _console(is_terminal: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(colors=is_terminal and not os.environ.get("NO_COLOR"), pad_event_to=30)


def _time(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """ISO 8601 with this machine's offset from UTC."""
    event["timestamp"] = datetime.now().astimezone().isoformat(timespec="milliseconds")
    return event


def _head_first(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """The same four keys at the start of each line."""
    head = {name: event[name] for name in ("timestamp", "level", "logger", "event") if name in event}
    return {**head, **event}


def _mask_and_cut(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return _clean_all(event)


def _clean_all(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): MASK if _is_secret(str(name)) else _clean(value) for name, value in values.items()}


def _clean(value: Any) -> Any:
    """`value` without secrets, of a type that both renderers know, and not too long."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)  # JSON has no NaN
    if isinstance(value, Mapping):
        return _clean_all(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(v) for v in value]
    text = _URL_PASSWORD.sub(rf"\1{MASK}", str(value))
    return text if len(text) <= VALUE_CHARACTERS_MAX else text[:VALUE_CHARACTERS_MAX] + "…"


def _is_secret(name: str) -> bool:
    return name.replace("_", ".") in SECRET_OPTIONS or _SECRET_NAME.search(name) is not None


def _one_line(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """What JSON does by itself: unprintable characters escaped; a traceback is one more value."""
    for name, new_name in (("exception", "traceback"), ("stack", "called_from")):
        if (lines := event.pop(name, None)) is not None:
            event[new_name] = " | ".join(line.strip() for line in lines.splitlines())
    return {_escape(name): _escape(value) if isinstance(value, str) else value for name, value in event.items()}


def _escape(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
