"""Builds the parts of a cohort from the settings of its trials, and trains it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.file_dataset import FileDataset
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.data.streaming import StreamLoader, StreamTestLoader
from kd_bench.data.two_views import TwoViews
from kd_bench.methods import registry as methods
from kd_bench.methods.adversarial import AdversarialMethod
from kd_bench.models import registry as models
from kd_bench.models import weights
from kd_bench.models.fast_convs import use_fast_convs
from kd_bench.models.input_transform import InputTransform
from kd_bench.models.outputs import preact_norms, shapes
from kd_bench.training import adversarial
from kd_bench.training.cohort import CohortModule
from kd_bench.training.student import ResultWriter, StudentModule
from kd_bench.types import Pair
from kd_bench.utils import seeding
from kd_bench.utils.distributed import is_distributed, rank, world_size

#: A data set in memory, or the list of its files.
Images = ArrayDataset | FileDataset
TrainLoader = InMemoryLoader | StreamLoader | TwoViews
TestLoader = InMemoryLoader | StreamTestLoader

#: Images a step of evaluation.
EVALUATION_BATCH = 256


def build_network(trial: Trial, splits: Images) -> tuple[nn.Module, InputTransform]:
    """The trial's student with the initial weights that belong to its seed and network, whatever the method."""
    seeding.seed_global(trial.seed, f"{seeding.WEIGHTS}/{trial.model}")
    network, view = _build(trial, splits, trial.channels_last)
    if trial.sync_batch_norm and is_distributed():
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network, view


def load_network(
    trained: Trial | PretrainedTeacher, file: Path, splits: Images, channels_last: bool = False
) -> tuple[nn.Module, InputTransform]:
    """A trained network in evaluation mode, and how it sees the images.

    Args:
        trained: What the weights are of.
        file: The weights, in any layout that ``kd_bench.models.weights`` reads.
        splits: The data set.
        channels_last: Whether it keeps images with the channels last.

    Raises:
        UserError: For a file that does not hold this network's weights.
    """
    loaded = weights.read(file)
    network, view = _build(trained, splits, channels_last)
    weights.load_into(network, loaded.state, file, trained.model)
    return network.eval(), view


def _build(trial: Trial | PretrainedTeacher, splits: Images, channels_last: bool) -> tuple[nn.Module, InputTransform]:
    models.check_source(trial.model, trial.model_source)
    image_size = splits.image_shape[-1]
    options = {"drop_path_rate": trial.drop_path} if isinstance(trial, Trial) and trial.drop_path else {}
    network = models.create(trial.model, splits.num_classes, trial.input.size or image_size, **options)
    view = InputTransform(network, trial.input, image_size, splits.mean, splits.std, channels_last)
    use_fast_convs(network)  # students and teachers alike, so that what is measured again is the same to the last bit
    return network.to(memory_format=torch.channels_last) if channels_last else network, view


def build_student(trial: Trial, splits: Images, teacher: nn.Module | None, writer: ResultWriter) -> StudentModule:
    """A student and its method, ready to be trained.

    Raises:
        UserError: Where the networks cannot give what the method needs, or the method is another than was planned.
    """
    methods.check_source(trial.method.name, trial.method.source)
    network, view = build_network(trial, splits)
    needs = methods.load(trial.method.name).needs_with(trial.method.hyperparameters)
    norms: tuple[tuple[Tensor, Tensor] | None, ...] = ()
    if teacher and trial.teacher and "preacts" in needs.teacher:
        norms = preact_norms(teacher, _image(trial.teacher, splits))
    pair = Pair(
        num_classes=splits.num_classes,
        train_size=len(splits.train_labels),
        student=shapes(network, _image(trial, splits), needs.student),
        teacher=shapes(teacher, _image(trial.teacher, splits), needs.teacher) if teacher and trial.teacher else None,
        student_name=trial.model,
        teacher_name=trial.teacher.model if trial.teacher else "none",
        train_labels=splits.train_labels,
        label_loss=trial.label_loss,
        teacher_norms=norms,
    )
    seeding.seed_global(trial.seed, seeding.METHOD_WEIGHTS)
    method = methods.build(trial.method.name, pair, trial.method.hyperparameters)
    use_fast_convs(method)
    if isinstance(method, AdversarialMethod) and isinstance(splits, ArrayDataset):
        return adversarial.AdversarialStudentModule(trial, network, view, method, writer, splits)
    return StudentModule(trial, network, view, method, writer)


def _image(trial: Trial | PretrainedTeacher, splits: Images) -> tuple[int, ...]:
    channels, *size = splits.image_shape
    return (channels, *([trial.input.size] * 2 if trial.input.size else size))


