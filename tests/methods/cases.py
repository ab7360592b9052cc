"""A small pair of networks for the methods, and their batches."""

import torch
from torch import Tensor, nn

from kd_bench.types import Batch, Outputs, Pair, Shapes

CLASSES = 5
PAIR = Pair(num_classes=CLASSES, train_size=32, student=Shapes(logits=(CLASSES,)), teacher=Shapes(logits=(CLASSES,)))
ALONE = Pair(num_classes=CLASSES, train_size=32, student=Shapes(logits=(CLASSES,)), student_name="cifar_resnet8x4")


def draw(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(seed: int = 0, size: int = 32, epoch: int = 0, step: int = 0, mixed: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 4, 4, generator=generator)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    if mixed:
        one_hot = nn.functional.one_hot(labels, CLASSES).float()
        labels = 0.6 * one_hot + 0.4 * one_hot.roll(1, 0)
    return Batch(images, labels, torch.arange(size), epoch, step)


def outputs(seed: int, size: int = 32, scale: float = 2.0) -> Outputs:
    return Outputs(draw(seed, size, CLASSES, scale=scale))


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, CLASSES))
