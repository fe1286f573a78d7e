"""What several of the unit tests stand on."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, without anything of this machine's environment."""
    monkeypatch.chdir(tmp_path)
    for variable in [v for v in os.environ if v.startswith("PIPELINE__")]:
        monkeypatch.delenv(variable)
    return tmp_path
