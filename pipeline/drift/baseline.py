"""What the signals look like before drift, and how long blocks must be.

Autocorrelation is what makes naive detectors cry wolf: n values of a signal with integrated
autocorrelation time tau say as much about its mean as n / tau independent ones. It is measured here,
on rows in time order, and all tests later count in those effective values.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from pipeline.drift.bins import MODE_SHARE, cut_points, is_indicator, kind_of, levels_of
from pipeline.drift.joint import BINS, PREFIX, JointValues, bins_of, joint_weights
from pipeline.drift.seasons import Deseasoner, measure_season, of_season, time_factor
from pipeline.errors import DataError
from pipeline.records import Baseline, FeatureContract, Floats, Longs, Season, SignalBaseline

Doubles = npt.NDArray[np.float64]

#: A block is the unit of bookkeeping: below 8 events the monitor's work per event grows without a
#: gain in delay (8 independent events are 5 % of the 160 it needs for half a standard deviation).
BLOCK_EVENTS_MIN = 8
BLOCK_EVENTS_MAX = 64
#: Window of the autocorrelation sum, in autocorrelation times (Sokal's c).
SOKAL_WINDOW = 5.0


def signal_names(contract: FeatureContract) -> tuple[str, ...]:
    """The signals that every model has: numeric features, null rates, scores, predicted classes, rejections.

    Those of parts of the stream, which depend on what comes, are chosen by scoring/parts.py and follow these.
    With two classes only the second is watched: the first is its complement.
    """
    names = [f"feature:{f.name}" for f in contract.of_kind("number")]
    names += [f"null:{f.name}" for f in contract.features]
    classes = contract.output.classes[1:] if len(contract.output.classes) == 2 else contract.output.classes
    outputs = classes or tuple(f"output{i}" for i in range(contract.output.width))
    names += [f"score:{name}" for name in outputs]
    names += [f"class:{name}" for name in classes]
    return (*names, "rejected")


def measure_baseline(
    signals: Sequence[str],
    matrix: Floats,
    times_ms: Longs | None = None,
    *,
    season_s: float = 0.0,
    season_phases: int = 24,
    season: Season | None = None,
) -> Baseline:
    """Baselines of held-out rows in time order.

    matrix: float32 (n, len(signals)), NaN where a row has no value for a signal. Joint signals are made of it, and come
    last in what is returned. times_ms: (n,) event times, milliseconds since the epoch. season_s, season_phases: a
    season to be measured and taken out, 0 for none; or `season`, one that is known.
    Raises DataError when the matrix has no rows or another width, or a season is asked for that cannot be measured.
    """
    if matrix.ndim != 2 or matrix.shape[1] != len(signals) or not len(matrix):
        raise DataError(f"baseline: a matrix of shape {matrix.shape} for {len(signals)} signals; give rows x signals")
    if season is None and season_s:
        season = measure_season(signals, matrix, times_ms, season_s, season_phases)
    if season is not None:
        if times_ms is None:
            raise DataError("baseline: a season is known, but the rows have no event times")
        matrix = Deseasoner(season, signals).of(matrix, times_ms)
    measured = tuple(_measure(name, matrix[:, column]) for column, name in enumerate(signals))
    if season is not None:
        factor, seasonal = time_factor(season), set(season.signals)
        measured = tuple(
            replace(s, autocorrelation_time=factor * s.autocorrelation_time) if of_season(s.name) in seasonal else s
            for s in measured
        )
    block_events = choose_block_events(measured)
    joint = joint_weights(measured, matrix)
    if joint is None:
        return Baseline(measured, block_events, None, season)
    products = joint_columns(Baseline(measured, block_events, joint), matrix)
    together = (_measure(PREFIX + name, products[:, i], bins=BINS) for i, name in enumerate(joint.features))
    return Baseline((*measured, *together), block_events, joint, season)


def as_watched(baseline: Baseline, matrix: Floats, times_ms: Longs) -> Floats:
    """Rows of signals as the monitor sees them: without the season, with the joint signals, (n, signals) float32.

    matrix: the signals of `baseline.given`, in this order; joint ones may follow, as NaN.
    """
    matrix = matrix[:, : len(baseline.given)]
    if baseline.season is not None:
        matrix = Deseasoner(baseline.season, baseline.given).of(matrix, times_ms)
    return np.concatenate([matrix, joint_columns(baseline, matrix)], axis=1)


def joint_columns(baseline: Baseline, matrix: Floats) -> Floats:
    """The joint signals of rows, (n, joint signals) float32; `matrix` as the baseline was measured on."""
    joint = baseline.joint
    if joint is None:
        return np.empty((len(matrix), 0), dtype=np.float32)
    columns = {signal.name: column for column, signal in enumerate(baseline.signals)}
    chosen = [columns[f"feature:{name}"] for name in joint.features]
    width = max(len(baseline.signals[column].histogram) for column in chosen) + 1
    bins = np.stack([bins_of(baseline.signals[column], matrix[:, column], width - 1) for column in chosen])
    return np.ascontiguousarray(JointValues(joint, baseline.signals, width).of(bins).T)


def choose_block_events(signals: Sequence[SignalBaseline]) -> int:
    """Shortest block: the median autocorrelation time of the signals that vary, within bounds.

    Signals with a longer time get longer blocks of their own in the monitor.
    """
    times = [s.autocorrelation_time for s in signals if s.variance > 0 and kind_of(s) == "rank"]
    middle = math.ceil(float(np.median(times))) if times else BLOCK_EVENTS_MIN
    return min(max(middle, BLOCK_EVENTS_MIN), BLOCK_EVENTS_MAX)


def _measure(name: str, column: Floats, bins: int = 16) -> SignalBaseline:
    values = column[np.isfinite(column)]
    if not len(values):
        return SignalBaseline(name, 0, 0.0, 0.0, 0.0, 0.0, (0.0, 1.0), (0,), 0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    cuts = [0.5] if is_indicator(name) else _cuts(values, bins)
    places = np.searchsorted(np.array(cuts, dtype=np.float32), values, side="left")
    histogram = np.bincount(places, minlength=len(cuts) + 1)
    exact = values.astype(np.float64)
    edges = (min(low, cuts[0]) - 1.0, *cuts, max(high, cuts[-1]) + 1.0)
    signal = SignalBaseline(
        name=name,
        count=len(values),
        mean=float(exact.mean()),
        variance=float(exact.var()),
        minimum=low,
        maximum=high,
        edges=edges,
        histogram=tuple(histogram.tolist()),
        autocorrelation=0.0,
        autocorrelation_time=1.0,
    )
    lag_one, time = autocorrelation(levels_of(signal)[places])
    return replace(signal, autocorrelation=lag_one, autocorrelation_time=time)


def _cuts(values: Floats, bins: int) -> list[float]:
    """Quantile cuts; around a mode, or a constant, cuts that set exactly that value apart."""
    found, times = np.unique(values, return_counts=True)
    cuts = set(cut_points(values, bins))
    if times.max() >= MODE_SHARE * len(values):
        mode = found[times.argmax()]
        cuts |= {float(np.nextafter(mode, np.float32(-np.inf))), float(mode)}
    return sorted(cuts)


def autocorrelation(series: Doubles) -> tuple[float, float]:
    """Lag-1 autocorrelation and integrated autocorrelation time, in steps, of a series in time order.

    The time is that of an autoregressive fit, the spectral density at 0 over the variance, as for effective
    sample sizes in R's coda (Plummer et al. 2006): at rho = 0.9 and n = 10,000 it scatters by 5 %, the
    windowed sum tau = 1 + 2 (rho_1 + ... + rho_M), M the smallest >= 5 tau(M) (Sokal 1997, Monte Carlo
    Methods in Statistical Mechanics, section 3), by 20 %. The sum is used where it is more than twice
    the fit's: slow swings, seasons among them, that a short autoregression does not see.
    At least 1: that a signal swings back sooner than independent values would is not used to alarm earlier.
    """
    n = len(series)
    centred = series - series.mean()
    power = np.abs(np.fft.rfft(centred, 2 * n)) ** 2  # padded: no wrap-around
    covariance = np.fft.irfft(power)[:n]
    if n < 10 or covariance[0] <= 1e-12 * n:
        return 0.0, 1.0
    rho = covariance / covariance[0]
    tau = 2.0 * np.cumsum(rho) - 1.0
    enough = np.arange(n) >= SOKAL_WINDOW * tau
    windowed = float(tau[enough.argmax()]) if enough.any() else float(tau.max())
    fitted = _autoregressive_time(rho, n)
    return float(rho[1]), max(1.0, windowed if windowed > 2.0 * fitted else fitted)


def _autoregressive_time(rho: Doubles, n: int) -> float:
    """Spectral density at 0 over variance of the Yule-Walker fit whose order has the least BIC.

    rho: autocorrelations from lag 0 on, (n,). Levinson and Durbin's recursion.
    """
    order_max = min(n // 4, int(10 * math.log10(n)))
    phi = np.zeros(0)
    error = 1.0
    best = (0.0, 1.0)  # BIC / n, time
    for order in range(1, order_max + 1):
        partial = float((rho[order] - phi @ rho[order - 1 : 0 : -1]) / error)
        phi = np.append(phi - partial * phi[::-1], partial)
        error *= 1.0 - partial**2
        if error <= 1e-9:
            break
        criterion = math.log(error) + math.log(n) * order / n
        if criterion < best[0]:
            best = (criterion, error / max(1e-6, 1.0 - float(phi.sum())) ** 2)
    return best[1]


def cautious_time(signal: SignalBaseline) -> float:
    """The autocorrelation time plus two standard errors: what the tests count with.

    From tau = (1 + r) / (1 - r) and var(r) = (1 - r^2) / n of a first-order process, the relative error is
    (tau + 1) / sqrt(tau n). A short baseline makes the monitor slower, not louder.
    """
    tau = signal.autocorrelation_time
    return tau * (1.0 + 2.0 * (tau + 1.0) / math.sqrt(tau * max(1, signal.count)))
