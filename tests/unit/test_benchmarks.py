"""The benchmark harness: events, verification, summaries, and how it treats systems that die or stall."""

import dataclasses
import importlib.util
import io
import sys
import time
from pathlib import Path

import fastavro
import numpy as np
import pyarrow as pa
import pytest

from benchmarks import job, processes, report, run, verify
from benchmarks.report import Measurement
from benchmarks.rivals import environments
from benchmarks.systems import CORE, SYSTEMS


def outputs(events: int) -> verify.Outputs:
    """Right outputs for events 0..events-1, in another order than the events."""
    order = np.random.default_rng(3).permutation(events)
    times = np.linspace(1_000, 3_000, events).astype(np.int64)
    return verify.Outputs(order, job.keys(events)[order], job.expected_scores(events)[order], times)


class TestJob:
    def test_events_are_avro_in_the_wire_format(self) -> None:
        """The hand-laid bytes say to an Avro library exactly what the columns say."""
        schema, events = fastavro.parse_schema(job.EVENT_SCHEMA), 1_000
        features, keys, ids = job.features(events), job.keys(events), job.ids(events)
        for i, value in enumerate(job.encode_events(events)):
            stream = io.BytesIO(value)
            assert stream.read(5) == job.wire_header(job.EVENT_SCHEMA_ID)
            record = fastavro.schemaless_reader(stream, schema, None)
            assert stream.read() == b""
            assert record["id"] == ids[i].decode() == f"e{i:015d}"
            assert record["key"] == keys[i].decode()
            assert record["time"].timestamp() * 1000 == pytest.approx(job.FIRST_TIME_MS + i)
            assert [record[name] for name in job.FEATURES] == features[i].tolist()

    def test_fewer_events_are_a_prefix_of_more(self) -> None:
        """A slow system's smaller topic has the same first events, keys and right answers."""
        assert job.encode_events(50) == job.encode_events(80)[:50]
        np.testing.assert_allclose(job.expected_scores(50), job.expected_scores(80)[:50], atol=1e-6)

    def test_model_is_the_same_every_time(self) -> None:
        """Weights are fixed, and making them leaves torch's own random numbers alone."""
        torch = pytest.importorskip("torch")
        torch.manual_seed(1)
        expected = torch.rand(1)
        torch.manual_seed(1)
        first = job.model().state_dict()
        assert torch.rand(1) == expected
        assert all(torch.equal(first[name], weights) for name, weights in job.model().state_dict().items())

    def test_command_line_round_trip(self) -> None:
        """What the harness puts on a system's command line is what the system reads."""
        given = job.Job("h:1", "in", "out", "group", 7)
        assert job.Job.parse(given.arguments()) == given


class TestCompare:
    def test_right_outputs_are_right(self) -> None:
        """Every event once, in any order, is right."""
        verdict = verify.compare(outputs(500), 500)
        assert verdict.right
        assert str(verdict) == "right"

    def test_a_lost_output_is_found(self) -> None:
        """One output fewer is one lost, whatever its place."""
        good = outputs(500)
        kept = verify.Outputs(*(np.delete(column, 123) for column in vars(good).values()))
        assert verify.compare(kept, 500) == verify.Verdict(1, 0, 0, 0, 0, pytest.approx(0, abs=1e-6))

    def test_a_duplicate_in_place_of_another_is_a_loss_too(self) -> None:
        """The count of outputs is right and yet one is lost and one is there twice."""
        good = outputs(500)
        rows = np.arange(500)
        rows[10] = 11
        verdict = verify.compare(verify.Outputs(*(column[rows] for column in vars(good).values())), 500)
        assert (verdict.lost, verdict.duplicated) == (1, 1)
        assert str(verdict) == "1 lost, 1 duplicated"

    @pytest.mark.parametrize("wrong", [2e-5, -2e-5, np.nan])
    def test_a_wrong_score_is_found(self, wrong: float) -> None:
        """A score off by more than the tolerance, or NaN, is wrong."""
        good = outputs(500)
        scores = good.scores.copy()
        scores[77] += wrong
        verdict = verify.compare(dataclasses.replace(good, scores=scores), 500)
        assert verdict.wrong_scores == 1
        assert not verdict.right

    def test_a_score_of_another_event_is_found(self) -> None:
        """Right scores under the wrong ids are wrong."""
        good = outputs(500)
        verdict = verify.compare(dataclasses.replace(good, scores=np.roll(good.scores, 1)), 500)
        assert verdict.wrong_scores > 450

    def test_a_wrong_key_is_found(self) -> None:
        """An output under another event's key is wrong."""
        good = outputs(500)
        keys = good.keys.copy()
        keys[5] = b"other"
        assert verify.compare(dataclasses.replace(good, keys=keys), 500).wrong_keys == 1

    def test_an_unknown_id_is_foreign(self) -> None:
        """An id beyond the events, or no id at all, is neither ignored nor a crash."""
        good = outputs(500)
        numbers = good.numbers.copy()
        numbers[:2] = (500, -1)
        verdict = verify.compare(dataclasses.replace(good, numbers=numbers), 500)
        assert (verdict.foreign, verdict.lost) == (2, 2)

    def test_an_output_without_scores_is_checked_for_the_rest(self) -> None:
        """The echo has no scores, and no wrong ones."""
        good = dataclasses.replace(outputs(500), scores=None)
        assert verify.compare(good, 500).right
        assert verify.compare(good, 501).lost == 1

    def test_event_numbers(self) -> None:
        """Numbers come out of ids; anything else is -1."""
        ids = pa.array(["e000000000000042", "x000000000000042", "e42", "", "e00000000000004x"])
        assert verify.event_numbers(ids).tolist() == [42, -1, -1, -1, -1]

    def test_readers_read_what_was_written(self) -> None:
        """The echo's reader finds the ids, and refuses values under another schema's id."""
        values = job.encode_events(20)
        ids, scores = verify.read_events(values)
        assert ids.to_pylist() == [i.decode() for i in job.ids(20)]
        assert scores is None
        with pytest.raises(ValueError, match="schema id"):
            verify.read_scores(values)

    def test_span_is_from_the_first_append_to_the_last(self) -> None:
        """Seconds, and never zero."""
        good = outputs(500)
        assert good.span_s() == 2.0
        assert dataclasses.replace(good, appended_ms=np.full(500, 7)).span_s() == 0.001