def loaders(
    trial: Trial, splits: Images, device: torch.device, workers: int = 0, data_dir: Path | None = None
) -> tuple[TrainLoader, TestLoader]:
    """The stream of training batches that belongs to the trial's seed, and the test set.

    Args:
        trial: Any of those that share the stream.
        splits: The data set.
        device: Where the batches are made.
        workers: Processes that decode images, where these are not held in memory.
        data_dir: Folder of data sets, where generated images are looked for.
    """
    train: TrainLoader
    if trial.adversarial is not None and isinstance(splits, ArrayDataset):
        train = adversarial.train_loader(trial, splits, device, data_dir)
        return train, evaluation_loader(adversarial.in_pixels(splits), device)
    test = evaluation_loader(splits, device, workers)
    if isinstance(splits, FileDataset):
        train = StreamLoader(
            splits,
            batch_size=trial.batch_size,
            micro_batch=trial.micro_batch,
            seed=trial.seed,
            device=device,
            workers=workers,
            rank=rank(),
            world_size=world_size(),
        )
        return train, test
    train = InMemoryLoader(
        splits.train_images,
        splits.train_labels,
        batch_size=trial.batch_size,
        mean=splits.mean,
        std=splits.std,
        device=device,
        augment=trial.augment,
        num_classes=splits.num_classes,
        shuffle=True,
        seed=trial.seed,
    )
    return train, test


def evaluation_loader(splits: Images, device: torch.device, workers: int = 0) -> TestLoader:
    """The test set, as it is; of several processes each has its share."""
    if isinstance(splits, FileDataset):
        return StreamTestLoader(
            splits, batch_size=EVALUATION_BATCH, device=device, workers=workers, rank=rank(), world_size=world_size()
        )
    return InMemoryLoader(
        splits.test_images,
        splits.test_labels,
        batch_size=EVALUATION_BATCH,
        mean=splits.mean,
        std=splits.std,
        device=device,
    )


def fit(cohort: CohortModule, train: TrainLoader, test: TestLoader, device: torch.device, processes: int = 1) -> None:
    """Trains all members to their last epoch; results go to their writers as they come.

    Args:
        cohort: What to train.
        train: The training batches, or this process's part of them.
        test: The test set, or this process's part of it.
        device: Where to train.
        processes: How many processes train together, each in an environment as torchrun makes it.
    """
    epochs = cohort.members[0].trial.epochs - cohort.start_epoch
    if epochs <= 0:
        return
    if isinstance(train, StreamLoader):
        train.set_epoch(cohort.start_epoch, cohort.begin_step)
    else:  # those make their batches in no time, and the cohort takes no notice of what it has done
        train.set_epoch(cohort.start_epoch)
    trainer = _trainer(device, epochs, processes)
    # Of several processes Lightning asks the device at every step whether the first was told to end, which the cohort
    # finds out by itself without making the device wait.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    with warnings.catch_warnings():
        # Lightning's advice on data loaders is meant for loaders with workers, and its state is not our checkpoint.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\.")
        trainer.fit(cohort, train_dataloaders=train, val_dataloaders=test)


class _Together(DDPStrategy):
    """Lightning's, without torch's wrapper: that averages the gradients of one network, and here are several, each with
    a backward pass and steps of its own, which average theirs themselves."""

    def configure_ddp(self) -> None:
        """Leaves the module as it is."""


def _trainer(device: torch.device, max_epochs: int, processes: int) -> pl.Trainer:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    here = 1 if processes == 1 else int(os.environ["LOCAL_WORLD_SIZE"])
    if device.type == "cpu":
        devices: Any = here
    else:
        first = (device.index or 0) - (0 if here == 1 else int(os.environ["LOCAL_RANK"]))
        devices = list(range(first, first + here))
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=devices,
        num_nodes=processes // here,
        strategy="auto" if processes == 1 else _Together(),
        # Ours is what counts, and not what SLURM's variables say of the job that this process happens to be in.
        plugins=[LightningEnvironment() if processes == 1 else TorchElasticEnvironment()],
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        benchmark=False,
    )


@dataclass(frozen=True)
class Accuracy:
    """How a network does on the test set; all in percent."""

    top1: float
    top5: float
    classes: tuple[float, ...]
    """Top-1 accuracy on the images of each class; NaN for a class without test images."""


@torch.no_grad()
def accuracy(
    network: nn.Module,
    view: InputTransform,
    splits: Images,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> Accuracy:
    """Evaluates a network on the test set.

    Args:
        network: Is moved to the device, and into evaluation mode.
        view: How it sees the images.
        splits: The data set.
        device: Where to evaluate.
        progress: Told after each batch: batches done, and all of them.
    """
    network, view = network.to(device).eval(), view.to(device)
    loader = evaluation_loader(splits, device)
    first: list[Tensor] = []
    classes: list[Tensor] = []
    fifth = torch.zeros((), dtype=torch.int64, device=device)
    try:
        for batch in loader:
            classes.append(batch.labels)
            logits = network(view(batch.images))
            hits = logits.topk(min(5, logits.shape[-1])).indices == batch.labels[:, None]
            first.append(hits[:, 0])
            fifth += hits.sum()
            if progress:
                progress(batch.step + 1, len(loader))
    finally:
        loader.close()
    labels, right = torch.cat(classes).cpu(), torch.cat(first).cpu()  # those that could be decoded
    images = torch.bincount(labels, minlength=splits.num_classes)
    rights = torch.bincount(labels[right], minlength=splits.num_classes)
    return Accuracy(
        top1=100 * float(right.sum()) / len(labels),
        top5=100 * float(fifth) / len(labels),
        classes=tuple((100 * rights.double() / images).tolist()),
    )
