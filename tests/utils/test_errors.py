"""The sentences about names that do not exist."""

from __future__ import annotations

import pytest

from kd_bench.utils.errors import unknown


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        (("epochs", "seeds"), "no key is called 'epoch'; did you mean 'epochs'?"),
        (("b", "a"), "no key is called 'epoch'; there are: a, b"),
        ((), "no key is called 'epoch'; there is none"),
        ([f"{number:02}" for number in range(21)], "19, ..."),
    ],
)
def test_a_name_that_does_not_exist(choices: tuple[str, ...], sentence: str) -> None:
    assert str(unknown("key", "epoch", choices)).endswith(sentence)
    assert str(unknown("key", "epoch", choices, "r.yaml")).startswith("r.yaml: no key")
