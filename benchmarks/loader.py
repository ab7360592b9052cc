"""Throughput of the in-memory loader compared with a DataLoader of PIL images, on a set of CIFAR-100's size.

The contestants take turns, and ratios are taken within a round, so that the load of the machine cancels. Before
anything is timed, our batches are compared with torchvision's on PIL images for the same crops and flips, pixel by
pixel.
"""

from __future__ import annotations

import statistics
import sys
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from benchmarks.markdown import Promise, Section, Table, argument_parser, median_and_range
from benchmarks.measure import ratios, wall_and_cpu_seconds
from kd_bench.config.data import Augment, Dataset, RandAugment
from kd_bench.data import registry
from kd_bench.data.augment.crop_flip import draw_crop_flip
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.utils.errors import UserError

CLASSES = 100
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
PADDING = 4
#: Promised ratio of images per CPU second to the DataLoader without workers.
PROMISED = 15

CROP_FLIP = Augment(crop=PADDING, flip=True)
BASELINE = "PIL DataLoader"
#: The augmentation of published code on CIFAR. A policy stands between the two.
CROP_AND_FLIP = (T.RandomCrop(32, PADDING), T.RandomHorizontalFlip())
TO_TENSOR = (T.ToTensor(), T.Normalize(MEAN, STD))


class PilImages(TorchDataset[tuple[torch.Tensor, int]]):
    """A data set as torchvision's CIFAR classes: an array, of which single images become PIL images."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: T.Compose):
        self.images = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def load_images(size: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Returns images and labels of CIFAR-100, or noise if it is missing, which takes as long; and what they are."""
    try:
        splits = registry.load(Dataset(name="cifar100"))
        images, labels = splits.train_images[:size], splits.train_labels[:size]
        return images, labels, f"{len(images):,} images of CIFAR-100"
    except UserError:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return images, torch.arange(size) % CLASSES, f"{size:,} random images (CIFAR-100 is not in KD_BENCH_DATA)"


def largest_difference(loader: InMemoryLoader, batches: int) -> float:
    """Returns the largest difference of a pixel to torchvision's for the same crops and flips of PIL images."""
    params = draw_crop_flip(loader.seed, loader.epoch, len(loader.images), PADDING)
    largest = 0.0
    for batch, _ in zip(loader, range(batches), strict=False):
        for index, image_of_loader in zip(batch.index.tolist(), batch.images, strict=True):
            top, left = params.offsets[index].tolist()
            image = TF.crop(TF.pad(TF.to_pil_image(loader.images[index]), [PADDING]), top, left, 32, 32)
            image = TF.hflip(image) if params.flips[index] else image
            expected = TF.normalize(TF.to_tensor(image), list(MEAN), list(STD))
            largest = max(largest, float((image_of_loader - expected).abs().max()))
    return largest


def benchmark(size: int, batch: int, rounds: int, workers: int) -> Section:
    """Compares all loaders in ``rounds`` turns. With 0 workers, the DataLoader with workers is left out."""
    images, labels, source = load_images(size)

    def build_loader(**augment: Any) -> InMemoryLoader:
        return InMemoryLoader(
            images,
            labels,
            batch_size=batch,
            mean=MEAN,
            std=STD,
            augment=CROP_FLIP.model_copy(update=augment),
            num_classes=CLASSES,
            shuffle=True,
        )

    def pil(*policy: Any, workers: int = 0) -> DataLoader[Any]:
        transform = T.Compose([*CROP_AND_FLIP, *policy, *TO_TENSOR])
        return DataLoader(PilImages(images, labels, transform), batch, shuffle=True, num_workers=workers)

    auto, rand = "AutoAugment", "RandAugment"
    # Name, the loader that it is compared with, and the loader.
    contestants: list[tuple[str, str | None, Iterable[Any]]] = [
        (BASELINE, None, pil()),
        *([(f"{BASELINE}, {workers} workers", BASELINE, pil(workers=workers))] if workers else []),
        ("kd-bench", BASELINE, build_loader()),
        ("kd-bench, cutout", BASELINE, build_loader(cutout=16)),
        ("kd-bench, erasing", BASELINE, build_loader(erase=0.5)),
        ("kd-bench, mixup", BASELINE, build_loader(mixup=0.8)),
        ("kd-bench, cutmix", BASELINE, build_loader(cutmix=1.0)),
        (f"{BASELINE}, {auto}", None, pil(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10))),
        (f"kd-bench, {auto}", f"{BASELINE}, {auto}", build_loader(autoaugment=True)),
        (f"{BASELINE}, {rand}", None, pil(v2.RandAugment())),
        (f"kd-bench, {rand}", f"{BASELINE}, {rand}", build_loader(randaugment=RandAugment())),
    ]

    difference = largest_difference(build_loader(), batches=5)
    cpu_rates: dict[str, list[float]] = {name: [] for name, _, _ in contestants}
    wall_rates: dict[str, list[float]] = {name: [] for name, _, _ in contestants}
    for _ in range(rounds):
        for name, _, epoch in contestants:
            # A DataLoader ends its workers, whose CPU seconds then count, at the end of each epoch.
            wall, cpu = wall_and_cpu_seconds(lambda epoch=epoch: deque(epoch, maxlen=0))
            cpu_rates[name].append(len(images) / cpu)
            wall_rates[name].append(len(images) / wall)
    rows = []
    for name, baseline, _ in contestants:
        rates = [f"{statistics.median(rates[name]):,.0f}" for rates in (cpu_rates, wall_rates)]
        compared = [
            median_and_range(ratios(rates[name], rates[baseline])) if baseline else ""
            for rates in (cpu_rates, wall_rates)
        ]
        rows.append([name, *rates, *compared, baseline or ""])
    ratio = statistics.median(ratios(cpu_rates["kd-bench"], cpu_rates[BASELINE]))
    promised = f"{PROMISED} times those of {BASELINE}"
    return Section(
        "Loader",
        f"{source}, batches of {batch}, medians (and ranges) of {rounds} rounds, one thread a process.",
        [Table(["", "images/CPU s", "images/s", "ratio (CPU)", "ratio (wall)", "to"], rows)],
        [
            Promise("images a CPU second", promised, f"{ratio:.1f}", ratio >= PROMISED),
            Promise("difference to PIL, the same crops and flips", "none", f"{difference:g}", difference == 0),
        ],
    )


def main() -> int:
    parser = argument_parser(__doc__)
    parser.add_argument("--size", type=int, default=50_000, help="images in the set")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each loader")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader with workers")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a worker of a DataLoader has one, too
    sizes = (512, 64, 1, 0) if options.quick else (options.size, options.batch, options.rounds, options.workers)
    return benchmark(*sizes).show()


if __name__ == "__main__":
    sys.exit(main())
