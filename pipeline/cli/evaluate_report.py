"""The page that `pipeline evaluate` writes: one file without script, font or picture from anywhere else.

Made of what evaluation.json holds, and of nothing more. Whatever comes from data goes through `escape`.
"""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Any

from pipeline.cli import evaluate_plots as plots
from pipeline.cli.context import local_time
from pipeline.cli.evaluate_drift import severity
from pipeline.cli.evaluate_plots import Axis, Cell, Interval, Series
from pipeline.drift.evidence import PSI_MAJOR, PSI_MINOR

Report = dict[str, Any]

#: Gaps in the forest plot, the widest; the table has all.
GAPS_DRAWN = 20
#: Classes with curves of their own, the first; more lines than colours tell nothing.
CURVES_DRAWN = plots.COLOURS
#: Classes up to which the confusion matrix is shown: a wider table is no picture any more.
CONFUSION_CLASSES_MAX = 30

TITLES = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "ece": "ECE",
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "f1": "F1",
    "macro_f1": "macro F1",
    "brier": "Brier score",
    "mae_of_no_change": "MAE of no change",
    "rmse_of_no_change": "RMSE of no change",
    "kappa_temporal": "kappa-temporal",
}
#: Shown large, those there are.
HEADLINES = ("accuracy", "balanced_accuracy", "roc_auc", "log_loss", "ece", "kappa_temporal", "mae", "rmse", "r2")
#: Metrics that share a plot of the timeline.
TIMELINES = (
    ("accuracy", "balanced_accuracy", "accuracy_of_no_change"),
    ("log_loss", "brier", "ece"),
    ("roc_auc", "pr_auc"),
    ("mae", "rmse", "mae_of_no_change"),
    ("r2",),
    ("quantile_loss",),
)

STYLE = """
:root { color-scheme: light dark; --text: #1c2128; --faint: #667080; --line: #dfe3e8; --page: #fff; --card: #f6f7f9;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #a4508b; --c4: #b8860b; --c5: #3a9bd6;
  --calm: #b7dcc6; --minor: #f2c14e; --major: #d1495b; --shade: 0, 114, 178; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --faint: #94a0b0; --line: #333b46; --page: #14181d;
  --card: #1c222a; --c0: #56b4e9; --c1: #ef8a4c; --c2: #35c99b; --c3: #d68bc0; --c4: #e0b840; --c5: #8fc8ef;
  --calm: #2f5d46; --minor: #b8862b; --major: #c9485b; --shade: 86, 180, 233; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 20px 60px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 19px; margin: 38px 0 10px; }
h3 { font-size: 14px; margin: 0 0 6px; } p { margin: 6px 0; } .faint { color: var(--faint); }
.warning { border-left: 4px solid var(--minor); padding: 4px 12px; background: var(--card); }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; }
.tiles b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--faint); font-size: 13px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 16px; align-items: start; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; }
figcaption { color: var(--faint); font-size: 12.5px; margin-top: 6px; }
.side { display: flex; flex-wrap: wrap; gap: 0 56px; }
.side > * { max-width: 100%; } .side p { max-width: 430px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--faint); font-weight: 600; } td:first-child { white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; }
td.cell { text-align: center; min-width: 64px; } td.cell small { display: block; color: var(--faint); }
.legend { font-size: 12.5px; color: var(--faint); margin: 6px 0 0; } .legend span { margin-right: 14px; }
.legend i { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin-right: 5px;
  vertical-align: middle; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--faint); }
code { font-size: 12.5px; overflow-wrap: anywhere; }
"""


