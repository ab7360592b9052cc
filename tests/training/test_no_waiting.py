"""Nothing in a step asks the device for a number, which would make a GPU finish all it was told before the next."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kd_bench.methods import _registry as methods
from kd_bench.training.build import build_network, build_student
from kd_bench.training.cohort import CohortModule
from kd_bench.training.loaders import loaders
from kd_bench.training.micro_batch import MicroBatch
from tests.training.parts import CPU, MemoryWriter, splits, trial

NAMES = [name for name in methods.names() if methods.describe(name).family != "adversarial"]

#: What copies a number to the host, or has a result whose size is one.
WAITING = {
    "_local_scalar_dense",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
    "equal",
    "bincount",
}


class Noting(TorchDispatchMode):
    """Notes the operations that would make a GPU wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        if name in WAITING or masks:
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_no_step_but_the_first_two_waits(name: str) -> None:
    data = splits()
    settings = trial(name)  # of a method with a preparation, its first epoch
    teacher = build_network(settings.teacher, data)[0].eval() if settings.teacher else None  # type: ignore[arg-type]
    member = build_student(settings, data, teacher, MemoryWriter()).train()
    cohort = CohortModule([member], teacher)
    train, _ = loaders(settings, data, CPU)
    noting = Noting()
    train.set_epoch(cohort.start_epoch)
    for batch in train:
        given = cohort.teacher_outputs(batch).get(member.method.teacher_batch_norm)
        member.step(given, MicroBatch(batch), lambda loss: loss.backward())
        if batch.step == 1:
            noting.__enter__()
    noting.__exit__(None, None, None)
    assert not member.stopped
    assert noting.waits == []


def test_what_waits_is_noticed() -> None:
    values = torch.arange(4.0)
    for act in (lambda: values.sum().item(), lambda: values[values > 1], lambda: bool(values[0]), values.nonzero):
        with Noting() as noting:
            act()
        assert noting.waits
