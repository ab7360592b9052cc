"""A member of a cohort: one student with its method, optimiser and metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.config.trial import Trial
from kd_bench.methods.base import Method
from kd_bench.models.batch_norm_counters import BatchNormCounters
from kd_bench.models.fast_convs import cuda_memory_format
from kd_bench.models.input_transform import InputTransform
from kd_bench.models.student_with_head import StudentWithHead
from kd_bench.training.epoch_rows import describe_divergence, preparation_row, student_row
from kd_bench.training.forward_pass import ForwardPass, build_forward_pass, compiles_students, precision_context
from kd_bench.training.gradients import add_gradients, finish_gradients, scaled
from kd_bench.training.isolation import copied_inputs, unchanged_process
from kd_bench.training.method_result import add_notes, sum_terms
from kd_bench.training.metrics import MetricSums
from kd_bench.training.micro_batch import MicroBatch, micro_batch_stream
from kd_bench.training.optimizers import (
    MovingAverage,
    build_optimizer,
    forget_steps,
    learning_rate,
    optimizer_state,
    prepare_for_device,
    set_learning_rate,
)
from kd_bench.training.preparation import Preparation
from kd_bench.training.result_writer import ResultWriter, serialize_state
from kd_bench.training.stopwatch import Stopwatch
from kd_bench.types import Batch, Output, Outputs
from kd_bench.utils import seeding
from kd_bench.utils.distributed import all_gather, average_buffers, is_distributed
from kd_bench.utils.memory import is_out_of_memory
from kd_bench.utils.plugins import describe_error

log = logging.getLogger(__name__)

#: Seeds torch's global generators for one of the streams of a step, given the stream's name and the micro-batch.
SeedGenerators = Callable[[str, MicroBatch], None]


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
        deployed: The network that is tested and saved: the student, with the method's inference head if it has one.
        history: A row of metrics for each finished epoch.
        preparation: The epochs before the student's own.
        corrupt: Reasons for decoding failures, by file.
        class_top1: Test accuracy of each class after the last finished epoch, in percent; None for a class without test
            images. Empty before the first.
        confusion: (K, K) int32 on the CPU, test images by true and predicted class after the last finished epoch; None
            before the first, and for more than 1000 classes.
        first_step: First step to train in the next epoch; above 0 after a resume within an epoch.
        stopped: Whether training has ended early, because the method raised an error or the loss was not finite.
        stopwatch: Measures the time of the member's steps.
        train_sums, test_sums, extra_sums, holdout_sums: Sums of the epoch's metrics: of training, of the tested
            network, of a second tested network, and of the tested network on images that were held out.
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
        of_network = (tensor for tensor in network.parameters() if tensor.requires_grad or trial.trainable == "all")
        self._parameters_to_train = [*of_network, *method.parameters()]
        self.optimizer = build_optimizer(trial.optimizer, self._parameters_to_train)
        self.preparation = Preparation(trial)
        head = method.inference_head
        self.deployed = network if head is None else StudentWithHead(network, head)
        self.average = None if trial.ema is None else MovingAverage(self.deployed, trial.ema)
        self._forward_pass = build_forward_pass(network, trial.compile)
        self.train_sums, self.extra_sums, self.holdout_sums = MetricSums(), MetricSums(), MetricSums()
        self.test_sums = MetricSums(by_class=True)
        tested = self._forward_pass if head is None else build_forward_pass(self.deployed, trial.compile)
        self._tests = [(tested, self.test_sums)]
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
            if self.average is not None:
                self.average.take_layout(self.deployed)
            for module in self.view.modules():
                if isinstance(module, InputTransform):
                    module.layout = layout
        prepare_for_device(self.optimizer, device, recordable=generator is not None)

    @property
    def evaluated_network(self) -> nn.Module:
        """The network that is tested and whose weights are saved."""
        return self.deployed

    @property
    def evaluated_weights(self) -> str | None:
        """The kind of ``evaluated_network`` for the result; None for trials that have only one kind."""
        return None

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def next_epoch(self) -> int:
        """The next epoch, from 0; negative in the preparation, and the number of epochs at the end."""
        return self.epochs_done if self.preparation.is_over else self.preparation.next_epoch

    @property
    def all_epochs_done(self) -> int:
        """Number of finished epochs, those of the preparation included."""
        return len(self.preparation.history) + self.epochs_done

    def needs_epoch(self, epoch: int) -> bool:
        """Whether this epoch is the member's next: after a kill, members of a cohort can differ."""
        return not self.stopped and epoch == self.next_epoch < self.trial.epochs

    def begin_epoch(self, epoch: int) -> None:
        """Sets the learning rate."""
        self._learning_rate = self.preparation.learning_rate
        if epoch >= 0:
            self._learning_rate = learning_rate(self.trial.optimizer.lr, self.trial.schedule, epoch, self.trial.epochs)
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
            add_notes(error, self.method, "forward" if self.preparation.is_over else "prepare")
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
        inputs: AbstractContextManager[tuple[Outputs | None, Batch]] = nullcontext((teacher, part.batch))
        if self._plugin is not None:
            inputs = copied_inputs(teacher, part.batch, self.compares_inputs)
        with unchanged_process(self._plugin):
            with inputs as (outputs, batch):
                self._add_gradients(outputs, replace(part, batch=batch), backward, seed or self.seed_step)
            if part.last:
                self._update()

    def with_generator(self, batch: Batch) -> Batch:
        """Returns the batch with the member's generator."""
        return batch if self.generator is None else replace(batch, generator=self.generator)

    def seed_step(self, stream: str, part: MicroBatch) -> None:
        """Seeds torch's global generators and the member's generator for one of the streams of a step."""
        batch, name = part.batch, micro_batch_stream(stream, part.index)
        seeding.seed_global(self.trial.seed, name, batch.epoch, batch.step)
        if self.generator is not None:
            self.generator.manual_seed(seeding.derive(self.trial.seed, name, batch.epoch, batch.step))

    def _add_gradients(
        self, teacher: Outputs | None, part: MicroBatch, backward: Callable[[Tensor], None], seed: SeedGenerators
    ) -> None:
        batch, preparing = part.batch, not self.preparation.is_over
        needs = self.method.needs_in(preparing)
        seed(seeding.STUDENT, part)
        counters = nullcontext() if self._counters is None else self._counters.updated_together()
        with precision_context(self.trial.precision, batch.images.device), counters:
            student = self._student_outputs(batch, needs.student) if needs.student else None
            seed(seeding.METHOD, part)
            if preparing:
                terms = self.method.prepare(student, teacher, batch)
            else:
                assert student is not None
                terms = self.method(student, teacher, batch)
            loss = sum_terms(terms, self.method, batch.images.device, "prepare" if preparing else "forward")
        if part.first:
            self.optimizer.zero_grad(set_to_none=True)
        if preparing:  # the only loss, also for an optimiser that wants the gradients of two
            backward(scaled(loss, part.share))
        else:
            add_gradients(self.optimizer, loss, terms, self.method, part.share, backward)
        with torch.no_grad():
            self._note_divergence(loss, part.step)
            logits = None if preparing or student is None else getattr(terms, "logits", student.logits)
            self.train_sums.update({**terms, "loss": loss}, logits, batch.labels)

    def _student_outputs(self, batch: Batch, needs: frozenset[Output]) -> Outputs:
        outputs = self._forward_pass(self.view(batch.images), needs)
        if batch.second_images is not None:
            # A pass of its own, as published: batch norms see each view by itself.
            outputs = replace(outputs, second_view=self._forward_pass(self.view(batch.second_images), needs))
        return outputs.map(torch.Tensor.contiguous) if self._converts_outputs else outputs

    def _update(self) -> None:
        finish_gradients(self.optimizer, self._parameters_to_train, self.trial.clip_norm)
        self.optimizer.step()
        # Frees the gradients now, and not before the next step, or they would add to the other members' memory.
        self.optimizer.zero_grad(set_to_none=True)
        self.method.on_step_end()
        if self.average is not None and self.preparation.is_over:
            self.average.update_parameters(self.deployed)

    def _note_divergence(self, loss: Tensor, step: int | Tensor) -> None:
        # Stays on the device and is read once an epoch: reading it at every step would synchronise a GPU.
        first = torch.full((), -1, device=loss.device) if self._divergence_step is None else self._divergence_step
        self._divergence_step = first = first.to(loss.device)  # after ``restore_mid_epoch`` it is on the CPU
        first.copy_(torch.where(torch.isfinite(loss) | (first >= 0), first, step))

    def step_tensors(self) -> list[Tensor]:
        """Returns the tensors of optimiser, metrics and moving average that a step changes."""
        states = self.optimizer.state.values()
        tensors = [value for state in states for value in state.values() if isinstance(value, Tensor)]
        average = [] if self.average is None else [*self.average.parameters(), *self.average.buffers()]
        divergence = [] if self._divergence_step is None else [self._divergence_step]
        return [*tensors, *average, *divergence, *self.train_sums.tensors()]

    def before_evaluation(self) -> None:
        """Averages the running statistics over all processes."""
        for module in filter(None, (self.network, self.method, self.average)):
            average_buffers(module)

    def _networks_to_test(self) -> list[tuple[ForwardPass, MetricSums]]:
        return self._tests

    def _test_inputs(self, batch: Batch, held_out: bool) -> Tensor:
        return self.view(batch.images if self._plugin is None else batch.images.clone())

    @torch.no_grad()
    def evaluate(self, batch: Batch, held_out: bool = False) -> None:
        """Adds a batch of the test set, or of held-out images, to the metrics, in evaluation mode."""
        inputs, tests = self._test_inputs(batch, held_out), self._networks_to_test()
        for forward_pass, sums in ((tests[0][0], self.holdout_sums),) if held_out else tests:
            with unchanged_process(self._plugin), precision_context(self.trial.precision, inputs.device):
                logits = forward_pass(inputs).logits
            sums.update({"loss": F.cross_entropy(logits.float(), batch.labels)}, logits, batch.labels)

    def end_epoch(
        self, epoch: int, own_seconds: float, shared_seconds: float, members: int, cached_seconds: float | None = None
    ) -> str | None:
        """Ends an epoch: computes metrics, calls ``method.on_epoch_end()`` and appends a row to ``history``.

        Args:
            epoch: From 0; negative in the preparation, which has no test metrics.
            own_seconds: Time of the member's own steps.
            shared_seconds: Time of data and teacher as if the member were trained alone without cached logits.
            members: Number of members that shared data and teacher.
            cached_seconds: Part of ``shared_seconds`` that cached logits saved; None without a logit cache.

        Returns:
            None, or the reason for the failure of the trial if the loss was not finite. Then there is no new row.
        """
        self.class_top1, self.confusion = self.test_sums.compute_by_class(), self.test_sums.compute_confusion()
        train = self.train_sums.compute()
        test = self.test_sums.compute() if epoch >= 0 else {}
        extra, held_out = self.extra_sums.compute(), self.holdout_sums.compute()
        divergence_step = -1
        if self._divergence_step is not None:
            divergence_step = int(all_gather(self._divergence_step[None]).max())
            self._divergence_step.fill_(-1)
        number = f"{epoch + 1}" if epoch >= 0 else f"{len(self.preparation.history) + 1} of its preparation"
        final_loss = test.get("loss") if epoch + 1 == self.trial.epochs else None
        if reason := describe_divergence(number, divergence_step, final_loss):
            self.stopped = True
            return reason
        seeding.seed_global(self.trial.seed, f"{seeding.METHOD}-epoch-end", epoch)
        with unchanged_process(self._plugin):
            self.method.on_epoch_end()
        times = {"seconds": own_seconds + shared_seconds, "own_seconds": own_seconds, "members": members}
        times |= {} if cached_seconds is None else {"spared_seconds": cached_seconds}
        if epoch < 0:
            row = preparation_row(epoch + self.preparation.epochs, self._learning_rate, train, times)
            self.preparation.history.append(row)
            if self.preparation.is_over:
                forget_steps(self.optimizer)  # so that the student's own epochs begin as any other training
            return None
        extra = {f"{self.extra_prefix}_{name}": value for name, value in extra.items() if name != "loss"}
        extra |= {f"val_{name}": held_out[name] for name in ("top1", "loss") if name in held_out}
        self.history.append(student_row(epoch, self._learning_rate, train, test, extra | times))
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
        if self.preparation.history:
            state["preparation"] = self.preparation.history
        return state | {"corrupt": self.corrupt} if self.corrupt else state

    def restore(self, state: dict[str, Any]) -> None:
        """Restores a state returned by ``state()``."""
        self.network.load_state_dict(state["network"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.history = list(state["history"])
        self.preparation.restore(state.get("preparation", ()))
        self.corrupt = dict(state.get("corrupt", {}))

    def mid_epoch_state(self, step: int) -> bytes:
        """Returns this process's state after ``step`` steps of an epoch, serialized."""
        seconds = self.stopwatch.read()
        self.stopwatch.add(seconds)
        divergence_step = -1 if self._divergence_step is None else int(self._divergence_step)
        position = {"within": (step, seconds, divergence_step), "sums": self.train_sums.state()}
        return serialize_state(self.state() | position | self.stopwatch.energy.state())

    def restore_mid_epoch(self, state: dict[str, Any]) -> None:
        """Restores a deserialized ``mid_epoch_state()``."""
        self.restore(state)
        self.first_step, seconds, divergence_step = state["within"]
        self.stopwatch.restore(seconds, state.get("joules", {}))
        self.train_sums.restore(state["sums"])
        self._divergence_step = torch.tensor(divergence_step)
