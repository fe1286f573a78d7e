"""The page that `pipeline gate --report` writes: the verdict in plain words, then champion and challenger side by side.

Made as the page of `pipeline evaluate` is, of plain data alone: one file, nothing from elsewhere, all text escaped.
"""

from collections.abc import Iterator
from html import escape
from typing import Any

from pipeline.cli import evaluate_plots as plots
from pipeline.cli.context import local_time
from pipeline.cli.evaluate_plots import Axis, Interval, Series
from pipeline.cli.evaluate_report import (
    STYLE,
    TIMELINES,
    _along,
    _figure,
    _grid,
    _section,
    _table,
    figure,
    title,
)

Report = dict[str, Any]

#: Slices in the forest plot, those that lost or won most; the table has all.
SLICES_DRAWN = 30
WHO = ("champion", "challenger")
#: What each check asks, for a person. Guards of the data are shown by their name.
QUESTIONS = {
    "rows": "Are there enough rows to judge by?",
    "better": "Is the challenger better on the whole, beyond chance?",
    "mcnemar": "Of the rows that only one has right, are enough the challenger's?",
    "log_loss": "Are its probabilities as good?",
    "probabilities": "Does it give probabilities as the champion does?",
    "calibration": "Do its probabilities mean what they say as well?",
    "slices": "Does no slice get worse?",
    "latency": "Is it fast enough?",
    "refusals": "Does it take the events that the champion takes?",
    "held_out": "Are the rows new to both?",
}

GATE_STYLE = """
.verdict { font-size: 19px; border-radius: 8px; padding: 12px 16px; margin: 16px 0; color: #fff; }
.accepted { background: #1a7f4b; } .refused { background: #b3303f; }
td.passed { color: var(--c2); font-weight: 600; } td.failed { color: var(--major); font-weight: 600; }
"""


def page(report: Report) -> str:
    """The whole page for a report as `pipeline gate` puts it together."""
    champion, challenger = (f"{report[who]['model_id']} {report[who]['model_version']}" for who in WHO)
    data, rows = report["data"], report["rows"]
    what = f"{rows['judged']:,} rows of {data['name']} with their truth, {data['label_field']}"
    heading = f"May {challenger} replace {champion}?"
    sections = [
        f"<h1>{escape(heading)}</h1>",
        f'<p class="faint">on {escape(what)}; made {escape(report["made_at"])}</p>',
        _verdict(report),
        _section("Checks", _checks(report)),
        _section("Metrics", _metrics(report)),
        _section("Probabilities", _grid(_reliability(report))),
        _section("Over time" if data["ordered_by"] == "time" else "Along the file", _timeline(report)),
        _section("Slices", _slices(report)),
        _section("Models and data", _provenance(report)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(heading)}</title><style>{STYLE}{plots.STYLE}{GATE_STYLE}</style></head>\n"
        f"<body>\n{''.join(sections)}\n</body></html>\n"
    )


def _verdict(report: Report) -> str:
    if report["accepted"]:
        ending = {"waiting": "It waits for a person's yes.", "automatic": "It needs no person's yes."}
        told = f"Yes: all {len(report['checks'])} checks passed. {ending[report['approval']]}"
        return f'<p class="verdict accepted">{escape(told)}</p>'
    failed = [check for check in report["checks"] if not check["passed"]]
    of = f"No: {len(failed)} of {len(report['checks'])} checks failed"
    return f'<p class="verdict refused">{escape(of)}: {escape(", ".join(check["name"] for check in failed))}.</p>'


def _checks(report: Report) -> str:
    lines = ["<tr><th></th><th>question</th><th>what was found</th></tr>"]
    for check in report["checks"]:
        kind = "passed" if check["passed"] else "failed"
        question = QUESTIONS.get(check["name"], check["name"].replace("_", " "))
        lines.append(
            f'<tr><td class="{kind}">{"✓" if check["passed"] else "✗"} {kind}</td>'
            f"<td>{escape(question)}</td><td>{escape(check['says'])}</td></tr>"
        )
    alpha = report["gate"]["alpha"]
    note = (
        f"A change is the challenger's less the champion's; below 0 the challenger errs less. Its bounds hold with "
        f"{1 - alpha:.4g} on each side, those of slices for all slices together."
    )
    return f'<div class="wide"><table>{"".join(lines)}</table></div><p class="faint">{escape(note)}</p>'


