"""A network starts from all weights of a file but the classifier's, or a sentence says why it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kd_bench.models import registry
from kd_bench.models.initial_weights import create_from_file
from kd_bench.utils.errors import UserError

OWN = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, num_classes)
    def forward(self, images):
        return self.fc(self.body(images).mean((2, 3)))
"""


def saved(path: Path, name: str, classes: int, size: int | None = None) -> tuple[Path, dict[str, torch.Tensor]]:
    torch.manual_seed(5)
    state = registry.create(name, classes, size).state_dict()
    torch.save({"model": state}, path)
    return path, state


@pytest.mark.parametrize("classes", [0, 10, 7], ids=["none", "others", "as many"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext", "cifar_resnet8"])
def test_all_but_the_classifier_is_loaded(tmp_path: Path, name: str, classes: int) -> None:
    file, state = saved(tmp_path / "w.pth", name, classes)
    size = registry.create(name, 1).pretrained_cfg["input_size"][-1]
    torch.manual_seed(1)
    network = create_from_file(file, name, 7, size)
    torch.manual_seed(1)
    fresh = registry.create(name, 7).state_dict()
    heads = {key for key in network.state_dict() if key.rpartition(".")[0].endswith(("head", "fc"))}
    assert len(heads) == 2
    for key, value in network.state_dict().items():
        assert torch.equal(value, fresh[key] if key in heads else state[key]), key
    assert "state_dict" not in network.pretrained_cfg


def test_positions_are_adapted_to_the_size_of_the_images(tmp_path: Path) -> None:
    file, state = saved(tmp_path / "w.pth", "test_vit", 10)
    network = create_from_file(file, "test_vit", 7, 64)
    adapted_state = network.state_dict()
    assert adapted_state["pos_embed"].shape[1] < state["pos_embed"].shape[1]
    assert torch.equal(adapted_state["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"])
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_weights_of_another_network(tmp_path: Path) -> None:
    file, state = saved(tmp_path / "w.pth", "test_resnet", 10)
    with pytest.raises(UserError, match=r"w\.pth: does not hold the weights of test_vit"):
        create_from_file(file, "test_vit", 7, 160)
    del state["layer2.0.conv1.weight"]
    torch.save(state, file)
    with pytest.raises(UserError, match=r"w\.pth: .*it lacks 'layer2.0.conv1.weight'"):
        create_from_file(file, "test_resnet", 7, 32)


def test_a_users_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    file = tmp_path / "w.pth"
    torch.save(registry.create("own.py:Net", 10).state_dict(), file)
    with pytest.raises(UserError, match=r"own\.py:Net: its classifier cannot be replaced"):
        create_from_file(file, "own.py:Net", 7, 32)
    Path("shown.py").write_text(OWN + "    def get_classifier(self):\n        return self.fc\n")
    network = create_from_file(file, "shown.py:Net", 7, 32)
    assert torch.equal(network.body.weight, torch.load(file)["body.weight"])
    assert network.fc.weight.shape == (7, 4)