def runs(system: str, *rates: float, **more: object) -> list[Measurement]:
    return [Measurement(system, i, 1_000_000, rate, cpu_working_s=2.0, **more) for i, rate in enumerate(rates, 1)]


class TestReport:
    def test_medians_ranges_and_ratios(self) -> None:
        """Ratios are taken within each round, then their median."""
        echo, hand = report.summarise([*runs("echo", 800e3, 400e3, 600e3), *runs("hand", 400e3, 300e3, 330e3)])
        assert echo.events_per_s == report.Range(600e3, 400e3, 800e3)
        assert (echo.to_limit, echo.to_hand) == (1.0, pytest.approx(600 / 330))
        assert (hand.to_limit, hand.to_hand) == (0.55, 1.0)
        assert hand.cpu_s_per_million == report.Range(2.0, 2.0, 2.0)

    def test_failed_runs_do_not_count_but_show(self) -> None:
        """A fault takes the run out of every number and stays in the table."""
        bad = Measurement("hand", 2, 1_000_000, fault="stalled")
        summaries = report.summarise([*runs("echo", 800e3, 800e3), *runs("hand", 400e3), bad])
        assert summaries[1].events_per_s == report.Range(400e3, 400e3, 400e3)
        assert summaries[1].failed == 1
        assert "1 of 2 runs failed" in report.table(summaries, {})

    def test_a_system_that_always_fails_has_no_numbers(self) -> None:
        """No division, no rate: a row that says so."""
        summaries = report.summarise([Measurement("faust", 1, 50_000, fault="died")])
        assert summaries[0].events_per_s is None
        assert "| - | - | - | - | - | - | failed |" in report.table(summaries, {})

    def test_wrong_outputs_are_named_in_the_table(self) -> None:
        """A fast but wrong system does not look right."""
        text = report.table(report.summarise(runs("echo", 1e6, verdict="3 lost")), {"echo": "limit"})
        assert "| limit | 1,000,000 |" in text
        assert "3 lost" in text

    def test_ratio_to_an_absent_system_is_a_dash(self) -> None:
        """Without the echo there is no ratio to it."""
        assert report.summarise(runs("hand", 400e3))[0].to_limit is None


