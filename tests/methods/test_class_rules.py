"""Errors of a method's ``__init__`` say what may have caused them."""

from pathlib import Path

import pytest

from kd_bench import Method, distiller
from kd_bench.methods import _registry as methods
from kd_bench.types import Needs, Pair, Shapes
from kd_bench.utils.errors import UserError
from tests.methods.cases import Tiny, draw

SOURCE = """
from torch import nn
from kd_bench.methods.base import Method
from kd_bench.types import Needs

class Mine(Method):
    needs = Needs(student=frozenset({"stages"}))

    def __init__(self, pair):
        super().__init__(pair)
        self.layer = nn.Linear(pair.student.pooled[0], pair.teacher.stages[-1][0])

    def forward(self, student, teacher, batch):
        return {"ce": self.label_loss(student, batch)}
"""
REASON = (
    "TypeError: 'NoneType' object is not subscriptable; pair.student.pooled and pair.teacher.stages were not "
    "requested; add needs = Needs(student=frozenset({'pooled', 'stages'}), teacher=frozenset({'stages'})) to the class "
    "(line 11)"
)


def build(path: Path, source: str) -> str:
    path.write_text(source)
    with pytest.raises(UserError) as caught:
        methods.build(f"{path}:Mine", Pair(5, 32, Shapes((5,), stages=((2, 8, 8),)), Shapes((5,))), {})
    return str(caught.value)


def test_shapes_that_were_not_requested_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    assert build(path, SOURCE) == f"method {f'{path}:Mine'!r}: Mine in {path} failed: {REASON}"
    other = SOURCE.replace("pair.student.pooled[0]", "pair.teacher_norms[0]")
    assert build(path, other.replace("pair.teacher.stages", "()")).endswith(
        "IndexError: tuple index out of range (line 11)"
    )


class Pooled(Method):
    needs = Needs(teacher=frozenset())

    def __init__(self, pair: Pair) -> None:
        super().__init__(pair)
        self.width = pair.student.pooled[0]  # type: ignore[index]


def test_a_class_in_a_loop_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pooled, "forward", lambda self, student, teacher, batch: {}, raising=False)
    with pytest.raises(TypeError, match=r"; pair\.student\.pooled was not requested; add needs = Needs\(student=froz"):
        distiller(Pooled, student=Tiny((2, 2, 2, 2)), images=draw(1, 2, 3, 8, 8))


@pytest.mark.parametrize(
    ("base", "family", "expected"),
    [
        ("Method", "adversarial", "has family = 'adversarial', so it should derive from kd_bench.methods.adversarial."),
        ("AdversarialMethod", "logits", "AdversarialMethod, so it should have family = 'adversarial'"),
    ],
)
def test_only_classes_that_perturb_images_are_adversarial(
    tmp_path: Path, base: str, family: str, expected: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"""
from kd_bench.methods.adversarial import AdversarialMethod
from kd_bench.methods.base import Method
from kd_bench.types import NOTHING, Needs

class Mine({base}):
    family = {family!r}
    needs_teacher = False
    needs = Needs(teacher=NOTHING)

    def forward(self, student, teacher, batch):
        return {{"ce": self.label_loss(student, batch)}}
""")
    with pytest.raises(UserError) as caught:
        methods.load(f"{path}:Mine")
    assert expected in str(caught.value)
