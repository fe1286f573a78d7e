"""What lies around the package is consistent with it: deployment, dashboard, alerts, Makefile."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import COMMANDS
from pipeline.observe import Metrics
from pipeline.settings import load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


# --------------------------------------------------------------------------- compose

COMPOSE = read_yaml(ROOT / "compose.yaml")
SERVICES = COMPOSE["services"]
ROLES = ("worker", "monitor")


@pytest.mark.parametrize("role", ROLES)
def test_compose_settings_are_accepted(role: str) -> None:
    """Every PIPELINE__ variable of a service is a setting, and puts the observe port where its check looks."""
    environment = {k: str(v) for k, v in SERVICES[role]["environment"].items()}
    assert all(name.startswith("PIPELINE__") for name in environment)
    settings = load(environment=environment)
    port = settings.observe.port + (1 if role == "worker" else 0)  # a worker alone is worker 1
    assert SERVICES[role]["healthcheck"]["test"] == ["CMD", "python", "/healthcheck.py", str(port)]
    assert settings.observe.host == "0.0.0.0"


@pytest.mark.parametrize("role", ROLES)
def test_compose_runs_commands_that_exist(role: str) -> None:
    """A role's command is one of the command line's, and a stop leaves time to drain."""
    command, role_named = SERVICES[role]["command"]
    assert command in COMMANDS
    assert role_named == role
    grace_s = int(SERVICES[role]["stop_grace_period"].removesuffix("s"))
    assert grace_s > load(environment={}).delivery.shutdown_deadline_s + 5


def test_compose_reaches_kafka_where_it_listens() -> None:
    """The roles' bootstrap address is what the broker advertises inside; the published one is the default."""
    kafka = SERVICES["kafka"]["environment"]
    advertised = dict(part.split("://") for part in kafka["KAFKA_ADVERTISED_LISTENERS"].split(","))
    for role in ROLES:
        assert SERVICES[role]["environment"]["PIPELINE__KAFKA__BOOTSTRAP_SERVERS"] == advertised["INSIDE"]
    assert advertised["OUTSIDE"] == load(environment={}).kafka.bootstrap_servers
    assert set(advertised) < {part.split("://")[0] for part in kafka["KAFKA_LISTENERS"].split(",")}


def test_compose_opens_loopback_ports_only() -> None:
    """Nothing of an unprotected stack can be reached from another machine."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_pins_images_and_mounts_what_exists() -> None:
    """Foreign images have a version; every folder of ours that is mounted is in the repository."""
    for name, service in SERVICES.items():
        if "build" not in service:
            assert re.fullmatch(r"[a-z./]+:v?\d+\.\d+\.\d+", service["image"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_dir(), source
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"]


def test_image_can_be_built_from_what_docker_is_sent() -> None:
    """Every file that the Dockerfile copies exists and is let through by .dockerignore."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    let_through = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    sources = {source for sources in copied for source in sources.split()}
    assert sources == let_through
    assert all((ROOT / source).exists() for source in sources)


# --------------------------------------------------------------------------- metrics, dashboard, alerts


def exported() -> dict[str, set[str]]:
    """Sample name -> label names, as a process exports them; of labels whose values come later, the names."""
    registry = Metrics().registry
    found: dict[str, set[str]] = {}
    labels = {
        name: set(collector._labelnames)
        for collector, names in registry._collector_to_names.items()
        if hasattr(collector, "_labelnames")
        for name in names
    }
    for family in registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for suffix in suffixes:
            name = family.name + suffix
            found[name] = labels.get(name, set()) | {k for s in family.samples for k in s.labels}
    return found


def dashboard() -> Any:
    return json.loads((DEPLOY / "grafana/dashboards/pipeline.json").read_text("utf-8"))


def expressions() -> Iterator[tuple[str, str]]:
    """Where, and a PromQL expression: all of the dashboard and of the alerts, and those of the metrics page."""
    board = dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for annotation in board["annotations"]["list"]:
        yield f"annotation {annotation['name']}", annotation["expr"]
    for group in read_yaml(DEPLOY / "prometheus/alerts.yml")["groups"]:
        for rule in group["rules"]:
            yield f"alert {rule['alert']}", rule["expr"]
    for expression in re.findall(r"\| `([^`]*\(.*)` \|$", (ROOT / "docs/metrics.md").read_text("utf-8"), re.MULTILINE):
        yield "docs/metrics.md", expression


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_queries_name_series_and_labels_that_exist(where: str, expression: str) -> None:
    """A renamed series or label cannot leave a panel, an alert or a documented query empty."""
    series = exported()
    named = set(re.findall(r"\b(?:pipeline|process)_\w+", expression))
    assert named, where
    assert named <= series.keys(), where
    known = {"instance", "job"}.union(*(series[name] for name in named))
    grouped = {label.strip() for by in re.findall(r"\bby \(([^)]*)\)", expression) for label in by.split(",")}
    matched = set(re.findall(r"[{,]\s*(\w+)\s*[=!]~?", expression))
    assert grouped | matched <= known, where


