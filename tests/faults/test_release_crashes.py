"""A change of the releases, killed at each of its steps: the old state or the new one, and the next change goes on."""

import signal
import threading
from collections.abc import Callable

import pytest

from pipeline.cli.releasing import decide, open_releases
from pipeline.models import releases
from pipeline.models.release_log import ReleaseLog
from pipeline.models.releases import Model, Releases
from pipeline.settings import Settings, load
from tests.faults import crashing
from tests.faults.conftest import Make
from tests.pipelines import eventually

pytestmark = pytest.mark.timeout(300)

#: From here on the promotion holds, whatever becomes of who asked for it.
COMMITTED = {"in a change, after commit transaction", "in a change, after change"}


def tried_out(settings: Settings, log: ReleaseLog, version: str) -> Releases:
    """A canary to promote, and a champion if there is none yet."""
    if log.state().champion is None:
        first = decide(settings, "test", "")
        log.change(first, lambda state: releases.release(state, model("v0"), first))
    decision = decide(settings, "test", "")
    return log.change(decision, lambda state: releases.canary(state, model(version), 0.1, decision))


def model(version: str) -> Model:
    return Model("shop", version, f"releases/shop/{version}.tar", "0" * 64)


@pytest.mark.case("F44")
def test_a_promotion_killed_at_any_step_is_whole_or_not_there(
    make: Make, counted: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL around taking over, reading, each record, flush and commit; a follower sees whole states alone."""
    monkeypatch.setattr("pipeline.bus.journal.SETTLE_TIMEOUT_S", 1.0)
    pipeline = make()
    settings = load(pipeline.config, environment={})
    log = open_releases(settings, create=True)
    held, seen, stop = [], list[Releases](), threading.Event()

    def follow() -> None:
        for state in log.follow(stop):
            seen.append(state)

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        for number, step in enumerate(crashing.RELEASE, 1):
            version = f"v{number}"
            before = tried_out(settings, log, version)
            process = pipeline.start("model", "promote", launcher=("tests.faults.crashing", step))
            assert process.wait() == -signal.SIGKILL, f"{step}: {process.log()[-2000:]}"
            assert f"killed at {step}" in process.log()
            after = log.state()
            held += [before, after]
            if step not in COMMITTED:
                assert after == before, step
                # Another goes on at once: it does not wait for a timeout of what is open.
                again = decide(settings, "test", "")
                held.append(log.change(again, lambda state: releases.promote(state, "canary", again)))  # noqa: B023
            now = held[-1]
            assert now.champion is not None
            assert (now.champion.model_version, now.canary) == (version, None), step
            assert now.history[:-1] == before.history, step
        eventually(lambda: seen[-1] == held[-1], "the last state, seen by the follower")
    finally:
        stop.set()
        follower.join(10)
    counted(kills=len(crashing.RELEASE), half_changes=sum(bool(s.history) and s not in held for s in seen[1:]))
    first = next(at for at, state in enumerate(seen) if state.canary is not None)
    assert all(state in held for state in seen[first:])
