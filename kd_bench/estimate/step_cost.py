"""Counts the arithmetic and the memory of a cohort's step, in the students' own epochs, without computing it.

Networks, methods and optimisers are built of fake tensors, which have a shape and no content, and run the step of the
training. Each operation is counted with its arithmetic, the memory it reads and writes, and the memory it leaves
allocated. ``kd_bench.estimate.gpus`` turns the counts into seconds.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from kd_bench.config.trial import MethodSettings, PretrainedTeacher, Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.estimate.operation_counter import OperationCounter, OperationCounts
from kd_bench.methods import _registry as methods
from kd_bench.models import registry as models
from kd_bench.models.input_transform import InputTransform
from kd_bench.training.adversarial import AdversarialStudentModule
from kd_bench.training.build import build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.forward_pass import precision_context
from kd_bench.training.gradients import all_gradients
from kd_bench.training.loaders import Images
from kd_bench.training.micro_batch import MicroBatch
from kd_bench.training.result_writer import ResultWriter
from kd_bench.training.student import StudentModule
from kd_bench.types import Batch, Outputs
from kd_bench.utils.errors import UserError, first_line

_CPU = torch.device("cpu")

#: A teacher's network and the transform of its images.
TeacherParts = tuple[nn.Module, InputTransform]


@dataclass(frozen=True)
class StudentCost:
    """The cost of one student with its method. Memory is in bytes.

    Attributes:
        step: Operations of the forward and backward pass of one micro-batch, including the method.
        update: Operations of the optimiser's step, once a batch.
        evaluation: Operations of a forward pass of ``CohortCost.images`` test images.
        parameters: Parameters and buffers of the student and its method.
        gradients: Their gradients.
        optimizer: The optimiser's state.
        average: The moving average of the weights.
        saved: Tensors kept between forward and backward pass of one micro-batch.
        peak: Most memory in use during forward and backward pass of one micro-batch, without gradients. If
            micro-batches accumulate these, of a later one, which finds them there; otherwise minus all gradients, which
            the pass makes one after another.
        uncounted: Reason that the method could not be counted; empty if it was.
    """

    step: OperationCounts
    update: OperationCounts
    evaluation: OperationCounts
    parameters: int
    gradients: int
    optimizer: int
    average: int
    saved: int
    peak: int
    uncounted: str = ""

    @property
    def resident(self) -> int:
        """Bytes in use between steps."""
        return self.parameters + self.optimizer + self.average


@dataclass(frozen=True)
class CohortCost:
    """The cost of a cohort. Memory is in bytes.

    Attributes:
        images: Images of a micro-batch, to which ``teacher`` and the members' ``step`` and ``evaluation`` refer.
        micro_batches: Micro-batches of a step.
        teacher: Operations of the teacher's pass over one micro-batch; none without a teacher.
        teacher_parameters: The teacher's parameters and buffers.
        teacher_peak: Most memory in use during the teacher's pass, without its parameters.
        members: Costs of the students, in the order of the trials.
        data: Images on the device: the data set, held-out images included, if it is in memory, and one batch.
    """

    images: int
    micro_batches: int
    teacher: OperationCounts
    teacher_parameters: int
    teacher_peak: int
    members: tuple[StudentCost, ...]
    data: int

    @property
    def resident(self) -> int:
        """Bytes in use between steps by all students. Includes gradients if micro-batches accumulate them."""
        accumulates = self.micro_batches > 1
        return sum(member.resident + (member.gradients if accumulates else 0) for member in self.members)

    @property
    def transient(self) -> int:
        """Most bytes in use during the pass of one student, or of the teacher; only one of them runs at a time."""
        accumulates = self.micro_batches > 1
        return max(
            self.teacher_peak, *(member.peak + (0 if accumulates else member.gradients) for member in self.members)
        )

    @property
    def memory(self) -> int:
        """Most bytes in use."""
        return self.teacher_parameters + self.resident + self.transient + self.data


def count_cohort(trials: Sequence[Trial], splits: Images) -> CohortCost:
    """Counts a cohort.

    Args:
        trials: The members' settings.
        splits: The data set; only sizes and labels are read.

    Raises:
        UserError: If a network and a method do not fit together.
    """
    first = trials[0]
    images = first.micro_batch or min(first.batch_size, len(splits.train_labels))
    teacher = None
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    if first.teacher is not None:
        with _silenced(), OperationCounter(), torch.device("meta"):
            teacher = build_untrained_teacher(first.teacher, splits, first.channels_last)
        for module in teacher:
            convert_to_fake(module, mode)
    batch = _batch(first, splits, images, mode)
    micro_batches = first.batch_size // images or 1
    costs, members = zip(
        *(_count_member(trial, splits, teacher, batch, micro_batches > 1, mode) for trial in trials), strict=True
    )
    cohort = CohortModule(members, *(teacher or ()))
    with mode, torch.no_grad(), precision_context(first.precision, _CPU), OperationCounter() as counter:
        cohort.teacher_outputs(batch)
    teacher_parameters = _state_bytes(teacher[0]) if teacher else 0
    views = batch.images.nbytes + (0 if batch.second_images is None else batch.second_images.nbytes)
    data = views * first.batch_size // images
    if isinstance(splits, ArrayDataset):
        held_out = 0 if splits.holdout is None else splits.holdout.test_images.nbytes
        data += splits.train_images.nbytes + splits.test_images.nbytes + held_out
    return CohortCost(images, micro_batches, counter.counts, teacher_parameters, counter.peak, costs, data)


def evaluated_images(splits: Images) -> int:
    """Returns the number of images that each student is evaluated on after an epoch, held-out ones included."""
    return len(splits.test_labels) + (0 if splits.holdout is None else len(splits.holdout.test_labels))


def build_untrained_teacher(
    trained: Trial | PretrainedTeacher, splits: Images, channels_last: bool = False
) -> TeacherParts:
    """Builds a teacher's network without its weights, in evaluation mode, and the transform of its images."""
    image_size = splits.image_shape[-1]
    network = models.create(trained.model, splits.num_classes, trained.input.size or image_size)
    view = InputTransform(network, trained.input, image_size, splits.mean, splits.std, channels_last)
    return (network.to(memory_format=torch.channels_last) if channels_last else network).eval(), view