def page(report: Report) -> str:
    """The whole page for a report as `pipeline evaluate` puts it together."""
    model, data, rows = report["model"], report["data"], report["rows"]
    name = f"{model['model_id']} {model['model_version']}"
    what = f"{rows['measured']:,} rows of {data['name']} with their truth, {data['label_field']}"
    side = _section("Classes", _confusion(report)) + _section("What was read", _read(report))
    sections = [
        f"<h1>Evaluation of {escape(name)}</h1>",
        f'<p class="faint">on {escape(what)}; made {escape(report["made_at"])}</p>',
        *(f'<p class="warning">{escape(warning)}.</p>' for warning in report["warnings"]),
        _tiles(report["metrics"]),
        f'<div class="side">{_section("Metrics", _metrics(report))}<div>{side}</div></div>',
        _section("Probabilities", _grid([*_reliability(report), *_curves(report)])),
        _section("Over time" if data["ordered_by"] == "time" else "Along the file", _timeline(report)),
        _section("Slices", _slices(report)),
        _section("Distance from the training data", _drift(report)),
        _section("Model and data", _provenance(report)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation of {escape(name)}</title><style>{STYLE}{plots.STYLE}</style></head>\n"
        f"<body>\n{''.join(sections)}\n</body></html>\n"
    )


def figure(value: float | None) -> str:
    """A number as everywhere on the page: four digits that count."""
    return "-" if value is None else f"{value:.4g}"


def title(metric: str) -> str:
    """A metric's name for a person."""
    return TITLES.get(metric, metric.replace("_", " "))


# --------------------------------------------------------------------------- metrics


def _tiles(metrics: dict[str, float]) -> str:
    shown = [
        f"<div><b>{figure(metrics[n])}</b><span>{escape(title(n))}</span></div>" for n in HEADLINES if n in metrics
    ]
    return f'<div class="tiles">{"".join(shown)}</div>'


def _metrics(report: Report) -> str:
    packed = report["model"]["training"]["metrics"]
    rows = [(title(name), figure(value), figure(packed.get(name))) for name, value in report["metrics"].items()]
    validation = report["model"]["training"]["rows_validation"]
    note = f"When packed: on {validation:,} rows held out from training. " if packed else ""
    delay = report["delay_rows"]
    told = f"No change repeats the truth of {delay:,} row{'s' if delay > 1 else ''} before."
    return _table(("metric", "here", "when packed"), rows, numbers=2) + f'<p class="faint">{note}{told}</p>'


def _confusion(report: Report) -> str:
    confusion, classes = report["confusion"], report["model"]["classes"]
    if not confusion:
        return ""
    if len(classes) > CONFUSION_CLASSES_MAX:
        return f"<p>{len(classes)} classes: the confusion matrix is in evaluation.json.</p>"
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in classes)
    lines = [f"<tr><th>truth ↓ &nbsp; predicted →</th>{head}</tr>"]
    for name, counts in zip(classes, confusion, strict=True):
        total = max(sum(counts), 1)
        cells = "".join(
            f'<td class="cell" style="background:rgba(var(--shade),{0.55 * n / total:.2f})">{n:,}'
            f"<small>{n / total:.1%}</small></td>"
            for n in counts
        )
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    note = '<p class="faint">Shares are of a row: of what was so, how much was called what.</p>'
    return f'<div class="wide"><table>{"".join(lines)}</table></div>{note}'


def _reliability(report: Report) -> Iterator[str]:
    bins = report["reliability"]
    if not bins:
        return
    x, y = Axis("probability that the model gives"), Axis("how often it came true")
    line = Series("observed", [b["confidence"] for b in bins], [b["frequency"] for b in bins], dots=True)
    whiskers = [(b["confidence"], b["low"], b["high"]) for b in bins]
    note = "Each dot stands for about as many rows, with a 95 % interval. Dashed: a model that means what it says."
    yield _figure("Reliability", plots.lines(x, y, [line], diagonal=True, whiskers=whiskers), note)


def _curves(report: Report) -> Iterator[str]:
    curves = report["curves"]
    for key, name, x, y in (
        ("roc", "ROC", ("false_positive_rate", "false positive rate"), ("true_positive_rate", "true positive rate")),
        ("pr", "Precision and recall", ("recall", "recall"), ("precision", "precision")),
    ):
        drawn = [
            Series(label, curve[x[0]], curve[y[0]])
            for label, curve in list(curves.get(key, {}).items())[:CURVES_DRAWN]
            if curve[x[0]]
        ]
        if drawn:
            note = ", ".join(f"{title(m)} {figure(report['metrics'].get(m))}" for m in (f"{key}_auc",))
            of = f"of class {drawn[0].name}" if len(drawn) == 1 else "one class against the rest"
            svg = plots.lines(Axis(x[1]), Axis(y[1]), drawn, diagonal=key == "roc")
            yield _figure(name, svg, f"{note}, {of}.")


# --------------------------------------------------------------------------- time


