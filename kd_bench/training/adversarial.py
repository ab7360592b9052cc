"""Adversarial training: a member that trains on images and on adversarial images that it makes of them.

Perturbations are measured on images in [0, 1], whatever normalisation the network has: the loader's images are in
[0, 1], and the normalisation is part of the network under attack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.config.adversarial import Adversarial
from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.methods.adversarial import AdversarialMethod
from kd_bench.models.input_transform import InputTransform
from kd_bench.models.timm_interface import evaluation_mode
from kd_bench.robustness.pgd import pgd
from kd_bench.robustness.pixel_input import NormalisedNetwork
from kd_bench.robustness.weight_perturbation import keep_buffers, perturb_weights, perturbed_parameters
from kd_bench.training.forward_pass import ForwardPass, build_forward_pass, precision_context
from kd_bench.training.method_result import check_terms, sum_terms
from kd_bench.training.metrics import MetricSums
from kd_bench.training.micro_batch import MicroBatch, micro_batch_stream
from kd_bench.training.optimizers import MovingAverage
from kd_bench.training.result_writer import ResultWriter
from kd_bench.training.student import SeedGenerators, StudentModule
from kd_bench.types import Batch, Outputs
from kd_bench.utils import seeding
from kd_bench.utils.errors import UserError


class AdversarialStudentModule(StudentModule):
    """One trial of adversarial training.

    A step perturbs the images, with the network in evaluation mode. If the trial has weight perturbation, it then moves
    the weights up the gradient of the loss. In training mode the network sees the perturbed images and then the
    original images, and the optimiser steps from the original weights. Training accuracy is that on the perturbed
    images, with two views on those of the first. ``top1`` is the accuracy of the evaluated network. If that is an
    average, ``last_top1`` is the accuracy of the network in training.

    Args:
        trial: The settings, with ``adversarial``.
        network, view, method, writer: As for ``StudentModule``.
        images: The data set, for its normalisation.

    Raises:
        UserError: If the method has a preparation.
    """

    extra_prefix = "last"
    method: AdversarialMethod

    def __init__(
        self,
        trial: Trial,
        network: nn.Module,
        view: InputTransform,
        method: AdversarialMethod,
        writer: ResultWriter,
        images: ArrayDataset,
    ) -> None:
        pixel_view = NormalisedNetwork(nn.Identity(), images.mean, images.std, view)
        super().__init__(trial, network, pixel_view, method, writer)
        if trial.adversarial is None:
            raise ValueError(f"{trial.method.name} needs a trial with settings for perturbing images")
        if trial.preparation_epochs:
            raise UserError(
                f"{trial.method.name}: preparation_epochs = {trial.preparation_epochs} should be 0, because a method "
                "that trains on perturbed images has no preparation"
            )
        self.settings: Adversarial = trial.adversarial
        average = self.settings.average
        self.epoch_average = None if average is None else MovingAverage(network, average.decay)
        self._perturbed_parameters = perturbed_parameters(network)

    @property
    def evaluated_network(self) -> nn.Module:
        """The average of the weights if it has begun, else the network in training."""
        average = self._evaluated_average
        return self.network if average is None or not int(average.n_averaged) else average.module

    @property
    def evaluated_weights(self) -> str:
        """The kind of ``evaluated_network`` for the result."""
        if self.evaluated_network is self.network:
            return "last"
        return "average over steps" if self.epoch_average is None else "average over epochs"

    @property
    def _evaluated_average(self) -> MovingAverage | None:
        return self.average if self.epoch_average is None else self.epoch_average

    def perturb(self, batch: Batch, micro_batch_index: int = 0) -> Tensor:
        """Returns adversarial images of a batch: (B, 3, H, W) in [0, 1] and in the ball.

        Args:
            batch: Images in [0, 1].
            micro_batch_index: Index of the micro-batch in the step.
        """
        eps, steps, step_size = self.settings.perturbation(batch.epoch, self.trial.epochs)
        logits_network = _LogitsNetwork(self.view, self.network, self._forward_pass)
        stream = micro_batch_stream(seeding.PERTURBATION, micro_batch_index)
        with torch.no_grad():
            self.network.eval()
            natural = logits_network(batch.images)
        self.seed_step(f"{seeding.PERTURBATION}-method", MicroBatch(batch, micro_batch_index))
        perturbed = pgd(
            logits_network,
            batch.images,
            self._inner_loss(natural, batch),
            eps=eps,
            steps=steps,
            step_size=step_size,
            norm=self.settings.norm,
            start=self.settings.start,
            generator=seeding.generator(self.trial.seed, stream, batch.epoch, batch.step),
        )
        self.network.train()
        return perturbed

    def _inner_loss(self, natural: Tensor, batch: Batch) -> Callable[[Tensor], Tensor]:
        if self.settings.inner == "cross_entropy":
            return lambda logits: F.cross_entropy(logits.float(), batch.labels)
        if self.settings.inner == "kl":
            return lambda logits: AdversarialMethod.inner_loss(self.method, natural, logits, batch)
        return lambda logits: self.method.inner_loss(natural, logits, batch)

    def _add_gradients(
        self, teacher: Outputs | None, part: MicroBatch, backward: Callable[[Tensor], None], seed: SeedGenerators
    ) -> None:
        batch = part.batch
        with precision_context(self.trial.precision, batch.images.device):
            images = self.perturb(batch, part.index)
        with self._weights_perturbed(images, part):
            if part.first:
                self.optimizer.zero_grad(set_to_none=True)
            result = self._loss(images, part, seeding.STUDENT)
            backward(result.loss if part.share == 1 else result.loss * part.share)
        with torch.no_grad():
            self._note_divergence(result.loss, part.step)
            labels = batch.labels[: len(result.logits)]
            self.train_sums.update({**result.terms, "loss": result.loss}, result.logits, labels)

    @contextmanager
    def _weights_perturbed(self, images: Tensor, part: MicroBatch) -> Iterator[None]:
        """Inside, the weights are moved up the gradient of the batch's loss, from the trial's ``from_epoch`` on."""
        settings = self.settings.weight_perturbation
        if settings is None or part.batch.epoch + 1 < settings.from_epoch:
            yield
            return
        parameters = self._perturbed_parameters
        with keep_buffers(self.network), evaluation_mode(self.method):
            loss = self._loss(images, part, seeding.WEIGHT_PERTURBATION, equal_views=True).loss
            gradients = torch.autograd.grad(loss, parameters)
        with perturb_weights(parameters, gradients, settings.gamma):
            yield

    def _loss(self, images: Tensor, part: MicroBatch, stream: str, *, equal_views: bool = False) -> _Loss:
        """Returns the loss of the adversarial images and the original images, seen in this order.

        With two views, the second one has the weight of the settings except for the cross-entropy, in which they are
        equal. With ``equal_views`` all terms are means over both views, as in the released code of IKL-AT when it
        perturbs the weights.
        """
        batch = part.batch
        self.seed_step(stream, part)
        with precision_context(self.trial.precision, images.device):
            adversarial = self._forward_pass(self.view(images), self.method.needs.student)
            natural = self._forward_pass(self.view(batch.images), self.method.needs.student)
            self.seed_step(f"{stream}-method", part)
            second_view = self.settings.second_view
            if second_view is None:
                terms, logits = self.method(adversarial, natural, batch), adversarial.logits
            else:
                half = len(batch.images) // 2
                first = self.method(*_rows(adversarial, natural, batch, slice(half)))
                with evaluation_mode(self.method):  # the class weights are those of the first view
                    second = self.method(*_rows(adversarial, natural, batch, slice(half, 2 * half)))
                for result in (first, second):
                    check_terms(result, self.method, adversarial.logits.device)
                terms = {
                    name: (value + second[name]) / 2
                    if equal_views or name == "ce"
                    else value + second_view.weight * second[name]
                    for name, value in first.items()
                }
                logits = adversarial.logits[:half]
        return _Loss(terms, sum_terms(terms, self.method, logits.device), logits)

    def before_evaluation(self) -> None:
        """Averages the running statistics over all processes, and updates the average over epochs."""
        super().before_evaluation()
        average = self.settings.average
        if self.epoch_average is not None and average is not None and self.epochs_done + 1 >= average.from_epoch:
            self.epoch_average.update_parameters(self.network)

    def _networks_to_test(self) -> list[tuple[ForwardPass, MetricSums]]:
        tests = [(build_forward_pass(self.evaluated_network), self.test_sums)]
        if self._evaluated_average is not None:
            tests.append((build_forward_pass(self.network), self.extra_sums))
        return tests

    def state(self) -> dict[str, Any]:
        """Returns the state of ``StudentModule`` with the average over epochs."""
        state = super().state()
        return state if self.epoch_average is None else state | {"epoch_average": self.epoch_average.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state returned by ``state()``."""
        super().restore(state)
        if self.epoch_average is not None:
            self.epoch_average.load_state_dict(state["epoch_average"])


class _Loss(NamedTuple):
    terms: dict[str, Tensor]
    loss: Tensor
    logits: Tensor


class _LogitsNetwork(nn.Module):
    """Maps images in [0, 1] to logits by the trial's forward pass. ``network`` is a submodule so that modes apply."""

    def __init__(self, view: nn.Module, network: nn.Module, forward_pass: ForwardPass) -> None:
        super().__init__()
        self.view, self.network, self._forward_pass = view, network, forward_pass

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, K)."""
        return self._forward_pass(self.view(images)).logits


def _rows(adversarial: Outputs, natural: Outputs, batch: Batch, rows: slice) -> tuple[Outputs, Outputs, Batch]:
    return adversarial.map(lambda tensor: tensor[rows]), natural.map(lambda tensor: tensor[rows]), batch.rows(rows)
