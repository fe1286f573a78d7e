"""What surrounds the hot path, attacked: supervisor, refusal of bad input, bundles, registry, limits, clock, models."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks import job
from pipeline import codec
from tests.faults.conftest import Judge, Make
from tests.pipelines import ROOT, Pipeline, Process, Spoiled, eventually
from tests.unit.schema_registry_server import SchemaRegistryServer

pytestmark = pytest.mark.timeout(300)

YEAR_S = 365 * 86_400


def launch(pipeline: Pipeline, options: list[str], *arguments: str) -> Process:
    """As `pipeline.start`, through tests/faults/launcher.py."""
    log_file = pipeline.folder / f"{len(pipeline.processes)}-launched.log"
    line = [sys.executable, "-m", "tests.faults.launcher", *options, "--", "--config", str(pipeline.config), *arguments]
    with log_file.open("wb") as log:
        popen = subprocess.Popen(line, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    pipeline.processes.append(Process(popen, log_file))
    return pipeline.processes[-1]


def last_line(process: Process) -> str:
    return process.log().rstrip().rpartition("\n")[2]


def children(pid: int) -> list[tuple[int, str]]:
    """Process id and command line of the processes that `pid` started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return [(n, Path(f"/proc/{n}/cmdline").read_bytes().replace(b"\0", b" ").decode()) for n in found]


# --------------------------------------------------------------------------- supervisor


