"""`pipeline model release` and its like, as a person types them, on a real Kafka."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner, Result

from pipeline import codec
from pipeline.bus import topics
from pipeline.bus.clients import ClientOptions, make_admin
from pipeline.cli import make_app
from pipeline.models import bundle as bundles
from pipeline.models import loading
from pipeline.models.fetching import fetch
from pipeline.models.manifest import Architecture
from pipeline.records import Feature, FeatureContract, OutputContract
from pipeline.retraining.reports import RetrainingReport, to_row
from pipeline.settings import load

EVENT = {
    "type": "record",
    "name": "Order",
    "fields": [{"name": "id", "type": "string"}, {"name": "amount", "type": "double"}],
}


class Project:
    """A project folder with an event schema, and bundles v1, v2, ... that fit it."""

    def __init__(self, folder: Path, name: str, bootstrap_servers: str) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "event.avsc").write_text(json.dumps(EVENT), "utf-8")
        (folder / "pipeline.toml").write_text(
            f'name = "{name}"\nkafka.bootstrap_servers = "{bootstrap_servers}"\nevents.schema_file = "event.avsc"\n',
            "utf-8",
        )

    def bundle(self, version: str, feature: str = "amount", hidden: int = 2) -> str:
        """The path of a new bundle."""
        architecture = Architecture(
            module="pipeline.models.architectures:TabularMLP",
            arguments={"numbers": 1, "outputs": 1, "hidden": [hidden]},
        )
        made = bundles.make(
            model_id="shop",
            model_version=version,
            architecture=architecture,
            contract=FeatureContract((Feature(feature, "number"),), OutputContract("regression", 1)),
            weights=loading.weights_of(loading.build(architecture)),
        )
        path = self.folder / "models" / version
        bundles.write(made, path, overwrite=True)
        return str(path)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(make_app(), ["--config", str(self.folder / "pipeline.toml"), "model", *arguments])

    def ok(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def refused(self, *arguments: str, code: int = 1) -> str:
        """The one line of an error."""
        result = self.run(*arguments)
        assert result.exit_code == code, (result.output, result.exception)
        (line,) = result.stderr.splitlines()
        return line

    def report(self, report_id: str, challenger: str, approval: Any, champion: str = "v1", uri: str = "") -> None:
        """Write a report of the gate, as the retrainer does."""
        settings = load(self.folder / "pipeline.toml", environment={})
        topic, schema = settings.topic("retraining_reports"), codec.load_schema("retraining-report")
        registry = codec.registry_of(settings)
        options = ClientOptions.from_settings(settings)
        topics.create(make_admin(options), [spec for spec in topics.specs(settings) if spec.name == topic])
        report = RetrainingReport(
            report_id, None, settings.name, "shop", champion, challenger, uri or f"models/{challenger}",
            approval != "none", approval, (), "error", 1_000, {}, {}, "{}", 1,
        )  # fmt: skip
        schema_id = registry.register(f"{topic}-value", schema)
        producer = Producer({"bootstrap.servers": settings.kafka.bootstrap_servers})
        producer.produce(topic, codec.RowCodec(registry).encode(schema_id, schema, to_row(report)), report_id)
        assert producer.flush(20) == 0

    def slots(self) -> dict[str, str]:
        return {row["slot"]: row["model_version"] for row in self.rows("list")}

    def rows(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.ok(*arguments, "--json").splitlines()]


@pytest.fixture
def project(tmp_path: Path, kafka: str, unique: Callable[[str], str]) -> Project:
    """See Project."""
    return Project(tmp_path / "shop", unique("cli-releases"), kafka)


def test_a_model_s_way_from_canary_to_champion_and_back(project: Project) -> None:
    """Each command says what holds then; list and history say it again, and what was released can be fetched."""
    one, two = project.bundle("v1"), project.bundle("v2")
    assert project.refused("list").endswith("`pipeline topics create` makes it")
    assert project.ok("release", one, "--reason", "the first", "--by", "ann") == "champion: shop v1\n"
    assert project.ok("canary", two) == "champion: shop v1\ncanary: shop v2, 10% of the events\n"
    assert project.ok("canary", two, "--share", "0.125") == "champion: shop v1\ncanary: shop v2, 12.5% of the events\n"
    assert project.ok("promote", "--by", "bob") == "champion: shop v2\n"
    shutil.rmtree(project.folder / "models")  # what was released is in the store
    for row in project.rows("list"):
        cache = project.folder / "cache"
        found = fetch(row["uri"], row["manifest_sha256"], cache=cache, root=project.folder)
        assert (found.model_id, found.model_version) == ("shop", row["model_version"])
    assert project.ok("rollback", "--reason", "refunds") == "champion: shop v1\n"
    assert project.slots() == {"champion": "v1"}
    assert [(r["action"], r["model_version"], r["share"], r["released_by"]) for r in project.rows("history")][:2] == [
        ("release", "v1", 1.0, "ann"),
        ("canary", "v2", 0.1, project.rows("history")[1]["released_by"]),
    ]
    assert [r["action"] for r in project.rows("history")] == ["release", "canary", "canary", "promote", "rollback"]
    shown = project.ok("history", "--max", "2")
    assert shown.count("rollback") == 1
    assert "refunds" in shown
    assert "the first" not in shown
    assert "refunds" in project.ok("list")


def test_shadows_come_and_go(project: Project) -> None:
    """A shadow is withdrawn or promoted; the champion cannot be withdrawn."""
    one, two, three = (project.bundle(f"v{n}") for n in (1, 2, 3))
    project.ok("release", one)
    project.ok("shadow", two)
    assert project.slots() == {"champion": "v1", "shadow": "v2"}
    assert project.ok("withdraw", "shadow") == "champion: shop v1\n"
    assert project.refused("withdraw", "shadow") == "error: there is no shadow"
    assert "champion" in project.run("withdraw", "champion").stderr
    project.ok("shadow", three)
    assert project.ok("promote", "shadow") == "champion: shop v3\n"
    assert project.ok("rollback", "--to", "v1") == "champion: shop v1\n"


def test_nonsense_is_refused_in_one_line(project: Project) -> None:
    """Nothing is written, and the line says what to do instead."""
    one, two = project.bundle("v1"), project.bundle("v2")
    for arguments, told in [
        (("promote",), "there is no canary"),
        (("rollback",), "there is no champion"),
        (("canary", two), "a canary is compared with the champion, and there is none: release one first"),
        (("canary", two, "--share", "1"), "a canary's share is above 0 and below 1, not 1"),
    ]:
        assert told in project.refused(*arguments)
    assert project.ok("list").endswith("nothing is released; `pipeline model release BUNDLE` makes a champion\n")
    project.ok("release", one)
    project.ok("canary", two)
    for arguments, told in [
        (("release", one), "v1 is champion already"),
        (("canary", one), "v1 is champion already"),
        (("release", two), "v2 is canary already with a share of 0.1; promote it"),
        (("canary", two), "v2 is canary already with a share of 0.1"),
        (("shadow", two), "v2 is canary already with a share of 0.1; withdraw it first"),
        (("rollback",), "there is no champion before v1 to go back to"),
        (("rollback", "--to", "v7"), "v7 was never champion; these were: v1"),
        (("rollback", "--to", "v1"), "v1 is champion already"),
        (("promote", "shadow"), "there is no shadow"),
    ]:
        assert told in project.refused(*arguments), arguments
    assert project.slots() == {"champion": "v1", "canary": "v2"}
    assert len(project.rows("history")) == 2


def test_a_bundle_that_cannot_serve_is_not_released(project: Project) -> None:
    """Damaged, not loadable, or of features that events lack: one line, and neither store nor log has it."""
    misfit = project.bundle("v1", feature="weight")
    assert "does not fit" in project.refused("release", misfit)
    damaged = project.bundle("v2")
    (Path(damaged) / "weights.safetensors").write_bytes(b"\0" * 100)
    assert "was changed after packing" in project.refused("release", damaged)
    whole = bundles.read(Path(project.bundle("v3")))
    unloadable = bundles.make(
        model_id="shop",
        architecture=Architecture(module="pipeline.models.architectures:TabularMLP", arguments={"no": "such"}),
        contract=whole.contract,
        weights=whole.weights,
    )
    bundles.write(unloadable, project.folder / "unloadable.tar")
    assert "cannot be made with" in project.refused("release", str(project.folder / "unloadable.tar"))
    assert "no such file" in project.refused("release", "nowhere")
    assert not (project.folder / "releases").exists()


def test_other_content_under_a_released_version_is_refused(project: Project) -> None:
    """A version never changes: a bundle that was packed anew with other weights needs a version of its own."""
    project.ok("release", project.bundle("v1"))
    project.ok("release", project.bundle("v2"))
    assert "is there already with other content" in project.refused("release", project.bundle("v1", hidden=3))
    shutil.rmtree(project.folder / "releases")
    assert "v1 was released before with other content" in project.refused("release", project.bundle("v1", hidden=3))


def test_a_url_is_released_as_it_is(project: Project) -> None:
    """Workers fetch from there; nothing is copied."""
    path = project.bundle("v1")
    project.ok("release", f"file://{path}")
    (row,) = project.rows("list")
    assert row["uri"] == f"file://{path}"
    assert not (project.folder / "releases").exists()
    assert "Protocol not known" in project.refused("shadow", "nothing://b.tar")


def test_a_report_that_waits_is_approved_once(project: Project) -> None:
    """The challenger becomes canary, with the report's id; what does not wait, or is out of date, is refused."""
    project.ok("release", project.bundle("v1"))
    for version in ("v2", "v3", "v4"):
        project.bundle(version)
    project.report("r-yes", "v2", "waiting")
    project.report("r-no", "v3", "none")
    project.report("r-auto", "v3", "automatic")
    project.report("r-other", "v4", "waiting", uri="models/v3")
    assert "has no report r-what; these wait: r-other, r-yes" in project.refused("approve", "r-what")
    assert "does not wait for anybody: the gate refused the challenger" in project.refused("approve", "r-no")
    assert "does not wait for anybody: the gate let it pass" in project.refused("approve", "r-auto")
    assert "is v3, and the gate accepted v4" in project.refused("approve", "r-other")
    assert project.ok("approve", "r-yes", "--by", "ann", "--share", "0.2").endswith(
        "canary: shop v2, 20% of the events\n"
    )
    assert project.rows("history")[-1]["report_id"] == "r-yes"
    project.ok("withdraw", "canary")
    again = project.run("approve", "r-yes")
    assert (again.exit_code, again.stdout) == (0, "champion: shop v1\n")
    assert "was approved already" in again.stderr
    assert "by ann" in again.stderr
    project.report("r-late", "v3", "waiting", champion="v0")
    assert "was compared with champion v0, and that is v1 by now" in project.refused("approve", "r-late")
    project.report("r-now", "v3", "waiting")
    assert project.ok("approve", "r-now", "--champion") == "champion: shop v3\n"


def test_without_a_broker_the_command_says_so(tmp_path: Path) -> None:
    """Exit code 5 within its patience; no traceback."""
    project = Project(tmp_path / "shop", "away", "127.0.0.1:1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.cli.wiring.connect.__defaults__", (0.3,))
        assert "did not answer" in project.refused("list", code=5)
        assert "did not answer" in project.refused("promote", code=5)
