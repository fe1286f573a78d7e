"""Whether a window of labelled events is fit to learn from, and what came of it fit to be trusted.

Each guard makes one finding. None knows where rows come from; bounds are settings. They are against accidents and
clumsy poisoning: one sender flooding, an upstream join that lets the label into a feature, labels flipped by a bug.
A patient adversary who stays below every bound is not kept out.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.measures.ranking import rank, roc_auc
from pipeline.records import FeatureContract, Floats, Longs
from pipeline.retraining.findings import Finding

Numbers = npt.NDArray[np.float64]

#: Rows of a class, and of all the others, below which one feature's AUC says nothing: its error is above 0.06.
CLASS_ROWS_MIN = 20
#: By how much a feature's AUC must have risen to count as sudden. The error of one near 0.9 is 0.04 with 20 rows of
#: the rarer class, 0.01 with 300 (Hanley & McNeil 1982).
RISE_MIN = 0.1
#: From here on a model is confident: nine in ten of its answers are right if it is calibrated.
CONFIDENT = 0.9
#: Share of rows looked at as the farthest out, and deviations (of the middle half) beyond which the model clips.
FAR_SHARE, CLIP_SD = 0.01, 8.0
#: The middle half of a normal distribution is so many deviations wide.
NORMAL_IQR = 1.349


def producers(senders: pa.ChunkedArray | None, bound: float) -> Finding:
    """The largest share of the rows that one sender has. senders: (n,) text, null where unknown; None: not told."""
    name = "producer_share"
    if senders is None:
        return Finding(name, True, None, bound, "not checked: retraining.producer_field is not set")
    counts = pc.value_counts(senders.cast(pa.string()).fill_null("").combine_chunks())
    if not len(counts):
        return Finding(name, True, None, bound, "not checked: no rows")
    largest = int(np.argmax(counts.field("counts").to_numpy()))
    share = counts.field("counts")[largest].as_py() / len(senders)
    who = counts.field("values")[largest].as_py() or "(unknown)"
    return Finding(
        name, share <= bound, share, bound, f"{who!r} sent {share:.1%} of the events, {len(counts):,} sent any"
    )


def duplicates(event_ids: pa.ChunkedArray, bound: float) -> Finding:
    """The share of rows whose event id another row has, each id's first row aside."""
    n = len(event_ids)
    share = 1 - pc.count_distinct(event_ids).as_py() / n if n else 0.0
    return Finding("duplicates", share <= bound, share, bound, f"{share:.2%} of {n:,} events have the id of another")


def late_fields(rows: pa.Table, times: Sequence[str], label_times_ms: Longs, bound: float) -> Finding:
    """The largest share of rows in which a field with a time is after its label's: it cannot be known beforehand.

    times: timestamp columns of `rows`, the event's own among them. Nulls are not late.
    """
    worst, where = 0.0, ""
    for name in times:
        column = rows.column(name)
        known = pc.is_valid(column).to_numpy()
        values = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64()).fill_null(0).to_numpy()
        share = float((known & (values > label_times_ms)).mean()) if len(values) else 0.0
        if share > worst or not where:
            worst, where = max(share, worst), name
    if not where:
        return Finding("late_fields", True, None, bound, "not checked: no field of the event has a time")
    says = f"field {where}: {worst:.2%} of the events have a time in it that is after their label's"
    return Finding("late_fields", worst <= bound, worst, bound, says)


# --------------------------------------------------------------------------- leakage


def separation(rows: pa.Table, truth: npt.NDArray[np.generic], contract: FeatureContract) -> dict[str, float]:
    """Feature -> how well it alone tells the labels apart, 0.5 to 1; features that have no such number are left out.

    Numbers: the ROC-AUC of the best class against the rest, whichever way round; of a regression (1 + |Spearman's
    rho|) / 2. Categories: the same of the mean label of their words in the even rows, told on the odd ones.
    """
    found = {}
    for feature in contract.features:
        if feature.name not in rows.column_names or feature.kind not in {"number", "category"}:
            continue
        column = rows.column(feature.name)
        if feature.kind == "number":
            values = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
            good = np.isfinite(values)
            told = _best(values[good], truth[good], contract)
        else:
            told = _of_category(column.cast(pa.string()).fill_null(""), truth, contract)
        if told is not None:
            found[feature.name] = told
    return found


def _best(values: Numbers, truth: npt.NDArray[np.generic], contract: FeatureContract) -> float | None:
    if contract.output.kind == "regression":
        return _rank_correlation(values, truth.astype(np.float64))
    aucs = [_auc(values, truth == index) for index in range(len(contract.output.classes))]
    return max((auc for auc in aucs if auc is not None), default=None)


def _auc(values: Numbers, positive: npt.NDArray[np.bool_]) -> float | None:
    if min(int(positive.sum()), int((~positive).sum())) < CLASS_ROWS_MIN:
        return None
    auc = roc_auc(rank(values, positive))
    return None if auc is None else max(auc, 1 - auc)


def _rank_correlation(values: Numbers, truth: Numbers) -> float | None:
    if len(values) < 2 * CLASS_ROWS_MIN or np.ptp(values) == 0 or np.ptp(truth) == 0:
        return None
    ranks = np.stack([_mean_ranks(values), _mean_ranks(truth)])
    return float((1 + abs(np.asarray(np.corrcoef(ranks))[0, 1])) / 2)


