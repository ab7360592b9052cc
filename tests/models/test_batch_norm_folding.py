"""Batch norms that become part of the convolutions before them."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from torch import Tensor, nn

from kd_bench.models import batch_norm_folding
from kd_bench.models import registry as models
from kd_bench.models.batch_norm_folding import fold
from kd_bench.models.outputs import observe

EVERYTHING = frozenset({"logits", "stages", "preacts", "pooled"})


def with_trained_norms(network: nn.Module) -> nn.Module:
    """Sets the batch norms to values as after training, none of them near the identity."""
    draws = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=draws)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    "name, size, left",
    [
        ("cifar_resnet8", 32, 0),
        ("cifar_wrn_16_1", 32, 7),  # those that stand before a convolution
        ("cifar_shufflenet_v2", 32, 0),
        ("mobilenetv3_small_050", 64, 0),  # timm's batch norms, with their activations
        ("densenet121", 64, None),
    ],
)
def test_a_folded_network_puts_out_the_same(name: str, size: int, left: int | None) -> None:
    network = with_trained_norms(models.create(name, 10, size))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold(network, (3, size, size))
    assert folded is not network
    assert norms(folded) < norms(network)
    assert left is None or norms(folded) == left
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        mine, other = observe(folded, images, EVERYTHING), observe(network, images, EVERYTHING)
    pairs = [(mine.logits, other.logits), (mine.pooled, other.pooled)]
    pairs += [*zip(mine.stages, other.stages, strict=True), *zip(mine.preacts, other.preacts, strict=True)]
    for output, wanted in pairs:
        assert output is not None and wanted is not None
        assert float((output - wanted).abs().max()) < 1e-5 * float(wanted.abs().max())


class Odd(nn.Module):
    """A network of which only one batch norm can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.shared, self.alone = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.after_read_twice, self.after_shared, self.after_alone = (nn.BatchNorm2d(3) for _ in range(3))
        self.num_classes = 3

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.read_twice(x)
        x = x + self.after_read_twice(x)
        x = self.after_shared(self.shared(self.shared(x)))
        return self.after_alone(self.alone(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x.mean((2, 3))

    def get_classifier(self) -> nn.Module:
        return nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def test_what_is_read_by_others_or_used_twice_stays() -> None:
    network = with_trained_norms(Odd())
    folded = fold(network, (3, 8, 8))
    assert [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)] == [
        "after_read_twice",
        "after_shared",
    ]


class NormInHead(nn.Module):
    """A network whose last features are the output of a convolution, and whose head begins with a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.norm(x).relu().mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def test_the_last_features_stay_as_they_are() -> None:
    torch.manual_seed(0)
    network = with_trained_norms(NormInHead())
    folded = fold(network, (3, 8, 8))
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        mine, other = (observe(model, images, frozenset({"features"})).features for model in (folded, network))
    torch.testing.assert_close(mine, other)


def test_a_network_without_batch_norms_is_returned_as_it_is() -> None:
    network = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    assert fold(network, (3, 32, 32)) is network


def test_a_copy_that_puts_out_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network = with_trained_norms(models.create("cifar_resnet8", 10, 32))
    monkeypatch.setattr(batch_norm_folding, "_fold", lambda conv, norm: None)
    with caplog.at_level(logging.WARNING):
        assert fold(network, (3, 32, 32)) is network
    assert "not folded" in caplog.text


def test_networks_on_a_gpu_are_compared_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    network = with_trained_norms(models.create("cifar_resnet8", 10, 32))
    compared: list[nn.Module] = []

    def note(conv: nn.Module, images: tuple[Tensor, ...]) -> None:
        if len(images[0]) == 2:  # the images of the comparison, and not the one of a dry run
            compared.append(conv)

    network.get_submodule("conv1").register_forward_pre_hook(note)
    monkeypatch.setattr(batch_norm_folding, "_is_exact", lambda device: False)
    folded = fold(network, (3, 32, 32))
    assert folded is not network
    assert len(compared) == 2
    assert not {network.get_submodule("conv1"), folded.get_submodule("conv1")} & set(compared)
    assert all(conv.weight.device.type == "cpu" for conv in compared)
