"""Adversarial training: a member that learns from images and from the perturbed images that it makes of them.

Lengths of perturbations are those of images in [0, 1], whatever normalisation the network wants: the loader gives such
images, and normalising them is part of what is attacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from kd_bench.config.adversarial import Adversarial
from kd_bench.config.trial import Trial
from kd_bench.data import generated
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.data.registry import data_dir as default_data_dir
from kd_bench.data.two_views import TwoViews
from kd_bench.methods.adversarial import AdversarialMethod
from kd_bench.models.input_transform import InputTransform
from kd_bench.robustness.pgd import pgd
from kd_bench.robustness.pixel_input import Pixels
from kd_bench.robustness.weight_perturbation import perturbable, perturbed, untouched_buffers
from kd_bench.training.observing import Observer
from kd_bench.training.student import (
    MetricSums,
    MicroBatch,
    ResultWriter,
    StudentModule,
    micro_batch_stream,
    moving_average,
    precision_context,
)
from kd_bench.types import Batch, Outputs
from kd_bench.utils import seeding
from kd_bench.utils.distributed import average_gradients


class AdversarialStudentModule(StudentModule):
    """One trial of adversarial training.

    Each step: the images are perturbed with the network in evaluation mode; where the trial says so, the weights are
    moved up the gradient of the loss; the network sees the perturbed images and then the images as they are, in
    training mode; and the optimiser steps from the weights as they were before. Training accuracy is that on the
    perturbed images, of pairs of views the first. ``top1`` is of the network that is evaluated; where that is an
    average, ``last_top1`` is of the network in training.

    Args:
        trial: Its settings, with ``adversarial``.
        network: What is trained.
        view: How it sees images of the data set's normalisation.
        method: Of the adversarial family.
        writer: Where results go.
        splits: The data set, for its normalisation.
    """

    method: AdversarialMethod

    def __init__(
        self,
        trial: Trial,
        network: nn.Module,
        view: InputTransform,
        method: AdversarialMethod,
        writer: ResultWriter,
        splits: ArrayDataset,
    ) -> None:
        super().__init__(trial, network, Pixels(nn.Identity(), splits.mean, splits.std, view), method, writer)
        if trial.adversarial is None:
            raise ValueError(f"{trial.method.name} needs a trial with settings for perturbing images")
        self.settings: Adversarial = trial.adversarial
        average = self.settings.average
        self.epoch_average = None if average is None else moving_average(network, average.decay)
        self._test_last = MetricSums()
        self._perturbable = perturbable(network)

    @property
    def evaluated(self) -> nn.Module:
        """The network that the trial is about: an average where one is kept and begun, else the one in training."""
        average = self._average
        return self.network if average is None or not int(average.n_averaged) else average.module

    @property
    def evaluated_as(self) -> str:
        """What ``evaluated`` is, for the result."""
        if self.evaluated is self.network:
            return "last"
        return "average over steps" if self.epoch_average is None else "average over epochs"

    @property
    def _average(self) -> AveragedModel | None:
        return self.average if self.epoch_average is None else self.epoch_average

    def perturb(self, batch: Batch, place: int = 0) -> Tensor:
        """The batch's images, perturbed: (B, 3, H, W) in [0, 1] and in the ball.

        Args:
            batch: Images in [0, 1].
            place: Of the micro-batch among those of the step.
        """
        eps, steps, step_size = self.settings.at(batch.epoch, self.trial.epochs)
        seen = _Seen(self.view, self.network, self._observe)
        draws = seeding.generator(
            self.trial.seed, micro_batch_stream(seeding.PERTURBATION, place), batch.epoch, batch.step
        )
        with torch.no_grad():
            self.network.eval()
            natural = seen(batch.images)
        found = pgd(
            seen,
            batch.images,
            self._inner_loss(natural, batch),
            eps=eps,
            steps=steps,
            step_size=step_size,
            norm=self.settings.norm,
            start=self.settings.start,
            generator=draws,
        )
        self.network.train()
        return found

    def _inner_loss(self, natural: Tensor, batch: Batch) -> Callable[[Tensor], Tensor]:
        if self.settings.inner == "cross_entropy":
            return lambda logits: F.cross_entropy(logits.float(), batch.labels)
        if self.settings.inner == "kl":
            return lambda logits: AdversarialMethod.inner_loss(self.method, natural, logits, batch)
        return lambda logits: self.method.inner_loss(natural, logits, batch)

    def _accumulate(self, teacher: Outputs | None, part: MicroBatch, backward: Callable[[Tensor], None]) -> None:
        batch, place = part.batch, part.index
        with precision_context(self.trial.precision, batch.images.device):
            images = self.perturb(batch, place)
        with self._weights_perturbed(images, part):
            if part.first:
                self.optimizer.zero_grad(set_to_none=True)
            found = self._forward(images, part, seeding.STUDENT)
            backward(found.loss if part.share == 1 else found.loss * part.share)
        with torch.no_grad():
            self._note_divergence(found.loss, batch.step)
            self._train.add({**found.terms, "loss": found.loss}, found.logits, batch.labels[: len(found.logits)])

    @contextmanager
    def _weights_perturbed(self, images: Tensor, part: MicroBatch) -> Iterator[None]:
        """Inside, the weights are where a loss of this batch is larger, from the epoch on that the trial says."""
        settings = self.settings.weight_perturbation
        if settings is None or part.batch.epoch + 1 < settings.from_epoch:
            yield
            return
        with untouched_buffers(self.network), _evaluating(self.method):
            loss = self._forward(images, part, seeding.WEIGHT_PERTURBATION).loss
            gradients = torch.autograd.grad(loss, self._perturbable)
        for one, gradient in zip(self._perturbable, gradients, strict=True):
            one.grad = gradient
        average_gradients(self._perturbable)
        with perturbed(
            self._perturbable, [one.grad for one in self._perturbable if one.grad is not None], settings.gamma
        ):
            yield

    def _forward(self, images: Tensor, part: MicroBatch, stream: str) -> _Found:
        """The loss of the perturbed images and the images as they are, seen in this order."""
        batch, place = part.batch, part.index
        seeding.seed_global(self.trial.seed, micro_batch_stream(stream, place), batch.epoch, batch.step)
        with precision_context(self.trial.precision, images.device):
            adversarial = self._observe(self.view(images), self.method.needs.student)
            natural = self._observe(self.view(batch.images), self.method.needs.student)
            seeding.seed_global(self.trial.seed, micro_batch_stream(f"{stream}-method", place), batch.epoch, batch.step)
            second = self.settings.second_view
            if second is None:
                terms, logits = self.method(adversarial, natural, batch), adversarial.logits
            else:
                half = len(batch.images) // 2
                first = self.method(_rows(adversarial, 0, half), _rows(natural, 0, half), _part_of(batch, 0, half))
                with _evaluating(self.method):  # the class weights are made of the first view
                    other = self.method(
                        _rows(adversarial, half, 2 * half),
                        _rows(natural, half, 2 * half),
                        _part_of(batch, half, 2 * half),
                    )
                terms = {name: value + second.weight * other[name] for name, value in first.items()}
                terms["ce"] = (first["ce"] + other["ce"]) / 2
                logits = adversarial.logits[:half]
        return _Found(terms, torch.stack(list(terms.values())).sum(), logits)

    def before_evaluation(self) -> None:
        """Takes the epoch's network into the average, and gives all processes the same running statistics."""
        super().before_evaluation()
        average = self.settings.average
        if self.epoch_average is not None and average is not None and self.epochs_done + 1 >= average.from_epoch:
            self.epoch_average.update_parameters(self.network)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> None:
        """Counts hits on a test batch, as it is: of the evaluated network, and of the one in training if it differs."""
        images = self.view(batch.images)
        networks = [(self.evaluated, self._test)]
        if self._average is not None:
            networks.append((self.network, self._test_last))
        for network, sums in networks:
            with precision_context(self.trial.precision, images.device):
                logits = network(images)
            sums.add({"loss": F.cross_entropy(logits.float(), batch.labels)}, logits, batch.labels)

    def extra_metrics(self) -> dict[str, float]:
        """The columns of the network in training, where another is evaluated."""
        if self._average is None:
            return {}
        return {f"last_{name}": value for name, value in self._test_last.read().items() if name != "loss"}

    def state(self) -> dict[str, Any]:
        """As every member's, with the average over epochs."""
        state = super().state()
        return state if self.epoch_average is None else state | {"epoch_average": self.epoch_average.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a ``state()``."""
        super().restore(state)
        if self.epoch_average is not None:
            self.epoch_average.load_state_dict(state["epoch_average"])


class _Found(NamedTuple):
    terms: dict[str, Tensor]
    loss: Tensor
    logits: Tensor


class _Seen(nn.Module):
    """A network from images in [0, 1] to logits, by the trial's own way to make forward passes."""

    def __init__(self, view: nn.Module, network: nn.Module, observe: Observer) -> None:
        super().__init__()
        self.view, self.network, self._observe = view, network, observe

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, K)."""
        return self._observe(self.view(images)).logits


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    before = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(before)


def _rows(outputs: Outputs, begin: int, end: int) -> Outputs:
    return Outputs(
        outputs.logits[begin:end],
        tuple(one[begin:end] for one in outputs.stages),
        tuple(one[begin:end] for one in outputs.preacts),
        None if outputs.pooled is None else outputs.pooled[begin:end],
    )


def _part_of(batch: Batch, begin: int, end: int) -> Batch:
    rows = slice(begin, end)
    return replace(batch, images=batch.images[rows], labels=batch.labels[rows], index=batch.index[rows])


def in_pixels(splits: ArrayDataset) -> ArrayDataset:
    """The same images with a normalisation that leaves them in [0, 1]."""
    return replace(splits, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def train_loader(
    trial: Trial, splits: ArrayDataset, device: torch.device, data_dir: Path | None = None
) -> InMemoryLoader | TwoViews:
    """The stream of training batches of an adversarial trial; images in [0, 1].

    Args:
        trial: Any of those that share the stream.
        splits: The data set.
        device: Where the batches are made.
        data_dir: Folder of data sets, where generated images are looked for.

    Raises:
        UserError: Where there are no generated images, or others than the trial's.
    """
    settings = trial.adversarial
    assert settings is not None
    shared: dict[str, Any] = {
        "batch_size": trial.batch_size,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "device": device,
        "num_classes": splits.num_classes,
        "seed": trial.seed,
    }
    make: Callable[..., InMemoryLoader]
    if settings.generated is None:
        shared["shuffle"], make = True, InMemoryLoader
    else:
        first = trial.dataset.classes is not None
        more = generated.read(settings.generated, default_data_dir(data_dir), splits, first)
        shared |= {"generated": more, "share": settings.generated.share}
        make = generated.MixedLoader
    images, second = (splits.train_images, splits.train_labels), settings.second_view
    loader = make(*images, augment=trial.augment, **shared)
    if second is None:
        return loader
    more_augment = trial.augment.model_copy(update={"autoaugment": second.autoaugment, "cutout": second.cutout})
    return TwoViews(loader, make(*images, augment=more_augment, view=1, **shared))
