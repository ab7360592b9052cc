"""The network of a file of weights: what it is called, and how its images are normalised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_bench import api
from kd_bench.config.attack import Attack
from kd_bench.config.data import Dataset
from kd_bench.data import registry as datasets
from kd_bench.evaluation.target import EvaluationTarget, checkpoint_target
from kd_bench.evaluation.target_network import load_deployed_network, load_pixel_network
from kd_bench.robustness.pixel_input import NormalisedNetwork
from kd_bench.utils.errors import UserError

PLAIN = """
from torch import nn

class Plain(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, num_classes)

    def forward(self, images):
        return self.fc(self.body(images))
"""


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network that says nothing about its images, and its weights in plain.pt."""
    monkeypatch.chdir(tmp_path)
    Path("plain.py").write_text(PLAIN)
    space: dict[str, Any] = {}
    exec(PLAIN, space)
    torch.save(space["Plain"](10).state_dict(), "plain.pt")
    return "plain.py:Plain"


def target(model: str, normalise: Any = None) -> EvaluationTarget:
    recipe = api.pair_recipe("weights", "digits", model, model)
    return checkpoint_target(Path("plain.pt"), model, recipe, None, normalise, Path("runs"))


def load(model: str, normalise: Any, build: Callable[..., Any] = load_pixel_network) -> Any:
    return build(target(model, normalise), datasets.open_dataset(Dataset(name="digits"), None, Path()))


def test_a_network_without_a_configuration_has_no_normalisation_of_its_own(plain: str) -> None:
    with pytest.raises(UserError, match=r"--normalise network: plain.py:Plain has no pretrained_cfg.*none or dataset"):
        load(plain, "network")
    with pytest.raises(UserError, match="--normalise network"):
        load(plain, "network", load_deployed_network)


def test_normalisations_of_a_file(plain: str) -> None:
    images = datasets.open_dataset(Dataset(name="digits"), None, Path())
    by_default, none, dataset = (load(plain, way) for way in (None, "none", "dataset"))
    assert isinstance(dataset, NormalisedNetwork)
    assert torch.equal(by_default.mean, dataset.mean)
    assert dataset.mean.flatten().tolist() == pytest.approx(images.mean)
    assert none.mean.flatten().tolist() == [0, 0, 0] and none.std.flatten().tolist() == [1, 1, 1]


def test_what_was_measured_of_a_network_is_not_taken_for_another_one_in_the_same_file(plain: str) -> None:
    attack = Attack(eps=0.1, attacks=("pgd-1",))
    before = target(plain)
    same = target(plain)
    assert (same.evaluation_path, same.record_path(attack)) == (before.evaluation_path, before.record_path(attack))
    Path("plain.py").write_text(PLAIN.replace("self.body(images)", "self.body(1 - images)"))
    after = target(plain)
    assert after.sha256 == before.sha256 and after.subject() != before.subject()
    assert after.evaluation_path != before.evaluation_path
    assert after.record_path(attack) != before.record_path(attack)
    assert "source" not in target("resnet8").subject()
