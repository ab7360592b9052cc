"""Fixtures of the tests with hostile input."""

from __future__ import annotations

import pytest

from tests.hostile.folders import Results, make


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """A results folder of finished trials, which tests copy before they damage it."""
    return make(tmp_path_factory.mktemp("whole"))
