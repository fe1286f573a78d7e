"""`pipeline model compare` on outcomes of champion and shadow on a real Kafka."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli.releasing import open_releases
from pipeline.models import bundle as bundles
from pipeline.models import fetching, releases
from pipeline.models.releases import Decision
from tests.integration.retraining_kit import START_MS, Market

pytestmark = pytest.mark.timeout(200)
#: Events that both scored, and one stretch more of each alone.
BOTH, MORE = 1_000, 200


@pytest.fixture
def market(tmp_path: Path, kafka: str) -> Iterator[Market]:
    """All events; no outcomes."""
    made = Market(tmp_path, kafka)
    made.send_events()
    yield made
    made.close()


def test_the_shadow_beside_the_champion_on_the_same_events(market: Market) -> None:
    """Right in 95 % of what both scored, the champion in 80 %; what one alone scored does not count."""
    settings = market.settings
    found = bundles.read(settings.path(settings.model.bundle))
    log = open_releases(settings, create=True)
    code, _, told = market.run("model", "compare")
    assert (code, "there is no shadow to compare" in told) == (1, True)
    for version, release in (("v1", releases.release), ("v2", releases.shadow)):
        manifest = found.manifest.model_copy(update={"model_version": version})
        path = market.folder / f"{version}.tar"
        bundles.write(bundles.Bundle(manifest, found.weights, ""), path)
        model = fetching.publish(bundles.read(path), settings.releases.store, settings.root)
        decision = Decision(version, settings.name, "test", START_MS)
        log.change(decision, lambda now, change=release, model=model, by=decision: change(now, model, by))  # type: ignore[misc]
    code, _, told = market.run("model", "compare")
    assert (code, "0 outcomes of the champion and 0 of the shadow" in told) == (1, True)
    random, up = np.random.default_rng(1), market.labels == "UP"
    for version, role, right, first in (("v1", "champion", 0.8, 0), ("v2", "shadow", 0.95, MORE)):
        rows = np.arange(first, first + BOTH + MORE)
        hit = random.random(len(rows)) < np.where((rows >= MORE) & (rows < MORE + BOTH), right, 0.1)
        sent = np.where(hit == up[rows], 0.9, 0.1)
        market.send_outcomes(rows, (role,), model_version=version, outputs=sent)
    code, printed, told = market.run("model", "compare", "--json")
    assert code == 0, told
    result = json.loads(printed)
    assert result["rows"] == BOTH
    assert result["outcomes"] == {"champion": BOTH + MORE, "shadow": BOTH + MORE}
    assert result["versions"] == {"champion": "v1", "shadow": "v2"}
    assert abs(result["metrics"]["champion"]["accuracy"] - 0.8) < 0.05
    assert abs(result["metrics"]["shadow"]["accuracy"] - 0.95) < 0.03
    assert set(result["losses"]) == {"error", "balanced_error", "log_loss"}
    error = result["losses"]["error"]
    assert -0.25 < error["low"] < error["difference"] < error["high"] < -0.1
    code, printed, told = market.run("model", "compare")
    assert code == 0, told
    assert "better" in printed
    assert f"{BOTH:,} events that both scored" in printed
