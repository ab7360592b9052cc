"""A network that cannot be attacked does not stop the others, and images are read only if they are attacked."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import save_file

from kd_bench.cli.main import app
from kd_bench.config.attack import Attack
from kd_bench.evaluation import autoattack_checkpoint
from kd_bench.evaluation.attack_networks import attack_networks
from kd_bench.models import create
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


def test_images_are_read_once_and_only_if_something_is_left_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    read = autoattack_checkpoint._test_images

    def counted(dataset: Any, index: Any) -> Any:
        reads.append(len(index))
        return read(dataset, index)

    monkeypatch.setattr(autoattack_checkpoint, "_test_images", counted)
    file = tmp_path / "resnet8.safetensors"
    save_file(create("cifar_resnet8", 10).state_dict(), file)
    command = ["attack", file, "--model", "resnet8", "--dataset", "digits", "--images", 8, "--attacks", "pgd-1",
               "--eps", "1/255", "--out", tmp_path]  # fmt: skip
    for expected, more in (([8], []), ([8], []), ([8, 8], ["--save-examples"]), ([8, 8, 8], ["--check"])):
        app(list(map(str, [*command, *more])), standalone_mode=False)
        assert reads == expected