def test_dashboard_shows_every_series_of_ours() -> None:
    """What is worth exporting is worth a panel."""
    shown = " ".join(expression for where, expression in expressions() if where.startswith("panel"))
    families = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in exported() if name.startswith("pipeline_")}
    assert {name for name in families if name not in shown} == set()


def test_dashboard_panels_lie_side_by_side() -> None:
    """Unique ids, inside the 24 columns, none over another, all asking the provisioned data source."""
    panels = dashboard()["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    cells = [
        (x, y)
        for p in panels
        for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
        for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    source = read_yaml(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"][0]
    asked = {t["datasource"]["uid"] for p in panels for t in p.get("targets", [])}
    assert asked == {source["uid"]}


def test_prometheus_scrapes_the_ports_that_are_served() -> None:
    """Each role of compose is a job, at the port of its settings; alerts ask for jobs that exist."""
    jobs = {job["job_name"]: job for job in read_yaml(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]}
    assert set(jobs) == set(ROLES)
    port = load(environment=SERVICES["monitor"]["environment"]).observe.port
    assert jobs["monitor"]["static_configs"][0]["targets"] == [f"monitor:{port}"]
    assert jobs["worker"]["dns_sd_configs"][0]["port"] == port + 1
    asked = {job for _, expression in expressions() for job in re.findall(r'job="(\w+)"', expression)}
    assert asked <= set(jobs)


# --------------------------------------------------------------------------- Makefile

TARGETS = {"demo", "test", "check", "bench", "matrix", "soak", "docs", "clean", "distclean", "help"}


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={**clean, **environment}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh clone as far as make is concerned."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_make_help_names_every_target(checkout: Path) -> None:
    """Plain `make` says what there is, and does nothing."""
    shown = make(checkout)
    assert shown.returncode == 0
    assert {line.split()[1] for line in shown.stdout.splitlines()} == TARGETS
    assert {p.name for p in checkout.iterdir()} == {"Makefile", "pyproject.toml"}


@pytest.mark.parametrize(("target", "extra"), [("demo", "broker"), ("test", "test"), ("check", "check")])
def test_make_sets_itself_up_once(checkout: Path, target: str, extra: str) -> None:
    """In a fresh clone a target makes the environment and installs; with its stamp there, it does neither."""
    first = make(checkout, "--dry-run", target).stdout
    assert "-m venv" in first
    assert re.search(rf'pip install .*-e "\.\[[a-z,]*\b{extra}\b', first)
    (checkout / ".venv/bin").mkdir(parents=True)
    for made in ("bin/pip", ".ready-run", ".ready-dev"):
        (checkout / ".venv" / made).touch()
    again = make(checkout, "--dry-run", target).stdout
    assert "venv --clear" not in again
    assert "pip install" not in again


def test_make_without_a_python_says_what_to_do(checkout: Path) -> None:
    """Where no Python is new enough, one line says so, and how to name another."""
    failed = make(checkout, "demo", "PYTHON=")
    assert failed.returncode != 0
    assert "no Python 3.11 or newer" in failed.stderr
    assert "make PYTHON=/path/to/python" in failed.stderr


def test_make_with_an_old_python_finds_none(checkout: Path) -> None:
    """A Python that is too old is not taken."""
    programs = checkout / "programs"
    programs.mkdir()
    for name in ("python3", "python"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    for name in ("make", "sh", "awk", "rm", "test", "touch"):
        (programs / name).symlink_to(shutil.which(name) or name)
    failed = make(checkout, "demo", PATH=str(programs))
    assert failed.returncode != 0
    assert "no Python 3.11 or newer" in failed.stderr


def test_ci_runs_what_developers_run() -> None:
    """CI is `make check test`: a green check here is a green check there."""
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    assert "make check test" in script.read_text("utf-8")
