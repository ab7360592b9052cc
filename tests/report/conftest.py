"""The page that several files of tests look at."""

from __future__ import annotations

import pytest

from tests.report.page_made import Made, make_page


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The page of a whole Table 6, made once."""
    return make_page(tmp_path_factory.mktemp("report"))
