"""docs/notebook.ipynb runs as it stands, and the calls in docs/python.md are calls that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from kd_bench import load
from kd_bench.launch.run_recipe import PlannedRecipe
from kd_bench.python_api import compare
from tests.docs.commands import ROOT
from tests.docs.test_docs import blocks
from tests.docs.test_methods_page import generate

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
PAGE = ROOT / "docs" / "python.md"

#: Calls that a first look at the package needs, and that the notebook shows.
SHOWN = ("compare(", ".table()", ".frame()", ".differences()", ".plot_curves()", ".plot_differences()", ".plot_cost()",
         "%%writefile my_loss.py", "my_loss.py:MyLoss", "load(", "distiller(", "end_epoch()")  # fmt: skip


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cell: Any) -> str:
    """What a cell printed and showed, as text and HTML."""
    shown = [output.get("text", "") for output in cell.outputs]
    for output in cell.outputs:
        data = output.get("data", {})
        shown += [data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(shown)


def check_outputs(notebook: Any) -> None:
    """The outputs of a notebook that has run from the top."""
    cells = code(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    first, *_ = (cell for cell in cells if "compare(" in cell.source)
    assert len(first.outputs) == 1  # the last lines, replaced in place
    progress = first.outputs[0].data["text/plain"].splitlines()
    assert len(progress) == 16 and all(line.isprintable() for line in progress)
    assert sum(bool(re.fullmatch(r".*, ikl_kd, seed \d: done, [\d.]+ %.*", line)) for line in progress) == 3
    tables = [texts(cell) for cell in cells if "results.table()" in cell.source]
    assert len(tables) == 2 and all("<caption>" in table and "student alone" in table for table in tables)
    assert ["my_loss" in table for table in tables] == [False, True]
    for cell in cells:
        if "plot_" in cell.source:
            assert any("image/png" in output.get("data", {}) for output in cell.outputs), cell.source
    accuracies = re.findall(r"^(\w+): ([\d.]+) % of the test images$", texts(cells[-1]), re.M)
    assert [name for name, _ in accuracies] == ["none", "kd", "ikl_kd"]
    assert all(float(accuracy) > 50 for _, accuracy in accuracies)


def test_the_stored_notebook_has_run_from_the_top() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    source = "\n".join(cell.source for cell in code(notebook))
    assert all(call in source for call in SHOWN)
    check_outputs(notebook)
    assert NOTEBOOK.stat().st_size < 500_000
    assert not re.search(r"/(tmp|home|root|work|Users)/", NOTEBOOK.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = generate.run_notebook(tmp_path)
    check_outputs(notebook)
    assert len(list(tmp_path.glob("runs/*/*/student.safetensors"))) == 13


def test_calls_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks that train are planned; others of the page's blocks are run by test_docs.py."""
    planned: list[PlannedRecipe] = []
    (tmp_path / "my_loss.py").write_text(
        "import kd_bench\n\n\nclass MyLoss(kd_bench.Method):\n    def forward(self, student, teacher, batch):\n"
        "        return {'ce': self.label_loss(student, batch)}\n"
    )
    monkeypatch.chdir(tmp_path)
    results = load(ROOT / "results" / "measured", recipes=["demo"])

    def train(recipe: PlannedRecipe, *_: Any) -> Any:
        planned.append(recipe)
        return results

    monkeypatch.setattr(compare, "_train", train)
    training = [block for block in blocks(PAGE) if block.language == "python" and block.marker != "run"]
    for block in training:
        exec(compile(block.body, str(PAGE), "exec"), {})
    assert [recipe.recipe.name for recipe in planned] == ["compare-digits-resnet14-resnet8"] * 2 + ["demo"]
    first, second, third = ({cell.label for cell in recipe.planned} for recipe in planned)
    assert (first, second, third) == ({"none", "kd", "ikl_kd"}, {"none", "kd", "ikl_8", "ikl_4"}, {"kd", "dkd"})
    assert {cell.trial.epochs for cell in planned[1].planned} == {30}
