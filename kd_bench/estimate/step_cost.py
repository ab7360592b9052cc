"""What a cohort's step computes and keeps in memory, counted without computing it.

Networks, methods and optimisers are built of tensors that have a shape and no content, and take the very step of the
training; each operation that goes by is noted with its arithmetic, the memory it reads and writes, and what it leaves
allocated. Seconds follow for a device from its data sheet, see ``kd_bench.estimate.gpus``.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from kd_bench.config.trial import MethodSettings, PretrainedTeacher, Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.estimate.operation_counter import OperationCounter, OperationCounts, size
from kd_bench.methods import registry as methods
from kd_bench.models import registry as models
from kd_bench.models.input_transform import InputTransform
from kd_bench.training.adversarial import AdversarialStudentModule
from kd_bench.training.cohort import CohortModule, DistillationCohort, SupervisedCohort
from kd_bench.training.fit import Images, build_student
from kd_bench.training.student import MicroBatch, NullWriter, StudentModule
from kd_bench.types import Batch
from kd_bench.utils.errors import UserError, first_line


@dataclass(frozen=True)
class StudentCost:
    """What one student costs.

    Attributes:
        step: Forward and backward pass of one micro-batch, its method's part included.
        update: The optimiser's step, once a batch.
        evaluation: Forward pass of ``CohortCounts.images`` test images.
        parameters: Bytes of parameters and buffers, the student's and its method's.
        gradients: Bytes.
        optimizer: Bytes of the optimiser's state.
        average: Bytes of the moving average.
        saved: Bytes that are kept between forward and backward pass of one micro-batch.
        peak: Bytes in use at once during forward and backward pass of one micro-batch, beyond all of the above but
            ``saved``.
        uncounted: Why the method's part is missing; empty where it is not.
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
        """Bytes that it keeps between its steps."""
        return self.parameters + self.optimizer + self.average


@dataclass(frozen=True)
class CohortCost:
    """What a cohort costs.

    Attributes:
        images: Images of a micro-batch, which ``teacher`` and the members' ``step`` and ``evaluation`` are for.
        parts: Micro-batches of a step.
        teacher: The teacher's pass over one micro-batch; nothing where nothing teaches.
        teacher_parameters: Bytes of its parameters and buffers.
        teacher_peak: Bytes in use at once during its pass, beyond those.
        members: The students, in the trials' order.
        data: Bytes of the images that lie on the device, the set's where it is held in memory and one batch.
    """

    images: int
    parts: int
    teacher: OperationCounts
    teacher_parameters: int
    teacher_peak: int
    members: tuple[StudentCost, ...]
    data: int

    @property
    def resident(self) -> int:
        """Bytes that all students keep; with micro-batches their gradients, too, which are added up."""
        return sum(one.resident + (one.gradients if self.parts > 1 else 0) for one in self.members)

    @property
    def passing(self) -> int:
        """Bytes that one of the students needs while it has its turn, or the teacher."""
        return max([self.teacher_peak, *(one.peak + (one.gradients if self.parts == 1 else 0) for one in self.members)])

    @property
    def memory(self) -> int:
        """Bytes in use at once at most."""
        return self.teacher_parameters + self.resident + self.passing + self.data


