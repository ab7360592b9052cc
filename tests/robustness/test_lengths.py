"""Radii and steps of adversarial training whose unit was probably forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from kd_bench.config.adversarial import Adversarial


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"eps": 8, "schedule": "released"}, "eps 8 in Linf reaches all images.*write 8/255, not 8"),
        ({"eps": 1.0, "steps": 3}, "eps 1 in Linf reaches all images"),
        ({"eps": "8/255", "steps": 10, "step_size": 2}, "step_size 2 is more than twice eps.*write 2/255, not 2"),
        ({"eps": 0.5, "norm": "L2", "steps": 10, "step_size": 1.1}, "more than twice eps, 0.5"),
    ],
)
def test_lengths_without_their_unit_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Adversarial(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"eps": "8/255", "steps": 1, "step_size": "16/255"},
        {"eps": 0.99, "steps": 1},
        {"eps": 8, "norm": "L2", "steps": 10, "step_size": 2},
        {"eps": "8/255", "schedule": "released", "ramp": True},
    ],
)
def test_large_lengths_that_make_sense_are_allowed(settings: dict[str, Any]) -> None:
    Adversarial(**settings)
