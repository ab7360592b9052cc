"""Which images an epoch has, in what order, and which of them a process takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_bench.utils import seeding

#: Sets of at least so many images have an epoch of a multiple of it where images are repeated, as timm (and DeiT before
#: it) has it.
_ROUND = 256


@dataclass(frozen=True)
class Order:
    """The batches of an epoch's training images, all of one size, and the part of them that is one process's.

    Without repeats an epoch is the set in a new order, cut off after the last whole batch. With repeats it is timm's
    ``RepeatAugSampler``: the set in a new order with every image so many times in a row, cut off where there are as
    many images as the set has, so that most images of the set are not in the epoch.

    A batch is made up of groups that do not know of one another: those that batch norms see at once, and that are mixed
    within themselves. Of G groups the g-th has every G-th image of the batch from the g-th on, so that the repeats of
    an image are in different groups, as timm has them in different processes. A process gets whole groups, or, where
    there are more processes than groups, part of one: always two images that are mixed with each other, the i-th from
    the front and the i-th from the back. What all processes take in a step together is the same for any number of them.

    Attributes:
        seed: The trial's seed.
        size: N.
        batch_size: Of all processes together.
        group: Images a group; a divisor of ``batch_size``.
        repeats: How often an image is in an epoch.
        rank: The number of this process.
        world_size: How many processes there are.

    Raises:
        ValueError: The batch cannot be shared by so many processes.
    """

    seed: int
    size: int
    batch_size: int
    group: int
    repeats: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.group:
            raise ValueError(f"groups of {self.group} do not make up a batch of {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"there is no process {self.rank} among {self.world_size}")
        groups = self.batch_size // self.group
        if groups % self.world_size and (self.world_size % groups or self.group % (2 * self.world_size // groups)):
            raise ValueError(
                f"{self.world_size} processes cannot share a batch of {self.batch_size} images in {groups} groups"
            )

    @property
    def groups(self) -> range:
        """The numbers of the groups in a batch that this process takes, wholly or in part."""
        count = self.batch_size // self.group
        if self.world_size > count:
            own = self.rank * count // self.world_size
            return range(own, own + 1)
        return range(self.rank * count // self.world_size, (self.rank + 1) * count // self.world_size)

    @property
    def share(self) -> Tensor:
        """(B / R,) int64: the places in a batch of all processes that this process takes, group by group."""
        whole = torch.arange(self.batch_size).view(self.group, -1).T  # a row a group
        own = whole[list(self.groups)]
        parts = self.world_size * self.group // self.batch_size
        if parts > 1:
            half = torch.arange(self.rank % parts, self.group // 2, parts)
            own = own[:, torch.cat([half, self.group - 1 - half.flip(0)])]
        return own.flatten()

    @property
    def length(self) -> int:
        """Images that are to be in an epoch, before it is cut into batches."""
        return self.size // _ROUND * _ROUND if self.repeats > 1 and self.size >= _ROUND else self.size

    def __len__(self) -> int:
        """Number of batches."""
        return self.length // self.batch_size

    def epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The images that this process takes, and which of its repeats each is, from 0; both (steps, B / R) int64."""
        order = torch.randperm(self.size, generator=seeding.generator(self.seed, seeding.ORDER, epoch))
        place = torch.arange(len(self) * self.batch_size)
        image, repeat = order[place // self.repeats], place % self.repeats
        share = self.share
        return image.view(-1, self.batch_size)[:, share], repeat.view(-1, self.batch_size)[:, share]