class DiscardingWriter(ResultWriter):
    """A result writer that keeps nothing and raises a method's error."""

    def report_crash(self, member: StudentModule, reason: str) -> None:
        """Raises the method's error as a RuntimeError."""
        raise RuntimeError(reason)


def _count_member(
    trial: Trial,
    splits: Images,
    teacher: TeacherParts | None,
    batch: Batch,
    accumulates: bool,
    mode: FakeTensorMode,
) -> tuple[StudentCost, StudentModule]:
    """Counts a student with its method, or the student alone if the method cannot run without numbers."""
    try:
        return _count_student(trial, splits, teacher, batch, accumulates, mode)
    except UserError:
        raise
    except Exception as error:  # a plug-in may do anything
        if trial.method.name == "none":
            raise
        none = MethodSettings(name="none", hyperparameters=methods.check("none", {}, "none"))
        student_alone = trial.model_copy(update={"method": none, "teacher": None})
        cost, member = _count_student(student_alone, splits, None, batch, accumulates, mode)
        return replace(cost, uncounted=first_line(error)), member


def _count_student(
    trial: Trial,
    splits: Images,
    teacher: TeacherParts | None,
    batch: Batch,
    accumulates: bool,
    mode: FakeTensorMode,
) -> tuple[StudentCost, StudentModule]:
    member = _build_member(trial, splits, teacher, mode)
    cohort = CohortModule([member], *(teacher or ()))
    with mode, torch.no_grad(), precision_context(trial.precision, _CPU):
        taught = cohort.teacher_outputs(batch).get(member.method.teacher_batch_norm)
    step, saved, peak = _count_step(member, taught, MicroBatch(batch, last=False), mode)
    gradients = _total_bytes(all_gradients(member.optimizer))
    if accumulates:
        _, _, peak = _count_step(member, taught, MicroBatch(batch, first=False, last=False), mode)
    else:
        peak -= gradients
    with mode, _silenced(), OperationCounter() as counter:
        for group in member.optimizer.param_groups:
            if "foreach" in group:
                group["foreach"], group["fused"] = True, False  # the fused optimiser cannot be counted
        member.optimizer.step()
        if member.average is not None:
            member.average.update_parameters(member.deployed)
        update = counter.counts
    average = 0 if member.average is None else _state_bytes(member.average)
    member.eval()
    with mode, torch.no_grad(), OperationCounter() as counter:
        images = batch.images[: len(batch.images) // views_per_image(trial)]
        member.evaluate(Batch(images, torch.zeros(len(images), dtype=torch.int64), batch.index[: len(images)], 0, 0))
        evaluation = counter.counts
    cost = StudentCost(
        step=step,
        update=update,
        evaluation=evaluation,
        parameters=_state_bytes(member) - average,
        gradients=gradients,
        optimizer=_total_bytes(_tensors(dict(member.optimizer.state))),
        average=average,
        saved=saved,
        peak=peak + _total_bytes(taught.tensors() if taught else ()),
    )
    return cost, member


def _count_step(
    member: StudentModule, taught: Outputs | None, part: MicroBatch, mode: FakeTensorMode
) -> tuple[OperationCounts, int, int]:
    """Returns the operations of a forward and backward pass, the bytes saved in between, and the peak in bytes."""
    teacher_outputs = taught.tensors() if taught else []
    inputs = [*member.parameters(), *member.buffers(), *teacher_outputs, *part.batch.tensors()]
    input_storages = {tensor.untyped_storage()._cdata for tensor in inputs}
    storages: dict[int, Any] = {}
    saved = 0

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in input_storages:
            storages[storage._cdata] = storage  # a reference, so that no other storage gets its address
        return tensor

    def backward(loss: Tensor) -> None:
        nonlocal saved
        saved = sum(storage.nbytes() for storage in storages.values())
        storages.clear()
        loss.backward()

    with mode, _silenced(), OperationCounter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            member.step(taught, part, backward)
        return counter.counts, saved, counter.peak


def _build_member(trial: Trial, splits: Images, teacher: TeacherParts | None, mode: FakeTensorMode) -> StudentModule:
    """Builds a member of fake tensors: first of "meta" tensors, which do not support autocast, and then converted."""
    plain = with_usual_perturbations(trial.without_preparation()).model_copy(update={"compile": "off"})
    with _silenced(), OperationCounter(), torch.device("meta"):
        # Of "meta" tensors, too: networks that make tensors in their forward pass make them on the default device.
        untrained = build_untrained_teacher(trial.teacher, splits)[0] if teacher and trial.teacher else None
        built = build_student(plain, splits, untrained, DiscardingWriter())
        view = InputTransform(
            built.network, trial.input, splits.image_shape[-1], splits.mean, splits.std, trial.channels_last
        )
    for module in (built.network, view, built.method):
        convert_to_fake(module, mode)
    with mode, _silenced(), _fake_deepcopy():
        if isinstance(built, AdversarialStudentModule) and isinstance(splits, ArrayDataset):
            writer = DiscardingWriter()
            return AdversarialStudentModule(plain, built.network, view, built.method, writer, splits).train()
        return StudentModule(plain, built.network, view, built.method, DiscardingWriter()).train()


@contextmanager
def _fake_deepcopy() -> Iterator[None]:
    """Inside, a deep copy of a fake tensor (for a moving average) is another fake tensor.

    torch's own deep copy writes to the memory that the fake tensor claims to have, which belongs to others.
    """

    def deepcopy(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
        new = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        return memo[id(tensor)]

    FakeTensor.__deepcopy__ = deepcopy  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del FakeTensor.__deepcopy__


def convert_to_fake(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replaces a module's parameters and buffers, on any device, by fake tensors of the same shapes."""
    converted: dict[int, Tensor] = {}
    with mode:
        for submodule in module.modules():
            for tensors in (submodule._parameters, submodule._buffers):
                for name, old in tensors.items():
                    if old is None or isinstance(old, FakeTensor):
                        continue
                    if id(old) not in converted:
                        new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype)
                        is_parameter = isinstance(old, nn.Parameter)
                        converted[id(old)] = nn.Parameter(new, old.requires_grad) if is_parameter else new
                    tensors[name] = converted[id(old)]  # type: ignore[assignment]


def _batch(trial: Trial, splits: Images, size: int, mode: FakeTensorMode) -> Batch:
    mixed = trial.augment.mixup or trial.augment.cutmix or (trial.pipeline and trial.pipeline.mixes)
    with mode:
        images = torch.zeros(size, *splits.image_shape)
        index = torch.zeros(size, dtype=torch.int64)
        labels = torch.zeros(size, splits.num_classes) if mixed else index.clone()
        if views_per_image(trial) == 2:
            images, labels, index = (torch.cat([tensor, tensor]) for tensor in (images, labels, index))
        second_images = None if trial.second_view is None else torch.zeros_like(images)
        return Batch(images, labels, index, 0, 0, second_images=second_images)


def with_usual_perturbations(trial: Trial) -> Trial:
    """Returns a trial of adversarial training that does in every epoch what it does in most; others as they are.

    It perturbs the weights in all epochs or in none, and the images in the mean number of steps.
    """
    settings = trial.adversarial
    if settings is None:
        return trial
    changes: dict[str, Any] = {}
    perturbation = settings.weight_perturbation
    if perturbation is not None:
        in_most = 2 * (perturbation.from_epoch - 1) <= trial.epochs
        changes["weight_perturbation"] = perturbation.model_copy(update={"from_epoch": 1}) if in_most else None
    if settings.schedule is not None:
        steps = sum(settings.perturbation(epoch, trial.epochs)[1] for epoch in range(trial.epochs))
        changes |= {"schedule": None, "steps": math.floor(steps / trial.epochs + 0.5)}
    return trial.model_copy(update={"adversarial": settings.model_copy(update=changes)})


def views_per_image(trial: Trial) -> int:
    """Returns the number of views of an image among a batch's ``images``."""
    return 1 if trial.adversarial is None or trial.adversarial.second_view is None else 2


def _state_bytes(module: nn.Module) -> int:
    return _total_bytes((*module.parameters(), *module.buffers()))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@contextmanager
def _silenced() -> Iterator[None]:
    """Inside, nothing is logged about methods that fail, which the costs report, and torch does not warn of copies."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            yield
    finally:
        logging.disable(before)
