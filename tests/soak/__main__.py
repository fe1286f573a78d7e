"""`python -m tests.soak`: hours of load with workers being killed, every prediction checked. See docs/soak.md."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.soak import report
from tests.soak.supervisor import Plan, Soak
from tests.soak.verdict import judge


def main() -> int:
    """0 if everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of the steady part (60)")
    parser.add_argument("--kill-every-s", type=float, default=30.0, help="one SIGKILL in so many seconds (30)")
    parser.add_argument("--peak-s", type=float, default=60.0, help="how long the peak rate is measured (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and victims")
    parser.add_argument("--out", type=Path, help="folder for soak.json, soak.md and images/soak.svg")
    parser.add_argument("--folder", type=Path, help="for broker and logs, about 3 GB; kept (default: temporary)")
    given = parser.parse_args()
    plan = Plan(given.minutes * 60, given.kill_every_s, peak_s=given.peak_s, seed=given.seed)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(plan, folder, _say)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def interrupt(number: int, _frame: Any) -> None:
        """Once: end in order. Twice: as the signal means."""
        _say("ending early; once more ends at once")
        soak.interrupt()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, interrupt)
    found = judge(soak.run(), plan)
    for line in report.summary(found):
        _say(line)
    if given.out is not None:
        report.write(found, given.out)
    if found["passed"] and given.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        (folder / "soak.json").write_text(json.dumps(found) + "\n", "utf-8")
        _say(f"logs and results: {folder}")
    return 0 if found["passed"] else 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
