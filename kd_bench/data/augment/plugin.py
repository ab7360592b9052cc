"""The user's own augmentations: a function of a plug-in that changes images (see ``kd_bench.utils.plugins``).

Its arguments are ``images``, (B, C, H, W) uint8, which it may change in place, and ``random``, from which it draws; it
returns images of the same shape and type. The change of an image must not depend on the others in the batch: then an
image is augmented in the same way in any batch, because ``random`` has a generator for each image. Code that can only
draw from the global generators of torch, NumPy or Python (torchvision's transforms, for example) finds them seeded by
the step: that repeats and resumes exactly too, but depends on the batch size.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from kd_bench.utils import plugins, seeding
from kd_bench.utils.errors import UserError
from kd_bench.utils.plugins import AUGMENTATION


class Random:
    """Random numbers for the images of a batch. Those of an image depend only on the trial, the epoch and the image.

    Args:
        seed: The trial's seed.
        epoch: From 0.
        index: Index of each image in the training set.
        device: Where the numbers are needed; they are drawn on the CPU, and so are the same for all devices.
    """

    def __init__(self, seed: int, epoch: int, index: list[int], device: torch.device) -> None:
        self._seed, self._epoch, self._index, self._device = seed, epoch, index, device

    def __len__(self) -> int:
        """B."""
        return len(self._index)

    @cached_property
    def generators(self) -> list[torch.Generator]:
        """One per image."""
        return [seeding.generator(self._seed, seeding.PLUGIN, self._epoch, image) for image in self._index]

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float32 from 0 to below 1."""
        return self._stack([torch.rand(shape, generator=generator) for generator in self.generators])

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) float32 of the standard normal distribution."""
        return self._stack([torch.randn(shape, generator=generator) for generator in self.generators])

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """(B, *shape) int64 from ``low`` to ``high`` - 1."""
        return self._stack([torch.randint(low, high, shape, generator=generator) for generator in self.generators])

    def _stack(self, drawn: list[Tensor]) -> Tensor:
        return torch.stack(drawn).to(self._device)


class AugmentPlugin:
    """A plug-in, ready to be applied.

    Args:
        name: The plug-in.
        planned: SHA-256 of its file when the trial was planned; None skips the comparison.

    Raises:
        UserError: There is no such plug-in, it cannot be imported, or its file was changed.
    """

    def __init__(self, name: str, planned: str | None) -> None:
        self._plugin = plugins.find(AUGMENTATION, name)
        self._plugin.check()
        self._plugin.refuse_changes(planned)
        self._function = self._plugin.load()

    def __call__(self, images: Tensor, index: list[int], seed: int, epoch: int, step: int) -> Tensor:
        """Augments a batch.

        Args:
            images: (B, C, H, W) uint8, which may be changed in place.
            index, seed, epoch: As for ``Random``.
            step: From 0.

        Raises:
            UserError: The plug-in raises an error, or returns something else.
        """
        seeding.seed_everything(seed, seeding.PLUGIN, epoch, step)
        subject = f"augmentation {self._plugin.name!r}"
        with plugins.one_sentence(f"{subject} failed"):
            changed = self._function(images=images, random=Random(seed, epoch, index, images.device))
        is_tensor = isinstance(changed, Tensor)
        actual = f"{tuple(changed.shape)} {changed.dtype}" if is_tensor else type(changed).__name__
        expected = f"{tuple(images.shape)} torch.uint8"
        if actual != expected:
            raise UserError(f"{subject}: should return {expected}, not {actual}")
        return changed.to(images.device)
