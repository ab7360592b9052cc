"""The page of the methods: a table for each family, and a section for each method.

A method's docstring and signature give its section; its file docs/methods/NAME.yaml gives the formula and the row in
the table of its family. A new method needs no change here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from markdown_text import escaped, filled, paragraph, styled, table
from method_costs import PAIR, Costs, pair_title

from kd_bench.methods import _registry as methods
from kd_bench.methods._logit_settings import NAMES as LOGIT_SETTINGS
from kd_bench.methods._logit_settings import combinable
from kd_bench.methods.parameters import allowed, resolve
from kd_bench.types import Needs
from kd_bench.utils.signatures import REQUIRED, Parameter

ENTRIES = Path(__file__).parent / "methods"

#: Families and the titles of their sections. Where an entry names none, it is the ``family`` of the method's class.
FAMILIES = {
    "baseline": "The baseline",
    "logits": "Logits",
    "features": "Feature maps",
    "relations": "Relations between samples",
    "contrastive": "Contrastive distillation",
    "two_stage": "Two-stage methods",
    "adversarial": "Adversarial training",
}

#: Symbols of settings that mean the same in every formula; an entry adds others.
_SYMBOLS = {
    "ce_weight": r"\lambda_{\mathrm{ce}}",
    "temperature": "T",
    "alpha": r"\alpha",
    "beta": r"\beta",
    "gamma": r"\gamma",
    "tau": r"\tau",
}

_COLUMNS = [
    "method",
    "what is matched",
    "extra parameters",
    "extra operations",
    "extra time",
    "settings of the 13 pairs",
    "where paper and code part",
]

#: Authors and title, which follow the plain formula in a docstring.
_CITATION = re.compile(r"[A-Z][\w, ]+?(?: et al\.)?, \"")

#: What holds for all methods of a family, above its table.
_INTRODUCTIONS = {
    "logits": r"""
A row of a recipe can add two published changes of the logits to these methods; where one cannot be added, the section
says so.

