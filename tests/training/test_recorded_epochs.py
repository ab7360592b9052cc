"""A step whose operations change between epochs is recorded anew, and has the bits of a step without a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_bench.models import registry as models
from kd_bench.training.recorded_function import RecordedFunction
from tests.training.parts import same, splits, trial
from tests.training.tape import TapeRecorder
from tests.training.test_recorded import run, without

#: A method that compares features from the second epoch on, with a layer that has no gradient before.
WARM_UP = """
import torch.nn.functional as F
from torch import nn
from kd_bench.losses import cross_entropy
from kd_bench.methods.base import Method
from kd_bench.types import Needs

class Own(Method):
    needs = Needs(student=frozenset({"pooled"}), teacher=frozenset({"pooled"}))

    def __init__(self, pair):
        super().__init__(pair)
        self.layer = nn.Linear(pair.student.pooled[0], pair.teacher.pooled[0])

    def forward(self, student, teacher, batch):
        terms = {"ce": cross_entropy(student.logits, batch.labels)}
        if batch.epoch_value(lambda epoch: epoch > 0):
            terms["features"] = F.mse_loss(self.layer(student.pooled), teacher.pooled)
        return terms
"""


def test_a_layer_that_gets_its_first_gradient_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its momentum begins in a step that is not recorded, because a replay would begin it again."""
    monkeypatch.setattr("kd_bench.training.fit.CHECKPOINT_SECONDS", 0.0)
    record, made = RecordedFunction.record, list[int]()

    def note(self: RecordedFunction, *arguments: Any, **named: Any) -> None:
        tensors: Callable[[], Sequence[Tensor]] = arguments[3]
        before = len(tensors())
        record(self, *arguments, **named)
        made.append(len(tensors()) - before)

    monkeypatch.setattr(RecordedFunction, "record", note)
    file = tmp_path / "own.py"
    file.write_text(WARM_UP)
    trials, data = [trial(f"{file}:Own")], splits()
    recorder = TapeRecorder()
    (writer,), _ = run(trials, recorder, data)
    assert (writer.notes, writer.crash) == ([], None)
    assert recorder.recordings == 4  # of the step twice, the teacher's pass and the evaluation
    assert not any(made), "a recording has made what a replay changes"
    momentum = writer.states[-1]["optimizer"]["state"]
    assert all(torch.isfinite(values["momentum_buffer"]).all() for values in momentum.values())
    assert same(writer.states, without(trials, data)[0].states)


#: A method that changes what its terms depend on, at the end of an epoch or in the smaller batch before.
SCHEDULE = """
import types
import torch
from kd_bench.losses import cross_entropy
from kd_bench.methods.base import Method

class Own(Method):
    def __init__(self, pair):
        super().__init__(pair)
        self.factor, self.schedule = 1.0, types.SimpleNamespace(factor=1.0)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, student, teacher, batch):
        if len(batch.labels) < 16:
            {last}
        loss = cross_entropy(student.logits, batch.labels)
        return {{"ce": self.factor * self.schedule.factor * self.scale * loss}}
"""


#: Changes of what the class itself holds, and one inside of an object, which is seen nowhere.
CHANGES = ("self.factor *= 0.5", "self.scale = 0.5 * self.scale", "self.scale.data = 0.5 * self.scale.data")
INSIDE = "self.schedule.factor *= 0.5"


@pytest.mark.parametrize(("part", "change"), [*product(("last", "end"), CHANGES), ("end", INSIDE)])
def test_a_method_that_changes_between_epochs(
    part: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording has numbers as they were, and a tensor's place in memory, so it is made again if they change."""
    monkeypatch.setattr("kd_bench.training.fit.CHECKPOINT_SECONDS", 0.0)
    file = tmp_path / "own.py"
    end = f"    def on_epoch_end(self):\n        {change}\n" if part == "end" else ""
    file.write_text(SCHEDULE.format(last=change if part == "last" else "pass") + end)
    trials, data, made = [trial(f"{file}:Own")], splits(), list[RecordedFunction]()
    record = RecordedFunction.record

    def note(self: RecordedFunction, *arguments: Any, **named: Any) -> None:
        made.extend([self] if "before_replay" in named else [])  # neither the teacher's pass nor an evaluation
        record(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(RecordedFunction, "record", note)
        (writer,), _ = run(trials, TapeRecorder(), data)
    assert (writer.notes, writer.crash, len(made)) == ([], None, 3)
    assert same(writer.states, without(trials, data)[0].states)


#: A network that is evaluated by what its steps have left in an attribute.
COUNTING = """
import torch

class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(3, num_classes)
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        return self.layer(x.mean((2, 3))) * (1.0 if self.training else -1.0) ** self.steps
"""


def test_the_evaluation_of_a_network_that_its_steps_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_bench.training.fit.CHECKPOINT_SECONDS", 0.0)
    file = tmp_path / "own.py"
    file.write_text(COUNTING)
    source = models.source_hash(f"{file}:Net")
    trials, data = [trial("none", model=f"{file}:Net", model_source=source)], splits(test=2 * 256)
    (writer,), _ = run(trials, TapeRecorder(), data)
    assert "Net.steps is another object or number after every step" in writer.notes[0]
    assert same(writer.states, without(trials, data)[0].states)
