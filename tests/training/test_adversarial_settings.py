"""Settings of adversarial training: radius and steps over the epochs, and invalid settings."""

from __future__ import annotations

from typing import Any

import pytest

from kd_bench.config.adversarial import Adversarial
from kd_bench.config.trial import Training

EPS = 8 / 255


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 7, "step_size": 0.01}, [(EPS, 7, 0.01)] * 8),
        ({"steps": 7}, [(EPS, 7, EPS / 4)] * 8),
        ({"steps": 7, "ramp": True}, [(EPS * e / 8, 7, EPS * e / 32) for e in range(1, 9)]),
        ({"schedule": "released"}, [(EPS, 5, EPS / 2)] * 8),
        (
            {"schedule": "intended"},
            [(EPS, 2, EPS)] * 2 + [(EPS, 3, 2 * EPS / 3)] * 2 + [(EPS, 4, EPS / 2)] * 2 + [(EPS, 5, EPS / 2)] * 2,
        ),
        ({"schedule": "released", "ramp": True}, [(EPS * e / 8, 5, EPS * e / 16) for e in range(1, 9)]),
    ],
)
def test_radius_and_steps_over_the_epochs(settings: dict[str, Any], expected: list[tuple[float, int, float]]) -> None:
    perturbations = [Adversarial(eps=EPS, **settings).perturbation(epoch, 8) for epoch in range(8)]
    for perturbation, other in zip(perturbations, expected, strict=True):
        assert perturbation == pytest.approx(other)


def test_the_published_schedule() -> None:
    """200 epochs, epsilon 8/255 * e / 200; by the code as it was meant, quarters end at 50, 100, 150 and 200."""
    intended = Adversarial(eps=EPS, schedule="intended", ramp=True)
    assert [intended.perturbation(epoch - 1, 200)[1] for epoch in (1, 50, 51, 100, 101, 150, 151, 200)] == [
        2,
        2,
        3,
        3,
        4,
        4,
        5,
        5,
    ]
    assert intended.perturbation(99, 200) == pytest.approx((EPS / 2, 3, EPS / 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 3, "schedule": "released"}, "must be left out"),
        ({}, "steps is missing"),
        ({"steps": 3, "eps": 0.0}, "greater than 0"),
        ({"steps": 3, "eps": "8/0"}, "valid number"),
        ({"steps": 3, "weight_perturbation": {"from_epoch": 0}}, "greater than or equal to 1"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Adversarial(**{"eps": EPS, **settings})


def test_fractions_are_numbers() -> None:
    assert Adversarial(eps="8/255", steps=1, step_size="2/255").perturbation(0, 1) == (8 / 255, 1, 2 / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema": 0.9}, "ema must be left out"),
        ({"micro_batch": 8}, "micro_batch must be left out"),
        ({"epochs": 1}, "weight_perturbation.from_epoch must not be above epochs, which is 1"),
    ],
)
def test_settings_that_exclude_each_other(changes: dict[str, Any], message: str) -> None:
    adversarial = {"eps": EPS, "steps": 2, "weight_perturbation": {"from_epoch": 2}, "average": {"from_epoch": 1}}
    with pytest.raises(ValueError, match=message):
        Training.model_validate({"adversarial": adversarial, **changes})