def _timeline(report: Report) -> str:
    windows = report["windows"]
    first, last = ("first_time_ms", "last_time_ms") if "first_time_ms" in windows[0] else ("first_row", "last_row")
    middles = [(w[first] + w[last]) / 2 for w in windows]
    x = _along(report, windows[0][first], windows[-1][last])
    figures = []
    for names in TIMELINES:
        drawn = []
        for name in names:
            points = [(m, w["metrics"][name]) for m, w in zip(middles, windows, strict=True) if name in w["metrics"]]
            if points:
                drawn.append(Series(title(name), [p[0] for p in points], [p[1] for p in points], dots=True))
        if drawn and drawn[0].name == title(names[0]):
            y = plots.spanning("", [v for s in drawn for v in s.y])
            figures.append(_figure(", ".join(s.name for s in drawn), plots.lines(x, y, drawn), ""))
    columns = list(dict.fromkeys(name for w in windows for name in w["metrics"]))
    rows = [
        (
            _moment(w[first], report),
            _moment(w[last], report),
            f"{w['rows']:,}",
            *(figure(w["metrics"].get(c)) for c in columns),
        )
        for w in windows
    ]
    head = ("from", "to", "rows", *map(title, columns))
    every = f"Each point stands for {report['window_rows']:,} rows with their truth."
    return (
        f'<p class="faint">{every}</p>{_grid(figures)}<details><summary>all windows</summary>'
        f"{_table(head, rows, numbers=len(head) - 1)}</details>"
    )


def _along(report: Report, first: float, last: float) -> Axis:
    if report["data"]["ordered_by"] == "time":
        return plots.time_axis("event time, UTC", first, last)
    return Axis("row of the file", first, last, "{:,.0f}".format)


def _moment(value: int, report: Report) -> str:
    return local_time(value) if report["data"]["ordered_by"] == "time" else f"{value:,}"


def _drift(report: Report) -> str:
    drift = report["drift"]
    if not drift["signals"]:
        return "<p>The bundle has no baseline, so there is nothing to compare with.</p>"
    windows = drift["windows"]
    first, last = ("first_time_ms", "last_time_ms") if "first_time_ms" in windows[0] else ("first_row", "last_row")
    ends = [*(window[first] for window in windows[1:]), windows[-1][last]]
    strips = []
    for signal in drift["signals"]:
        name, cells = signal["signal"], []
        for window, right in zip(windows, ends, strict=True):
            found = window["signals"][name]
            told = f"mean {figure(found['mean'])}, PSI {figure(found['psi'])} from {_moment(window[first], report)}"
            cells.append(Cell(severity(found), window[first], right, told))
        strips.append((name, cells))
    x = _along(report, windows[0][first], windows[-1][last])
    key = "".join(
        f'<span><i style="background:var(--{kind});height:10px"></i>{text}</span>'
        for kind, text in (
            ("calm", "as in training"),
            ("minor", f"PSI {PSI_MINOR:g} or more above chance"),
            ("major", f"PSI {PSI_MAJOR:g} or more above chance"),
            ("line", "no value"),
        )
    )
    columns = ("signal", "mean in training", "mean here", "values", "PSI", "PSI by chance")
    rows = [
        (
            s["signal"],
            figure(s["baseline_mean"]),
            figure(s["mean"]),
            f"{s['count']:,}",
            figure(s["psi"]),
            figure(s["psi_by_chance"]),
        )
        for s in drift["signals"]
    ]
    return (
        f'<figure>{plots.strips(strips, x)}<p class="legend">{key}</p></figure>'
        f"<details><summary>all signals, over the whole range</summary>"
        f"{_table(columns, rows, numbers=len(columns) - 1)}</details>"
    )


# --------------------------------------------------------------------------- slices


def _slices(report: Report) -> str:
    parts = []
    if gaps := sorted(report["gaps"], key=lambda gap: -abs(gap["difference"])):
        for measure in dict.fromkeys(gap["measure"] for gap in report["gaps"]):
            drawn = [
                Interval(f"{gap['field']} = {gap['value'] or '(empty)'}", gap["difference"], gap["low"], gap["high"])
                for gap in gaps
                if gap["measure"] == measure
            ][:GAPS_DRAWN]
            svg = plots.intervals(drawn, f"difference in {title(measure)} from the rest")
            parts.append(_figure(title(measure).capitalize(), svg, ""))
        note = (
            '<p class="faint">A slice less the rest, with 95 % intervals, each by itself: of 20 gaps that are none, '
            "one stands out by chance. Orange: the interval leaves 0 out.</p>"
        )
        columns = ("field", "value", "measure", "in the slice", "in the rest", "difference", "low", "high", "rows")
        keys = ("value_of_slice", "of_rest", "difference", "low", "high")
        rows = [
            (g["field"], g["value"] or "(empty)", title(g["measure"]), *(figure(g[k]) for k in keys), f"{g['rows']:,}")
            for g in gaps
        ]
        every = f"<details><summary>all gaps</summary>{_table(columns, rows, numbers=6)}</details>"
        parts = [_grid(parts), note, every]
    for field, values in report["slices"].items():
        metrics = list(dict.fromkeys(name for found in values.values() for name in found["metrics"]))
        rows = [
            (value or "(empty)", f"{found['rows']:,}", *(figure(found["metrics"].get(m)) for m in metrics))
            for value, found in values.items()
        ]
        head = (field, "rows", *map(title, metrics))
        parts.append(f"<h3>{escape(field)}</h3>{_table(head, rows, numbers=len(head) - 1)}")
    return "".join(parts)


