import doctest

import pytest

from kd_bench import losses
from kd_bench.losses import precision


@pytest.mark.parametrize("name", losses.__all__)
def test_every_loss_has_an_example_that_can_be_copied(name: str) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(losses, name), name, globs={})
    assert f"from kd_bench.losses import {name}" in (example.docstring or "")
    result = doctest.DocTestRunner().run(example, clear_globs=False)
    assert result.attempted > 2 and result.failed == 0


def test_other_examples() -> None:
    result = doctest.testmod(precision)
    assert result.attempted > 0 and result.failed == 0
