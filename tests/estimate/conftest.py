"""The file of the recipe that tests estimate."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.estimate.few import RECIPE


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return path