def _metrics(report: Report) -> str:
    before, after = (report["metrics"][who] for who in WHO)
    rows = []
    for name in dict.fromkeys([*before, *after]):
        change = f"{after[name] - before[name]:+.4g}" if name in before and name in after else "-"
        rows.append((title(name), figure(before.get(name)), figure(after.get(name)), change))
    return _table(("metric", *WHO, "change"), rows, numbers=3)


def _reliability(report: Report) -> Iterator[str]:
    drawn = [
        Series(who, [b["confidence"] for b in bins], [b["frequency"] for b in bins], dots=True)
        for who, bins in report["reliability"].items()
        if bins
    ]
    if drawn:
        svg = plots.lines(
            Axis("probability that the model gives"), Axis("how often it came true"), drawn, diagonal=True
        )
        yield _figure("Reliability", svg, "Dashed: a model that means what it says. Each dot: about as many rows.")


def _timeline(report: Report) -> str:
    windows = report["windows"]
    one = windows[WHO[0]]
    first, last = ("first_time_ms", "last_time_ms") if "first_time_ms" in one[0] else ("first_row", "last_row")
    x = _along(report, one[0][first], one[-1][last])
    figures = []
    for name in dict.fromkeys(name for names in TIMELINES for name in names if "no_change" not in name):
        drawn = []
        for who in WHO:
            points = [((w[first] + w[last]) / 2, w["metrics"][name]) for w in windows[who] if name in w["metrics"]]
            if points:
                drawn.append(Series(who, [p[0] for p in points], [p[1] for p in points], dots=True))
        if drawn:
            y = plots.spanning("", [v for s in drawn for v in s.y])
            figures.append(_figure(title(name), plots.lines(x, y, drawn), ""))
    return f'<p class="faint">Each point stands for {report["window_rows"]:,} rows.</p>{_grid(figures)}'


def _slices(report: Report) -> str:
    slices, loss = report["slices"], report["loss"].replace("_", " ")
    if not slices:
        return ""
    shown = sorted(slices, key=lambda s: -abs(s["change"]))[:SLICES_DRAWN]
    drawn = [Interval(_name(s), s["change"], s["low"], s["high"]) for s in sorted(shown, key=lambda s: -s["change"])]
    forest = _figure(f"Change of the {loss}", plots.intervals(drawn, f"challenger less champion, {loss}"), "")
    columns = ("slice", "rows", *WHO, "change", "low", "high", "verdict")
    rows = [
        (
            _name(s),
            f"{s['rows']:,}",
            *(figure(s[key]) for key in (*WHO, "change", "low", "high")),
            "worse" if s["worse"] else "",
        )
        for s in slices
    ]
    told = f"Mean {loss} by slice, those that lost most first. Orange: the interval leaves 0 out."
    return f'{_grid([forest])}<p class="faint">{escape(told)}</p>{_table(columns, rows, numbers=7)}'


def _name(found: dict[str, Any]) -> str:
    return f"{found['field']} = {found['value'] or '(empty)'}"


def _provenance(report: Report) -> str:
    data, rows = report["data"], report["rows"]
    facts = []
    for who in WHO:
        model = report[who]
        told = f"{model['model_id']} {model['model_version']}, packed {model['packed_at']}, {model['architecture']}"
        facts.append((who, f"{told}, trained on {model['rows_train']:,} rows, from {model['bundle']}"))
    facts.append(("data", f"{data['kind']} {data['name']}"))
    if data["ordered_by"] == "time":
        facts.append(("event time", f"{local_time(data['first_time_ms'])} to {local_time(data['last_time_ms'])}"))
    facts += [
        ("rows read", f"{rows['read']:,}"),
        *(
            (f"that only the {who} could score", f"{rows[f'only_{who}_could_score']:,}, left out for both")
            for who in WHO
        ),
        ("without a truth", f"{rows['unlabelled']:,}, left out"),
        ("asked for", ", ".join(f"{name} {value}" for name, value in report["gate"].items())),
        ("made", f"{report['made_at']} by {report['made_by']}"),
    ]
    return _table(("", ""), facts, numbers=0)
