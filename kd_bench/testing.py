"""Checks for methods, networks, data sets and augmentations of your own, to be called from tests of your own.

A small run trains resnet8 with classical distillation from an untrained resnet14 on a few of scikit-learn's digits, or
whatever of these you put in the place of one, as ``kd-bench run`` would, and takes a second or two. Its checks raise
``AssertionError`` with a sentence that says what is wrong::

    small = SmallRun(method="my_loss.py:MyLoss")

    def test_it_learns():
        small.check_learning()
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.config.load import read_recipe
from kd_bench.config.trial import Trial
from kd_bench.data import registry as datasets
from kd_bench.models.outputs import observe
from kd_bench.plan import plan
from kd_bench.training.cohort import CohortModule, DistillationCohort, SupervisedCohort
from kd_bench.training.fit import build_network, build_student, fit, loaders
from kd_bench.training.student import NullWriter, StudentModule
from kd_bench.types import Batch, Outputs

_CPU = torch.device("cpu")

#: What is measured, not computed, of an epoch.
_TIMED = {"seconds", "own_seconds", "members", "spared_seconds"}


class SmallRun:
    """A training of seconds with something of your own in it; a name or ``path/to/file.py:name`` each.

    Args:
        method: What the student is trained with.
        student: The network that learns.
        teacher: The network that teaches, with the weights that it is built with.
        dataset: The images, of which 96 are trained on and 48 tested.
        augment: An augmentation, beside crop and flip.
        epochs: Passes over the images.
        lr: Learning rate of the student.
        hyperparameters: Those of the method that differ from its defaults.
    """

    def __init__(
        self,
        method: str = "kd",
        student: str = "resnet8",
        teacher: str = "resnet14",
        dataset: str = "digits",
        augment: str | None = None,
        *,
        epochs: int = 3,
        lr: float = 0.05,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        self.recipe: dict[str, Any] = {
            "name": "small-run",
            "dataset": {"name": dataset, "train_images": 96, "test_images": 48},
            "pairs": [{"teacher": teacher, "student": student}],
            "methods": {"own": {"method": method, **(hyperparameters or {})}, "kd": {}, "none": {}},
            "augment": {"own": augment} if augment else {},
            "epochs": epochs,
            "batch_size": 16,
            "optimizer": {"lr": lr},
            "schedule": {"name": "cosine"},
            "seeds": [3],
        }

    @cached_property
    def trials(self) -> dict[str, Trial]:
        """By label: "own" and, as company for it, "kd" and "none"."""
        return {one.label: one.trial for one in plan(read_recipe(self.recipe), "small run")}

    @cached_property
    def images(self) -> Any:
        """The images, in memory."""
        return datasets.load(self.trials["own"].dataset)

    @cached_property
    def states(self) -> list[dict[str, Any]]:
        """What would be in the checkpoint after each epoch of an undisturbed training alone."""
        return self._train([self.trials["own"]])[0]

    def check_learning(self) -> None:
        """The loss is finite in every epoch, and less in the last than in the first."""
        losses = [row["train_loss"] for row in self.states[-1]["history"]]
        assert losses[-1] < losses[0], f"the loss does not fall: {losses}"

    def check_gradients(self) -> None:
        """The loss has finite gradients for all weights that take part, and changes nothing that it was given."""
        member, batch, student, teacher = self.first_step()
        before = [one.clone() for one in _tensors(student) + (_tensors(teacher) if teacher else [])]
        terms = member.method(student, teacher, batch)
        for name, term in terms.items():
            assert isinstance(term, Tensor) and term.ndim == 0, f"the term {name!r} should be a scalar tensor"
        for one, other in zip(before, _tensors(student) + (_tensors(teacher) if teacher else []), strict=True):
            assert torch.equal(one, other), "the method changes in place what it is given, which others read too"
        torch.stack(list(terms.values())).sum().backward()
        for part, whose in ((member.network, "the student's"), (member.method, "the method's")):
            found = {name: one.grad for name, one in part.named_parameters() if one.requires_grad}
            for name, grad in found.items():
                assert grad is None or torch.isfinite(grad).all(), f"the gradient of {whose} {name} is not finite"
            used = [name for name, grad in found.items() if grad is not None and grad.any()]
            assert used or not found, f"no gradient reaches {whose} parameters"

    def check_resuming(self) -> None:
        """Stopped after its first epoch and taken up again, the training ends with the same bytes."""
        again = self._train([self.trials["own"]], [self.states[0]])[0][-1]
        found = difference(again, self.states[-1])
        assert not found, f"a training that is taken up again ends with another {found}"

    def check_company(self) -> None:
        """Trained beside others, it ends with the same bytes as alone, and they do not notice it."""
        taught = self.trials["own"].teacher is not None
        other = self.trials["kd" if taught else "none"]
        theirs = self._train([other])[0][-1]
        beside, own = (states[-1] for states in self._train([other, self.trials["own"]]))
        for trained, alone, whose in ((own, self.states[-1], "this method"), (beside, theirs, "the method beside it")):
            found = difference(trained, alone)
            assert not found, f"in company, {whose} ends with another {found} than alone"

    def check_views(self) -> None:
        """With batches of another size, each training image looks the same in an epoch."""
        found: list[Tensor] = []
        for batch_size in (16, 7):
            trial = self.trials["own"].model_copy(update={"batch_size": batch_size})
            views: dict[int, Tensor] = {}
            for batch in loaders(trial, self.images, _CPU)[0]:
                views |= dict(zip(batch.index.tolist(), batch.images, strict=True))
            found.append(torch.stack([views[index] for index in sorted(views)]))
        same = torch.equal(*found)
        assert same, "what an image looks like depends on the batch: draw from 'random', and change each by itself"

    def _train(
        self, trials: Sequence[Trial], states: Sequence[dict[str, Any] | None] | None = None
    ) -> list[list[dict[str, Any]]]:
        """Trains a cohort, from ``states`` where they are given; each member's state after every epoch."""
        writers = [_Kept() for _ in trials]
        teacher = self._teacher(trials[0])
        members = [
            build_student(one, self.images, teacher, writer) for one, writer in zip(trials, writers, strict=True)
        ]
        for member, state in zip(members, states or [None] * len(members), strict=True):
            if state is not None:
                member.restore(copy.deepcopy(state))
        cohort: CohortModule = SupervisedCohort(members) if teacher is None else DistillationCohort(members, teacher)
        fit(cohort, *loaders(trials[0], self.images, _CPU), _CPU)
        return [writer.states for writer in writers]

    def _teacher(self, trial: Trial) -> nn.Module | None:
        return build_network(trial.teacher, self.images)[0].eval() if isinstance(trial.teacher, Trial) else None

    def first_step(self) -> tuple[StudentModule, Batch, Outputs, Outputs | None]:
        """The student in training, its first batch, and what student and teacher put out for it."""
        trial = self.trials["own"]
        teacher = self._teacher(trial)
        member = build_student(trial, self.images, teacher, NullWriter())
        batch = next(iter(loaders(trial, self.images, _CPU)[0]))
        taught = None
        if teacher is not None:
            with torch.no_grad():
                taught = observe(teacher, batch.images, member.method.needs.teacher)
        student = observe(member.network, member.view(batch.images), member.method.needs.student)
        return member, batch, student, taught


