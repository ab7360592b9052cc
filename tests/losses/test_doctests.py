import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["crd", "dist", "dkd", "features", "ikl", "kl", "precision", "rkd"])
def test_examples_in_docstrings(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"kd_bench.losses.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
