"""Throughput of the in-memory loader beside a DataLoader of PIL images, on a set of CIFAR-100's size.

Contestants take turns, and what counts is their ratio within a round: the machine's mood is in both. Before anything is
timed, our batches are compared with torchvision's on PIL images for the same crops and flips, pixel by pixel.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the benchmarks

import numpy as np
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from benchmarks.writing import Promise, Section, Table, show, spread
from kd_bench.config.data import Augment, Dataset, RandAugment
from kd_bench.data import registry
from kd_bench.data.augment.crop_flip import draw
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.utils.errors import UserError

CLASSES = 100
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
PADDING = 4
#: Images a CPU second against the DataLoader without workers that we promise.
PROMISED = 15

PLAIN = Augment(crop=PADDING, flip=True)
BASELINE = "PIL DataLoader"
#: As published code on CIFAR does it; a policy stands between the two.
CROP_AND_FLIP = (T.RandomCrop(32, PADDING), T.RandomHorizontalFlip())
TO_TENSOR = (T.ToTensor(), T.Normalize(MEAN, STD))


class Pictures(TorchDataset[tuple[torch.Tensor, int]]):
    """Images as torchvision's CIFAR classes hold and hand them out: an array, made a PIL image one at a time."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: Callable[[Image.Image], torch.Tensor]):
        self.images = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def load(size: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Real images where there are any, else noise: what is done to them takes as long."""
    try:
        splits = registry.load(Dataset(name="cifar100"))
        images, labels = splits.train_images[:size], splits.train_labels[:size]
        return images, labels, f"{len(images):,} images of CIFAR-100"
    except UserError:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (size, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return images, torch.arange(size) % CLASSES, f"{size:,} random images (CIFAR-100 is not in KD_BENCH_DATA)"


def largest_difference(loader: InMemoryLoader, batches: int) -> float:
    """Between our batches and the same crops and flips by torchvision of PIL images."""
    draws = draw(loader.seed, loader.epoch, len(loader.images), PADDING)
    worst = 0.0
    for batch, _ in zip(loader, range(batches), strict=False):
        for index, result in zip(batch.index.tolist(), batch.images, strict=True):
            top, left = draws.offsets[index].tolist()
            picture = TF.crop(TF.pad(TF.to_pil_image(loader.images[index]), [PADDING]), top, left, 32, 32)
            picture = TF.hflip(picture) if draws.flips[index] else picture
            theirs = TF.normalize(TF.to_tensor(picture), list(MEAN), list(STD))
            worst = max(worst, float((result - theirs).abs().max()))
    return worst


def measure(epoch: Iterable[Any], size: int) -> tuple[float, float]:
    """Images a CPU second, of this process and its workers, and a wall second."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in epoch:
        pass
    wall = time.perf_counter() - wall
    return size / (cpu_seconds() - cpu), size / wall


def cpu_seconds() -> float:
    """Workers count once they have been waited for, which a DataLoader does at the end of each epoch."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def find(size: int, batch: int, rounds: int, workers: int) -> Section:
    """All contestants.

    Args:
        size: Images in the set.
        batch: Images in a batch.
        rounds: How often each contestant has its turn.
        workers: Of the DataLoader that has some; 0 for no such contestant.
    """
    images, labels, source = load(size)

    def ours(**more: Any) -> InMemoryLoader:
        return InMemoryLoader(
            images,
            labels,
            batch_size=batch,
            mean=MEAN,
            std=STD,
            augment=PLAIN.model_copy(update=more),
            num_classes=CLASSES,
            shuffle=True,
        )

    def pil(*policy: Any, workers: int = 0) -> DataLoader[Any]:
        transform = T.Compose([*CROP_AND_FLIP, *policy, *TO_TENSOR])
        return DataLoader(Pictures(images, labels, transform), batch, shuffle=True, num_workers=workers)

    auto, rand = "AutoAugment", "RandAugment"
    # Name, the contestant it is compared with, and what is timed.
    contestants: list[tuple[str, str | None, Iterable[Any]]] = [
        (BASELINE, None, pil()),
        *([(f"{BASELINE}, {workers} workers", BASELINE, pil(workers=workers))] if workers else []),
        ("kd-bench", BASELINE, ours()),
        ("kd-bench, cutout", BASELINE, ours(cutout=16)),
        ("kd-bench, erasing", BASELINE, ours(erase=0.5)),
        ("kd-bench, mixup", BASELINE, ours(mixup=0.8)),
        ("kd-bench, cutmix", BASELINE, ours(cutmix=1.0)),
        (f"{BASELINE}, {auto}", None, pil(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10))),
        (f"kd-bench, {auto}", f"{BASELINE}, {auto}", ours(autoaugment=True)),
        (f"{BASELINE}, {rand}", None, pil(v2.RandAugment())),
        (f"kd-bench, {rand}", f"{BASELINE}, {rand}", ours(randaugment=RandAugment())),
    ]

    difference = largest_difference(ours(), batches=5)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in contestants}
    for _ in range(rounds):
        for name, _, epoch in contestants:
            rates[name].append(measure(epoch, len(images)))

    def ratios(name: str, which: int, beside: str) -> list[float]:
        return [a[which] / b[which] for a, b in zip(rates[name], rates[beside], strict=True)]

    rows = []
    for name, beside, _ in contestants:
        cells = [f"{statistics.median(rate[which] for rate in rates[name]):,.0f}" for which in (0, 1)]
        cells += [spread(ratios(name, which, beside)) if beside else "" for which in (0, 1)]
        rows.append([name, *cells, beside or ""])
    reached = statistics.median(ratios("kd-bench", 0, BASELINE))
    return Section(
        "Loader",
        f"{source}, batches of {batch}, medians (and ranges) of {rounds} rounds, one thread a process.",
        [Table(["", "images/CPU s", "images/s", "ratio (CPU)", "ratio (wall)", "to"], rows)],
        [
            Promise(
                "images a CPU second", f"{PROMISED} times those of {BASELINE}", f"{reached:.1f}", reached >= PROMISED
            ),
            Promise("difference to PIL, the same crops and flips", "none", f"{difference:g}", difference == 0),
        ],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=50_000, help="images in the set")
    parser.add_argument("--batch", type=int, default=64, help="images in a batch")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contestant has its turn")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader that has some")
    parser.add_argument("--quick", action="store_true", help="a small set, once, to see that it works")
    given = parser.parse_args()
    torch.set_num_threads(1)  # a DataLoader's workers have one each
    if given.quick:
        return show(find(512, 64, 1, 0))
    return show(find(given.size, given.batch, given.rounds, given.workers))


if __name__ == "__main__":
    sys.exit(main())
