"""What a user's method may return, and what is said of other results and of errors in its code."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_bench.models import registry as models
from kd_bench.utils.errors import UserError
from tests.training.parts import same, splits, train, trial

METHOD = """
import torch
from kd_bench.methods.base import Method

class Own(Method):
    def __init__(self, pair):
        super().__init__(pair)
        {init}

    def forward(self, student, teacher, batch):
        loss = self.label_loss(student, batch)
        {forward}

    def on_epoch_end(self):
        {end}
"""

#: Line of ``def forward``, of the line below ``loss``, and of the line in ``on_epoch_end``.
FORWARD, INSIDE, END = 10, 12, 15


def write(folder: Path, forward: str = "return {'ce': loss}", init: str = "pass", end: str = "pass") -> str:
    (folder / "own.py").write_text(METHOD.format(forward=forward, init=init, end=end))
    return "own.py:Own"


EXPECTED = 'it should return the loss by term, e.g. {"ce": self.label_loss(student, batch), "distance": distance}'


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ("None", f"returns nothing; {EXPECTED}"),
        ("loss", f"returns a tensor; {EXPECTED}"),
        ("student.logits", f"returns a tensor (16, 4); {EXPECTED}"),
        ("(loss, loss)", f"returns a tuple of 2; {EXPECTED}"),
        ("(student.logits, {'ce': loss})", "returns a tuple of 2; return only the dictionary of losses"),
        (
            "{'ce': loss, 'b': sum(a.mean() for a in student.stages)}",
            "returns 0 (int) as term 'b'; it should be a scalar tensor, without .item() (student.stages was not "
            "requested; add needs = Needs(student=frozenset({'stages'})) to the class)",
        ),
        ("{}", f"returns an empty dictionary; {EXPECTED}"),
        ("{3: loss}", "returns a term whose name is 3; names should be text, e.g. 'ce'"),
        ("{'ce': 0.5}", "returns 0.5 (float) as term 'ce'; it should be a scalar tensor, without .item()"),
        ("{'ce': loss, 'b': None}", "returns None as term 'b'; it should be a scalar tensor, without .item()"),
        ("{'ce': student.logits}", "returns a tensor (16, 4) as term 'ce'; it should be a scalar, e.g. its .mean()"),
        ("{'ce': loss[None]}", "returns a tensor (1,) as term 'ce'; it should be a scalar, e.g. its .mean()"),
        (
            "{'ce': loss.to('meta')}",
            "returns a tensor on meta as term 'ce'; it should be where the batch is, on cpu",
        ),
        (
            "{'ce': loss.detach(), 'b': torch.tensor(1.0)}",
            "returns a loss without a gradient; compute it from the student's outputs, without .detach(), .data and "
            "torch.no_grad()",
        ),
    ],
)
def test_the_usual_mistakes_have_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (writer,) = train([trial(write(tmp_path, f"return {result}"))], splits())
    assert writer.crash is not None
    assert writer.crash.startswith(f"own.py, line {FORWARD}: Own.forward {problem}")
    assert "\n" not in writer.crash


def test_a_constant_term_may_stand_beside_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = write(tmp_path, "return {'ce': loss, 'temperature': torch.tensor(4)}")
    (writer,) = train([trial(name)], splits())
    assert writer.crash is None
    assert writer.states[-1]["history"][-1]["train_temperature"] == 4


@pytest.mark.parametrize(
    ("part", "line", "message"),
    [
        ("forward", "raise ValueError('so')", f"own.py, line {INSIDE}: ValueError: so"),
        ("forward", "student.logits @ student.logits", f"own.py, line {INSIDE}: RuntimeError: mat1 and mat2"),
        ("forward", "raise KeyError", f"own.py, line {INSIDE}: KeyError: "),
        ("end", "1 / 0", f"own.py, line {END}: ZeroDivisionError: division by zero"),
    ],
)
def test_an_error_names_the_line_and_stops_only_this_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data, kd = splits(), trial("kd")
    (alone,) = train([kd], data)
    plugin, other = train([trial(write(tmp_path, **{part: line})), kd], data)
    assert plugin.crash is not None
    assert plugin.crash.startswith(message)
    assert not plugin.states
    assert other.crash is None
    assert same(other.states, alone.states)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "return {'ce': student.stages[0].mean()}",
            "IndexError: tuple index out of range; student.stages was not requested; add needs = "
            "Needs(student=frozenset({'stages'})) to the class",
        ),
        (
            "return {'ce': student.pooled - teacher.pooled}",
            "TypeError: unsupported operand type(s) for -: 'NoneType' and 'NoneType'; student.pooled and "
            "teacher.pooled were not requested; add needs = Needs(student=frozenset({'pooled'}), "
            "teacher=frozenset({'pooled'})) to the class",
        ),
        (
            "return {'ce': student.logit.mean()}",
            "AttributeError: 'Outputs' object has no attribute 'logit'; did you mean 'logits'?",
        ),
        (
            "return {'ce': batch.zzz}",
            "AttributeError: 'Batch' object has no attribute 'zzz'; there are: images, labels,",
        ),
    ],
)
def test_an_output_that_is_not_there_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (writer,) = train([trial(write(tmp_path, line))], splits())
    assert writer.crash is not None
    assert writer.crash.startswith(f"own.py, line {INSIDE}: {message}")


NEEDS = """
from kd_bench.methods.base import Method
from kd_bench.types import Needs

class Own(Method):
    needs = Needs(student=frozenset({"published_preacts"}), teacher=frozenset({"stages", "logits"}))

    def forward(self, s, t, batch):
        return {"ce": s.preacts[0].mean() + s.logits.mean() + t.stages[99].mean()SOURCE}
"""


@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("", ""),
        (
            " + s.features.mean()",
            "; student.features was not requested; add needs = Needs(student=frozenset({'features', "
            "'published_preacts'}), teacher=frozenset({'stages'})) to the class",
        ),
    ],
)
def test_outputs_that_were_requested_are_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, note: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(NEEDS.replace("SOURCE", source))
    (writer,) = train([trial("own.py:Own")], splits())
    assert writer.crash == f"own.py, line 9: IndexError: tuple index out of range{note}"


def test_an_error_in_init_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = write(tmp_path, init="raise ValueError('of two\\nlines')")
    with pytest.raises(UserError) as caught:
        train([trial(name)], splits())
    assert str(caught.value) == (
        f"method 'own.py:Own': Own in {tmp_path / 'own.py'} failed: ValueError: of two lines (line 8)"
    )


def test_a_network_that_fails_in_evaluation_stops_only_its_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes):\n        super().__init__()\n"
        "        self.fc = torch.nn.Linear(3, num_classes)\n"
        "    def forward(self, images):\n"
        "        if not self.training and len(images) > 1:\n            raise RuntimeError('only for training')\n"
        "        return self.fc(images.mean((2, 3)))\n"
    )
    data, kd = splits(), trial("kd")
    (alone,) = train([kd], data)
    fails = trial("kd", model="net.py:Net", model_source=models.source_hash("net.py:Net"))
    net, other = train([fails, kd], data)
    assert net.crash == "net.py, line 8: RuntimeError: only for training"
    assert not net.states
    assert same(other.states, alone.states)
