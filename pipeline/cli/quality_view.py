"""What `pipeline quality` shows a person: a column a version, then slices, reliability, gaps and alarms of each."""

from collections.abc import Iterator
from typing import Any

from rich.text import Text

from pipeline.cli.context import local_time, printable, stdout, table
from pipeline.cli.evaluate import GAPS_SHOWN, gaps_table, widest
from pipeline.cli.evaluate_report import HEADLINES, figure, title

#: Slices shown of a version, those with the most rows; --json has all.
SLICES_SHOWN = 20


def show(result: dict[str, Any]) -> None:
    """The whole result of the command, on stdout."""
    console = stdout()
    window = result["window"]
    span = f"labels from {local_time(window['from_ms'])} to {local_time(window['to_ms'])}"
    console.print(Text(printable(f"{result['pipeline']}: {span}"), "bold"))
    for remark in _remarks(result):
        console.print(Text(printable(remark)))
    versions = result["versions"]
    names = [_name(version) for version in versions]
    console.print(table(None, ("measure", *names), _measures(versions), right=names))
    for version in versions:
        _show_version(version)


def _show_version(version: dict[str, Any]) -> None:
    console, name = stdout(), _name(version)
    if bins := version["reliability"]:
        told = "  ".join(f"{b['confidence']:.2f}→{b['frequency']:.2f}" for b in bins)
        console.print(Text(printable(f"{name}: reliability (said → came true)  {told}")))
    if slices := sorted(version["slices"], key=lambda part: -part["rows"])[:SLICES_SHOWN]:
        metrics = [m for m in HEADLINES if any(m in part["metrics"] for part in slices)]
        rows = [
            (_slice(part), f"{part['rows']:,}", *(figure(part["metrics"].get(m)) for m in metrics)) for part in slices
        ]
        columns = ("slice", "outcomes", *map(title, metrics))
        console.print(table(f"{name}: slices", columns, rows, right=columns[1:]))
    if gaps := widest(version["gaps"]):
        shown = [{**gap, "value": _value(gap)} for gap in gaps[:GAPS_SHOWN]]
        console.print(gaps_table(shown, f"{name}: widest gaps whose interval leaves 0 out"))
    for alarm in version["alarms"]:
        moved = f"{alarm['measure']} differs by {alarm['difference']:+.4g} from the rest, {alarm['before']:+.4g} before"
        told = f"alarm: {name}: {_slice(alarm)}: {moved} (since {local_time(alarm['since_ms'])})"
        console.print(Text(printable(told), "bold yellow"))


def _measures(versions: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A row a measure, a cell a version."""
    yield ("outcomes", *(f"{version['rows']:,}" for version in versions))
    names = dict.fromkeys(name for version in versions for name in version["metrics"])
    for name in names:
        if not name.endswith("_error"):  # how far histograms may be off: in --json
            yield (title(name), *(figure(version["metrics"].get(name)) for version in versions))
    for name, key in (("accuracy by confidence", "accuracy"), ("  off by, on average", "mean_absolute_error")):
        cells = [None if version["estimate"] is None else version["estimate"][key] for version in versions]
        if any(cell is not None for cell in cells):
            yield (name, *map(figure, cells))
    for quantile in ("p50", "p90", "p99"):
        yield (f"label delay, {quantile}", *(_duration(version["label_delay_s"][quantile]) for version in versions))


def _remarks(result: dict[str, Any]) -> Iterator[str]:
    """What was read, and what is known of predictions without labels."""
    left_out = ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in result["outcomes"]["left_out"].items())
    yield f"{result['outcomes']['measured']:,} outcomes" + (f"; left out: {left_out}" if left_out else "")
    coverage = result["coverage"]
    if coverage and coverage["share"] is not None:
        told = f"{coverage['labelled']:,} of the {coverage['predictions']:,} predictions made since have a label"
        yield f"{told} ({coverage['share']:.1%})"
    newest = result["newest"]
    if newest:
        told = f"the newest {newest['predictions']:,} predictions of the champion"
        yield f"{told} should be {newest['accuracy']:.1%} right, by their confidence, whether labelled or not"


def _name(version: dict[str, Any]) -> str:
    return f"{version['model_version']} {version['role']}"


def _slice(part: dict[str, Any]) -> str:
    return f"{part['field']} = {_value(part)}"


def _value(part: dict[str, Any]) -> str:
    return "(all others)" if part["value"] is None else part["value"] or "(empty)"


def _duration(seconds: float | None) -> str:
    """Two digits that count, in the unit that fits."""
    if seconds is None:
        return "-"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"
