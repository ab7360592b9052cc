"""Trains a cohort with a Lightning ``Trainer``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment

from kd_bench.data.streaming import StreamLoader
from kd_bench.training.callbacks import EpochResults
from kd_bench.training.cohort import CohortModule
from kd_bench.training.loaders import TestLoader, TrainLoader
from kd_bench.types import Batch

#: Steps of recorded operations between two calls of Lightning's loop, which takes about a millisecond.
RECORDED_BLOCK = 16


#: Least seconds between two checkpoints at the end of an epoch, if steps are recorded and epochs are therefore short.
CHECKPOINT_SECONDS = 60.0


class TestedEpochs:
    """Yields the batches of the test set after an epoch in which a student was trained, preparations excepted.

    Args:
        loader: The test set.
        cohort: The cohort.
        in_one_block: Whether all batches are one item, an iterator, because Lightning's loop takes time for each item.
            Otherwise each item is a tuple of one batch.
    """

    def __init__(self, loader: TestLoader, cohort: CohortModule, in_one_block: bool) -> None:
        self.loader, self._cohort, self._in_one_block = loader, cohort, in_one_block

    @property
    def corrupt(self) -> dict[Path, str]:
        """Files that could not be decoded."""
        return self.loader.corrupt

    def __len__(self) -> int:
        """Number of items, at least 1: without any, Lightning would leave out the hooks in which processes wait."""
        return 1 if self._in_one_block else max(1, len(self.loader))

    def __iter__(self) -> Iterator[Iterable[Batch]]:
        if self._cohort.epoch < 0 or not self._cohort.active_members:
            return
        if self._in_one_block:
            yield iter(self.loader)
        else:
            for batch in self.loader:
                yield (batch,)


class StepBlocks:
    """Yields the batches of a loader in blocks. The last block may be smaller."""

    def __init__(self, loader: TrainLoader, size: int) -> None:
        self.loader, self.size = loader, size

    def __len__(self) -> int:
        """Number of blocks."""
        return (len(self.loader) + self.size - 1) // self.size

    def __iter__(self) -> Iterator[tuple[Batch, ...]]:
        batches = iter(self.loader)
        while block := tuple(islice(batches, self.size)):
            yield block


def fit(
    cohort: CohortModule,
    train: TrainLoader,
    test: TestLoader,
    device: torch.device,
    callbacks: Sequence[pl.Callback] = (),
    holdout: TestLoader | None = None,
) -> None:
    """Trains all members to their last epoch. Their writers receive the results of each epoch.

    Args:
        cohort: The cohort.
        train, test: The training batches and the test set, or this process's part of them.
        device: This process's device.
        callbacks: Called after each step, e.g. ``ProgressReporter`` and ``MidEpochCheckpoint``.
        holdout: The images that were held out, or this process's part of them; None without any.
    """
    epochs = cohort.members[0].trial.epochs - cohort.start_epoch
    if epochs <= 0:
        return
    if isinstance(train, StreamLoader):
        train.set_epoch(cohort.start_epoch, cohort.first_step)
    else:  # these loaders make their batches in no time, and the cohort skips those of finished steps
        train.set_epoch(cohort.start_epoch)
    with warnings.catch_warnings():
        # Lightning's advice on data loaders is meant for loaders with workers, and its state is not our checkpoint.
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\.")
        recorded = cohort.recorder is not None
        results = EpochResults(CHECKPOINT_SECONDS if recorded else 0.0)
        trainer = _trainer(device, epochs, [results, *callbacks])
        blocks = StepBlocks(train, RECORDED_BLOCK if recorded else 1)
        tested = [TestedEpochs(loader, cohort, recorded) for loader in (test, holdout) if loader is not None]
        with repeatable_convs(device):
            trainer.fit(cohort, train_dataloaders=blocks, val_dataloaders=tested)


def repeatable_convs(device: torch.device) -> AbstractContextManager[None]:
    """Returns a context in which convolutions on a device have the same bits in every run.

    Otherwise a recorded step could have other bits than one that is not recorded, and a student trained alone other
    bits than in a cohort.
    """
    return cudnn_deterministic(torch.backends.cudnn.deterministic or device.type == "cuda")


@contextmanager
def cudnn_deterministic(value: bool) -> Iterator[None]:
    """Inside, cuDNN uses deterministic algorithms only, or those that it chooses by default."""
    cudnn = torch.backends.cudnn
    before, cudnn.deterministic = cudnn.deterministic, value
    try:
        yield
    finally:
        cudnn.deterministic = before


def _trainer(device: torch.device, epochs: int, callbacks: Sequence[pl.Callback]) -> pl.Trainer:
    """Returns a trainer for the process's one device, also if several processes train together.

    Lightning's DDP strategy averages the gradients of one network in one backward pass. Here each member has its own
    backward pass and step, and averages its gradients itself (``average_gradients``). Besides, with DDP Lightning
    broadcasts before every step whether rank 0 has received SIGTERM, which synchronises a GPU.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    return pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        # Without it, SLURM's variables of the job that this process happens to be in would count.
        plugins=[LightningEnvironment()],
        callbacks=list(callbacks),
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        benchmark=False,
        inference_mode=False,  # tensors of the metrics are changed outside of evaluation, too
    )
