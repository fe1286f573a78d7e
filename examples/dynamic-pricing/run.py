"""The whole example with one command, in a few minutes: what README.md says, one after the other.

    python examples/dynamic-pricing/run.py

It runs a Kafka of its own, or uses the one that PIPELINE__KAFKA__BOOTSTRAP_SERVERS names. All that it makes is in the
folder `pricing`; the plots are in `pricing/plots`.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
PIPELINE = (sys.executable, "-m", "pipeline.cli")
BOOTSTRAP = "PIPELINE__KAFKA__BOOTSTRAP_SERVERS"
PORT = "PIPELINE__OBSERVE__PORT"
#: Where the processes of `run all` serve their metrics, counted from observe.port.
PORTS = (0, 1, 70, 80, 81)
#: To leave in order.
STOP_TIMEOUT_S = 60.0


def main() -> None:
    """Run all steps; the exit code of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("pricing"), help="project folder to make")
    parser.add_argument("--days", help="play only so many days of the market")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what runs is stopped on the way out
    folder, days = options.folder, [] if options.days is None else ["--days", options.days]
    python(HERE / "prepare.py", folder, *days)
    pipeline("model train --data first.csv --drop period_of_day --out models/champion", folder)
    with ExitStack() as stack:
        if BOOTSTRAP not in os.environ:
            os.environ[BOOTSTRAP] = stack.enter_context(broker(folder))
        if PORT not in os.environ:
            os.environ[PORT] = str(free_ports())
        pipeline("topics create", folder)
        pipeline("check", folder)
        with roles(folder):
            python(HERE / "market.py", cwd=folder)
        pipeline("tail triggers --from-beginning --until-end", folder)
        pipeline("tail reports --from-beginning --until-end", folder)
        pipeline("model history", folder)
        pipeline("quality", folder)
        pipeline("evaluate --data market.csv --window-rows 672 --delay-rows 48 --out first-model", folder)
        python(HERE / "plot.py", cwd=folder)


def pipeline(arguments: str, folder: Path) -> None:
    """Run `pipeline ARGUMENTS` in the project folder."""
    print(f"\n$ pipeline {arguments}", flush=True)
    run([*PIPELINE, *arguments.split()], folder)


def python(script: Path, *arguments: object, cwd: Path | None = None) -> None:
    """Run one of the scripts beside this one."""
    print(f"\n$ python {' '.join(map(str, (script.name, *arguments)))}", flush=True)
    run([sys.executable, str(script), *map(str, arguments)], cwd)


def run(command: list[str], cwd: Path | None) -> None:
    if code := subprocess.run(command, cwd=cwd, check=False).returncode:
        sys.exit(code)


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """`pipeline broker`, with nothing kept; its address."""
    command = [*PIPELINE, "broker", "--ephemeral", "--port", "0"]
    print("\n$ pipeline broker --ephemeral --port 0", flush=True)
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            if not (address := process.stdout.readline().strip()):
                sys.exit(f"no Kafka: see {folder / 'broker.log'}")
            yield address
        finally:
            stop(process)


@contextmanager
def roles(folder: Path) -> Iterator[None]:
    """`pipeline run all`, with its log in run.log."""
    print("\n$ pipeline run all > run.log 2>&1 &", flush=True)
    with (folder / "run.log").open("wb") as log:
        process = subprocess.Popen([*PIPELINE, "run", "all"], cwd=folder, stdout=log, stderr=log)
        try:
            yield
        finally:
            stop(process)


def stop(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    """End it in order."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports() -> int:
    """A value of observe.port such that nothing listens where the processes will."""
    for first in range(21_000, 31_000, 100):
        try:
            for port in PORTS:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", first + port))
        except OSError:
            continue
        return first
    sys.exit("no free ports from 21000 to 31000")


if __name__ == "__main__":
    main()
