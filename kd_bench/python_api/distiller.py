"""Methods in a training loop of one's own: a module that computes the terms of the loss for any pair of networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor, nn

from kd_bench.config.trial import LabelLoss
from kd_bench.methods import _logit_settings
from kd_bench.methods import _registry as methods
from kd_bench.methods._class_rules import class_problem, construct, instance_problem
from kd_bench.methods.adversarial import AdversarialMethod
from kd_bench.methods.base import Method
from kd_bench.models.outputs import average_classifier, observe, preact_norms, shapes
from kd_bench.models.student_with_head import StudentWithHead
from kd_bench.models.timm_interface import dry_run
from kd_bench.python_api.arguments import plain
from kd_bench.training.method_result import add_notes, check_terms
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
        **hyperparameters: Hyper-parameters that differ from the method's defaults. ``standardise=True`` and
            ``entropy_weights=3`` are those of a recipe's row: the method reads standardised logits, or weights the
            samples by entropies at that temperature.

    Raises:
        UserError: If there is no such method or hyper-parameter, a network lacks what the method reads, or the method
            does not compare logits and one of the two settings is given.
    """
    return Distiller(method, student, teacher, images, num_classes, train_labels, label_loss, hyperparameters)


class Distiller(nn.Module):
    """A method with its networks, as ``distiller`` returns it.

    ``parameters()`` and ``state_dict()`` are those of student and method, and ``to(device)`` moves the teacher, too.
    The method counts as finished with a step when the next begins, and with an epoch when ``end_epoch`` is called or
    another ``epoch`` is given.

    A method with a preparation has epochs before the student's own, from ``-preparation_epochs`` to -1, whose terms
    are those of its ``prepare``. They need an optimiser of their own, as in the method's description.

    Attributes:
        student: The network that is trained.
        method: The method, an ``nn.Module``.
        epoch: The current epoch, from 0; negative in a preparation, with which a method that has one begins.
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
        if label_loss not in get_args(LabelLoss):
            raise unknown("loss", str(label_loss), get_args(LabelLoss), "label_loss")
        hyperparameters = {key: plain(value) for key, value in hyperparameters.items()}
        name, build, needs, preparation_epochs = _find(method, hyperparameters)
        image = _image_shape(images)
        if needs.teacher and teacher is None:
            raise UserError(f"{name} needs a teacher; pass it as teacher=")
        if not needs.teacher:
            teacher = None
        _check_network(f"{name}: student", student)
        if teacher is not None:
            _check_network(f"{name}: teacher", teacher)
            _check_apart(student, teacher)
            teacher.requires_grad_(False).eval()
        student_shapes = _shapes(f"{name}: student", student, image, needs.student)
        classes = student_shapes.logits[0] if num_classes is None else num_classes
        teacher_shapes = None if teacher is None else _shapes(f"{name}: teacher", teacher, image, needs.teacher)
        for role, of_network in (("student", student_shapes), ("teacher", teacher_shapes)):
            if of_network is not None and of_network.logits[0] != classes:
                raise UserError(
                    f"{name}: the {role} has {of_network.logits[0]} logits, not {classes}, one for each class"
                )
        labels = None if train_labels is None else _train_labels(train_labels, classes)
        reads_maps = not needs.teacher.isdisjoint({"features", "class_maps"})
        pair = Pair(
            num_classes=classes,
            train_size=0 if labels is None else len(labels),
            student=student_shapes,
            teacher=teacher_shapes,
            student_name=type(student).__name__,
            teacher_name=type(teacher).__name__,
            train_labels=labels,
            label_loss=label_loss,
            teacher_norms=preact_norms(teacher, image) if teacher is not None and "preacts" in needs.teacher else (),
            teacher_classifier=average_classifier(teacher, image) if teacher is not None and reads_maps else None,
        )
        try:
            built = build(pair)
        except ValueError as error:  # e.g. crd without train_labels
            hint = " (train_labels was not given)" if labels is None else ""
            raise UserError(f"{error}{hint}") from None
        self.student = student
        self.method = built.to(next(student.parameters()).device)
        self.epoch = -preparation_epochs
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

    @property
    def deployed(self) -> nn.Module:
        """The network to evaluate and to keep: the student; with a method that keeps layers, these on top of it."""
        head = self.method.inference_head
        return self.student if head is None else StudentWithHead(self.student, head)

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        index: Tensor | None = None,
        *,
        epoch: int | None = None,
        step: int | None = None,
        second_images: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Returns the weighted terms of the loss by name, scalars whose sum is the loss.

        Args:
            images: (B, ...), on the student's device.
            labels: (B,) int64, or the (B, K) shares of mixed images.
            index: (B,) int64, position of the images in the training set; needed if ``train_labels`` was given.
            epoch: From 0, or negative in a preparation; None for the current one, see ``end_epoch``.
            step: From 0, equal for the parts of a step whose gradients are summed; None if each call is a step.
            second_images: (B, ...), a second view of the same images, for methods that read one.

        Raises:
            UserError: If ``index`` is missing, the method reads no second view and one is given, or it returns anything
                but scalar tensors by name.
            ValueError: If labels have a wrong shape or type.
        """
        if index is None and self._needs_index:
            raise UserError(f"{self._name}: index is missing: the position of each image in the training set")
        if second_images is not None and not self.method.uses_second_view:
            raise UserError(f"{self._name}: it reads one view of the images only; leave second_images out")
        if self.training:
            self._begin(epoch, step)
        device = images.device
        index = torch.full((len(images),), -1, dtype=torch.int64) if index is None else index
        epoch = self.epoch if epoch is None else epoch
        batch = Batch(images, labels.to(device), index.to(device), epoch, self._step if step is None else step)
        needs = self.method.needs_in(preparation=epoch < 0)
        student = observe(self.student, images, needs.student) if needs.student else None
        teacher = self._observe_teacher(images, needs.teacher)
        if second_images is not None:
            batch = replace(batch, second_images=second_images)
            if student is not None:
                student = replace(student, second_view=observe(self.student, second_images, needs.student))
            if teacher is not None:
                teacher = replace(teacher, second_view=self._observe_teacher(second_images, needs.teacher))
        function = "prepare" if epoch < 0 else "forward"
        try:
            terms = self.method.prepare(student, teacher, batch) if epoch < 0 else self.method(student, teacher, batch)
        except Exception as error:
            add_notes(error, self.method, function)
            raise
        check_terms(terms, self.method, device, function)
        return terms

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

    def _observe_teacher(self, images: Tensor, needs: frozenset[Output]) -> Outputs | None:
        teacher = self.teacher
        if teacher is None or not needs:
            return None
        if teacher.training:
            teacher.eval()
        with torch.no_grad():
            if self.method.teacher_batch_norm == "running":
                return observe(teacher, images, needs)
            with batch_statistics(self._batch_norms):
                return observe(teacher, images, needs)

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


