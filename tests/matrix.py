"""The matrix of faults and bad inputs: what each case must hold, and what its tests found.

A test says which cases it shows with `@pytest.mark.case("F12")`, and what it counted with the fixture `counted`.
`make matrix` runs these tests, writes docs/matrix.json and renders docs/matrix.md out of it; nothing in there is typed.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "matrix.json"
PAGE = ROOT / "docs" / "matrix.md"

#: Case -> (what happens, what must hold).
CASES: dict[str, tuple[str, str]] = {
    "F1": ("SIGKILL of a worker before it produces", "nothing lost; nothing repeated"),
    "F2": ("SIGKILL after producing, before offsets", "exactly once: 0 repeated; else at most what was uncommitted"),
    "F3": ("SIGKILL after the offsets were sent to the transaction, before the commit", "as F2"),
    "F4": ("SIGKILL after the commit, before the ledger notes it", "nothing repeated"),
    "F5": ("SIGTERM under load", "drains within the deadline, exit 0, leaves the group; nothing repeated"),
    "F6": ("SIGSTOP beyond the session timeout, then SIGCONT", "the zombie commits nothing and rejoins"),
    "F7": ("SIGSTOP beyond the transaction timeout", "a new producer, no crash loop"),
    "F8": ("a model slower than max.poll.interval.ms", "stays in its group; lag, not eviction"),
    "F9": ("1 to 3 to 1 workers under load, eager assignment refused or served", "no stale commit"),
    "F10": ("workers joining and leaving every second, cooperative", "no stale commit"),
    "F11": ("two workers with one transactional id", "the older is fenced and ends with exit code 4"),
    "F12": ("SIGKILL of the leader of partitions", "goes on with the next leader"),
    "F13": ("SIGKILL of the transaction coordinator", "goes on; nothing torn"),
    "F14": ("SIGKILL of the group coordinator", "goes on; no offset lost"),
    "F15": ("SIGKILL of the active controller", "goes on"),
    "F16": ("SIGSTOP of a leader for 20 s", "no fatal exit"),
    "F17": ("all brokers restarted one after the other", "no fatal exit"),
    "F18": ("all brokers down for 60 s", "waits; memory flat; goes on by itself"),
    "F19": ("fewer replicas in sync than min.insync.replicas", "no offset advances; goes on once they are back"),
    "F20": ("EndTxn applied, its answer dropped", "the commit is resumed; 0 repeated"),
    "F21": ("EndTxn held back, released inside the next transaction", "the producer was replaced; nothing torn"),
    "F22": ("Produce held back past an abort, then released", "refused or never seen; readers go on"),
    "F23": ("abort while the first produce is in flight", "recovers"),
    "F24": ("connection cut mid-request, half-open, stalled, 200 ms of delay", "no loss, no exit"),
    "F25": ("group coordinator cut off, transaction coordinator reachable", "abort; no partial commit"),
    "F26": ("dead-letters topic missing or denied", "the bad record's offset is not committed; a clear exit"),
    "F27": ("ACL removed while running", "transactional id: clean exit; topic or group: bounded tries, then a stop"),
    "F28": ("the broker's disk is full", "no offset advances; goes on once there is room"),
    "F29": ("partitions added; topic deleted and made anew", "read from their beginning; never a silent jump"),
    "F30": ("records deleted ahead of the reader", "goes on at the first record left; the gap is counted and logged"),
    "F31": ("model file swapped, truncated or of a wrong digest", "refused before joining, with its cause"),
    "F32": ("model raises, returns NaN or a wrong shape, runs out of memory", "bounded tries; NaN: one dead letter"),
    "F33": ("Schema Registry away or answering 500", "known ids go on; a new id waits and is no dead letter"),
    "F34": ("open files or memory limited; metrics scraper that does not read", "unaffected, or a clean exit"),
    "F35": ("crash point after every step of the commit, SIGKILL there", "as F1 to F4"),
    "F36": ("SIGKILL at random moments, 15 times (100 in the soak)", "as F2"),
    "F37": ("monitor killed between reading and publishing a trigger", "the trigger is published, once"),
    "F38": ("the wall clock jumps, forward and back", "unaffected"),
    "F39": ("two of three nodes down, then back", "waits, goes on by itself"),
    "F40": ("input of garbage beyond the limit", "the worker stops with exit code 3"),
    "F41": ("commit path with crash, rebalance, delay in virtual time, thousands of seeds", "exactly once"),
    "F42": ("leaders and coordinators moved, by a stop in order and by election", "goes on"),
    "F43": ("retrainer killed at any step from trigger to release and report", "one report, one champion"),
    "F44": ("a change of the releases killed at any of its steps", "the old state or the new one"),
    "F45": ("errors that rise, the role that watches them killed at any step", "one trigger"),
    "F46": ("a canary on trial, the retrainer killed at any step of what it decides", "one decision, carried out once"),
    "P1": ("a burst of 100 times the usual rate", "lag, no growth of memory, no eviction"),
    "P2": ("a long backlog at start-up", "lag, no growth of memory"),
    "P3": ("a slow broker", "lag, no growth of memory, no eviction"),
    "P4": ("records near message.max.bytes", "scored"),
    "P5": ("tens of thousands of keys, hundreds of partitions", "order per key kept"),
    "P6": ("empty topics", "waits, stops cleanly"),
    "P7": ("compacted input with gaps", "every record that is left, once"),
    "P8": ("transactions of others in the input, aborted ones too", "committed records once, aborted ones never"),
    "B1": ("null value (tombstone)", "dead letter"),
    "B2": ("empty value", "dead letter"),
    "B3": ("one byte", "dead letter"),
    "B4": ("wrong magic byte", "dead letter"),
    "B5": ("unknown schema id", "dead letter, once the registry has said so"),
    "B6": ("truncated body", "dead letter"),
    "B7": ("trailing bytes", "dead letter"),
    "B8": ("valid id of another subject", "dead letter, never a wrong read"),
    "B9": ("writer schema lacking a field without default", "dead letter, never a wrong read"),
    "B10": ("union or enum index out of range or negative", "dead letter"),
    "B11": ("negative length", "dead letter without allocating"),
    "B12": ("length 2^62", "dead letter without allocating"),
    "B13": ("array of null with count 2^60", "dead letter at once"),
    "B14": ("block size that lies", "dead letter"),
    "B15": ("recursion 100,000 deep", "dead letter, no crash"),
    "B16": ("varint of more than 10 bytes", "dead letter"),
    "B17": ("invalid UTF-8", "dead letter"),
    "B18": ("NaN and infinities", "dead letter, never a NaN prediction"),
    "B19": ("value beyond float32", "dead letter"),
    "B20": ("wrong vector length or type", "dead letter"),
    "B21": (
        "output or dead letter larger than max.message.bytes",
        "dead letter, shortened if need be; no endless tries",
    ),
    "B22": ("Avro container file with a deflate bomb as value", "dead letter before decompression"),
    "B23": ("the same id twice, same and other body", "both scored, each with its offset"),
    "B24": ("null key, 1 MB key", "scored or dead letter"),
    "B25": ("10,000 headers, headers that are not UTF-8", "bounded"),
    "B26": ("spoofed __connect.errors.* headers", "not trusted"),
    "B27": ("timestamps -1, 0, year 3000", "scored; drift monitor unaffected"),
    "B28": ("label early, late, twice, contradicting, without a prediction", "one outcome each; counted; none lost"),
    "B29": ("label broken, empty, not finite, of no event", "dead letter, or none where it is one"),
    "B30": ("one key with 90 % of the traffic; join killed, its store deleted", "one outcome each"),
    "B31": ("a million unseen categories", "memory and metric series bounded"),
    "B32": ("newline, ANSI and format codes in strings", "one log line each"),
    "B33": ("values of a bad record", "no value in logs or headers"),
    "B34": ("redriven record failing again", "attempt count rises; parked at the limit"),
    "B35": ("input of aborted transactions", "never seen"),
    "B36": ("record batch with a wrong CRC", "never scored, never skipped: a clear exit"),
    "D1": ("settings: wrong, missing, unknown, unsafe", "one line: source, key, fault, mend; exit 2"),
    "D2": ("schema files: damaged, incompatible", "one line; exit 1"),
    "D3": ("bundles: truncated, bit-flipped, pickled code, path traversal, wrong dimensions", "one line; exit 1"),
    "D4": ("command lines", "usage and one line; exit 2"),
    "D5": ("data files", "one line; exit 1"),
}


#: What a test tells about itself travels in its report, also from the process of another worker (pytest-xdist).
CASES_PROPERTY, SAYS_PROPERTY = "cases", "says"


def tell_cases(item: pytest.Item) -> None:
    """Put the cases of a test, and what it says of itself, where its report has them."""
    cases = [case for mark in item.iter_markers("case") for case in mark.args]
    if cases:
        says = (item.obj.__doc__ or "").strip().partition("\n")[0]  # type: ignore[attr-defined]
        item.user_properties += [(CASES_PROPERTY, cases), (SAYS_PROPERTY, says)]


class Recorder:
    """pytest plugin behind `--matrix FILE`: writes what the tests with a case found."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: What an earlier run found stays until its test runs again: the matrix may be run in parts.
        self._rows: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note outcome, counts and time of a test with a case."""
        told = dict(report.user_properties)
        if CASES_PROPERTY not in told:
            return
        if report.when == "setup":
            self._rows[report.nodeid] = {"cases": told[CASES_PROPERTY], "says": told[SAYS_PROPERTY], "counts": []}
        row = self._rows[report.nodeid]
        if report.when == "call" or report.outcome != "passed":
            row["outcome"] = report.outcome
        if report.when == "call":
            row["seconds"] = round(report.duration, 1)
        if report.when == "teardown":
            row["counts"] = [value for name, value in report.user_properties if name == "counted"]

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self._path.write_text(json.dumps(self._rows, indent=1, sort_keys=True) + "\n", "utf-8")


def render(rows: dict[str, dict[str, Any]]) -> str:
    """The page: one line a test, under its case."""
    lines = [
        "# Fault matrix",
        "",
        "Written by `make matrix` from a run of the tests; [Guarantees](guarantees.md) says what they are held to.",
        "Counts are those of a separate reader with `isolation.level=read_committed`. A case without a test says so.",
        "",
        "| case | what happens | must hold | test | found |",
        "| --- | --- | --- | --- | --- |",
    ]
    for case, (fault, must) in CASES.items():
        shown = sorted(node for node, row in rows.items() if case in row["cases"])
        if not shown:
            lines.append(f"| {case} | {fault} | {must} | | **no test** |")
        for number, node in enumerate(shown):
            head = (case, fault, must) if number == 0 else ("", "", "")
            lines.append(f"| {' | '.join(head)} | {_told(node)} | {_found(rows[node])} |")
    passed = sum(row.get("outcome") == "passed" for row in rows.values())
    covered = {case for row in rows.values() for case in row["cases"]}
    summary = f"{passed} of {len(rows)} tests passed; {len(covered & CASES.keys())} of {len(CASES)} cases have one."
    return "\n".join([*lines[:4], "", summary, "", *lines[5:]]) + "\n"


def _told(node: str) -> str:
    file, _, name = node.partition("::")
    return f"`{name}`<br>{file}"


def _found(row: dict[str, Any]) -> str:
    counts = "; ".join(", ".join(f"{k.replace('_', ' ')} {_number(v)}" for k, v in c.items()) for c in row["counts"])
    outcome = row.get("outcome", "not run")
    return f"{outcome if outcome == 'passed' else f'**{outcome}**'}{': ' + counts if counts else ''}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    PAGE.write_text(render(json.loads(RESULTS.read_text("utf-8"))), "utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}\n")
