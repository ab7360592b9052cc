"""The images of an epoch, their order, and the part of every batch that one process takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_bench.utils import seeding

#: With repeats, the epoch of a set of at least this size is a multiple of it, as in timm (and DeiT before it).
_ROUND = 256


@dataclass(frozen=True)
class BatchOrder:
    """The batches of an epoch's training images, all of one size, and the part of them for one process.

    Without repeats an epoch is a random permutation of the set, cut off after the last whole batch. With repeats it is
    timm's ``RepeatAugSampler``: a random permutation with every image ``repeats`` times in a row, cut off at the size
    of the set, so that most images of the set are not in the epoch.

    A batch consists of groups: batch norms see one group at once, and images are mixed within a group. Of G groups the
    g-th has every G-th image of the batch from the g-th on, so that the repeats of an image are in different groups, as
    timm has them in different processes. A process gets whole groups, or, if there are more processes than groups, part
    of one: always both images of a mixed pair, the i-th from the front and the i-th from the back. All processes
    together take the same images in a step, whatever their number.

    Attributes:
        seed: The trial's seed.
        size: N.
        batch_size: Of all processes together.
        group_size: Images per group; a divisor of ``batch_size``.
        repeats: Number of times an image is in an epoch.
        rank: Index of this process.
        world_size: Number of processes.

    Raises:
        ValueError: The batch cannot be shared by this number of processes.
    """

    seed: int
    size: int
    batch_size: int
    group_size: int
    repeats: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.group_size:
            raise ValueError(f"groups of {self.group_size} do not make up a batch of {self.batch_size}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"there is no process {self.rank} among {self.world_size}")
        count = self.group_count
        if count % self.world_size and (self.world_size % count or self.group_size % (2 * self.world_size // count)):
            raise ValueError(
                f"{self.world_size} processes cannot share a batch of {self.batch_size} images in {count} groups"
            )

    @property
    def group_count(self) -> int:
        """Number of groups in a batch."""
        return self.batch_size // self.group_size

    @property
    def groups(self) -> range:
        """Indices of the groups of a batch that this process takes, wholly or in part."""
        first = self.rank * self.group_count // self.world_size
        return range(first, max(first + 1, (self.rank + 1) * self.group_count // self.world_size))

    @property
    def positions(self) -> Tensor:
        """(B / R,) int64: the positions in a batch of all processes that this process takes, group by group."""
        by_group = torch.arange(self.batch_size).view(self.group_size, -1).T  # one row per group
        positions = by_group[list(self.groups)]
        parts = self.world_size * self.group_size // self.batch_size
        if parts > 1:
            half = torch.arange(self.rank % parts, self.group_size // 2, parts)
            positions = positions[:, torch.cat([half, self.group_size - 1 - half.flip(0)])]
        return positions.flatten()

    @property
    def epoch_size(self) -> int:
        """Number of images in an epoch, before it is cut into batches."""
        return self.size // _ROUND * _ROUND if self.repeats > 1 and self.size >= _ROUND else self.size

    def __len__(self) -> int:
        """Number of batches."""
        return self.epoch_size // self.batch_size

    def epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Returns the images that this process takes, and the repeat of each, from 0; both (steps, B / R) int64."""
        order = torch.randperm(self.size, generator=seeding.generator(self.seed, seeding.ORDER, epoch))
        position = torch.arange(len(self) * self.batch_size)
        image, repeat = order[position // self.repeats], position % self.repeats
        positions = self.positions
        return image.view(-1, self.batch_size)[:, positions], repeat.view(-1, self.batch_size)[:, positions]