@pytest.mark.case("F36")
def test_the_supervisor_starts_a_killed_worker_again(make: Make, judge: Judge) -> None:
    """SIGKILL of a worker under `run all`: one line, one restart, 0 lost, 0 doubled, exit 0 in the end."""
    events = 100_000
    pipeline = make(
        settings={
            "delivery.mode": "exactly_once",
            "supervisor.backoff_s": 0.1,
            "kafka.consumer_options": {"session.timeout.ms": "6000"},
        }
    )
    values = job.encode_events(events)
    group = pipeline.start("run", "all", "--workers", "2")
    eventually(lambda: group.log().count('"running"') == 3, "two workers and the monitor")
    pipeline.send(values[: events // 2])
    eventually(lambda: pipeline.committed() > events // 10, "the first commits")
    victim = next(pid for pid, line in children(group.popen.pid) if "run worker --slot 1" in line)
    os.kill(victim, signal.SIGKILL)
    group.await_log("starting it again")
    pipeline.send(values[events // 2 :], events // 2)
    pipeline.await_committed(events)
    # The new one ends what the old one left open, before it joins.
    eventually(lambda: group.log().count('"running"') == 4, "the worker again")
    assert group.terminate() == 0, group.log()[-4000:]
    judge(pipeline, events, "exactly_once", kills=1)
    (line,) = [said for said in group.log().splitlines() if "starting it again" in said]
    assert {"worker 1", "SIGKILL"} <= set(json.loads(line).values())


# --------------------------------------------------------------------------- bad input


@pytest.mark.case("F40")
def test_garbage_is_refused_and_not_turned_into_dead_letters(make: Make, counted: Callable[..., None]) -> None:
    """Exit code 3 of the whole group, no restart, dead letters bounded; lifting the limit goes on from there."""
    events, garbage = 20_000, 30_000
    # Steps far smaller than the window, so that there is something to bound.
    pipeline = make(settings={"scoring.step_max": 250, "delivery.commit_interval_ms": 100})
    wrong_id = pipeline.foreign_schema_id().to_bytes(4, "big")
    bad = [b"\0" + wrong_id + value[5:] for value in job.encode_events(garbage)]
    pipeline.send(job.encode_events(events))
    group = pipeline.start("run", "all")
    pipeline.await_committed(events)
    pipeline.send(bad)
    assert group.wait() == 3, group.log()[-4000:]
    refused = pipeline.count(f"{pipeline.name}.dead-letters")
    # Half of the window of 10,000, and what was in flight is not sent.
    assert 0 < refused <= 5_000
    assert group.log().count('"running"') == 2  # worker and monitor, once each
    said = next(line for line in group.log().splitlines() if "input refused" in line)
    assert "schema_mismatch" in said
    assert "input.bad_share_max" in said
    assert "a restart does not mend" in last_line(group)

    # As it was: refused again at once, before anything is sent.
    assert pipeline.start("run", "worker").wait() == 3
    assert pipeline.count(f"{pipeline.name}.dead-letters") < refused + 1_000

    worker = pipeline.start("--set", "input.bad_share_max=1", "run", "worker")
    eventually(lambda: pipeline.committed() == events + garbage, "all of it committed")
    assert worker.terminate() == 0
    letters = Counter(letter.value for letter in pipeline.dead_letters())
    assert set(letters) == set(bad)
    assert len(pipeline.outputs().numbers) == events
    counted(events=events, garbage=garbage, dead_letters_before_the_stop=refused, exit_code=3)


@pytest.mark.case("F40")
def test_bad_input_below_the_limit_goes_through(make: Make, counted: Callable[..., None]) -> None:
    """One event in three broken, in all ways: every one a dead letter, the others scored, no stop."""
    events = 30_000
    pipeline = make()
    spoiled = Spoiled.every(3, events, pipeline.foreign_schema_id())
    pipeline.send(spoiled.values)
    worker = pipeline.start("run", "worker")
    pipeline.await_committed(events)
    assert worker.terminate() == 0
    numbers = np.bincount(pipeline.outputs().numbers, minlength=events)
    assert (numbers == spoiled.good()).all()
    letters = Counter((letter.key, letter.value, letter.reason) for letter in pipeline.dead_letters())
    assert letters == spoiled.expected_dead_letters()
    counted(events=events, broken=len(spoiled.rows), lost=0, duplicated=0)


# --------------------------------------------------------------------------- bundle


@pytest.mark.case("F31")
def test_a_bundle_that_was_changed_is_refused_and_the_running_worker_goes_on(make: Make, judge: Judge) -> None:
    """Weights cut short, weights swapped, a digest changed: exit code 1 before joining; what runs keeps its model."""
    events = 60_000
    pipeline = make()
    values = job.encode_events(events)
    bundle = pipeline.config.parent / "models" / "champion"
    kept = pipeline.folder / "kept"
    shutil.copytree(bundle, kept)
    (weights,) = [file for file in bundle.iterdir() if file.suffix == ".safetensors"]
    (manifest,) = [file for file in bundle.iterdir() if file.suffix == ".json"]
    worker = pipeline.start("run", "worker")
    pipeline.send(values[: events // 2])
    pipeline.await_committed(events // 2)

    whole = weights.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    digest = re.search(r"[0-9a-f]{64}", manifest.read_text())
    assert digest is not None
    damages: dict[Path, list[bytes]] = {
        weights: [whole[: len(whole) // 2], bytes(flipped)],
        manifest: [manifest.read_bytes().replace(digest[0].encode(), b"0" * 64)],
    }
    for file, contents in damages.items():
        good = file.read_bytes()
        for content in contents:
            file.write_bytes(content)
            refused = pipeline.start("run", "worker", "--slot", "2")
            assert refused.wait() == 1, refused.log()
            assert "champion" in last_line(refused)
            assert '"running"' not in refused.log()
            pipeline.processes.remove(refused)
        file.write_bytes(good)
    weights.unlink()
    pipeline.send(values[events // 2 :], events // 2)
    pipeline.await_committed(events)
    assert worker.terminate() == 0
    assert worker.log().count('"rebalanced"') == 1
    judge(pipeline, events, "at_least_once")


# --------------------------------------------------------------------------- registry


@pytest.mark.case("F33")
def test_a_new_schema_waits_for_a_registry_that_is_away(make: Make, judge: Judge) -> None:
    """Known ids go on; a new id waits through refused connections and 500s, and is scored then: no dead letter."""
    events, new = 40_000, 1_000
    with ExitStack() as stack:
        server = stack.enter_context(SchemaRegistryServer())
        pipeline = make(settings={"delivery.mode": "exactly_once", "registry.url": server.url})
        registry = codec.open_registry(server.url, Path(), None)
        subject = f"{pipeline.job.input_topic}-value"
        assert registry.register(subject, job.EVENT_SCHEMA_JSON) == job.EVENT_SCHEMA_ID
        worker = pipeline.start("run", "worker")
        values = job.encode_events(events)
        pipeline.send(values[:10_000])
        pipeline.await_committed(10_000)
        added = {"name": "note", "type": ["null", "string"], "default": None}
        wider = {**job.EVENT_SCHEMA, "fields": [*job.EVENT_SCHEMA["fields"], added]}
        header = job.wire_header(registry.register(subject, json.dumps(wider)))

        server.stop()
        pipeline.send(values[10_000:20_000], 10_000)
        pipeline.await_committed(20_000)
        pipeline.send([header + value[5:] + b"\0" for value in values[20_000 : 20_000 + new]], 20_000)
        pipeline.send(values[20_000 + new :], 20_000 + new)
        worker.await_log("waiting for the registry")
        again = stack.enter_context(server.again())
        again.fail_with = 500
        worker.await_log("HTTP 500")
        assert pipeline.committed() < events
        again.fail_with = None
        pipeline.await_committed(events)
        assert worker.terminate() == 0
        judge(pipeline, events, "exactly_once", of_the_new_schema=new)
        assert pipeline.dead_letters() == []


@pytest.mark.case("F33")
def test_a_worker_that_starts_waits_for_the_registry(make: Make, judge: Judge) -> None:
    """Away at the start: the worker says so and waits; it works once the registry is there."""
    events = 5_000
    with ExitStack() as stack:
        server = stack.enter_context(SchemaRegistryServer())
        pipeline = make(settings={"registry.url": server.url})
        subject = f"{pipeline.job.input_topic}-value"
        codec.open_registry(server.url, Path(), None).register(subject, job.EVENT_SCHEMA_JSON)
        server.stop()
        pipeline.send(job.encode_events(events))
        roles = pipeline.start("run", "all")
        eventually(lambda: roles.log().count("waiting for the registry") >= 2, "both roles wait")
        stack.enter_context(server.again())
        pipeline.await_committed(events)
        assert roles.terminate() == 0, roles.log()[-4000:]
        judge(pipeline, events, "at_least_once")


# --------------------------------------------------------------------------- limits of the machine


def metrics_port(worker: Process) -> int:
    """Where it serves its metrics; it has said so."""
    worker.await_log('"metrics"')
    found = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", worker.log())
    assert found is not None
    return int(found[1])


@contextmanager
def deaf_scrapers(port: int, count: int) -> Iterator[None]:
    """Clients that ask for the metrics and never read a byte of the answer."""
    with ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        yield


@pytest.mark.case("F34")
def test_deaf_scrapers_and_no_more_files_do_not_disturb_a_worker(make: Make, judge: Judge) -> None:
    """Thirty scrapers that read nothing, then not one more file to open: all is scored, and it stops in order."""
    events = 60_000
    pipeline = make()
    values = job.encode_events(events)
    worker = pipeline.start("run", "worker")
    port = metrics_port(worker)
    pipeline.send(values[:20_000])
    pipeline.await_committed(20_000)
    with deaf_scrapers(port, 30):
        pipeline.send(values[20_000:40_000], 20_000)
        pipeline.await_committed(40_000)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            assert b"pipeline_events_total" in answer.read()
    opened = len(list(Path(f"/proc/{worker.popen.pid}/fd").iterdir()))
    resource.prlimit(worker.popen.pid, resource.RLIMIT_NOFILE, (opened, opened))
    with deaf_scrapers(port, 3):
        pipeline.send(values[40_000:], 40_000)
        pipeline.await_committed(events)
    assert worker.terminate() == 0, worker.log()[-4000:]
    judge(pipeline, events, "at_least_once", scrapers=33, files_allowed=opened)


@pytest.mark.case("F34")
@pytest.mark.parametrize(("limit", "said"), [("files=6", "Too many open files"), ("memory=700000000", "out of memory")])
def test_a_worker_that_starts_with_too_little_says_so(make: Make, limit: str, said: str) -> None:
    """Too few files or too little memory from the start: exit code 10, and the last line says what ran out."""
    worker = launch(make(), [limit], "run", "worker")
    assert worker.wait() == 10, worker.log()[-4000:]
    assert last_line(worker).startswith("error: ")
    assert said in last_line(worker)


# --------------------------------------------------------------------------- clock


@pytest.mark.case("F38")
def test_the_wall_clock_may_jump(make: Make, judge: Judge) -> None:
    """Years forward and back while it works: nothing is lost or doubled, no rebalance, and the stop is in order."""
    events, jumps_s = 100_000, (0, 20 * YEAR_S, -20 * YEAR_S, 3_600, -1)
    pipeline = make(settings={"delivery.mode": "exactly_once", "delivery.commit_interval_ms": 100})
    clock = pipeline.folder / "clock"
    clock.write_text("0")
    worker = launch(pipeline, [f"clock={clock}"], "run", "worker")
    values, step = job.encode_events(events), events // len(jumps_s)
    for n, jump_s in enumerate(jumps_s):
        swap = pipeline.folder / "clock.new"
        swap.write_text(str(jump_s))
        swap.replace(clock)
        # Half of the events before the jump is noticed, the other half after.
        pipeline.send(values[n * step : (n + 1) * step], n * step)
        pipeline.await_committed((n + 1) * step)
    clock.write_text(str(YEAR_S))
    assert worker.terminate() == 0, worker.log()[-4000:]
    judge(pipeline, events, "exactly_once", jumps=len(jumps_s))
    assert worker.log().count('"rebalanced"') == 1
    assert '"level": "error"' not in worker.log()


# --------------------------------------------------------------------------- model


@pytest.mark.case("F32", "B18")
def test_a_nan_of_the_model_is_one_dead_letter(make: Make, counted: Callable[..., None]) -> None:
    """Each event that the model answers with NaN becomes a dead letter; its neighbours are scored."""
    events = 40_000
    firsts = job.features(events)[:, 0]
    above = float(np.sort(firsts)[-26])
    pipeline = make(module="tests.faults.faulty_models:AnswersNan", arguments={"above": above})
    pipeline.send(job.encode_events(events))
    worker = pipeline.start("run", "worker")
    pipeline.await_committed(events)
    assert worker.terminate() == 0
    poisoned = np.flatnonzero(firsts > above)
    assert len(poisoned) == 25
    letters, values = pipeline.dead_letters(), job.encode_events(events)
    assert Counter(letter.value for letter in letters) == Counter(values[row] for row in poisoned)
    assert {letter.reason for letter in letters} == {"output_not_finite"}
    outputs = pipeline.outputs()
    assert sorted(outputs.numbers) == sorted(set(range(events)) - set(poisoned.tolist()))
    assert outputs.scores is None or np.isfinite(outputs.scores).all()
    counted(events=events, nan=len(poisoned), dead_letters=len(letters), lost=0, duplicated=0)


@pytest.mark.case("F32")
@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("shape", "returned float32"),
        ("memory", "no memory for this batch"),
        ("allocation", "memory"),  # torch's own refusal, for real
    ],
)
def test_a_model_that_cannot_answer_ends_the_worker(make: Make, way: str, said: str) -> None:
    """Wrong shape or no memory: bounded tries, exit code 6 with the cause; that event is not committed."""
    events, poison = 6_000, 3_000
    pipeline = make(
        module="tests.faults.faulty_models:Breaks",
        arguments={"value": float(job.features(events)[poison, 0]), "way": way},
        settings={"scoring.retries_max": 1, "scoring.retry_backoff_ms": 10.0, "scoring.step_max": 1_000},
    )
    pipeline.send(job.encode_events(events))
    worker = pipeline.start("run", "worker")
    assert worker.wait() == 6, worker.log()[-4000:]
    assert said in last_line(worker)
    assert "after 2 tries" in last_line(worker)
    assert pipeline.committed() < events
    assert poison not in (pipeline.outputs().numbers if pipeline.predicted() else [])
