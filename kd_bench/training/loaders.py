"""Builds the loaders of training and test batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kd_bench.config.trial import Trial
from kd_bench.data import generated
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.file_dataset import FileDataset
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.data.registry import resolve_data_dir
from kd_bench.data.streaming import StreamLoader, StreamTestLoader
from kd_bench.data.two_views import SecondView, TwoViews
from kd_bench.utils.distributed import rank, world_size

#: A data set in memory, or the list of its files.
Images = ArrayDataset | FileDataset
TrainLoader = InMemoryLoader | StreamLoader | TwoViews | SecondView
TestLoader = InMemoryLoader | StreamTestLoader

#: Images of a batch of the test set. Larger batches fill a GPU.
EVALUATION_BATCH, GPU_EVALUATION_BATCH = 256, 500


def loaders(
    trial: Trial, images: Images, device: torch.device, workers: int = 0, data_dir: Path | None = None
) -> tuple[TrainLoader, TestLoader]:
    """Returns the stream of training batches that the trial's seed determines, and the test set.

    The images of an adversarial trial are in [0, 1]; others are normalised.

    Args:
        trial: Any of the trials that share the stream.
        images: The data set.
        device: Device of the batches.
        workers: Processes that decode images, for data sets that are not held in memory.
        data_dir: Folder of data sets, which has the generated images.

    Raises:
        UserError: If the generated images are missing or not those of the trial.
    """
    if isinstance(images, FileDataset):
        train = StreamLoader(
            images,
            batch_size=trial.batch_size,
            micro_batch=trial.micro_batch,
            seed=trial.seed,
            device=device,
            workers=workers,
            rank=rank(),
            world_size=world_size(),
        )
        return train, evaluation_loader(images, device, workers)
    if trial.adversarial is not None:
        images = _in_unit_range(images)
    return _in_memory_loader(trial, images, device, data_dir), evaluation_loader(images, device)


def _in_memory_loader(
    trial: Trial, images: ArrayDataset, device: torch.device, data_dir: Path | None
) -> InMemoryLoader | TwoViews | SecondView:
    shared: dict[str, Any] = {
        "batch_size": trial.batch_size,
        "mean": images.mean,
        "std": images.std,
        "device": device,
        "num_classes": images.num_classes,
        "seed": trial.seed,
    }
    build: Callable[..., InMemoryLoader] = InMemoryLoader
    adversarial, second_view = trial.adversarial, trial.second_view
    if adversarial is not None and adversarial.generated is not None:
        only_first_classes = trial.dataset.classes is not None
        extra = generated.load_generated(adversarial.generated, resolve_data_dir(data_dir), images, only_first_classes)
        shared |= {"generated": extra, "share": adversarial.generated.share}
        build = generated.MixedLoader
    else:
        shared["shuffle"] = True
    loader = build(images.train_images, images.train_labels, augment=trial.augment, **shared)
    if second_view is not None:
        return SecondView(
            loader, build(images.train_images, images.train_labels, augment=second_view, view=1, **shared)
        )
    if adversarial is None or adversarial.second_view is None:
        return loader
    second = adversarial.second_view
    augment = trial.augment.model_copy(update={"autoaugment": second.autoaugment, "cutout": second.cutout})
    return TwoViews(loader, build(images.train_images, images.train_labels, augment=augment, view=1, **shared))


def evaluation_loader(images: Images, device: torch.device, workers: int = 0) -> TestLoader:
    """Returns the test set without augmentation. Of several processes, each has its share of a ``FileDataset``."""
    if isinstance(images, FileDataset):
        return StreamTestLoader(
            images, batch_size=EVALUATION_BATCH, device=device, workers=workers, rank=rank(), world_size=world_size()
        )
    return InMemoryLoader(
        images.test_images,
        images.test_labels,
        batch_size=GPU_EVALUATION_BATCH if device.type == "cuda" else EVALUATION_BATCH,
        mean=images.mean,
        std=images.std,
        device=device,
    )


def holdout_loader(trial: Trial, images: Images, device: torch.device, workers: int = 0) -> TestLoader | None:
    """Returns the images that were held out, as ``loaders`` returns the test set; None if there are none."""
    if images.holdout is None:
        return None
    if trial.adversarial is not None and isinstance(images.holdout, ArrayDataset):
        return evaluation_loader(_in_unit_range(images.holdout), device)
    return evaluation_loader(images.holdout, device, workers)


def _in_unit_range(images: ArrayDataset) -> ArrayDataset:
    return replace(images, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
