"""Radii and attacks as a user types them, and how networks under attack are called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kd_bench.cli.targets import Targets
from kd_bench.evaluation.attack_settings import parse_attacks, parse_radii
from kd_bench.evaluation.target import EvaluationTarget
from kd_bench.utils.errors import UserError


def test_radius_by_default_is_that_of_published_accuracies_in_linf() -> None:
    assert parse_radii(None, "Linf") == (8 / 255,)
    (attack,) = parse_attacks(None, "pgd-20", images=10)
    assert (attack.norm, attack.eps, attack.images) == ("Linf", 8 / 255, 10)


def test_radius_in_l2_has_no_default() -> None:
    with pytest.raises(UserError, match="--norm L2 needs --eps"):
        parse_radii(None, "L2")
    assert parse_radii("8,0.5", "L2") == (0.5, 8.0)


@pytest.mark.parametrize("eps", ["8/", "/8", "8/255,", "1/0", "1e999999999", "eight"])
def test_a_radius_that_is_no_number_is_refused(eps: str) -> None:
    with pytest.raises(UserError, match=r"--eps: '.*' is not a number; write 8/255 or 0\.03"):
        parse_radii(eps, "L2")


@pytest.mark.parametrize(
    ("eps", "expected"),
    [
        ("8", r"--eps: 8 in Linf reaches all images, .* did you mean 8/255\?"),
        ("2/255,4", r"did you mean 4/255\?"),
        ("1", "8/255 is usual"),
        ("1.5", "8/255 is usual"),
        ("300/255", "--eps: 300/255 in Linf"),
    ],
)
def test_radius_without_its_denominator_is_refused_in_linf(eps: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        parse_attacks(eps, "pgd-20")
    assert parse_attacks(eps, "pgd-20", norm="L2")


def target(normalise: Any, name: str = "a.pt", folder: str = "runs") -> EvaluationTarget:
    trained: Any = SimpleNamespace(model="cifar_resnet8", dataset=SimpleNamespace(name="digits"))
    return EvaluationTarget(trained, Path("a.pt"), None, normalise, Path(folder), name)


@pytest.mark.parametrize(
    ("normalise", "way", "others"),
    [
        ("none", "gets pixels from 0 to 1", "dataset or network"),
        ("dataset", "normalised with mean and standard deviation of digits", "none or network"),
        ("network", "normalised as its configuration in timm says", "none or dataset"),
    ],
)
def test_normalisation_of_a_file_is_named(normalise: str, way: str, others: str) -> None:
    sentence = target(normalise).input_description
    assert sentence.startswith("a.pt: cifar_resnet8 ")
    assert way in sentence
    assert sentence.endswith(f"--normalise {others}")
    assert target(None).input_description == ""


def test_rows_of_one_method_are_told_apart() -> None:
    trial = target(None, "cifar_resnet8 (ikl_at, seed 0)", "runs/mine/abc")
    cells = [SimpleNamespace(label=label, trial_id=name) for label, name in
             [("alpha_20", "abc"), ("beta_3", "abc"), ("alpha_20", "abc"), ("alpha_24", "def")]]  # fmt: skip
    recipe: Any = SimpleNamespace(planned=cells)
    assert Targets([trial], recipe).describe(trial) == "alpha_20, beta_3: cifar_resnet8 (ikl_at, seed 0), abc"
    plain: Any = SimpleNamespace(planned=[SimpleNamespace(label="ikl_at", trial_id="abc")])
    assert Targets([trial], plain).describe(trial) == "cifar_resnet8 (ikl_at, seed 0), abc"
    assert Targets([trial]).describe(trial) == "cifar_resnet8 (ikl_at, seed 0)"
