"""A step whose operations change between epochs is recorded anew, and has the bits of a step without a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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
