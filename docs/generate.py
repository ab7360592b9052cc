"""Writes docs/methods.md from what the methods' own sources say, so that the page cannot say anything else.

``make docs`` runs it. The table of costs, which takes half a minute to count, is counted anew with ``--costs``.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from kd_bench.methods import registry
from kd_bench.methods.base import Family
from kd_bench.methods.parameters import allowed, resolve
from kd_bench.utils.signatures import REQUIRED, Parameter

PAGE = Path(__file__).parent / "methods.md"

#: What the counted costs stand between, so that the rest of the page can be written without counting.
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

Each section is what the method's source says: formula, source, settings, and where paper and released code differ. The
defaults are those of the source, which stand nowhere else. `kd-bench list methods` lists the methods, and
`kd-bench show ikl_kd` shows one in the terminal. s are the student's logits and t the teacher's, CE is the
cross-entropy with the labels, and "warm-up" a factor that grows linearly from 1 / `warmup_epochs` in the first epoch
to 1, where nothing else is said.

A recipe sets what is to differ from the defaults:

```yaml
methods:
  none: {{}}                                  # the student alone
  kd: {{temperature: 2}}
  ikl_kd_class: {{method: ikl_kd, weights: class, tau: 4}}   # a row of its own name
```

## What they cost

Counted, not timed, for {TEACHER} to {STUDENT} on CIFAR-100 in batches of 64, with the methods' defaults:
arithmetic of products and convolutions, where a multiplication with an addition is two operations. The teacher's pass
is made once a batch for all students of a cohort, except that `ofd` with its default has one of its own, whose batch
norms go by the batch. "Own state" is what the method trains and remembers beside the student; "activations" is what
one student's forward and backward pass has in use at most.

"""

_AFTER_COSTS = """
What this amounts to in seconds depends on the machine. `kd-bench estimate RECIPE` times a few steps of a recipe where
it runs and counts hours for GPUs. Methods of adversarial training compute each batch once more for every step of the
attack, which the recipe sets.
"""


def page(costs: str) -> str:
    """The whole page, around a table of costs."""
    infos = [registry.describe(name) for name in _built_in()]
    parts = [_HEAD, BEGIN, costs, END, _AFTER_COSTS]
    for family, title in _FAMILIES.items():
        parts.append(f"\n## {title}\n")
        parts += [_section(info) for info in infos if info.family == family]
    return "".join(parts)


def costs_of(text: str) -> str:
    """The table of costs in a page."""
    return text.partition(BEGIN)[2].partition(END)[0]


def _built_in() -> list[str]:
    """Only a plug-in's source has a hash in a trial."""
    return [name for name in registry.names() if registry.source_hash(name) is None]


def _section(info: registry.MethodInfo) -> str:
    about = info.doc.partition("\nArgs:\n")[0].strip()
    summary, *paragraphs = [" ".join(one.split()) for one in about.split("\n\n")]
    text = f"\n### {info.name}\n\n{_escaped(summary)}\n"
    if paragraphs and paragraphs[0].startswith("ce_weight * "):
        formula, _, rest = paragraphs[0].partition(". ")
        text += f"\n```text\n{_filled(formula.rstrip('.'), 100)}\n```\n"
        paragraphs[0] = rest
    text += "".join(f"\n{_filled(_escaped(one), 120)}\n" for one in paragraphs if one)
    text += f"\n{_reads(info)}\n"
    if not info.parameters:
        return text + "\nIt has no settings.\n"
    rows = [[f"`{one.name}`", f"`{_value(one)}`", _allowed(one), _escaped(one.text)] for one in info.parameters]
    return text + "\n" + _table(["setting", "default", "allowed", "what it is"], rows)


def _reads(info: registry.MethodInfo) -> str:
    needs = registry.load(info.name).needs
    student = _listed(needs.student)
    teacher = _listed(needs.teacher) if info.needs_teacher else ""
    whose = f"Reads the student's {student}" + (f" and the teacher's {teacher}." if teacher else "; needs no teacher.")
    if info.demands:
        named = " and ".join(f"`adversarial.{key}`" for key in info.demands)
        whose += f" The recipe has to switch on {named}."
    return _filled(whose, 120)


def _listed(outputs: frozenset[str]) -> str:
    words = {"logits": "logits", "stages": "stages", "preacts": "pre-activations", "pooled": "pooled embedding"}
    named = [word for output, word in words.items() if output in outputs]
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def _value(parameter: Parameter) -> str:
    value = parameter.default
    return "required" if value is REQUIRED else str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(parameter: Parameter) -> str:
    return _escaped(allowed(resolve(parameter.annotation)).replace("a finite number, ", "").replace("'", ""))


def _filled(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _escaped(text: str) -> str:
    """Text as Markdown that looks like it: only what stands in double backticks is code."""
    parts = re.split(r"``(.+?)``", text)
    parts[1::2] = [f"`{code}`" for code in parts[1::2]]
    parts[::2] = [re.sub(r"([\\*_<>|\[\]])", r"\\\1", plain) for plain in parts[::2]]
    return "".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def count_costs() -> str:
    """The table of costs, counted with tensors that have a shape and no content."""
    from kd_bench import plan
    from kd_bench.config.load import read_recipe
    from kd_bench.estimate import placeholders
    from kd_bench.estimate.step_cost import CohortCost, count

    names = [one.name for one in map(registry.describe, _built_in()) if one.family != "adversarial"]
    content: dict[str, Any] = {
        "extends": "cifar100/base.yaml",
        "name": "costs",
        "pairs": [{"teacher": TEACHER, "student": STUDENT}],
        "methods": names,
        "trials": 1,
    }
    trials = {one.label: one.trial for one in plan.plan(read_recipe(content), "costs")}
    nowhere = Path("there-are-no-images-here")
    images, _ = placeholders.images(trials["none"].dataset, None, nowhere)
    found: dict[str, CohortCost] = {name: count([trial], images) for name, trial in trials.items()}
    alone = found["none"].members[0]
    rows = []
    for name in sorted(names, key=lambda one: list(_FAMILIES).index(registry.describe(one).family)):
        counts, own = found[name], found[name].members[0]
        assert not own.uncounted, (name, own.uncounted)
        per_image = 1e9 * counts.images
        rows.append([
            f"[`{name}`](#{name})",
            f"{counts.teacher.flops / per_image:.2f}" if trials[name].teacher else "none",
            f"{own.step.flops / per_image:.2f}",
            f"{(own.parameters - alone.parameters) / 1e6:.1f} MB",
            f"{own.peak / 1e9:.2f} GB",
        ])  # fmt: skip
    head = ["method", "teacher's pass, GFLOP an image", "student's step, GFLOP an image", "own state", "activations"]
    return _table(head, rows)


def main() -> None:
    """Writes the page, or says that it is as it should be."""
    before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    costs = count_costs() if "--costs" in sys.argv[1:] or not costs_of(before) else costs_of(before)
    after = page(costs)
    if after != before:
        PAGE.write_text(after, encoding="utf-8")
        print(f"docs: wrote {PAGE}")


if __name__ == "__main__":
    main()