def _mean_ranks(values: Numbers) -> Numbers:
    """(n,) ranks; equal values have the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Numbers = ((ends - counts + ends - 1) / 2)[inverse]
    return found


def _of_category(text: pa.ChunkedArray, truth: npt.NDArray[np.generic], contract: FeatureContract) -> float | None:
    codes = text.combine_chunks().dictionary_encode()
    codes = codes.chunk(0) if isinstance(codes, pa.ChunkedArray) else codes
    words, where = len(codes.dictionary), codes.indices.to_numpy()
    even, odd = slice(None, None, 2), slice(1, None, 2)
    goals = (
        [truth.astype(np.float64)]
        if contract.output.kind == "regression"
        else [(truth == index).astype(np.float64) for index in range(len(contract.output.classes))]
    )
    told = []
    for goal in goals:
        sums = np.bincount(where[even], goal[even], words)
        counts = np.bincount(where[even], minlength=words)
        overall = float(goal[even].mean()) if len(goal) else 0.0
        rates = np.where(counts > 0, sums / np.maximum(counts, 1), overall)[where[odd]]
        regression = contract.output.kind == "regression"
        told.append(_rank_correlation(rates, goal[odd]) if regression else _auc(rates, goal[odd] > 0))
    return max((value for value in told if value is not None), default=None)


def leakage(now: Mapping[str, float], before: Mapping[str, float], bound: float) -> Finding:
    """A feature that tells the labels apart better than `bound` and did not do so before: the label may be in it.

    now, before: `separation` of the window, and of what came before it; 0.5 where it is not known.
    """
    risen = {name: auc for name, auc in now.items() if auc > bound and auc - before.get(name, 0.5) > RISE_MIN}
    if not now:
        return Finding("leakage", True, None, bound, "not checked: no single feature can be held to the label")
    name = max(risen or now, key=lambda key: (risen or now)[key])
    told = f"feature {name} alone tells the labels apart with AUC {now[name]:.3f}"
    was = f", before with {before[name]:.3f}" if name in before else ""
    return Finding("leakage", not risen, now[name], bound, told + was)


# --------------------------------------------------------------------------- labels, outliers, rate


def flips(by_class: Numbers, truth: Longs, bound: float) -> Finding:
    """The share of rows whose label the model denies with confidence, beyond what its confidence allows for.

    by_class: (n, classes) probabilities of the new model, one column a class; truth: (n,) -1 where unknown. A model
    that is right as often as it says finds about 0 here, after a drift too, for it has learnt what came after it;
    labels flipped at random it cannot learn. The idea is that of confident learning (Northcutt et al. 2021).
    """
    known = truth >= 0
    if not known.any():
        return Finding("label_flips", True, None, bound, "not checked: no label of a known class")
    columns, labels = by_class[known], truth[known]
    top = columns.max(axis=1)
    confident = top >= CONFIDENT
    denied = confident & (columns.argmax(axis=1) != labels)
    excess = float((denied.sum() - (1 - top[confident]).sum()) / len(labels))
    says = (
        f"the new model denies {denied.mean():.2%} of the labels with confidence, {excess:+.2%} against what it expects"
    )
    return Finding("label_flips", excess <= bound, excess, bound, says)


def outliers(numbers: Floats, bound: float) -> Finding:
    """The share of all squared distance from the middle that the farthest 1 % of rows have.

    numbers: (n, number features), NaN where missing. Distances are in deviations of the middle half, clipped as the
    built-in models clip; a feature whose middle half is one value has none, and is left out. Of normal features it is
    0.09 (one) to 0.02 (sixteen), of a log-normal, an exponential or a Student's t with 2 degrees of freedom 0.22, and
    0.37 with 1 % of normal rows moved 8 deviations out, be it one feature or sixteen.
    """
    name = "outlier_influence"
    if not numbers.size:
        return Finding(name, True, None, bound, "not checked: the model takes no numbers")
    values = numbers.astype(np.float64)
    values = values[:, np.isfinite(values).any(axis=0)]
    low, middle, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=0)
    scale = (high - low) / NORMAL_IQR
    scaled = np.divide(values - middle, scale, out=np.zeros_like(values), where=scale > 0)
    distances = (np.clip(np.nan_to_num(scaled), -CLIP_SD, CLIP_SD) ** 2).sum(axis=1)
    far = max(1, round(len(distances) * FAR_SHARE))
    total = float(distances.sum())
    share = float(np.sort(distances)[-far:].sum() / total) if total else 0.0
    says = f"the {far:,} events farthest out make {share:.1%} of the spread of all {len(distances):,}"
    return Finding(name, share <= bound, share, bound, says)


def rate(made_ms: Sequence[int], now_ms: int, per_day_max: int) -> Finding:
    """How many successors there have been within 24 hours, this one included. made_ms: when its ancestors were."""
    count = 1 + sum(now_ms - 86_400_000 < made for made in made_ms)
    says = f"{count} retrainings within 24 hours, this one included"
    return Finding("retraining_rate", count <= per_day_max, float(count), float(per_day_max), says)