* `standardise: true` ([Sun et al., 2024](https://arxiv.org/abs/2403.01427)): the method reads standardised logits of
  both networks. The cross-entropy with the labels reads the raw ones.
* `entropy_weights: T` ([Su et al., 2025](https://arxiv.org/abs/2311.13621)): the method's terms of image $b$ are
  multiplied by $u_b$, which is computed from the raw logits.

```math
\begin{aligned}
z &\mapsto \frac{z - \operatorname{mean}_j z_j}{\operatorname{std}_j z_j + 10^{-7}} \\
u_b &= \frac{1}{2}\, H(p_b) \Bigl( 1 + \frac{H(q_b)}{\log K} \Bigr), \quad H(p) = -\sum_j p_j \log p_j \\
p &= \sigma(t / T), \quad q = \sigma(s / T)
\end{aligned}
```
""",
}

_HEAD = rf"""# The methods

<!-- Written by docs/generate.py from kd_bench/methods/ and docs/methods/; change those, then: make docs -->

A table for each family compares its methods, and a section for each method has its formula, publication, settings, and
the differences between paper and released code in full. The source of a method is the only place of its defaults.
`kd-bench list methods` lists the methods, and `kd-bench show ikl_kd` shows one in the terminal.

A recipe sets the values that differ from the defaults:

```yaml
methods:
  none: {{}}                                  # the student alone
  kd: {{temperature: 2}}
  ikl_kd_class: {{method: ikl_kd, weights: class, tau: 4}}   # a row with its own name
```

In the tables,

* *extra parameters* are those that are trained with the student, for {pair_title(PAIR)};
* *extra operations* and *extra time* of a step are relative to the forward and backward pass of the student alone, and
  do not include the teacher's pass; operations are counted, see [What they cost](#what-they-cost); times are those that
  the last `make bench` measured on a CPU for the method's own layers and its loss;
* *settings of the 13 pairs* says for how many of the 13 published pairs of CIFAR-100 the settings are public.

In the formulas,

* $s$ and $t$ are the logits of student and teacher, $\sigma$ is the softmax, $y$ the label, $K$ the number of classes,
  and $B$ the size of the batch;
* $F^s_l$ and $F^t_l$ are the feature maps of stage $l$ with $C$ channels of $H$ by $W$ pixels, and $e$ the pooled
  embeddings; stages are matched from the deepest, and where sizes differ, the larger map is averaged to the smaller
  one's size;
* $\mathcal{{L}}_{{\mathrm{{CE}}}}$ is the cross-entropy with the labels, and $\mathrm{{sg}}$ stops the gradient;
* $r = \min(E / E_0, 1)$ is the warm-up in epoch $E = 1, 2, \dots$, where $E_0$ is `warmup_epochs`;
* losses are means over the images of a batch, and what is not said to be trained has no gradient.
"""

_COSTS_HEAD = f"""
## What they cost

Counted, not timed, for {pair_title(PAIR)} on CIFAR-100 in batches of 64, with the methods' defaults. The counts
are the operations of matrix products and convolutions; a multiplication with an addition counts as two. The teacher
runs once per batch for all students of a cohort; `ofd` with its default needs a pass of its own, because the teacher's
batch norms then use the statistics of the batch. "Own state" is the method's parameters and buffers; "activations" is
the largest memory in use by one student's forward and backward pass.

"""

_COSTS_END = """
The time in seconds depends on the machine. `kd-bench estimate RECIPE` times a few steps of a recipe on the current
machine and computes hours for GPUs. Methods of adversarial training run each batch once more for every step of the
attack, which the recipe sets.
"""


@dataclass(frozen=True)
class Entry:
    """What the page says about a method and its class does not.

    Attributes:
        matched: What of the teacher the student matches.
        settings: Of which of the 13 published pairs of CIFAR-100 the settings are known.
        differs: Where the paper and its code differ, in short; the docstring has all of it.
        formula: The loss in LaTeX.
        where: What the symbols mean that neither the formula nor the head of the page explains.
        paper: Authors and year.
        link: Address of the paper.
        group: The family, if it is not the ``family`` of the class.
        pair: Teacher and student for which costs are counted, if not ``PAIR``.
        cost: The extra cost of a step, if it is not counted.
        symbols: Symbols of the settings in the formula, besides those that all formulas share.
    """

    matched: str
    settings: str
    differs: str
    formula: str
    paper: str = ""
    link: str = ""
    group: str = ""
    pair: str = PAIR
    cost: str = ""
    where: str = ""
    symbols: dict[str, str] = field(default_factory=dict)


#: The row of a method without a file.
_NO_ENTRY = Entry(matched="", settings="", differs="", formula="")


def entry(name: str) -> Entry:
    """Returns the entry of a method; an empty one if there is no file."""
    path = ENTRIES / f"{name}.yaml"
    if not path.is_file():
        return _NO_ENTRY
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = set(content) - {field.name for field in fields(Entry)}
    if unknown:
        raise ValueError(f"{path} has the unknown keys {', '.join(sorted(unknown))}")
    return Entry(**content)


def built_in() -> list[str]:
    """Returns the built-in methods, whose sources, unlike those of plug-ins, have no hash."""
    return [name for name in methods.names() if methods.source_hash(name) is None]


def page(costs: Costs, times: dict[str, float]) -> str:
    """Returns the whole page.

    Args:
        costs: The counts of ``method_costs.count``.
        times: The extra times of ``method_costs.measured_times``.
    """
    infos = [methods.describe(name) for name in built_in()]
    entries = {info.name: entry(info.name) for info in infos}
    families = {info.name: entries[info.name].group or _family(info) for info in infos}
    parts = [_HEAD]
    for family, title in FAMILIES.items():
        members = [info for info in infos if families[info.name] == family]
        if not members:
            continue
        rows = [_row(info, entries[info.name], costs, times) for info in members]
        parts += [f"\n## {title}\n", _INTRODUCTIONS.get(family, ""), styled("methods", table(_COLUMNS, rows))]
        parts += [_section(info, entries[info.name]) for info in members]
    order = sorted(costs.items(), key=lambda item: list(FAMILIES).index(families.get(item[0], "adversarial")))
    counted = {name: cost for name, cost in order if name in families}
    return "".join([*parts, _COSTS_HEAD, _costs_table(counted), _COSTS_END])


def _family(info: methods.MethodInfo) -> str:
    """Returns the family of a method that its entry does not name."""
    has_preparation = any(parameter.name == "preparation_epochs" for parameter in info.parameters)
    return "two_stage" if has_preparation else info.family


def _row(info: methods.MethodInfo, entry: Entry, costs: Costs, times: dict[str, float]) -> list[str]:
    """Returns the row of a method in the table of its family."""
    name, cost = info.name, costs.get(info.name)
    paper = f"<br>[{entry.paper}]({entry.link})" if entry.link else f"<br>{entry.paper}" if entry.paper else ""
    parameters, operations = "not counted", entry.cost or "not counted"
    time = _percent(times[name]) if name in times else "" if entry.cost else "not measured"
    if cost:
        parameters = f"{cost['parameters']:,}" if cost["parameters"] else "none"
        parameters += ", which stay in the student" if methods.load(name).keeps_layers else ""
        operations = _percent((cost["step"] - cost["step_alone"]) / cost["step_alone"])
        operations += f" ({pair_title(entry.pair)})" if entry.pair != PAIR else ""
    elif entry.cost:
        parameters = "none"
    for parameter in info.parameters:
        if parameter.name == "preparation_epochs":
            operations += f", after {parameter.default} epochs of preparation"
    return [f"[`{name}`](#{name}){paper}", entry.matched, parameters, operations, time, entry.settings, entry.differs]


def _percent(fraction: float) -> str:
    percent = 100 * fraction
    return "0 %" if abs(percent) < 0.05 else f"{percent:+.1f} %" if abs(percent) < 9.95 else f"{percent:+.0f} %"


def _section(info: methods.MethodInfo, entry: Entry) -> str:
    """Returns the section of a method."""
    summary, *paragraphs = info.doc.partition("\nArgs:\n")[0].strip().split("\n\n")
    text = f"\n### {info.name}\n\n{escaped(' '.join(summary.split()))}\n"
    if entry.formula:
        text += f"\n```math\n{entry.formula.strip()}\n```\n"
        text += f"\n{filled(entry.where, 120)}\n" if entry.where else ""
    if paragraphs:
        formula, _, rest = " ".join(paragraphs[0].split()).partition(". ")
        if formula.startswith("ce_weight * ") or (_CITATION.match(rest) and (" * " in formula or "MSE" in formula)):
            paragraphs[0] = rest
            text += "" if entry.formula else f"\n```text\n{filled(formula.rstrip('.'), 100)}\n```\n"
    text += "".join(f"\n{paragraph(part)}\n" for part in paragraphs if part)
    text += f"\n{_reads(info)}\n"
    if not info.parameters:
        return text + "\nIt has no settings.\n"
    symbols = symbols_of(info, entry)
    rows = [
        [
            f"`{parameter.name}`",
            *([f"${symbols[parameter.name]}$" if parameter.name in symbols else ""] if symbols else []),
            f"`{_value(parameter)}`",
            _allowed(parameter),
            escaped(parameter.text),
        ]
        for parameter in info.parameters
    ]
    head = ["setting", *(["symbol"] if symbols else []), "default", "allowed", "meaning"]
    return text + styled("settings", table(head, rows))


def symbols_of(info: methods.MethodInfo, entry: Entry) -> dict[str, str]:
    """Returns the symbols in a method's formula by setting. The warm-up's length is in the formula of r."""
    if not entry.formula:
        return {}
    symbols = _SYMBOLS | entry.symbols
    names = [parameter.name for parameter in info.parameters]
    listed = {name: symbols[name] for name in names if name in symbols and symbols[name] in entry.formula}
    return listed | ({"warmup_epochs": "E_0"} if "warmup_epochs" in names else {})


def _reads(info: methods.MethodInfo) -> str:
    method = methods.load(info.name)
    text = (
        f"Reads {_outputs(method.needs)}."
        if info.needs_teacher
        else f"Reads {_outputs(method.needs)}; needs no teacher."
    )
    if method.preparation_needs is not None:
        text += f" In the preparation, it reads {_outputs(method.preparation_needs)}."
    if info.required_settings:
        settings = " and ".join(f"`adversarial.{key}`" for key in info.required_settings)
        text += f" The recipe must switch on {settings}."
    names = [parameter.name for parameter in info.parameters]
    possible = [*combinable(info), *names] if info.family == "logits" else LOGIT_SETTINGS
    missing = [f"`{key}`" for key in LOGIT_SETTINGS if key not in possible]
    if missing:
        text += f" It has no {' and no '.join(missing)}."
    return filled(text, 120)


def _outputs(needs: Needs) -> str:
    """Returns the outputs that a method reads, e.g. "the student's logits and the teacher's logits"."""
    networks = {"student": needs.student, "teacher": needs.teacher}
    return " and ".join(f"the {network}'s {_listed(outputs)}" for network, outputs in networks.items() if outputs)


def _listed(outputs: frozenset[str]) -> str:
    words = {
        "logits": "logits",
        "stages": "stages",
        "preacts": "pre-activations",
        "features": "last feature map",
        "class_maps": "class maps",
        "pooled": "pooled embedding",
    }
    listed = [word for output, word in words.items() if output in outputs]
    return " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)


def _value(parameter: Parameter) -> str:
    value = parameter.default
    if value is REQUIRED:
        return "required"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(parameter: Parameter) -> str:
    return escaped(allowed(resolve(parameter.annotation)).replace("a finite number, ", "").replace("'", ""))


def _costs_table(costs: Costs) -> str:
    rows = [
        [
            f"[`{name}`](#{name})",
            f"{cost['teacher'] / 1e9:.2f}" if cost["teacher"] else "none",
            f"{cost['step'] / 1e9:.2f}",
            f"{cost['state'] / 1e6:.1f} MB",
            f"{cost['peak'] / 1e9:.2f} GB",
        ]
        for name, cost in costs.items()
    ]
    head = ["method", "teacher's pass, GFLOP per image", "student's step, GFLOP per image", "own state", "activations"]
    return table(head, rows)
