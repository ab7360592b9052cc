"""A member of a cohort: one student with its method, optimiser and metrics, and the interface of its results."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kd_bench.config.trial import Trial
from kd_bench.methods.base import Method
from kd_bench.models.batch_norm_counters import BatchNormCounters
from kd_bench.models.fast_convs import cuda_memory_format
from kd_bench.models.input_transform import InputTransform
from kd_bench.training.forward_pass import ForwardPass, build_forward_pass, compiles_students, precision_context
from kd_bench.training.isolation import copied_inputs, unchanged_process
from kd_bench.training.method_result import sum_terms
from kd_bench.training.metrics import MetricSums
from kd_bench.training.micro_batch import MicroBatch, micro_batch_stream
from kd_bench.training.optimizers import (
    build_optimizer,
    learning_rate,
    optimizer_state,
    prepare_for_device,
    set_learning_rate,
)
from kd_bench.training.stopwatch import Stopwatch
from kd_bench.types import Batch, Outputs
from kd_bench.utils import seeding
from kd_bench.utils.distributed import all_gather, average_buffers, average_gradients, is_distributed
from kd_bench.utils.plugins import describe_error

log = logging.getLogger(__name__)

#: Seeds torch's global generators for one of the streams of a step, given the stream's name and the micro-batch.
SeedGenerators = Callable[[str, MicroBatch], None]


class ResultWriter:
    """Receives a member's results, and discards them unless a subclass overrides a method.

    ``kd_bench.trials.result_writer`` writes them to the trial's folder. Ranks above 0 use this class, because their
    members have the same results as those of rank 0.
    """

    def write_epoch(self, member: StudentModule) -> None:
        """Writes an epoch, which the member's state and history include."""

    def write_row(self, member: StudentModule) -> None:
        """Writes the metrics of an epoch without the state, because the last checkpoint is recent."""

    def write_mid_epoch(self, member: StudentModule, step: int, states: list[bytes]) -> None:
        """Writes the state within an epoch after ``step`` steps: ``member.mid_epoch_state(step)`` of each process."""

    def write_divergence(self, member: StudentModule, reason: str) -> None:
        """Writes that the loss was not finite. Another training with the same settings has the same result."""

    def report_crash(self, member: StudentModule, reason: str) -> None:
        """Reports that the method raised an error."""

    def report_note(self, member: StudentModule, text: str) -> None:
        """Reports something that the user should know, and that changes no result."""