def _find(method: Any, hyperparameters: Mapping[str, Any]) -> tuple[str, Callable[[Pair], Method], Needs, int]:
    """Returns a method's name, a function that builds it, what it reads, and the epochs of its preparation."""
    if isinstance(method, type) and issubclass(method, Method):
        name, kind = method.__name__, method
        _refuse(name, class_problem(method, _parameters(method)))
        infos = map(methods.describe, methods.names())
        values, logit_settings = _logit_settings.split(name, kind, _parameters(method), hyperparameters, infos)
        resolved = _with_defaults(method, values)
    elif isinstance(method, str):
        name, kind = method, methods.load(method)
        values, logit_settings = methods.split_row(method, hyperparameters)
        resolved = methods.check(method, values)
    else:
        raise UserError(
            f"method: should be the name of a method or a subclass of kd_bench.Method (it is {method!r:.60})"
        )
    if issubclass(kind, AdversarialMethod):
        raise UserError(f"{name} trains on perturbed images, which only kd-bench run makes")

    def build(pair: Pair) -> Method:
        if isinstance(method, str):
            return methods.build(method, pair, resolved, logit_settings)
        built = construct(kind, pair, resolved)
        _refuse(name, instance_problem(built))
        _logit_settings.apply(built, logit_settings)
        return built

    needs = methods.needs(method, resolved) if isinstance(method, str) else kind.all_needs_with(resolved)
    return name, build, needs, resolved.get("preparation_epochs", 0)


def _refuse(name: str, problem: str | None) -> None:
    if problem is not None:
        raise UserError(f"{name}: {problem}")


def _parameters(method: type[Method]) -> dict[str, Any]:
    """Returns the defaults of a class's hyper-parameters by name."""
    arguments = inspect.signature(method).parameters.values()
    return {argument.name: argument.default for argument in arguments if argument.kind is argument.KEYWORD_ONLY}


def _with_defaults(method: type[Method], hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all hyper-parameters of a class; their values are not checked, because they have no declared bounds."""
    defaults = _parameters(method)
    for key in hyperparameters:
        if key not in defaults:
            raise unknown("hyper-parameter", key, defaults, method.__name__)
    resolved = defaults | dict(hyperparameters)
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
    frozen = set(map(id, teacher.parameters()))
    shared = next((name for name, weight in student.named_parameters() if id(weight) in frozen), None)
    if shared is not None:
        raise UserError(f"student and teacher share their weights, e.g. {shared}; make a copy with copy.deepcopy")


def _check_network(subject: str, network: Any) -> None:
    """Raises UserError if an argument is no network; ``subject`` begins the error."""
    if isinstance(network, str):
        raise UserError(
            f"{subject} should be a torch.nn.Module; kd_bench.create_model builds one (it is {network!r:.60})"
        )
    if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
        shown = " ".join(repr(network).split())  # the text of a network has many lines
        raise UserError(f"{subject} should be a torch.nn.Module with parameters (it is {shown:.60})")


def _shapes(subject: str, network: nn.Module, image: tuple[int, ...], needs: frozenset[Output]) -> Shapes:
    """Returns the shapes of a network's outputs; ``subject`` begins the error."""
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
