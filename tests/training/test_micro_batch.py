"""How a batch is split into micro-batches."""

from __future__ import annotations

import pytest
import torch

from kd_bench.training.micro_batch import split_micro_batches
from kd_bench.types import Batch
from tests.training.parts import splits, train, trial


@pytest.mark.parametrize(
    ("images", "micro_batch", "sizes"),
    [
        (16, None, [16]),
        (16, 8, [8, 8]),
        (19, 8, [8, 8, 3]),
        (17, 8, [8, 9]),
        (9, 8, [9]),
        (8, 8, [8]),
        (5, 8, [5]),
        (1, 8, [1]),
    ],
)
def test_parts(images: int, micro_batch: int | None, sizes: list[int]) -> None:
    index = torch.arange(images)
    batch = Batch(torch.rand(images, 3, 4, 4), index % 4, index, epoch=0, step=0)
    parts = list(split_micro_batches(batch, micro_batch))
    assert [len(part.batch.images) for part in parts] == sizes
    assert [part.share for part in parts] == [size / images for size in sizes]
    assert [part.index for part in parts] == list(range(len(sizes)))
    assert [part.first for part in parts] == [index == 0 for index in range(len(sizes))]
    assert [part.last for part in parts] == [index == len(sizes) - 1 for index in range(len(sizes))]
    assert torch.equal(torch.cat([part.batch.index for part in parts]), index)
    assert torch.equal(torch.cat([part.batch.images for part in parts]), batch.images)


def test_batch_norms_of_single_pixels_train_on_the_last_batch() -> None:
    (writer,) = train([trial("reviewkd", micro_batch=8, epochs=1)], splits(train=16 + 9, test=8))
    assert writer.crash is None
    assert len(writer.states) == 1
