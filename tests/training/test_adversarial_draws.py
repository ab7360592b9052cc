"""The random draws of a plug-in of adversarial training, which on a GPU have a generator of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kd_bench.training.adversarial import AdversarialStudentModule
from kd_bench.training.build import build_student
from kd_bench.training.loaders import loaders
from kd_bench.training.micro_batch import MicroBatch
from tests.training.parts import CPU, MemoryWriter, splits, trial

PLUGIN = """
import torch

from kd_bench.methods.adversarial import AdversarialMethod

DRAWS = []


class Drawing(AdversarialMethod):
    family = "adversarial"
    needs_teacher = False

    def draw(self, batch):
        DRAWS.append(float(torch.rand(1, generator=batch.generator)))

    def inner_loss(self, natural, adversarial, batch):
        self.draw(batch)
        return super().inner_loss(natural, adversarial, batch)

    def forward(self, student, teacher, batch):
        self.draw(batch)
        return {"ce": self.label_loss(student, batch)}
"""

SETTINGS = {"eps": 0.03, "steps": 2, "weight_perturbation": {"gamma": 0.01, "from_epoch": 1}}


def draws_of_steps(file: Path, steps: list[int], generator: torch.Generator | None, seed: int = 3) -> list[float]:
    """Trains a new student on these steps, and returns what the method has drawn in the last one."""
    data = splits(train=48, test=16)
    drawing = trial(f"{file}:Drawing", taught=False, adversarial=SETTINGS, input={"size": 16}, seed=seed)
    member = build_student(drawing, data, None, MemoryWriter())
    assert isinstance(member, AdversarialStudentModule)
    member.train().prepare(CPU, generator)
    member.begin_epoch(0)
    batches = list(loaders(drawing, data, CPU)[0])
    drawn = vars(__import__("sys").modules[type(member.method).__module__])["DRAWS"]
    for step in steps:
        drawn.clear()
        member.step(None, MicroBatch(replace(batches[step])), lambda loss: loss.backward())
        assert not member.stopped
    return list(drawn)


@pytest.mark.parametrize("own_generator", [False, True])
def test_draws_are_a_function_of_seed_and_step(tmp_path: Path, own_generator: bool) -> None:
    file = tmp_path / "drawing.py"
    file.write_text(PLUGIN)

    def generator() -> torch.Generator | None:
        return torch.Generator() if own_generator else None

    whole = draws_of_steps(file, [0, 1, 2], generator())
    assert len(whole) == 4  # two steps of the perturbation, the perturbation of the weights, the loss
    assert len(set(whole)) == 4
    torch.manual_seed(99)
    assert draws_of_steps(file, [2], generator()) == whole
    assert draws_of_steps(file, [1], generator()) != whole
    assert draws_of_steps(file, [2], generator(), seed=4) != whole