class _Kept(NullWriter):
    """Keeps the state after every epoch, and raises an error where the training cannot go on."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def epoch(self, member: StudentModule) -> None:
        self.states.append(copy.deepcopy(member.state()))

    def diverged(self, member: StudentModule, reason: str) -> None:
        raise AssertionError(reason)

    def crashed(self, member: StudentModule, reason: str) -> None:
        raise AssertionError(f"training fails: {reason}")


def _tensors(outputs: Outputs) -> list[Tensor]:
    pooled = [] if outputs.pooled is None else [outputs.pooled]
    return [outputs.logits, *outputs.stages, *outputs.preacts, *pooled]


def difference(one: Any, other: Any, path: str = "state") -> str:
    """Where two states differ first, times that things took aside; empty where they do not."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return "" if one.dtype == other.dtype and torch.equal(one, other) else path
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() - _TIMED != other.keys() - _TIMED:
            return path
        inner = ((one[key], other[key], f"{path}.{key}") for key in one if key not in _TIMED)
    elif isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        inner = ((a, b, f"{path}.{place}") for place, (a, b) in enumerate(zip(one, other, strict=True)))
    else:
        tensors = isinstance(one, Tensor) or isinstance(other, Tensor)
        return "" if not tensors and one == other else path
    return next((found for triple in inner if (found := difference(*triple))), "")
