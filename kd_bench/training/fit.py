"""Builds the parts of a cohort from the settings of its trials, and trains it."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import nn

from kd_bench import seeding
from kd_bench.data.loader import InMemoryLoader
from kd_bench.data.splits import Splits
from kd_bench.errors import UserError
from kd_bench.methods import registry as methods
from kd_bench.models import registry as models
from kd_bench.models.outputs import shapes
from kd_bench.recipe import Trial
from kd_bench.training.cohort import Cohort
from kd_bench.training.member import Member, Sink
from kd_bench.types import Pair

#: Images a step of evaluation.
EVALUATION_BATCH = 256


def build_network(trial: Trial, num_classes: int) -> nn.Module:
    """The trial's student with the initial weights that belong to its seed and network, whatever the method."""
    seeding.seed_global(trial.seed, f"{seeding.WEIGHTS}/{trial.model}")
    return models.create(trial.model, num_classes=num_classes)


def load_network(trial: Trial, weights: Path, num_classes: int) -> nn.Module:
    """The trained network of a finished trial, in evaluation mode.

    Raises:
        UserError: For a file that does not hold this network's weights.
    """
    network = models.create(trial.model, num_classes=num_classes)
    try:
        network.load_state_dict(load_file(weights))
    except Exception as error:
        raise UserError(
            f"{weights}: does not hold the weights of {trial.model}: {str(error).splitlines()[0]}"
        ) from None
    return network.eval()


def build_member(trial: Trial, splits: Splits, teacher: nn.Module | None, sink: Sink) -> Member:
    """A student and its method, ready to be trained.

    Raises:
        UserError: Where the networks cannot give what the method needs, or the method is another than was planned.
    """
    if methods.source_hash(trial.method.name) != trial.method.source:
        raise UserError(f"{trial.method.name}: the file was changed since this trial was planned; run the recipe again")
    network = build_network(trial, splits.num_classes)
    needs = methods.load(trial.method.name).needs
    images = tuple(splits.train_images.shape[1:])
    pair = Pair(
        num_classes=splits.num_classes,
        train_size=len(splits.train_images),
        student=shapes(network, images, needs.student),
        teacher=shapes(teacher, images, needs.teacher) if teacher is not None else None,
        student_name=trial.model,
        teacher_name=trial.teacher.model if trial.teacher else "none",
    )
    seeding.seed_global(trial.seed, seeding.METHOD_WEIGHTS)
    method = methods.build(trial.method.name, pair, trial.method.hyperparameters)
    return Member(trial, network, method, sink)


def loaders(trial: Trial, splits: Splits, device: torch.device) -> tuple[InMemoryLoader, InMemoryLoader]:
    """The stream of training batches that belongs to the trial's seed, and the test set."""
    train = InMemoryLoader(
        splits.train_images,
        splits.train_labels,
        batch_size=trial.batch_size,
        mean=splits.mean,
        std=splits.std,
        device=device,
        crop=trial.augment.crop or 0,
        flip=bool(trial.augment.flip),
        shuffle=True,
        seed=trial.seed,
    )
    return train, evaluation_loader(splits, device)


def evaluation_loader(splits: Splits, device: torch.device) -> InMemoryLoader:
    """The test set, as it is."""
    return InMemoryLoader(
        splits.test_images,
        splits.test_labels,
        batch_size=EVALUATION_BATCH,
        mean=splits.mean,
        std=splits.std,
        device=device,
    )


def fit(cohort: Cohort, train: InMemoryLoader, test: InMemoryLoader, device: torch.device) -> None:
    """Trains all members to their last epoch; results go to their sinks as they come."""
    epochs = cohort.members[0].trial.epochs - cohort.start_epoch
    if epochs <= 0:
        return
    train.set_epoch(cohort.start_epoch)
    trainer = _trainer(device, max_epochs=epochs)
    with warnings.catch_warnings():
        # Lightning's advice on data loaders is meant for loaders with workers, and its state is not our checkpoint.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\.")
        trainer.fit(cohort, train_dataloaders=train, val_dataloaders=test)


def _trainer(device: torch.device, max_epochs: int) -> pl.Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        benchmark=False,
    )


@torch.no_grad()
def accuracy(network: nn.Module, splits: Splits, device: torch.device) -> float:
    """Top-1 accuracy of a network on the test set, in percent."""
    network = network.to(device).eval()
    hits = sum((network(batch.images).argmax(-1) == batch.labels).sum() for batch in evaluation_loader(splits, device))
    return 100 * float(hits) / len(splits.test_images)