# --------------------------------------------------------------------------- what and with what


def _read(report: Report) -> str:
    rows = report["rows"]
    counts = [("read", rows["read"], "")]
    counts += [(f"rejected: {reason}", n, report["examples"].get(reason, "")) for reason, n in rows["rejected"].items()]
    counts += [
        ("scored", rows["scored"], ""),
        ("without a truth", rows["unlabelled"], "scored, and left out of all metrics"),
        ("of classes the model does not know", rows["unknown_labels"], "counted as wrong"),
        ("measured", rows["measured"], ""),
    ]
    counts += [(f"replaced: {what}", n, "") for what, n in rows["imputed"].items()]
    return _table(("rows", "count", ""), [(what, f"{n:,}", why) for what, n, why in counts], numbers=1)


def _provenance(report: Report) -> str:
    model, data, training = report["model"], report["data"], report["model"]["training"]
    facts = [
        ("model", f"{model['model_id']} {model['model_version']}"),
        ("bundle", model["bundle"]),
        ("packed", model["packed_at"]),
        ("architecture", model["architecture"]),
        ("features", ", ".join(model["features"])),
        ("trained on", f"{training['rows_train']:,} rows, measured on {training['rows_validation']:,}"),
        ("training data", f"SHA-256 {training['data_sha256']}" if training["data_sha256"] else "unknown"),
        ("packed with", ", ".join(f"{name} {version}" for name, version in model["made_with"].items())),
        ("data", f"{data['kind']} {data['name']}"),
    ]
    if data["kind"] == "file":
        last = data["first_row"] + report["rows"]["read"] - 1
        facts.append(("rows", f"{data['first_row']:,} to {last:,} of {data['rows_of_file']:,}"))
    else:
        ranges = (f"partition {p}: {start:,} to {end:,}" for p, (start, end) in data["offsets"].items())
        facts.append(("offsets", "; ".join(ranges)))
    if data["ordered_by"] == "time":
        facts.append(("event time", f"{local_time(data['first_time_ms'])} to {local_time(data['last_time_ms'])}"))
    facts += [("pipeline", report["pipeline"]), ("made", f"{report['made_at']} by {report['made_by']}")]
    return _table(("", ""), facts, numbers=0)


# --------------------------------------------------------------------------- pieces


def _section(name: str, content: str) -> str:
    """A headed part of the page; nothing where there is nothing to say."""
    return f"\n<section><h2>{escape(name)}</h2>{content}</section>" if content else ""


def _grid(figures: Iterable[str]) -> str:
    inside = "".join(figures)
    return f'<div class="grid">{inside}</div>' if inside else ""


def _figure(name: str, svg: str, note: str) -> str:
    caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
    return f"<figure><h3>{escape(name)}</h3>{svg}{caption}</figure>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: int) -> str:
    """A table of text; the last `numbers` columns are numbers, where there are more columns than these."""
    plain = len(columns) - numbers
    if columns[-1] == "" and numbers:  # remarks come last
        plain, end = 1, len(columns) - 1
    else:
        end = len(columns)

    def cell(tag: str, index: int, text: str) -> str:
        kind = ' class="n"' if plain <= index < end else ""
        return f"<{tag}{kind}>{escape(text)}</{tag}>"

    head = "".join(cell("th", i, name) for i, name in enumerate(columns))
    body = "".join(f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>\n" for row in rows)
    top = f"<tr>{head}</tr>" if any(columns) else ""
    return f'<div class="wide"><table>{top}{body}</table></div>'
