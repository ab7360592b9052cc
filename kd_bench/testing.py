"""Checks for user-defined methods, networks, data sets and augmentations, to be called from tests.

A small run trains as ``kd-bench run`` does and takes a second or two. By default it trains resnet8 with classical
distillation from an untrained resnet14 on a few of scikit-learn's digits. A failed check raises ``AssertionError`` with
a sentence that states the problem::

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
from kd_bench.training.build import build_network, build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.epoch_rows import MEASURED
from kd_bench.training.fit import fit
from kd_bench.training.loaders import holdout_loader, loaders
from kd_bench.training.result_writer import ResultWriter
from kd_bench.training.student import StudentModule
from kd_bench.types import Batch, Outputs

_CPU = torch.device("cpu")


class SmallRun:
    """A training of seconds. Plug-ins are named as in recipes, e.g. ``path/to/file.py:name``.

    Args:
        method: The method.
        student, teacher: The networks; the teacher keeps its initial weights.
        dataset: The data set, of which 96 training and 48 test images are used.
        augment: An augmentation, in addition to crop and flip.
        epochs, lr: Number of epochs, and learning rate of the student.
        hyperparameters: Hyper-parameters that differ from the method's defaults.
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
        """The trials by label: "own", and "kd" and "none", which may be trained in the same cohort."""
        return {planned.label: planned.trial for planned in plan(read_recipe(self.recipe), "small run")}

    @cached_property
    def images(self) -> Any:
        """The images, in memory."""
        return datasets.load(self.trials["own"].dataset)

    @cached_property
    def states(self) -> list[dict[str, Any]]:
        """The checkpoint's content after each epoch, trained alone and without interruption."""
        return self._train([self.trials["own"]])[0]

    def check_learning(self) -> None:
        """Checks that the loss is finite, and smaller in the last epoch than in the first."""
        losses = [row["train_loss"] for row in self.states[-1]["history"]]
        warms_up = self.trials["own"].method.hyperparameters.get("warmup_epochs")
        hint = "; a warm-up raises it, so give hyperparameters={'warmup_epochs': 0}" if warms_up else ""
        assert losses[-1] < losses[0], f"the loss does not fall: {losses}{hint}"

    def check_gradients(self) -> None:
        """Checks that gradients are finite, that some are not zero, and that the method does not change its inputs.

        If the method has a preparation, its terms are checked, too. Gradients may be those of one of both.
        """
        unused = {"the student's", "the method's"}
        for preparation in (True, False) if self.trials["own"].preparation_epochs else (False,):
            member, batch, student, teacher = self.first_step(preparation)
            inputs = [tensor for outputs in (student, teacher) if outputs for tensor in outputs.tensors()]
            before = [tensor.clone() for tensor in inputs]
            terms = (member.method.prepare if preparation else member.method)(student, teacher, batch)
            for name, term in terms.items():
                assert isinstance(term, Tensor) and term.ndim == 0, f"the term {name!r} should be a scalar tensor"
            unchanged = all(map(torch.equal, inputs, before))
            assert unchanged, "the method changes its inputs in place, which other methods read"
            torch.stack(list(terms.values())).sum().backward()
            for module, owner in ((member.network, "the student's"), (member.method, "the method's")):
                gradients = {name: weight.grad for name, weight in module.named_parameters() if weight.requires_grad}
                for name, gradient in gradients.items():
                    finite = gradient is None or torch.isfinite(gradient).all()
                    assert finite, f"the gradient of {owner} {name} is not finite"
                if not gradients or any(gradient is not None and gradient.any() for gradient in gradients.values()):
                    unused.discard(owner)
        assert not unused, f"no gradient reaches {max(unused)} parameters"

    def check_resuming(self) -> None:
        """Checks that a training stopped after its first epoch and resumed ends with the same bytes."""
        resumed = self._train([self.trials["own"]], [self.states[0]])[0][-1]
        path = first_difference(resumed, self.states[-1])
        assert not path, f"a resumed training ends with another {path}"

    def check_company(self) -> None:
        """Checks that this method and another one, trained in one cohort, end with the same bytes as alone."""
        other = self.trials["none" if self.trials["own"].teacher is None else "kd"]
        (other_alone,) = self._train([other])
        other_together, states_together = self._train([other, self.trials["own"]], compare_inputs=True)
        cases = (("this method", states_together, self.states), ("the other method", other_together, other_alone))
        for name, states, alone in cases:
            path = first_difference(states[-1], alone[-1])
            assert not path, f"in a cohort, {name} ends with another {path} than alone"

    def check_views(self) -> None:
        """Checks that the view of each training image in an epoch does not depend on the batch size."""
        all_views: list[Tensor] = []
        for batch_size in (16, 7):
            trial = self.trials["own"].model_copy(update={"batch_size": batch_size})
            views: dict[int, Tensor] = {}
            for batch in loaders(trial, self.images, _CPU)[0]:
                views |= dict(zip(batch.index.tolist(), batch.images, strict=True))
            all_views.append(torch.stack([views[index] for index in sorted(views)]))
        equal = torch.equal(*all_views)
        assert equal, "the view of an image depends on the batch: draw from 'random', and change each image by itself"

    def _train(
        self, trials: Sequence[Trial], states: Sequence[dict[str, Any]] = (), compare_inputs: bool = False
    ) -> list[list[dict[str, Any]]]:
        """Trains a cohort, resumed from ``states``, and returns each member's state after every epoch."""
        writers = [_StateWriter() for _ in trials]
        teacher = self._teacher(trials[0])
        pairs = zip(trials, writers, strict=True)
        members = [build_student(trial, self.images, teacher, writer) for trial, writer in pairs]
        for member in members:
            member.compares_inputs = compare_inputs
        for member, state in zip(members, states, strict=False):
            member.restore(copy.deepcopy(state))
        holdout = holdout_loader(trials[0], self.images, _CPU)
        fit(CohortModule(members, teacher), *loaders(trials[0], self.images, _CPU), _CPU, holdout=holdout)
        return [writer.states for writer in writers]

    def _teacher(self, trial: Trial) -> nn.Module | None:
        return build_network(trial.teacher, self.images)[0].eval() if isinstance(trial.teacher, Trial) else None

    def first_step(self, preparation: bool = False) -> tuple[StudentModule, Batch, Outputs | None, Outputs | None]:
        """Returns the student, the first batch, and the outputs of student and teacher that the method reads.

        Args:
            preparation: Whether the step is one of the method's preparation.

        Returns:
            Outputs are None for a network of which nothing is read.
        """
        trial = self.trials["own"]
        teacher = self._teacher(trial)
        member = build_student(trial, self.images, teacher, ResultWriter())
        batch = next(iter(loaders(trial, self.images, _CPU)[0]))
        needs = member.method.needs_in(preparation)
        with torch.no_grad():
            taught = observe(teacher, batch.images, needs.teacher) if teacher is not None and needs.teacher else None
        student = observe(member.network, member.view(batch.images), needs.student) if needs.student else None
        return member, batch, student, taught


class _StateWriter(ResultWriter):
    """Keeps the state after every epoch, and raises an error if the training fails."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def write_epoch(self, member: StudentModule) -> None:
        self.states.append(copy.deepcopy(member.state()))

    def write_divergence(self, member: StudentModule, reason: str) -> None:
        raise AssertionError(reason)

    def report_crash(self, member: StudentModule, reason: str) -> None:
        raise AssertionError(f"training fails: {reason}")


def first_difference(state: Any, other: Any, path: str = "state") -> str:
    """Returns the path of the first difference of two states, except in times and energy; empty if they are equal."""
    if isinstance(state, (list, tuple)) and isinstance(other, (list, tuple)):
        state, other = dict(enumerate(state)), dict(enumerate(other))
    if isinstance(state, Mapping) and isinstance(other, Mapping):
        keys = [key for key in state if key not in MEASURED]
        if set(keys) != other.keys() - MEASURED:
            return path
        return next(filter(None, (first_difference(state[key], other[key], f"{path}.{key}") for key in keys)), "")
    if isinstance(state, Tensor) and isinstance(other, Tensor):
        return "" if state.dtype == other.dtype and torch.equal(state, other) else path
    return "" if not isinstance(state, Tensor) and not isinstance(other, Tensor) and state == other else path
