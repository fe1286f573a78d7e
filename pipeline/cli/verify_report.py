"""The verdict of `verify`, for people and for programs."""

from dataclasses import asdict
from typing import Any

from rich.text import Text

from pipeline import __version__
from pipeline.cli.context import print_error, stdout, table
from pipeline.cli.verify_run import Happened, Verdict

#: What the mode promises, as the last line says it.
KEPT = {
    "exactly_once": "exactly once: nothing lost, nothing duplicated, order per key kept",
    "at_least_once": "at least once: nothing lost",
}


def show(verdict: Verdict, mode: str, again: str) -> None:
    """Tables of what happened and what was counted, the verdict, and how to repeat it."""
    out = stdout()
    if verdict.happened:
        columns = ("at", "fault", "took", "recovered after", "what happened")
        out.print(table(None, columns, [_row(happened) for happened in verdict.happened], right=columns[2:4]))
    for surprise in verdict.surprises:
        out.print(Text(f"remark: {surprise}"))
    balance = verdict.balance
    rows = [
        ("events in", balance.events, f"in {verdict.seconds:,.0f} s; {verdict.broken:,} of them broken on purpose"),
        ("predicted", balance.predicted, ""),
        ("dead-lettered", balance.dead_lettered, ""),
        ("lost", balance.lost, "in - predicted - dead-lettered"),
        ("duplicated", balance.duplicated, "" if mode == "exactly_once" else "allowed in this mode"),
        ("out of order", balance.out_of_order, "within their key; first outcomes"),
        ("of no event", balance.foreign, ""),
        ("not committed", verdict.uncommitted, ""),
        ("held back", verdict.held_back, "by transactions nobody ended"),
    ]
    shown = table(None, ("what", "how many", "note"), [(a, f"{n:,}", b) for a, n, b in rows], right=("how many",))
    out.print(shown)
    for problem in verdict.problems:
        print_error(problem)
    word = Text("HOLDS", style="bold green") if not verdict.problems else Text("DOES NOT HOLD", style="bold red")
    out.print(Text.assemble(word, f"  {KEPT[mode]}"))
    out.print(Text(f"again: {again}"), soft_wrap=True)


def _row(happened: Happened) -> tuple[str | Text, ...]:
    recovered = "never" if happened.recovered_s is None else f"{happened.recovered_s:.1f} s"
    steps = Text("\n".join(happened.steps))
    return f"{happened.at_s:.1f} s", happened.name, f"{happened.took_s:.1f} s", recovered, steps


def as_json(verdict: Verdict, mode: str, seed: int, again: str) -> dict[str, Any]:
    """The same as one object; `holds` is the verdict."""
    return {
        "holds": not verdict.problems,
        "mode": mode,
        **asdict(verdict.balance),
        "broken": verdict.broken,
        "uncommitted": verdict.uncommitted,
        "held_back": verdict.held_back,
        "problems": verdict.problems,
        "surprises": verdict.surprises,
        "faults": [asdict(happened) for happened in verdict.happened],
        "seconds": verdict.seconds,
        "seed": seed,
        "again": again,
        "version": __version__,
    }
