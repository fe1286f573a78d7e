"""`pipeline demo` as a newcomer runs it: its own Kafka, its own models, its own balance."""

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "pipeline.cli", "demo", "--rows", "8000", "--rate", "1000")


def rows_of(table: str) -> list[tuple[str, str]]:
    """The summary's lines, as a person would read them."""
    lines = [line.strip("│ ").split("│") for line in table.splitlines() if "│" in line]
    return [(line[0].strip(), line[1].strip()) for line in lines if len(line) > 1]


def accuracy(text: str) -> float:
    found = re.match(r"accuracy ([0-9.]+) of ([0-9,]+) outcomes", text)
    assert found is not None, text
    assert int(found[2].replace(",", "")) > 300
    return float(found[1])


@pytest.mark.timeout(600)
def test_the_demo_closes_the_loop_and_accounts_for_every_event(tmp_path: Path) -> None:
    """Exit code 0: nothing lost or doubled, the shift found within 3,000 events, a successor that mends it.

    `demo` itself compares every output and exits with 1 otherwise; here its summary is read as a person would.
    """
    done = subprocess.run(
        COMMAND, cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=580, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = rows_of(done.stdout)
    summary = {name: text for name, text in rows if name}
    assert summary["events in"] == "8,000"
    assert summary["predictions out"] == "7,993"
    assert summary["outcomes"].startswith("7,993")
    assert summary["dead letters"].startswith("7: ")
    assert summary["lost"] == summary["duplicated"] == summary["uncommitted"] == "0"
    found = re.search(r"([0-9,]+) events after the shift", summary["trigger"])
    assert found is not None
    after = int(found[1].replace(",", ""))
    assert 0 <= after < 3_000
    stages = ("before the shift", "after the shift", "as canary", "as champion")
    before, during, on_trial, mended = (accuracy(summary[stage]) for stage in stages)
    assert before > 0.99
    assert during < 0.5
    assert on_trial > 0.9
    assert mended > 0.9
    assert summary["gate"].startswith("accepted ")
    at = [name for name, _ in rows].index("release")
    (first, released), (second, canary), (third, promoted) = (text.split()[:2] for _, text in rows[at:])
    assert (released, canary, promoted) == ("release:", "canary:", "promote:")
    assert first != second == third
    assert summary["as champion"].endswith(f"model {second}")
    for step in ("watching", "drift trigger", "is on trial as canary", "is champion"):
        assert step in done.stderr
    assert list(tmp_path.iterdir()) == []


def running_with(text: str) -> list[str]:
    """Command lines of this machine's processes that have it in them (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it may have ended just now
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [line] if text in line else []
    return found


@pytest.mark.timeout(240)
def test_ctrl_c_ends_the_demo_and_all_it_started(tmp_path: Path) -> None:
    """While events flow: an interrupt, its exit code, and no folder or process left."""
    scratch, log = tmp_path / "scratch", tmp_path / "log"
    scratch.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen(
            COMMAND,
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        give_up = time.monotonic() + 150
        while b"watching" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            time.sleep(0.2)
        assert running_with(str(scratch))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text()
    assert [path for path in scratch.iterdir() if not path.name.startswith("torchinductor")] == []  # torch's own
    assert running_with(str(scratch)) == []