class StudentModule(nn.Module):
    """One trial in training.

    Attributes:
        trial: The settings.
        network: The student.
        view: Transforms images of the data set's normalisation into the network's input.
        method: The distillation method, which is trained, checkpointed and resumed with the student.
        writer: Receives the results.
        optimizer: Of the parameters of network and method.
        average: Moving average of the weights, batch norms' statistics included; None without one.
        history: A row of metrics for each finished epoch.
        corrupt: Reasons for decoding failures, by file.
        class_top1: Test accuracy of each class after the last finished epoch, in percent; None for a class without test
            images. Empty before the first.
        confusion: (K, K) int32 on the CPU, test images by true and predicted class after the last finished epoch; None
            before the first, and for more than 1000 classes.
        first_step: First step to train in the next epoch; above 0 after a resume within an epoch.
        stopped: Whether training has ended early, because the method raised an error or the loss was not finite.
        stopwatch: Measures the time of the member's steps.
        train_sums, test_sums, extra_sums: Sums of the epoch's metrics: of training, of the tested network, and of a
            second tested network.
        compares_inputs: Whether to find out by comparing all values if a plug-in has written to what it reads, and not
            only by torch's counters of changes.
        generator: Generator for the method's draws; None for torch's global generators.
        extra_prefix: Prefix of the metrics of a second tested network.
    """

    extra_prefix = "average"

    def __init__(self, trial: Trial, network: nn.Module, view: nn.Module, method: Method, writer: ResultWriter) -> None:
        super().__init__()
        self.trial, self.network, self.view, self.method, self.writer = trial, network, view, method, writer
        self.history: list[dict[str, Any]] = []
        self.corrupt: dict[str, str] = {}
        self.class_top1: list[float | None] = []
        self.confusion: Tensor | None = None
        self.first_step = 0
        self.stopped = False
        self.stopwatch = Stopwatch()
        self._parameters_to_train = [*network.parameters(), *method.parameters()]
        self.optimizer = build_optimizer(trial.optimizer, self._parameters_to_train)
        self.average = None if trial.ema is None else moving_average(network, trial.ema)
        self._forward_pass = build_forward_pass(network, trial.compile)
        self.train_sums, self.test_sums, self.extra_sums = MetricSums(), MetricSums(by_class=True), MetricSums()
        self._tests = [(self._forward_pass, self.test_sums)]
        if self.average is not None:
            self._tests.append((build_forward_pass(self.average.module, trial.compile), self.extra_sums))
        self._divergence_step: Tensor | None = None
        self._learning_rate = 0.0
        self._counters: BatchNormCounters | None = None
        plugins = ((trial.method.name, trial.method.source), (trial.model, trial.model_source))
        self._plugin = next((name for name, source in plugins if source is not None), None)
        self.compares_inputs = False
        self._converts_outputs = False
        self.generator: torch.Generator | None = None

    def prepare(self, device: torch.device, generator: torch.Generator | None = None) -> None:
        """Prepares the member for training, after it has been moved to its device, and chooses its memory format there.

        Args:
            device: The device.
            generator: The generator for the method's draws, if steps may be recorded; None for torch's global
                generators.
        """
        self.generator = generator
        if generator is not None and not compiles_students(self.trial.compile):
            self._counters = BatchNormCounters(nn.ModuleList([self.network, self.method]))
        if device.type == "cuda" and not self.trial.channels_last:
            layout = cuda_memory_format(self.network)
            self._converts_outputs = True  # so that what a method gets does not depend on the device
            self.network.to(memory_format=layout)
            for module in self.view.modules():
                if isinstance(module, InputTransform):
                    module.layout = layout
        prepare_for_device(self.optimizer, device, recordable=generator is not None)

    @property
    def evaluated_network(self) -> nn.Module:
        """The network that is tested and whose weights are saved."""
        return self.network

    @property
    def evaluated_weights(self) -> str | None:
        """The kind of ``evaluated_network`` for the result; None for trials that have only one kind."""
        return None

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def needs_epoch(self, epoch: int) -> bool:
        """Whether this epoch (from 0) is the member's next: after a kill, members of a cohort can differ by one."""
        return not self.stopped and epoch == self.epochs_done < self.trial.epochs

    def begin_epoch(self, epoch: int) -> None:
        """Sets the learning rate."""
        settings = self.trial
        self._learning_rate = learning_rate(settings.optimizer.lr, settings.schedule, epoch, settings.epochs)
        set_learning_rate(self.optimizer, self._learning_rate)

    def step(self, teacher: Outputs | None, part: MicroBatch, backward: Callable[[Tensor], None]) -> None:
        """Trains on a micro-batch. The last one of a step updates the weights.

        An error of the method stops this member only. With several processes the error is raised.

        Args:
            teacher: The teacher's outputs for the micro-batch; None without a teacher.
            part: The micro-batch.
            backward: Computes the gradients of a loss.
        """
        part = replace(part, batch=self.with_generator(part.batch))
        with self.stopping_on_errors(), self.stopwatch.running(part.batch.images.device):
            self.compute_step(teacher, part, backward)

    @contextmanager
    def stopping_on_errors(self) -> Iterator[None]:
        """Inside, an error stops this member and is reported. With several processes the error is raised."""
        try:
            yield
        except Exception as error:
            # The other processes wait for this one's gradients. If memory is short, fewer members may fit.
            if is_distributed() or is_out_of_memory(error):
                raise
            log.exception("%s of trial %s failed", self.trial.method.name, self.trial.id)
            self.stopped = True
            self.writer.report_crash(self, describe_error(error))

    def compute_step(
        self,
        teacher: Outputs | None,
        part: MicroBatch,
        backward: Callable[[Tensor], None],
        seed: SeedGenerators | None = None,
    ) -> None:
        """Does what ``step`` does, without the time and with errors.

        Args:
            teacher, backward: As for ``step``.
            part: The micro-batch, with this member's generator.
            seed: Seeds the generators before the network and before the method; None for ``seed_step``.
        """
        if self._plugin is None:
            self._add_gradients(teacher, part, backward, seed or self.seed_step)
            if part.last:
                self._update()
            return
        with unchanged_process(self._plugin):
            with copied_inputs(teacher, part.batch, self.compares_inputs) as (outputs, batch):
                self._add_gradients(outputs, replace(part, batch=batch), backward, seed or self.seed_step)
            if part.last:
                self._update()

    def with_generator(self, batch: Batch) -> Batch:
        """Returns the batch with the member's generator."""
        return batch if self.generator is None else replace(batch, generator=self.generator)

    def seed_step(self, stream: str, part: MicroBatch) -> None:
        """Seeds torch's global generators for one of the streams of a step, and the member's generator for METHOD."""
        batch, name = part.batch, micro_batch_stream(stream, part.index)
        seeding.seed_global(self.trial.seed, name, batch.epoch, batch.step)
        if stream == seeding.METHOD and self.generator is not None:
            self.generator.manual_seed(seeding.derive(self.trial.seed, name, batch.epoch, batch.step))

    def _add_gradients(
        self, teacher: Outputs | None, part: MicroBatch, backward: Callable[[Tensor], None], seed: SeedGenerators
    ) -> None:
        batch = part.batch
        seed(seeding.STUDENT, part)
        counters = nullcontext() if self._counters is None else self._counters.updated_together()
        with precision_context(self.trial.precision, batch.images.device), counters:
            student = self._forward_pass(self.view(batch.images), self.method.needs.student)
            if self._converts_outputs:
                student = student.map(torch.Tensor.contiguous)
            seed(seeding.METHOD, part)
            terms = self.method(student, teacher, batch)
            loss = sum_terms(terms, self.method, student.logits.device)
        if part.first:
            self.optimizer.zero_grad(set_to_none=True)
        backward(loss if part.share == 1 else loss * part.share)
        with torch.no_grad():
            self._note_divergence(loss, part.step)
            self.train_sums.update({**terms, "loss": loss}, student.logits, batch.labels)

    def _update(self) -> None:
        average_gradients(self._parameters_to_train)
        if self.trial.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters_to_train, self.trial.clip_norm)
        self.optimizer.step()
        # Frees the gradients now, and not before the next step, or they would add to the other members' memory.
        self.optimizer.zero_grad(set_to_none=True)
        self.method.on_step_end()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def _note_divergence(self, loss: Tensor, step: int | Tensor) -> None:
        # Stays on the device and is read once an epoch: reading it at every step would synchronise a GPU.
        if self._divergence_step is None:
            self._divergence_step = torch.full((), -1, dtype=torch.int64, device=loss.device)
        elif self._divergence_step.device != loss.device:  # after ``restore_mid_epoch``
            self._divergence_step = self._divergence_step.to(loss.device)
        first = self._divergence_step
        first.copy_(torch.where(torch.isfinite(loss) | (first >= 0), first, step))

    def step_tensors(self) -> list[Tensor]:
        """Returns the tensors of optimiser, metrics and moving average that a step changes."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        average = [] if self.average is None else [*self.average.parameters(), *self.average.buffers()]
        divergence = [] if self._divergence_step is None else [self._divergence_step]
        tensors = [value for value in state if isinstance(value, Tensor)]
        return [*tensors, *average, *divergence, *self.train_sums.tensors()]

    def before_evaluation(self) -> None:
        """Averages the running statistics over all processes."""
        for module in (self.network, self.method):
            average_buffers(module)

    def _networks_to_test(self) -> list[tuple[ForwardPass, MetricSums]]:
        return self._tests

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> None:
        """Adds a test batch to the metrics. The network must be in evaluation mode."""
        images = self.view(batch.images if self._plugin is None else batch.images.clone())
        for forward_pass, sums in self._networks_to_test():
            with precision_context(self.trial.precision, images.device):
                logits = forward_pass(images).logits
            sums.update({"loss": F.cross_entropy(logits.float(), batch.labels)}, logits, batch.labels)

    def end_epoch(
        self, epoch: int, own_seconds: float, shared_seconds: float, members: int, cached_seconds: float | None = None
    ) -> str | None:
        """Ends an epoch: computes metrics, calls ``method.on_epoch_end()`` and appends a row to ``history``.

        Args:
            epoch: From 0.
            own_seconds: Time of the member's own steps.
            shared_seconds: Time of data and teacher as if the member were trained alone without cached logits.
            members: Number of members that shared data and teacher.
            cached_seconds: Part of ``shared_seconds`` that cached logits saved; None without a logit cache.

        Returns:
            None, or the reason for the failure of the trial if the loss was not finite. Then there is no new row.
        """
        self.class_top1, self.confusion = self.test_sums.compute_by_class(), self.test_sums.compute_confusion()
        train, test = self.train_sums.compute(), self.test_sums.compute()
        extra = self.extra_sums.compute() if self.extra_sums.images else {}
        divergence_step = -1
        if self._divergence_step is not None:
            divergence_step = int(all_gather(self._divergence_step[None]).max())
            self._divergence_step.fill_(-1)
        if divergence_step >= 0:
            self.stopped = True
            return f"the loss was no longer finite in epoch {epoch + 1}, step {divergence_step + 1}"
        self.method.on_epoch_end()
        row = {
            "epoch": epoch + 1,
            "lr": self._learning_rate,
            "top1": test.pop("top1"),
            "top5": test.pop("top5"),
            "test_loss": test.pop("loss"),
            "train_top1": train.pop("top1"),
            "train_loss": train.pop("loss"),
            **{f"train_{name}": value for name, value in train.items() if name != "top5"},
            **{f"{self.extra_prefix}_{name}": value for name, value in extra.items() if name != "loss"},
            "seconds": own_seconds + shared_seconds,
            "own_seconds": own_seconds,
            "members": members,
            **({} if cached_seconds is None else {"spared_seconds": cached_seconds}),
        }
        self.history.append(row)
        return None

    def state(self) -> dict[str, Any]:
        """Returns everything that further training depends on."""
        state = {
            "network": self.network.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "history": self.history,
        }
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return state | {"corrupt": self.corrupt} if self.corrupt else state

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state returned by ``state()``."""
        self.network.load_state_dict(state["network"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.history = list(state["history"])
        self.corrupt = dict(state.get("corrupt", {}))

    def mid_epoch_state(self, step: int) -> bytes:
        """Returns this process's state after ``step`` steps of an epoch, serialized."""
        seconds = self.stopwatch.read()
        self.stopwatch.add(seconds)
        divergence_step = -1 if self._divergence_step is None else int(self._divergence_step)
        position = {"within": (step, seconds, divergence_step), "sums": self.train_sums.state()}
        return serialize_state(self.state() | position)

    def restore_mid_epoch(self, state: dict[str, Any]) -> None:
        """Restores a deserialized ``mid_epoch_state()``."""
        self.restore(state)
        self.first_step, seconds, divergence_step = state["within"]
        self.stopwatch.add(seconds)
        self.train_sums.restore(state["sums"])
        self._divergence_step = torch.tensor(divergence_step)


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """Returns a moving average of a network's weights and buffers that keeps a share ``decay`` at each update."""
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average.requires_grad_(False)


def serialize_state(state: Any) -> bytes:
    """Returns the bytes that ``torch.save`` writes."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the GPU or of the machine is exhausted."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)
