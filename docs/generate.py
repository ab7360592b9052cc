"""Writes docs/methods.md from the docstrings and signatures of the methods.

``make docs`` runs it. With ``--costs`` it counts the table of costs again, which takes half a minute. With
``--notebook`` it runs docs/notebook.ipynb again and stores the outputs, which takes some minutes.
"""

from __future__ import annotations

import re
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from kd_bench.methods import _registry as methods
from kd_bench.methods.base import Family
from kd_bench.methods.parameters import allowed, resolve
from kd_bench.utils.signatures import REQUIRED, Parameter

PAGE = Path(__file__).parent / "methods.md"
NOTEBOOK = Path(__file__).parent / "notebook.ipynb"

#: Markers around the table of costs, so that the rest of the page can be written without counting.
BEGIN, END = "<!-- costs -->\n", "<!-- end of costs -->\n"

TEACHER, STUDENT = "resnet32x4", "shufflenet_v1"

_FAMILIES: dict[Family, str] = {
    "baseline": "The baseline",
    "logits": "Methods that distil logits",
    "features": "Methods that distil features",
    "adversarial": "Adversarial training",
}

_HEAD = f"""\
# The methods

<!-- Written by docs/generate.py from the docstrings in kd_bench/methods/; change those, then: make docs -->

Each section is generated from the source of a method: formula, publication, settings, and differences between paper
and released code. The source is the only place of the defaults. `kd-bench list methods` lists the methods, and
`kd-bench show ikl_kd` shows one in the terminal. s are the student's logits and t the teacher's, CE is the
cross-entropy with the labels, and "warm-up" is a factor that grows linearly from 1 / `warmup_epochs` in the first epoch
to 1, unless a section says otherwise.

A recipe sets the values that differ from the defaults:

```yaml
methods:
  none: {{}}                                  # the student alone
  kd: {{temperature: 2}}
  ikl_kd_class: {{method: ikl_kd, weights: class, tau: 4}}   # a row with its own name
```

## What they cost

Counted, not timed, for {TEACHER} to {STUDENT} on CIFAR-100 in batches of 64, with the methods' defaults. The counts
are the operations of matrix products and convolutions; a multiplication with an addition counts as two. The teacher
runs once per batch for all students of a cohort; `ofd` with its default needs a pass of its own, because the teacher's
batch norms then use the statistics of the batch. "Own state" is the method's parameters and buffers; "activations" is
the largest memory in use by one student's forward and backward pass.

"""

_AFTER_COSTS = """
The time in seconds depends on the machine. `kd-bench estimate RECIPE` times a few steps of a recipe on the current
machine and computes hours for GPUs. Methods of adversarial training run each batch once more for every step of the
attack, which the recipe sets.
"""


def page(costs: str) -> str:
    """Returns the whole page with a table of costs."""
    infos = [methods.describe(name) for name in _built_in()]
    parts = [_HEAD, BEGIN, costs, END, _AFTER_COSTS]
    for family, title in _FAMILIES.items():
        parts.append(f"\n## {title}\n")
        parts += [_section(info) for info in infos if info.family == family]
    return "".join(parts)


def costs_of(text: str) -> str:
    """Returns the table of costs in a page."""
    return text.partition(BEGIN)[2].partition(END)[0]


def _built_in() -> list[str]:
    """Returns the built-in methods, whose sources, unlike those of plug-ins, have no hash."""
    return [name for name in methods.names() if methods.source_hash(name) is None]


def _section(info: methods.MethodInfo) -> str:
    text = info.doc.partition("\nArgs:\n")[0].strip()
    summary, *paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    text = f"\n### {info.name}\n\n{_escaped(summary)}\n"
    if paragraphs and paragraphs[0].startswith("ce_weight * "):
        formula, _, rest = paragraphs[0].partition(". ")
        text += f"\n```text\n{_filled(formula.rstrip('.'), 100)}\n```\n"
        paragraphs[0] = rest
    text += "".join(f"\n{_filled(_escaped(paragraph), 120)}\n" for paragraph in paragraphs if paragraph)
    text += f"\n{_reads(info)}\n"
    if not info.parameters:
        return text + "\nIt has no settings.\n"
    rows = [
        [f"`{parameter.name}`", f"`{_value(parameter)}`", _allowed(parameter), _escaped(parameter.text)]
        for parameter in info.parameters
    ]
    return text + "\n" + _table(["setting", "default", "allowed", "meaning"], rows)


