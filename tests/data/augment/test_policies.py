"""Compares the policies with torchvision's transforms, which are forced to choose the same operations."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import _auto_augment as torchvision_policies

from kd_bench.config.data import Augment, RandAugment
from kd_bench.data.augment import policies
from kd_bench.utils import seeding

SIZE = 150
AUTO = Augment(autoaugment=True)


def pictures(count: int, height: int, width: int) -> Tensor:
    """Noise on slopes of differing range, so that every operation has something to change."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 40, (count, 3, height, width), generator=generator)
    slope = torch.linspace(0, 1, height)[:, None] * torch.linspace(40, 215, count).view(-1, 1, 1, 1)
    return (noise + slope).to(torch.uint8)


class Forced:
    """Replaces torch in torchvision's module and returns given random numbers."""

    def __init__(self) -> None:
        self.integers: Iterator[int] = iter(())
        self.uniforms: Iterator[float] = iter(())

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randint(self, *_: Any) -> Tensor:
        return torch.tensor(next(self.integers))

    def rand(self, *_: Any) -> Tensor:
        return torch.tensor(next(self.uniforms))


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Forced:
    stand_in = Forced()
    monkeypatch.setattr(torchvision_policies, "torch", stand_in)
    return stand_in


def draw_and_apply(augment: Augment, images: Tensor, seed: int = 5, epoch: int = 2) -> Tensor:
    choices = policies.draw_policy(augment, seed, epoch, len(images), *images.shape[2:])
    assert choices is not None
    return policies.apply_policy(images, choices.steps, choices.operations)


def compare(transform: Callable[[Tensor], Tensor], mine: Tensor, images: Tensor, tell: Callable[[int], None]) -> None:
    changed = 0
    for index, (image, result) in enumerate(zip(images, mine, strict=True)):
        tell(index)
        assert torch.equal(transform(image), result)
        changed += not torch.equal(image, result)
    assert changed > len(images) / 2


@pytest.mark.parametrize("shape", [(32, 32), (20, 37)])
def test_autoaugment_is_torchvisions(forced: Forced, shape: tuple[int, int]) -> None:
    images = pictures(SIZE, *shape)
    generator = seeding.generator(5, seeding.POLICY, 2)
    policy = torch.randint(25, (SIZE,), generator=generator).tolist()
    uniform = torch.rand((SIZE, 2), generator=generator).tolist()
    negative = torch.randint(2, (SIZE, 2), generator=generator).tolist()

    def tell(index: int) -> None:
        numbers = []
        for (name, probability, _), value, sign in zip(
            policies.CIFAR10_POLICY[policy[index]], uniform[index], negative[index], strict=True
        ):
            numbers.append(value)
            if value < probability and v2.AutoAugment._AUGMENTATION_SPACE[name][1]:
                numbers.append(0.2 if sign else 0.8)
        forced.integers, forced.uniforms = iter([policy[index]]), iter(numbers)

    compare(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10), draw_and_apply(AUTO, images), images, tell)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        (RandAugment(), (32, 32)),
        (RandAugment(operations=3, magnitude=30), (20, 37)),
        (RandAugment(operations=1, magnitude=5, bins=10), (33, 31)),
        (RandAugment(magnitude=0), (32, 32)),
    ],
    ids=["default", "strong", "one", "none"],
)
def test_randaugment_is_torchvisions(forced: Forced, settings: RandAugment, shape: tuple[int, int]) -> None:
    images = pictures(SIZE, *shape)
    generator = seeding.generator(5, seeding.POLICY, 2)
    chosen = torch.randint(14, (SIZE, settings.operations), generator=generator).tolist()
    negative = torch.randint(2, (SIZE, settings.operations), generator=generator).tolist()

    def tell(index: int) -> None:
        signs = []
        for number, sign in zip(chosen[index], negative[index], strict=True):
            if v2.RandAugment._AUGMENTATION_SPACE[policies.RANDAUGMENT_OPERATIONS[number]][1]:
                signs.append(0.2 if sign else 0.8)
        forced.integers, forced.uniforms = iter(chosen[index]), iter(signs)

    transform = v2.RandAugment(settings.operations, settings.magnitude, settings.bins)
    mine = draw_and_apply(Augment(randaugment=settings), images)
    if settings.magnitude:
        compare(transform, mine, images, tell)
    else:
        for index, image in enumerate(images):
            tell(index)
            assert torch.equal(transform(image), mine[index])


