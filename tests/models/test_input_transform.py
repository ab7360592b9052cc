"""A network's view of images is what its own pipeline would have made of the same pixels."""

import pytest
import torch
from torch import nn
from torchvision.transforms.v2 import functional as transforms

from kd_bench.config.data import Input
from kd_bench.models import create
from kd_bench.models.input_transform import InputTransform

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return create("resnet10t", num_classes=4)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def normalised(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    return transforms.normalize(images, list(mean), list(std))


def test_nothing_changes_by_default(network: nn.Module, pixels: torch.Tensor) -> None:
    assert InputTransform(network, Input(), 32, MEAN, STD)(pixels) is pixels
    assert InputTransform(network, Input(size=32), 32, MEAN, STD)(pixels) is pixels
    cifar_network = create("cifar_resnet8", num_classes=4)
    assert InputTransform(cifar_network, Input(normalise="network"), 32, MEAN, STD)(pixels) is pixels


@pytest.mark.parametrize("size", [32, 64, 176])
def test_the_networks_own_normalisation_and_size(network: nn.Module, pixels: torch.Tensor, size: int) -> None:
    cfg = network.pretrained_cfg
    enlarged = transforms.resize(pixels, [size, size], transforms.InterpolationMode.BICUBIC, antialias=True)
    expected = normalised(enlarged, cfg["mean"], cfg["std"])
    view = InputTransform(network, Input(size=size, normalise="network"), 32, MEAN, STD)
    result = view(normalised(pixels, MEAN, STD))
    assert result.shape == (3, 3, size, size)
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=1e-5)
    assert not view.state_dict()


def test_networks_that_want_pixels_from_0_to_1() -> None:
    network = nn.Identity()
    network.pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # type: ignore[assignment]
    images = torch.rand(2, 3, 8, 8)
    view = InputTransform(network, Input(normalise="network"), 8, MEAN, STD)
    torch.testing.assert_close(view(normalised(images, MEAN, STD)), images)
