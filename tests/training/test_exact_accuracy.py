"""Top-1 and top-5 count every test image once, however the batches come out and whoever has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kd_bench.config.data import Dataset, Input, Pipeline
from kd_bench.data import registry
from kd_bench.data.file_dataset import FileDataset
from kd_bench.data.streaming import StreamTestLoader
from kd_bench.models.input_transform import InputTransform
from kd_bench.training import loaders
from kd_bench.training.evaluate import evaluate_accuracy
from kd_bench.training.metrics import MetricSums

CLASSES, EACH, SIZE = 8, 3, 16
CPU = torch.device("cpu")


class Colours(nn.Module):
    """Ranks the classes by the colours of the image's four quarters, without regard to the rest of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(12, CLASSES, generator=torch.Generator().manual_seed(0)))

    def forward(self, images: Tensor) -> Tensor:
        quarters = nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1)
        return (quarters[:, :, None] * self.weight.double()).sum(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> FileDataset:
    root = tmp_path_factory.mktemp("exact") / "mine"
    draws = np.random.default_rng(0)
    for split, each in (("train", 1), ("val", EACH)):
        for label in range(CLASSES):
            (root / split / f"{label}").mkdir(parents=True)
            for number in range(each + (split == "val" and label == 0)):
                pixels = draws.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"{label}" / f"{number}.png")
    return registry.list_files(Dataset(name="folder", path="mine"), Pipeline(size=SIZE, crop_pct=1.0), root.parent)


def expected(dataset: FileDataset) -> tuple[int, int]:
    """Hits among all images at once."""
    (batch,) = StreamTestLoader(dataset, batch_size=100)
    order = Colours()(batch.images).argsort(1, descending=True)
    hits = order == batch.labels[:, None]
    return int(hits[:, 0].sum()), int(hits[:, :5].sum())


@pytest.mark.parametrize("batch_size", [1, 7, 12, 24, 25, 256])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_hits_are_counted_exactly(dataset: FileDataset, batch_size: int, world_size: int) -> None:
    images = len(dataset.test)
    assert images == CLASSES * EACH + 1
    first, five = expected(dataset)
    assert 0 < first < five < images
    sums, network = MetricSums(), Colours()
    for rank in range(world_size):
        for batch in StreamTestLoader(dataset, batch_size=batch_size, rank=rank, world_size=world_size):
            sums.update({}, network(batch.images), batch.labels)
    read = sums.compute()
    assert (read["top1"], read["top5"]) == (100 * (first / images), 100 * (five / images))


@pytest.mark.parametrize(("batch_size", "workers"), [(7, 0), (24, 2), (256, 0)])
def test_so_they_are_for_a_given_teacher(
    dataset: FileDataset, batch_size: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding: set[int] = set()

    def loader(*arguments: Any, **options: Any) -> StreamTestLoader:
        decoding.add(options["workers"])
        return StreamTestLoader(*arguments, **options)

    monkeypatch.setattr(loaders, "EVALUATION_BATCH", batch_size)
    monkeypatch.setattr(loaders, "StreamTestLoader", loader)
    network = Colours()
    view = InputTransform(network, Input(), SIZE, dataset.mean, dataset.std)
    accuracy = evaluate_accuracy(network, view, dataset, CPU, workers=workers)
    assert decoding == {workers}
    first, five = expected(dataset)
    assert (accuracy.top1, accuracy.top5) == (100 * first / len(dataset.test), 100 * five / len(dataset.test))
    by_class = np.array([EACH + 1] + [EACH] * (CLASSES - 1)) @ np.array(accuracy.classes) / 100
    assert by_class == pytest.approx(first)


def test_the_recipes_crop_is_what_is_tested_on(dataset: FileDataset, tmp_path: Path) -> None:
    """The middle 14 of 16 pixels is another image than all of them."""
    whole, middle = (
        next(
            iter(
                StreamTestLoader(
                    FileDataset(**vars(dataset) | {"pipeline": Pipeline(size=14, crop_pct=pct)}), batch_size=2
                )
            )
        )
        for pct in (1.0, 0.875)
    )
    raw = np.asarray(Image.open(dataset.test.path(0)))[1:15, 1:15]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (dataset.mean, dataset.std))
    exact = (torch.from_numpy(raw.copy()).permute(2, 0, 1) / 255 - mean) / std
    torch.testing.assert_close(middle.images[0], exact)
    assert not torch.allclose(whole.images[0], exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_means_of_half_precision_are_summed_in_float32(dtype: torch.dtype) -> None:
    """As the terms of a user's method in a trial with ``precision: bfloat16``."""
    sums, term = MetricSums(), torch.tensor(2.3, dtype=dtype)
    for _ in range(800):
        sums.update({"term": term}, None, torch.zeros(64, dtype=torch.int64))
    assert sums.compute()["term"] == pytest.approx(float(term), rel=1e-4)


def test_hits_are_counted_by_class() -> None:
    sums = MetricSums(by_class=True)
    logits = torch.eye(4)[[0, 1, 1, 2]]
    sums.update({}, logits[:3], torch.tensor([0, 1, 0]))
    sums.update({}, logits[3:], torch.tensor([2]))
    assert sums.compute_by_class() == [50.0, 100.0, 100.0, None]
    assert sums.compute_by_class() == []