def test_the_table_is_torchvisions() -> None:
    published = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies
    assert [[(name, p, m or 0) for name, p, m in pair] for pair in published] == [
        list(pair) for pair in policies.CIFAR10_POLICY
    ]
    assert tuple(v2.RandAugment._AUGMENTATION_SPACE) == policies.RANDAUGMENT_OPERATIONS


@pytest.mark.parametrize("augment", [AUTO, Augment(randaugment=RandAugment(magnitude=17))], ids=["auto", "rand"])
@pytest.mark.parametrize("shape", [(8, 8), (5, 7), (33, 31)])
def test_an_image_looks_the_same_in_any_batch(augment: Augment, shape: tuple[int, int]) -> None:
    images = pictures(210, *shape)
    choices = policies.draw_policy(augment, 0, 0, 210, *shape)
    assert choices is not None
    whole = policies.apply_policy(images, choices.steps, choices.operations)
    for size in (1, 3, 64):
        parts = zip(images.split(size), choices.steps.split(size), strict=True)
        assert torch.equal(torch.cat([policies.apply_policy(*part, choices.operations) for part in parts]), whole)


def test_nothing_given_is_changed() -> None:
    images = pictures(60, 8, 8)
    before = images.clone()
    draw_and_apply(AUTO, images)
    draw_and_apply(Augment(randaugment=RandAugment()), images)
    assert torch.equal(images, before)


def test_randaugment_chooses_evenly() -> None:
    choices = policies.draw_policy(Augment(randaugment=RandAugment()), 0, 0, 20_000, 32, 32)
    assert choices is not None
    counts: dict[str, int] = {}
    signs = {-1: 0, 1: 0}
    for (name, strength), count in zip(choices.operations, choices.steps.flatten().bincount().tolist(), strict=True):
        counts[name] = counts.get(name, 0) + count
        if name in policies._SIGNED:
            signs[1 if strength > 0 else -1] += count
    assert set(counts) == set(policies.RANDAUGMENT_OPERATIONS)
    assert all(abs(count - 40_000 / 14) < 5 * (40_000 / 14) ** 0.5 for count in counts.values())
    assert abs(signs[1] - signs[-1]) < 5 * (signs[1] + signs[-1]) ** 0.5


def test_autoaugment_applies_as_often_as_the_policy_says() -> None:
    choices = policies.draw_policy(AUTO, 0, 0, 40_000, 32, 32)
    assert choices is not None
    counts = dict.fromkeys((name for name, _ in choices.operations), 0)
    for (name, _), count in zip(choices.operations, choices.steps.flatten().bincount().tolist(), strict=True):
        counts[name] += count
    for chosen in counts.keys() - {"Identity"}:
        expected = 40_000 / 25 * sum(p for pair in policies.CIFAR10_POLICY for name, p, _ in pair if name == chosen)
        assert abs(counts[chosen] - expected) < 5 * expected**0.5


def test_choices_are_a_function_of_seed_and_epoch_and_there_are_none_without_a_policy() -> None:
    def steps(seed: int, epoch: int) -> Tensor:
        choices = policies.draw_policy(AUTO, seed, epoch, 100, 32, 32)
        assert choices is not None
        return choices.steps

    assert torch.equal(steps(1, 2), steps(1, 2))
    assert not torch.equal(steps(1, 2), steps(1, 3))
    assert not torch.equal(steps(1, 2), steps(2, 2))
    assert policies.draw_policy(Augment(crop=4, flip=True), 1, 2, 100, 32, 32) is None
