"""What several files of tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.page_made import Made, make_page
from tests.report.trials import put


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The page of a whole Table 6, made once."""
    return make_page(tmp_path_factory.mktemp("report"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe's folder without trials, and the teacher ``t0`` beside it."""
    put(tmp_path / "teachers" / "t0", top1_last=97.2, top1_best=97.5, epochs=40)
    return tmp_path / "demo"
