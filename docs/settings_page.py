"""The page of the settings: a table for each block of a recipe.

Keys, types and defaults are those of the models in kd_bench/config/, and the texts are those of their docstrings. A new
field needs no change here.
"""

from __future__ import annotations

import re
from pathlib import Path

from markdown_text import escaped, paragraph, styled, table

from kd_bench.config import settings_reference
from kd_bench.config.settings_reference import Section, Setting
from kd_bench.config.type_words import LARGEST

PAGE = Path(__file__).parent / "settings.md"

_HEAD = f"""# Settings of a recipe

<!-- Written by docs/generate.py from the models in kd_bench/config/; change their docstrings, then: make docs -->

Every key of a recipe with its values, its default and its meaning. [Recipes, networks, images](recipes.md) explains how
recipes are written, and [The methods](methods.md) has the hyper-parameters of each method.

The keys that most recipes have, with the published values of CIFAR-100:

```yaml
dataset: cifar100
epochs: 240
batch_size: 64
optimizer: {{name: sgd, lr: 0.05, momentum: 0.9, weight_decay: 5.0e-4, nesterov: false}}
schedule: {{name: step, milestones: [150, 180, 210], gamma: 0.1}}
# milestones may also be fractions of all epochs: [0.625, 0.75, 0.875]
augment: {{crop: 4, flip: true}}
pairs:
  - {{teacher: resnet32x4, student: resnet8x4}}
  - {{teacher: resnet32x4, student: shufflenet_v1, training: {{optimizer: {{lr: 0.01}}}}}}
teachers:
  resnet32x4: {{weights: published}}   # not trained
methods:
  none: {{}}                           # the student alone
  kd: {{temperature: 4}}
  dkd: {{beta: 8, warmup_epochs: 20}}
baseline: kd                         # the row that the others are compared with
trials: 3                            # seeds 0, 1 and 2
```

The command line has the same texts, and shows which values a recipe has:

```sh
kd-bench show schedule.milestones    # one key
kd-bench show schedule               # a block
kd-bench list settings               # all keys
kd-bench show cifar100/table6        # the settings of a recipe, with their files
kd-bench run mine.yaml --set optimizer.nesterov=true --set schedule.warmup_epochs=5
```

| block | what it sets | in mdistiller |
| --- | --- | --- |
| [The recipe](#the-recipe) | `extends`, the seeds, the baseline, published numbers, notes | `EXPERIMENT.NAME` |
| [`dataset`](#dataset) | the images, a part of them, held-out images | `DATASET.TYPE` |
| [`pairs`](#pairs) | teachers and students, and what differs for a pair | `DISTILLER.TEACHER`, `DISTILLER.STUDENT` |
| [`methods`](#methods) | the rows: methods with their hyper-parameters | `DISTILLER.TYPE`, `KD.*`, `DKD.*`, ... |
| [`teachers`](#teachers) | given or pretrained weights, seeds of teachers | |
| [Training](#training) | epochs, batch size, precision, moving average | `SOLVER.EPOCHS`, `SOLVER.BATCH_SIZE` |
| [`optimizer`](#optimizer) | SGD, AdamW, LAMB, DOT | `SOLVER.LR`, `SOLVER.MOMENTUM`, `SOLVER.WEIGHT_DECAY` |
| [`schedule`](#schedule) | steps, cosine, constant; warm-up | `SOLVER.LR_DECAY_STAGES`, `SOLVER.LR_DECAY_RATE` |
| [`augment`](#augment), `second_view` | crop, flip, RandAugment, cutout, mixup; for images in memory | |
| [`pipeline`](#pipeline) | timm's transforms; for image files such as ImageNet | |
| [`input`](#input) | size and normalisation that a network needs | |
| [`adversarial`](#adversarial) | perturbed images | |

[Moving from other suites](moving.md) maps the single keys of mdistiller, RepDistiller and torchdistill.

In the tables,

* dots lead into a block: `optimizer.lr` is `optimizer: {{lr: 0.05}}`, or `--set optimizer.lr=0.05` on the command line;
* N is the index of a pair, from 0, LABEL the label of a row, and NETWORK the name of a teacher's network;
* a number without an upper bound may be at most {LARGEST:,.0f}; infinities, NaN and unknown keys are errors;
* `null` removes a key that the extended recipe sets, so that the default holds again.
"""

#: What the docstring of a model does not say, by the title of its section.
_NOTES = {
    "The recipe": """
A recipe also has the keys of [a training](#training), which hold for all networks that it trains.
""",
    "dataset": """
[Any images](recipes.md#any-images) says where kd-bench looks for files, and
[Held-out images](tuning.md#held-out-images) what `holdout` is for.
""",
    "methods": """
The other keys of a row are the hyper-parameters of its method, see [The methods](methods.md).
""",
    "pairs.N.methods": """
The other keys are hyper-parameters, as in `methods: {dkd: {beta: 8}}`.
""",
    "Training": """
These keys stand at the top level of a recipe, and may differ for a pair (`pairs.N.training`), for a row
(`methods.LABEL.training`), and for a row of a pair (`pairs.N.methods.LABEL.training`); the last of these that sets a
key counts. They may also differ for all teachers (`teacher_training`) and for one teacher (`teachers.NETWORK`). Blocks
are merged key by key, except that an optimiser or schedule with another `name` replaces the whole block.
""",
    "teachers": """
`teacher_training` has the same keys, for all teachers. See [Pretrained networks as
teachers](recipes.md#pretrained-networks-as-teachers).
""",
    "optimizer": """
Each optimiser has settings of its own.
""",
    "schedule": """
The learning rate is constant within an epoch. Each schedule has settings of its own.
""",
    "augment": """
[Add a method, a model, a dataset](extend.md) shows how to write an augmentation of your own.
""",
    "adversarial": """
[Adversarial training](recipes.md#adversarial-training) has an example.
""",
}


def page() -> str:
    """Returns the whole page."""
    return _HEAD + "".join(map(_section, settings_reference.sections()))


def title(section: Section) -> str:
    """Returns the title of a section."""
    if not section.key:
        return "Training" if section.is_training else "The recipe"
    key = re.sub(r"\.[A-Z]+$", "", section.key)
    return f"{key}: {section.kind}" if section.kind else key


def _section(section: Section) -> str:
    name = title(section)
    text = f"\n{'###' if '.' in name or section.kind else '##'} {escaped(name)}\n"
    text += "".join(f"\n{paragraph(part)}\n" for part in section.text.split("\n\n") if part)
    if section.also:
        text += f"\n{' and '.join(f'`{key}`' for key in section.also)} has the same keys.\n"
    head = ["setting", "allowed", "default", "meaning"]
    return text + _NOTES.get(name, "") + styled("settings", table(head, list(map(_row, section.settings))))


def _row(setting: Setting) -> list[str]:
    blocks = settings_reference.within(setting.key)
    name = f"[`{setting.key}`](#{_anchor(title(blocks[0]))})" if blocks else f"`{setting.key}`"
    return [name, *map(escaped, (setting.allowed, setting.default, setting.meaning))]


def _anchor(heading: str) -> str:
    """Returns the address of a section within the page."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())
