"""Methods in a training loop of one's own: a module that computes the terms of the loss for any pair of networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.config.trial import LabelLoss
from kd_bench.methods import _registry as methods
from kd_bench.methods.adversarial import AdversarialMethod
from kd_bench.methods.base import Method
from kd_bench.models.outputs import observe, preact_norms, shapes
from kd_bench.models.timm_interface import dry_run
from kd_bench.training.teacher import batch_statistics, tracking_batch_norms
from kd_bench.types import LOGITS, Batch, Needs, Output, Outputs, Pair, Shapes
from kd_bench.utils.errors import UserError, unknown


def distiller(
    method: str | type[Method],
    *,
    student: nn.Module,
    teacher: nn.Module | None = None,
    images: Tensor,
    num_classes: int | None = None,
    train_labels: Tensor | Sequence[int] | None = None,
    label_loss: LabelLoss = "cross_entropy",
    **hyperparameters: Any,
) -> Distiller:
    """Returns a module that computes a method's terms of the loss, for a training loop of one's own.

    The networks may be any modules that map a batch to logits, (B, K). Methods that read more need timm's interface
    (``forward_intermediates``, ``forward_features``, ``forward_head``), which all networks of timm and ours have.

    >>> import torch, kd_bench
    >>> images, labels = torch.randn(8, 3, 32, 32), torch.randint(10, (8,))
    >>> student, teacher = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)) for _ in range(2))
    >>> kd = kd_bench.distiller("kd", student=student, teacher=teacher, images=images, temperature=2.0)
    >>> optimizer = torch.optim.SGD(kd.parameters(), lr=0.1)
    >>> terms = kd(images, labels)
    >>> sorted(terms)
    ['ce', 'kd']
    >>> sum(terms.values()).backward()
    >>> optimizer.step()

    Args:
        method: Name of a method, ``FILE.py:CLASS``, or a subclass of ``Method``.
        student: The network to train. The module has its parameters, and those of the method.
        teacher: The trained network; it is frozen and put in evaluation mode. None for a method without a teacher.
        images: A batch, (B, ...), of which only the shape is read.
        num_classes: K; None for the number of the student's logits.
        train_labels: The class of every training image, (N,), for methods that need the training set (crd).
        label_loss: The loss of the term "ce": "cross_entropy" or "binary_cross_entropy".
        **hyperparameters: Hyper-parameters that differ from the method's defaults.

    Raises:
        UserError: If there is no such method or hyper-parameter, or a network lacks what the method reads.
    """
    return Distiller(method, student, teacher, images, num_classes, train_labels, label_loss, hyperparameters)


class Distiller(nn.Module):
    """A method with its networks, as ``distiller`` returns it.

    ``parameters()`` and ``state_dict()`` are those of student and method, and ``to(device)`` moves the teacher, too.
    The method counts as finished with a step when the next begins, and with an epoch when ``end_epoch`` is called or
    another ``epoch`` is given.

    Attributes:
        student: The network that is trained.
        method: The method, an ``nn.Module``.
        epoch: The current epoch, from 0.
    """

    def __init__(
        self,
        method: str | type[Method],
        student: nn.Module,
        teacher: nn.Module | None,
        images: Tensor,
        num_classes: int | None,
        train_labels: Tensor | Sequence[int] | None,
        label_loss: LabelLoss,
        hyperparameters: Mapping[str, Any],
    ) -> None:
        super().__init__()
        name, build, needs = _find(method, hyperparameters)
        image = _image_shape(images)
        if needs.teacher and teacher is None:
            raise UserError(f"{name} needs a teacher; pass it as teacher=")
        if not needs.teacher:
            teacher = None
        if teacher is not None:
            _check_apart(student, teacher)
            teacher.requires_grad_(False).eval()
        ours = _shapes(f"{name}: student", student, image, needs.student)
        classes = ours.logits[0] if num_classes is None else num_classes
        theirs = None if teacher is None else _shapes(f"{name}: teacher", teacher, image, needs.teacher)
        for role, found in (("student", ours), ("teacher", theirs)):
            if found is not None and found.logits[0] != classes:
                raise UserError(f"{name}: the {role} has {found.logits[0]} logits, not {classes}, one for each class")
        labels = None if train_labels is None else _train_labels(train_labels, classes)
        pair = Pair(
            num_classes=classes,
            train_size=0 if labels is None else len(labels),
            student=ours,
            teacher=theirs,
            student_name=type(student).__name__,
            teacher_name=type(teacher).__name__,
            train_labels=labels,
            label_loss=label_loss,
            teacher_norms=preact_norms(teacher, image) if teacher is not None and "preacts" in needs.teacher else (),
        )
        try:
            built = build(pair)
        except ValueError as error:  # e.g. crd without train_labels
            hint = " (train_labels was not given)" if labels is None else ""
            raise UserError(f"{error}{hint}") from None
        self.student = student
        self.method = built.to(next(student.parameters()).device)
        self.epoch = 0
        self._name, self._step, self._needs_index = name, 0, labels is not None
        self._step_is_open = False
        # Not registered, so that its parameters are neither trained nor saved.
        self._frozen = () if teacher is None else (teacher,)
        self._batch_norms = [] if teacher is None else tracking_batch_norms(teacher)
        self.register_state_dict_pre_hook(_end_step_of)

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher; None if the method has none."""
        return self._frozen[0] if self._frozen else None

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        index: Tensor | None = None,
        *,
        epoch: int | None = None,
        step: int | None = None,
    ) -> dict[str, Tensor]:
        """Returns the weighted terms of the loss by name, scalars whose sum is the loss.

        Args:
            images: (B, ...), on the student's device.
            labels: (B,) int64, or the (B, K) shares of mixed images.
            index: (B,) int64, position of the images in the training set; needed if ``train_labels`` was given.
            epoch: From 0; None for the current one, see ``end_epoch``.
            step: From 0, equal for the parts of a step whose gradients are summed; None if each call is a step.

        Raises:
            UserError: If ``index`` is missing.
            ValueError: If labels have a wrong shape or type.
        """
        if index is None and self._needs_index:
            raise UserError(f"{self._name}: index is missing: the position of each image in the training set")
        if self.training:
            self._begin(epoch, step)
        device = images.device
        index = torch.full((len(images),), -1, dtype=torch.int64) if index is None else index
        epoch = self.epoch if epoch is None else epoch
        batch = Batch(images, labels.to(device), index.to(device), epoch, self._step if step is None else step)
        student = observe(self.student, images, self.method.needs.student)
        return self.method(student, self._observe_teacher(images), batch)

    def end_epoch(self) -> None:
        """Ends an epoch: the method updates what it keeps of an epoch, and warm-ups count it."""
        self._end_step()
        self.method.on_epoch_end()
        self.epoch, self._step = self.epoch + 1, 0

    def _begin(self, epoch: int | None, step: int | None) -> None:
        """Ends the last step, and its epoch, if this call belongs to another."""
        if epoch is not None and epoch != self.epoch:
            if self._step or self._step_is_open:
                self.end_epoch()
            self.epoch = epoch
        if step is None or step != self._step:
            self._end_step()
        self._step_is_open = True
        if step is not None:
            self._step = step

    def _end_step(self) -> None:
        if self._step_is_open:
            self._step_is_open = False
            self.method.on_step_end()
            self._step += 1

    def _observe_teacher(self, images: Tensor) -> Outputs | None:
        teacher = self.teacher
        if teacher is None:
            return None
        if teacher.training:
            teacher.eval()
        with torch.no_grad():
            if self.method.teacher_batch_norm == "running":
                return observe(teacher, images, self.method.needs.teacher)
            with batch_statistics(self._batch_norms):
                return observe(teacher, images, self.method.needs.teacher)

    def get_extra_state(self) -> dict[str, int]:
        """Returns epoch and step, which ``state_dict`` holds, too."""
        return {"epoch": self.epoch, "step": self._step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restores epoch and step."""
        self.epoch, self._step = state["epoch"], state["step"]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Distiller:
        for teacher in self._frozen:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _end_step_of(distiller: Distiller, *_: Any) -> None:
    distiller._end_step()


def _find(method: Any, hyperparameters: Mapping[str, Any]) -> tuple[str, Callable[[Pair], Method], Needs]:
    """Returns a method's name, a function that builds it, and what it reads."""
    if isinstance(method, type) and issubclass(method, Method):
        name, kind = method.__name__, method
        resolved = _with_defaults(method, hyperparameters)
    elif isinstance(method, str):
        name, kind = method, methods.load(method)
        resolved = methods.check(method, hyperparameters)
    else:
        raise UserError(
            f"method: should be the name of a method or a subclass of kd_bench.Method (it is {method!r:.60})"
        )
    if issubclass(kind, AdversarialMethod):
        raise UserError(f"{name} trains on perturbed images, which only kd-bench run makes")
    return name, lambda pair: kind(pair, **resolved), kind.needs_with(resolved)


def _with_defaults(method: type[Method], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all hyper-parameters of a class; their values are not checked, because they have no declared bounds."""
    arguments = inspect.signature(method).parameters.values()
    known = {argument.name: argument.default for argument in arguments if argument.kind is argument.KEYWORD_ONLY}
    for key in hyperparameters:
        if key not in known:
            raise unknown("hyper-parameter", key, known, method.__name__)
    resolved = known | dict(hyperparameters)
    for key, value in resolved.items():
        if value is inspect.Parameter.empty:
            raise UserError(f"{method.__name__} needs a value for {key!r}")
    return resolved


def _image_shape(images: Any) -> tuple[int, ...]:
    if not isinstance(images, Tensor) or images.ndim < 2:
        raise UserError(f"images: should be a batch, a tensor (B, C, H, W) (it is {_described(images)})")
    if not images.is_floating_point():
        raise UserError(f"images: should be floating-point numbers as the networks take them (they are {images.dtype})")
    return tuple(images.shape[1:])


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Raises UserError if the networks share weights, which would be both trained and frozen."""
    theirs = set(map(id, teacher.parameters()))
    shared = next((name for name, weight in student.named_parameters() if id(weight) in theirs), None)
    if shared is not None:
        raise UserError(f"student and teacher share their weights, e.g. {shared}; make a copy with copy.deepcopy")


def _shapes(subject: str, network: nn.Module, image: tuple[int, ...], needs: frozenset[Output]) -> Shapes:
    """Returns the shapes of a network's outputs; ``subject`` begins the error."""
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        raise UserError(f"{subject} should be a torch.nn.Module with parameters (it is {network!r:.60})")
    try:
        with dry_run(network, image) as black, torch.no_grad():
            logits = network(black)
        if isinstance(logits, Tensor) and logits.ndim == 2:
            return Shapes(tuple(logits.shape[1:])) if needs <= LOGITS else shapes(network, image, needs)
    except UserError as error:
        raise UserError(f"{subject}: {error}") from None
    raise UserError(f"{subject} should return logits, (B, K); for one image it returns {_described(logits)}")


def _train_labels(labels: Any, classes: int) -> Tensor:
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        tensor = torch.empty(0)
    if tensor.ndim != 1 or tensor.is_floating_point() or not len(tensor):
        raise UserError(f"train_labels: should be whole numbers, one for each image (it is {_described(labels)})")
    tensor = tensor.to("cpu", torch.int64)
    if int(tensor.min()) < 0 or int(tensor.max()) >= classes:
        raise UserError(f"train_labels: should be classes from 0 to {classes - 1}, and reach from {int(tensor.min())} "
                        f"to {int(tensor.max())}")  # fmt: skip
    return tensor


def _described(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
