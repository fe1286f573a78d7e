"""The processes of a soak: started, sampled, killed, ended; what they report on standard output."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.pipelines import ROOT, Process

#: A worker that was told to stop has 25 s to drain (delivery.shutdown_deadline_s); a busy machine gets more.
END_S = 90.0


@dataclass
class Role:
    """One role of the soak, through all the processes that have been it."""

    name: str
    command: Sequence[str]
    log_folder: Path
    #: Talks to us: takes lines on standard input, gives JSON lines on standard output.
    talks: bool = False
    generation: int = -1
    process: Process = field(init=False)
    started_at: float = 0.0
    #: The last line it said.
    said: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        """Start it (again)."""
        self.generation += 1
        log_file = self.log_folder / f"{self.name}-{self.generation}.log"
        with log_file.open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, *self.command],
                cwd=ROOT,
                stdin=subprocess.PIPE if self.talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self.talks else log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C at the terminal is for the soak, which then ends all in order
            )
        self.process, self.started_at = Process(popen, log_file), time.monotonic()
        if self.talks:
            threading.Thread(target=self._listen, args=(popen,), daemon=True).start()

    def _listen(self, popen: "subprocess.Popen[bytes]") -> None:
        assert popen.stdout is not None
        for line in popen.stdout:
            self.said = json.loads(line)

    def tell(self, line: object) -> None:
        """A line for its standard input; one that has ended does not hear it."""
        stdin = self.process.popen.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.write(f"{line}\n".encode())
            stdin.flush()

    def hang_up(self) -> None:
        """End its standard input, and wait until it has ended. Raises AssertionError if it does not, or fails."""
        stdin = self.process.popen.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):
            stdin.close()
        code = self.process.wait(END_S * 2)
        assert code == 0, f"{self.name} ended with {code}: {self.process.log()[-2000:]}"

    def at_work(self) -> bool:
        """Whether this worker has said that it runs."""
        return self.process.popen.poll() is None and '"running"' in self.process.log()

    def kill(self) -> None:
        """SIGKILL."""
        if self.generation >= 0 and self.process.popen.poll() is None:
            self.process.popen.kill()
            self.process.popen.wait()


@contextlib.contextmanager
def environment(**more: str) -> Any:
    """These variables too, for the processes started meanwhile."""
    before: Mapping[str, str | None] = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
