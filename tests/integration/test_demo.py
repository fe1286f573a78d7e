"""`pipeline demo` as a newcomer runs it: its own Kafka, its own model, its own balance."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(240)
def test_the_demo_accounts_for_every_event_and_finds_its_shift(tmp_path: Path) -> None:
    """Exit code 0: nothing lost or doubled, every broken record a dead letter, the shift found within 3,000 events.

    `demo` itself compares every output and exits with 1 otherwise; here its summary is read as a person would.
    """
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "demo", "--rows", "8000", "--rate", "1000"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.strip("│ ").split("│") for line in done.stdout.splitlines() if "│" in line]
    summary = {line[0].strip(): line[1].strip() for line in lines if len(line) > 1 and line[0].strip()}
    assert summary["events in"] == "8,000"
    assert summary["predictions out"] == "7,993"
    assert summary["dead letters"].startswith("7: ")
    assert summary["lost"] == summary["duplicated"] == summary["uncommitted"] == "0"
    found = re.search(r"([0-9,]+) events after the shift", summary["trigger"])
    assert found is not None
    after = int(found[1].replace(",", ""))
    assert 0 <= after < 3_000
    assert list(tmp_path.iterdir()) == []
