"""`python -m tests.faults.launcher OPTION=VALUE ... -- ARGUMENTS`: the pipeline's command under a changed system.

files=N, memory=BYTES: limits of open files and of address space, from the start.
clock=FILE: the wall clock that Python code reads is off by the seconds that stand in FILE, which may change at any
moment. Time that only runs (`time.monotonic`) stays what it is, as it does when an operator sets a machine's clock.
"""

import resource
import sys
import threading
import time
from pathlib import Path

LIMITS = {"files": resource.RLIMIT_NOFILE, "memory": resource.RLIMIT_AS}
POLL_S = 0.02


def shift_clock(file: Path) -> None:
    """Put `time.time` and `time.time_ns` off by what `file` says, now and later."""
    real, real_ns, shift_s = time.time, time.time_ns, [0]

    def follow() -> None:
        while True:
            shift_s[0] = int(file.read_text() or 0)
            time.sleep(POLL_S)

    time.time = lambda: real() + shift_s[0]
    time.time_ns = lambda: real_ns() + shift_s[0] * 1_000_000_000
    threading.Thread(target=follow, daemon=True).start()


def main() -> None:
    """Apply the options, then be the command."""
    at = sys.argv.index("--")
    for option in sys.argv[1:at]:
        name, _, value = option.partition("=")
        if name == "clock":
            shift_clock(Path(value))
        else:
            resource.setrlimit(LIMITS[name], (int(value), int(value)))
    sys.argv = ["pipeline", *sys.argv[at + 1 :]]
    from pipeline.cli import main as pipeline  # only now: nothing may have read the clock before

    pipeline()


if __name__ == "__main__":
    main()
