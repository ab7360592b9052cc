"""Augmentations of the user's own: a function of a plug-in that changes images (see ``kd_bench.utils.plugins``).

It takes ``images``, (B, C, H, W) uint8, which it may change in place, and ``random``, from which it draws, and returns
as many of the same shape and type. What it does with an image must not depend on the others in the batch: then an image
looks the same in an epoch whatever batch it falls into, because ``random`` draws for each image by that image's own
generator. Code that knows none but the global generators of torch, NumPy or Python (torchvision's transforms, say)
finds them seeded by the step: that repeats and resumes as exactly, but with another batch size images look otherwise.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from kd_bench.utils import plugins, seeding
from kd_bench.utils.errors import UserError
from kd_bench.utils.plugins import AUGMENTATION


class Random:
    """Random numbers for the images of a batch: those of an image depend on nothing but the trial, the epoch and it.

    Args:
        seed: The trial's seed.
        epoch: From 0.
        index: Each image's place in the training set.
        device: Where the numbers are wanted; they are drawn on the CPU, and so are the same for all.
    """

    def __init__(self, seed: int, epoch: int, index: list[int], device: torch.device) -> None:
        self._seed, self._epoch, self._index, self._device = seed, epoch, index, device

    def __len__(self) -> int:
        """B."""
        return len(self._index)

    @cached_property
    def generators(self) -> list[torch.Generator]:
        """One an image."""
        return [seeding.generator(self._seed, seeding.OWN, self._epoch, image) for image in self._index]

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float32 from 0 to below 1."""
        return self._stack([torch.rand(shape, generator=one) for one in self.generators])

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32 of the standard normal distribution."""
        return self._stack([torch.randn(shape, generator=one) for one in self.generators])

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """(B, *shape) int64 from ``low`` to ``high`` - 1."""
        return self._stack([torch.randint(low, high, shape, generator=one) for one in self.generators])

    def _stack(self, drawn: list[Tensor]) -> Tensor:
        return torch.stack(drawn).to(self._device)


class OwnAugment:
    """A plug-in, ready to be applied.

    Args:
        name: The plug-in.
        planned: SHA-256 of its file as the trial was planned with it; None takes it as it is.

    Raises:
        UserError: There is no such plug-in, it cannot be imported, or its file was changed.
    """

    def __init__(self, name: str, planned: str | None) -> None:
        self._plugin = plugins.find(AUGMENTATION, name)
        self._plugin.source()
        self._plugin.refuse_changes(planned)
        self._function = self._plugin.load()

    def __call__(self, images: Tensor, index: list[int], seed: int, epoch: int, step: int) -> Tensor:
        """The images as the plug-in changes them.

        Args:
            images: (B, C, H, W) uint8, which may be changed in place.
            index: Each image's place in the training set.
            seed: The trial's.
            epoch: From 0.
            step: From 0.

        Raises:
            UserError: The plug-in raises an error, or gives something else than such images.
        """
        seeding.seed_everything(seed, seeding.OWN, epoch, step)
        try:
            changed = self._function(images=images, random=Random(seed, epoch, index, images.device))
        except Exception as error:
            raise UserError(f"augmentation {self._plugin.name!r} failed: {plugins.format_error(error)}") from error
        if not isinstance(changed, Tensor) or changed.shape != images.shape or changed.dtype != torch.uint8:
            given = f"{tuple(changed.shape)} {changed.dtype}" if isinstance(changed, Tensor) else type(changed).__name__
            raise UserError(
                f"augmentation {self._plugin.name!r}: should return {tuple(images.shape)} torch.uint8, not {given}"
            )
        return changed.to(images.device)
