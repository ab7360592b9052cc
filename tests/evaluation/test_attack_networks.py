"""A network that cannot be attacked does not stop the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kd_bench.config.attack import Attack
from kd_bench.evaluation.attack_networks import attack_networks
from kd_bench.utils.errors import RunFailed, UserError

ATTACKS = [Attack(eps=eps, attacks=("pgd-20",)) for eps in (0.1, 0.2)]


class Evaluator:
    """Notes what it attacks, and raises the errors that it was made with, by the network's name."""

    def __init__(self, **errors: str) -> None:
        self.errors, self.attacked = errors, list[tuple[str, float]]()

    def evaluate(self, network: Any, attack: Attack, *_: Any) -> None:
        if network.name in self.errors:
            raise UserError(self.errors[network.name])
        self.attacked.append((network.name, attack.eps))


def attack(evaluator: Evaluator, names: str) -> tuple[int, list[str]]:
    log: list[str] = []
    networks: Any = [SimpleNamespace(name=name, input_description="") for name in names]
    checked: Any = evaluator
    left_out = attack_networks(checked, networks, ATTACKS, describe=lambda network: network.name, log=log.append)
    return left_out, log


def test_a_network_that_fails_is_left_out() -> None:
    evaluator = Evaluator(b="b is damaged")
    assert attack(evaluator, "abc") == (
        1,
        ["a: Linf 0.1, PGD-20", "a: Linf 0.2, PGD-20", "b: Linf 0.1, PGD-20", "b is damaged; left out",
         "c: Linf 0.1, PGD-20", "c: Linf 0.2, PGD-20"],
    )  # fmt: skip
    assert evaluator.attacked == [("a", 0.1), ("a", 0.2), ("c", 0.1), ("c", 0.2)]


def test_an_error_that_is_not_about_one_network_ends_the_command() -> None:
    evaluator = Evaluator(a="no images", b="no images")
    with pytest.raises(UserError, match="no images"):
        attack(evaluator, "abc")
    assert evaluator.attacked == []


def test_nothing_attacked_is_an_error() -> None:
    with pytest.raises(UserError, match="a is damaged"):
        attack(Evaluator(a="a is damaged"), "a")
    with pytest.raises(RunFailed, match="a is damaged"):
        attack(Evaluator(a="a is damaged", b="b is damaged"), "ab")
    assert attack(Evaluator(), "") == (0, [])