def count(trials: Sequence[Trial], splits: Images) -> CohortCost:
    """Counts a cohort.

    Args:
        trials: Its members; each other kind of member is counted once.
        splits: The data set, of which the sizes and the labels are read.

    Raises:
        UserError: Where a network and a method do not fit together.
    """
    first = trials[0]
    images = first.micro_batch or min(first.batch_size, len(splits.train_labels))
    teacher, passed = None, OperationCounts()
    parameters = peak = 0
    with _quiet(), OperationCounter(), torch.device("meta"):
        if first.teacher is not None:
            teacher = untrained(first.teacher, splits, first.channels_last)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    batch = _batch(first, splits, images, mode)
    found: dict[str, tuple[StudentCost, StudentModule]] = {}
    for trial in trials:
        if trial.id not in found:
            found[trial.id] = _count(trial, splits, teacher, batch, mode)
    if teacher is not None:
        cohort = _cohort([member for _, member in found.values()], teacher, mode)
        with mode, torch.no_grad(), _computing(first), OperationCounter() as tally:
            cohort.teach(batch)
            passed, peak = tally.counts, tally.peak
        parameters = _state(teacher[0])
    held = (splits.train_images, splits.test_images) if isinstance(splits, ArrayDataset) else ()
    data = sum(size(one) for one in held)
    data += size(batch.images) * first.batch_size // images
    members = tuple(found[trial.id][0] for trial in trials)
    return CohortCost(images, first.batch_size // images or 1, passed, parameters, peak, members, data)


def untrained(
    trained: Trial | PretrainedTeacher, splits: Images, channels_last: bool = False
) -> tuple[nn.Module, InputTransform]:
    """A teacher's network as it is built, without its weights, and how it sees the images."""
    image_size = splits.image_shape[-1]
    network = models.create(trained.model, splits.num_classes, trained.input.size or image_size)
    view = InputTransform(network, trained.input, image_size, splits.mean, splits.std, channels_last)
    return (network.to(memory_format=torch.channels_last) if channels_last else network).eval(), view


class DiscardingWriter(NullWriter):
    """A writer that keeps nothing, and lets a method's error end the work."""

    def crashed(self, member: StudentModule, reason: str) -> None:
        """The method raised an error."""
        raise RuntimeError(reason)


def _count(
    trial: Trial, splits: Images, teacher: tuple[nn.Module, InputTransform] | None, batch: Batch, mode: FakeTensorMode
) -> tuple[StudentCost, StudentModule]:
    try:
        return _count_with(trial, splits, teacher, batch, mode)
    except UserError:
        raise
    except Exception as error:  # a method may do what cannot be done without numbers
        if trial.method.name == "none":
            raise
        alone = MethodSettings(name="none", hyperparameters=methods.check("none", {}, "none"))
        by_itself = trial.model_copy(update={"method": alone, "teacher": None})
        counts, member = _count_with(by_itself, splits, None, batch, mode)
        return replace(counts, uncounted=first_line(error)), member


def _count_with(
    trial: Trial, splits: Images, teacher: tuple[nn.Module, InputTransform] | None, batch: Batch, mode: FakeTensorMode
) -> tuple[StudentCost, StudentModule]:
    member = _build(trial, splits, teacher, mode)
    cohort = _cohort([member], teacher, mode)
    with mode, torch.no_grad(), _computing(trial):
        taught = cohort.teach(batch).get(member.method.teacher_batch_norm)
    given = {one.untyped_storage()._cdata for one in (*member.parameters(), *member.buffers())}
    theirs = [one for one in tree_leaves(vars(taught) if taught else {}) if _is_tensor(one)]
    given |= {one.untyped_storage()._cdata for one in theirs}
    given.add(batch.images.untyped_storage()._cdata)
    saved: dict[int, Any] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in given:
            saved[storage._cdata] = storage  # held, so that no other gets its number
        return tensor

    kept = 0

    def backward(loss: Tensor) -> None:
        nonlocal kept
        kept = sum(storage.nbytes() for storage in saved.values())
        saved.clear()
        loss.backward()

    with mode, _quiet(), OperationCounter() as tally:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            member.step(taught, MicroBatch(batch, last=False), backward)
        step, peak = tally.counts, tally.peak
        gradients = sum(size(one.grad) for one in member.parameters() if one.grad is not None)
    with mode, _quiet(), OperationCounter() as tally:
        for group in member.optimizer.param_groups:
            if "foreach" in group:
                group["foreach"], group["fused"] = True, False  # the fused one cannot be counted
        member.optimizer.step()
        if member.average is not None:
            member.average.update_parameters(member.network)
        update = tally.counts
    state = sum(size(one) for one in tree_leaves(dict(member.optimizer.state)) if _is_tensor(one))
    average = 0 if member.average is None else _state(member.average)
    member.eval()
    with mode, torch.no_grad(), OperationCounter() as tally:
        images = batch.images[: len(batch.images) // _views(trial)]
        member.evaluate(Batch(images, torch.zeros(len(images), dtype=torch.int64), batch.index[: len(images)], 0, 0))
        evaluation = tally.counts
    counts = StudentCost(
        step=step,
        update=update,
        evaluation=evaluation,
        parameters=_state(member) - average,
        gradients=gradients,
        optimizer=state,
        average=average,
        saved=kept,
        peak=peak - gradients + sum(size(one) for one in theirs),
    )
    return counts, member


def _build(
    trial: Trial, splits: Images, teacher: tuple[nn.Module, InputTransform] | None, mode: FakeTensorMode
) -> StudentModule:
    """A member whose tensors have no content. It is built of "meta" tensors, which know no autocast, and moved."""
    plain = trial.model_copy(update={"compile": "off"})
    with _quiet(), OperationCounter(), torch.device("meta"):
        built = build_student(plain, splits, teacher[0] if teacher else None, DiscardingWriter())
        view = InputTransform(
            built.network, trial.input, splits.image_shape[-1], splits.mean, splits.std, trial.channels_last
        )
    for module in (built.network, view, built.method):
        without_content(module, mode)
    member: StudentModule
    with mode, _quiet(), _copies_without_content():
        if isinstance(built, AdversarialStudentModule) and isinstance(splits, ArrayDataset):
            member = AdversarialStudentModule(plain, built.network, view, built.method, DiscardingWriter(), splits)
        else:
            member = StudentModule(plain, built.network, view, built.method, DiscardingWriter())
    return member.train()


@contextmanager
def _copies_without_content() -> Iterator[None]:
    """Inside, a deep copy of a tensor without content (of a network, for its average) is another such tensor.

    torch's own way of copying writes to the memory that such a tensor says it has, which is somebody else's.
    """

    def copy(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
        new = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
        return memo[id(tensor)]

    FakeTensor.__deepcopy__ = copy  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del FakeTensor.__deepcopy__


def _cohort(
    members: Sequence[StudentModule], teacher: tuple[nn.Module, InputTransform] | None, mode: FakeTensorMode
) -> CohortModule:
    if teacher is None:
        return SupervisedCohort(members)
    for module in teacher:
        without_content(module, mode)
    return DistillationCohort(members, *teacher)


def without_content(module: nn.Module, mode: FakeTensorMode) -> None:
    """Replaces a module's parameters and buffers, built on "meta" or anywhere, by such that have a shape only."""
    moved: dict[int, Tensor] = {}
    with mode:
        for one in module.modules():
            for tensors in (one._parameters, one._buffers):
                for name, old in tensors.items():
                    if old is None or isinstance(old, FakeTensor):
                        continue
                    if id(old) not in moved:
                        new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype)
                        parameter = isinstance(old, nn.Parameter)
                        moved[id(old)] = nn.Parameter(new, old.requires_grad) if parameter else new
                    tensors[name] = moved[id(old)]  # type: ignore[assignment]


def _batch(trial: Trial, splits: Images, images: int, mode: FakeTensorMode) -> Batch:
    mixed = trial.augment.mixup or trial.augment.cutmix or (trial.pipeline and trial.pipeline.mixes)
    with mode:
        index = torch.zeros(images, dtype=torch.int64)
        labels = torch.zeros(images, splits.num_classes) if mixed else index.clone()
        made = Batch(torch.zeros(images, *splits.image_shape), labels, index, 0, 0)
        if _views(trial) == 1:
            return made
        twice, theirs, places = (torch.cat([one, one]) for one in (made.images, made.labels, made.index))
        return Batch(twice, theirs, places, 0, 0)


def _views(trial: Trial) -> int:
    """How often each image of a batch is in it."""
    return 1 if trial.adversarial is None or trial.adversarial.second_view is None else 2


def _computing(trial: Trial) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=trial.precision == "bfloat16")


def _state(module: nn.Module) -> int:
    return sum(size(one) for one in (*module.parameters(), *module.buffers()))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log's word on methods that fail, which is told in the counts, and torch's on copies of averages."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")
            yield
    finally:
        logging.disable(before)