def eventually_gone(pid: int) -> bool:
    """Whether a killed process ends within 10 s: SIGKILL is sent at once, and takes effect a moment later."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        try:
            if ") Z " in Path(f"/proc/{pid}/stat").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


class TestProcesses:
    """A system is any command; these are small ones, and the count of outputs is scripted."""

    @staticmethod
    def run(tmp_path: Path, code: str, done: int = 10, **more: object) -> processes.Usage:
        options = {"ends_itself": True, "committed": lambda: 10, **more}
        return processes.run_system([sys.executable, "-c", code], tmp_path / "log", lambda: done, 10, **options)

    def test_usage_of_a_system_that_ends_itself(self, tmp_path: Path) -> None:
        """CPU time and memory are sampled while it runs; what was used before the first output is told apart."""
        code = "import time; x = b'x' * 50_000_000; sum(range(3_000_000)); time.sleep(1.5)"
        counts = iter([0] * 10)
        usage = processes.run_system(
            [sys.executable, "-c", code],
            tmp_path / "log",
            lambda: next(counts, 10),
            10,
            ends_itself=True,
            committed=lambda: 10,
        )
        assert usage.rss_bytes > 50_000_000
        assert 0 <= usage.cpu_working_s < usage.cpu_s

    def test_a_system_that_does_not_end_is_told_to(self, tmp_path: Path) -> None:
        """SIGTERM once all is committed, and a clean end counts as success."""
        code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(60)"
        # Committed at the third question, long after the handler is in place.
        answers = iter([0] * 5 + [10] * 100)
        assert self.run(tmp_path, code, ends_itself=False, committed=lambda: next(answers)).wall_s < 30

    def test_a_dead_system_is_reported_with_its_log(self, tmp_path: Path) -> None:
        """The message has the exit status and the end of the log."""
        with pytest.raises(processes.SystemFailedError, match=r"(?s)status 3 after 4 of 10.*no model"):
            self.run(tmp_path, "import sys; print('no model'); sys.exit(3)", done=4)

    def test_a_stalled_system_is_ended(self, tmp_path: Path) -> None:
        """No new output within the limit ends it, its children too."""
        code = "import os, time; os.fork(); print(os.getpid(), flush=True); time.sleep(60)"
        with pytest.raises(processes.SystemFailedError, match=r"stalled 1 s at 4 of 10"):
            self.run(tmp_path, code, done=4, stall_s=1.0)
        for pid in (tmp_path / "log").read_text().split():
            assert eventually_gone(int(pid)), f"process {pid} outlived its system"


class TestSystems:
    def test_every_rival_runs_in_its_own_environment(self, tmp_path: Path) -> None:
        """Its module is there, its requirements are pinned, and its command line starts its environment's Python."""
        given = job.Job("h:1", "in", "out", "group", 7)
        rivals = {name: system for name, system in SYSTEMS.items() if system.environment is not None}
        assert {system.environment for system in rivals.values()} == {"quix", "bytewax", "faststream", "spark"}
        for system in rivals.values():
            python, _, module, *arguments = system.command(given, tmp_path)
            assert python == str(environments.python(system.environment))
            assert importlib.util.find_spec(module) is not None
            assert job.Job.parse(arguments) == given
            pins = (environments.REQUIREMENTS / f"{system.environment}.txt").read_text().split()
            assert all("==" in pin for pin in pins)

    def test_a_quick_run_needs_no_environment(self) -> None:
        """The core is there, and runs in the interpreter at hand."""
        assert all(SYSTEMS[name].environment is None for name in CORE)
        assert run.prepare(CORE) == {}

    def test_an_environment_that_cannot_be_made_stops_no_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is tried once, and the reason is kept for all systems that need it."""
        tried = []

        def make(name: str) -> None:
            tried.append(name)
            if name == "quix":
                raise environments.EnvironmentFailedError("no network")

        monkeypatch.setattr(environments, "make", make)
        assert run.prepare(["echo", "quix", "quix-batches", "bytewax"]) == {"quix": "no network"}
        assert tried == ["quix", "bytewax"]


class TestEnvironments:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Environments and requirements in a folder of the test's own; nothing is fetched."""
        monkeypatch.setattr(environments, "FOLDER", tmp_path / "environments")
        monkeypatch.setattr(environments, "REQUIREMENTS", tmp_path)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        return tmp_path

    def test_it_sees_the_running_interpreters_packages(self, folder: Path) -> None:
        """What is installed here already is not fetched again; a second call makes nothing."""
        (folder / "some.txt").write_text(f"pyarrow=={pa.__version__}\n")
        said: list[str] = []
        environments.make("some", said.append)
        environments.make("some", said.append)
        assert [line.split()[1] for line in said] == ["installing", "installed"]

    def test_what_cannot_be_installed_is_named(self, folder: Path) -> None:
        """The message has pip's own, and the environment does not look complete."""
        (folder / "some.txt").write_text("no-such-package-of-ours==1\n")
        with pytest.raises(environments.EnvironmentFailedError, match=r"(?s)some: .*no-such-package-of-ours==1"):
            environments.make("some", lambda _line: None)
        assert not (folder / "environments" / "some" / "made-of").exists()