def _reads(info: methods.MethodInfo) -> str:
    needs = methods.load(info.name).needs
    student = _listed(needs.student)
    teacher = _listed(needs.teacher) if info.needs_teacher else ""
    text = f"Reads the student's {student}" + (f" and the teacher's {teacher}." if teacher else "; needs no teacher.")
    if info.required_settings:
        settings = " and ".join(f"`adversarial.{key}`" for key in info.required_settings)
        text += f" The recipe must switch on {settings}."
    return _filled(text, 120)


def _listed(outputs: frozenset[str]) -> str:
    words = {"logits": "logits", "stages": "stages", "preacts": "pre-activations", "pooled": "pooled embedding"}
    listed = [word for output, word in words.items() if output in outputs]
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)


def _value(parameter: Parameter) -> str:
    value = parameter.default
    return "required" if value is REQUIRED else str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(parameter: Parameter) -> str:
    return _escaped(allowed(resolve(parameter.annotation)).replace("a finite number, ", "").replace("'", ""))


def _filled(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _escaped(text: str) -> str:
    """Returns Markdown that renders as the text; only text in double backticks is code."""
    parts = re.split(r"``(.+?)``", text)
    parts[1::2] = [f"`{code}`" for code in parts[1::2]]
    parts[::2] = [re.sub(r"([\\*_<>|\[\]])", r"\\\1", plain) for plain in parts[::2]]
    return "".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def count_costs() -> str:
    """Returns the table of costs, counted with tensors without content."""
    from kd_bench import plan
    from kd_bench.config.load import read_recipe
    from kd_bench.estimate import placeholders
    from kd_bench.estimate.step_cost import CohortCost, count_cohort

    names = [name for name in _built_in() if methods.describe(name).family != "adversarial"]
    content: dict[str, Any] = {
        "extends": "cifar100/base.yaml",
        "name": "costs",
        "pairs": [{"teacher": TEACHER, "student": STUDENT}],
        "methods": names,
        "trials": 1,
    }
    trials = {planned.label: planned.trial for planned in plan.plan(read_recipe(content), "costs")}
    images, _ = placeholders.images_or_placeholders(trials["none"].dataset, None, Path("no-images"))
    costs: dict[str, CohortCost] = {name: count_cohort([trial], images) for name, trial in trials.items()}
    baseline = costs["none"].members[0]
    rows = []
    for name in sorted(names, key=lambda name: list(_FAMILIES).index(methods.describe(name).family)):
        cost, member = costs[name], costs[name].members[0]
        assert not member.uncounted, (name, member.uncounted)
        per_image = 1e9 * cost.images
        rows.append([
            f"[`{name}`](#{name})",
            f"{cost.teacher.flops / per_image:.2f}" if trials[name].teacher else "none",
            f"{member.step.flops / per_image:.2f}",
            f"{(member.parameters - baseline.parameters) / 1e6:.1f} MB",
            f"{member.peak / 1e9:.2f} GB",
        ])  # fmt: skip
    head = ["method", "teacher's pass, GFLOP per image", "student's step, GFLOP per image", "own state", "activations"]
    return _table(head, rows)


def run_notebook(folder: Path) -> Any:
    """Runs the notebook in a folder and returns it with its outputs, without what differs from run to run."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    return notebook


def write_notebook() -> None:
    """Runs the notebook and stores its outputs."""
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(run_notebook(Path(folder)), NOTEBOOK)
    print(f"docs: wrote {NOTEBOOK}")


def main() -> None:
    """Writes the page if it has changed."""
    if "--notebook" in sys.argv[1:]:
        write_notebook()
    before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    costs = count_costs() if "--costs" in sys.argv[1:] or not costs_of(before) else costs_of(before)
    after = page(costs)
    if after != before:
        PAGE.write_text(after, encoding="utf-8")
        print(f"docs: wrote {PAGE}")


if __name__ == "__main__":
    main()
