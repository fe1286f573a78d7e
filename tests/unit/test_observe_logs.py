"""Logs: one line an event, safe to print, without secrets."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import datetime

import pytest
import structlog
from pydantic import SecretStr

from pipeline.bus.clients import ClientOptions
from pipeline.observe.logs import VALUE_CHARACTERS_MAX, configure, get_logger
from pipeline.settings import load


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging as it was before the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


class _Verbatim(str):
    """Text that an exception prints as it is."""

    __slots__ = ()
    __repr__ = str.__str__


HOSTILE = 'a\nb\r\x1b[31mred\u2028\x00\x9b"'


@pytest.mark.parametrize("format_", ["json", "console"])
@pytest.mark.parametrize("where", ["event", "value", "nested", "stdlib", "exception"])
@pytest.mark.case("B32")
def test_nothing_that_is_logged_can_break_its_line(format_: str, where: str) -> None:
    """Newlines and terminal escapes in text from outside stay inside one printable line."""
    stream = io.StringIO()
    configure("info", format_, stream)  # type: ignore[arg-type]
    log = get_logger("pipeline.test")
    match where:
        case "event":
            log.info(HOSTILE)
        case "value":
            log.info("x", value=HOSTILE)
        case "nested":
            log.info("x", value={HOSTILE: [HOSTILE, (HOSTILE,)]})
        case "stdlib":
            logging.getLogger("confluent_kafka").warning("said %s", HOSTILE)
        case "exception":
            try:
                {}[HOSTILE]
            except KeyError as error:
                error.args = (_Verbatim(HOSTILE),)
                log.exception("failed")
    assert stream.getvalue().endswith("\n")
    line = stream.getvalue()[:-1]
    assert line.isprintable()
    assert "red" in line


def test_json_keeps_what_was_logged() -> None:
    """Values come back from the line as they were, numbers as numbers; time has an offset."""
    stream = io.StringIO()
    configure("info", "auto", stream)
    get_logger("pipeline.bus").warning(
        "lag", records=7, share=0.5, none=None, nan=float("nan"), text=HOSTILE, t=(1, "a")
    )
    line = json.loads(stream.getvalue(), parse_constant=pytest.fail)
    assert list(line)[:4] == ["timestamp", "level", "logger", "event"]
    moment = datetime.fromisoformat(line.pop("timestamp"))
    assert moment.utcoffset() is not None
    assert line == {
        "level": "warning",
        "logger": "pipeline.bus",
        "event": "lag",
        "records": 7,
        "share": 0.5,
        "none": None,
        "nan": "nan",
        "text": HOSTILE,
        "t": [1, "a"],
    }


def test_an_exception_in_json_has_its_traceback() -> None:
    """Where it happened is in the line."""
    stream = io.StringIO()
    configure("info", "json", stream)
    try:
        int("seven")
    except ValueError:
        logging.getLogger("elsewhere").exception("oops")
    line = json.loads(stream.getvalue())
    assert "test_an_exception_in_json_has_its_traceback" in line["exception"]
    assert "invalid literal" in line["exception"]


@pytest.mark.parametrize(
    ("stream", "no_color", "format_", "is_json", "coloured"),
    [
        (io.StringIO, None, "auto", True, False),
        (Terminal, None, "auto", False, True),
        (Terminal, "1", "auto", False, False),
        (Terminal, None, "json", True, False),
        (io.StringIO, None, "console", False, False),
    ],
)
def test_format_and_colour_follow_the_stream(
    stream: type[io.StringIO],
    no_color: str | None,
    format_: str,
    is_json: bool,
    coloured: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """JSON unless a person looks; colours only on a terminal and not against NO_COLOR."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    out = stream()
    configure("info", format_, out)  # type: ignore[arg-type]
    get_logger("x").info("hello", n=1)
    assert out.getvalue().startswith("{") == is_json
    assert ("\x1b[" in out.getvalue()) == coloured


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_level_holds_for_ours_and_for_libraries(level: str, shown: int) -> None:
    """One threshold for structlog and the standard library."""
    stream = io.StringIO()
    configure(level, "json", stream)  # type: ignore[arg-type]
    for name in ("debug", "info", "warning", "error"):
        getattr(get_logger("ours"), name)("x")
        getattr(logging.getLogger("theirs"), name)("x")
    assert len(stream.getvalue().splitlines()) == 2 * shown


@pytest.mark.parametrize(("level", "shown"), [("debug", ["warning", "error"]), ("error", ["error"])])
def test_faust_and_mode_speak_from_warning_on(level: str, shown: list[str]) -> None:
    """Their chatter stays out even at debug; a higher threshold holds for them too."""
    stream = io.StringIO()
    configure(level, "json", stream)  # type: ignore[arg-type]
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("faust.app.base"), name)("x")
        getattr(logging.getLogger("mode.services"), name)("x")
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == [s for s in shown for _ in "12"]


@pytest.mark.parametrize("format_", ["json", "console"])
def test_secrets_are_never_printed(format_: str) -> None:
    """Not from settings, not from a client's options, not from a URL, not under a telling name."""
    environment = {
        "PIPELINE__KAFKA__OPTIONS__SASL_PASSWORD": "hunter2",
        "PIPELINE__REGISTRY__BASIC_AUTH": "user:hunter2",
    }
    settings = load(environment=environment)
    assert ClientOptions.from_settings(settings).base()["sasl.password"] == "hunter2"
    stream = io.StringIO()
    configure("debug", format_, stream)  # type: ignore[arg-type]
    log = get_logger("x")
    log.info("a", settings=settings, kafka=settings.kafka, dump=settings.model_dump())
    log.info("b", options=ClientOptions.from_settings(settings).base())
    log.info("c", sasl_password="hunter2", registry={"basic_auth": "user:hunter2"}, secret=SecretStr("hunter2"))
    log.info("d", urls=["https://user:hunter2@registry.example:8081/x"])
    logging.getLogger("urllib3").warning("retrying https://user:hunter2@registry.example/")
    logging.getLogger("confluent").warning("options: %s", settings.kafka)
    assert len(stream.getvalue().splitlines()) == 6
    assert "hunter2" not in stream.getvalue()
    assert "registry.example" in stream.getvalue()


def test_long_values_are_cut() -> None:
    """A record's bytes in a message do not flood the log."""
    stream = io.StringIO()
    configure("info", "json", stream)
    get_logger("x").info("x", value="y" * 10_000_000)
    assert len(stream.getvalue()) < VALUE_CHARACTERS_MAX + 300


def test_configuring_again_replaces_the_output() -> None:
    """No line comes twice, and none goes to the old stream."""
    first, second = io.StringIO(), io.StringIO()
    configure("info", "json", first)
    configure("info", "json", second)
    get_logger("x").info("x")
    logging.getLogger("y").info("y")
    assert first.getvalue() == ""
    assert len(second.getvalue().splitlines()) == 2


def test_warnings_are_log_lines() -> None:
    """Python's own warnings do not break the format."""
    stream = io.StringIO()
    configure("info", "json", stream)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)
    assert "old thing" in json.loads(stream.getvalue())["event"]
