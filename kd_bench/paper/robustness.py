"""What ``kd-bench reproduce robustness`` runs: the tables of robustness in full, or all of their rows on few images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from kd_bench.config.data import Dataset
from kd_bench.config.load import find_recipe, read_recipe
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.data import registry as datasets
from kd_bench.plan import plan, select
from kd_bench.utils.errors import UserError

#: Tables 7 and 9 to 12, and the networks of A.5 on CIFAR-10.
TABLES = tuple(f"robustness/{name}" for name in ("table7", "table9", "table10", "table11", "table12", "cifar10"))

#: The row of Table 7 whose generated images are not everybody's.
GENERATED = "robustness/table7_generated"

#: Radii of Table 12; the others are attacked with the one that they were trained with.
RADII = {"robustness/table12": ("2/255", "4/255", "6/255", "8/255", "10/255", "12/255")}
RADIUS = ("8/255",)

#: A smoke run: every row with all of its settings, on a network that a CPU can train; of so few classes that even what
#: learns nothing is right about some image, which is then there to be attacked.
SMOKE = (
    "dataset.classes=10",
    "epochs=2",
    "batch_size=8",
    "dataset.train_images=16",
    "dataset.test_images=20",
    "pairs.0.student=resnet8",
    "input.normalise=dataset",
    "adversarial.weight_perturbation.from_epoch=2",
)
SMOKE_ON_DIGITS = ("dataset=digits", "augment.crop=null", "augment.flip=null")


@dataclass(frozen=True)
class RobustnessPart:
    """A table.

    Attributes:
        name: The packaged recipe.
        recipe: What it says here.
        context: Its file.
        planned: Its trials that were asked for.
        radii: Of the attacks, as they are written.
        as_published: Identities of the trials of the first seed with the published settings, by label.
    """

    name: str
    recipe: Recipe
    context: str
    planned: list[PlannedTrial]
    radii: tuple[str, ...]
    as_published: dict[str, str]


def full(say: Callable[[str], None], only: Iterable[str] = (), trials: int | None = None) -> list[RobustnessPart]:
    """All tables with the published settings; that with generated images where these are there.

    Args:
        say: Told what is left out.
        only: As ``plan`` takes it, over the trials of all tables together.
        trials: Seeds a cell, over the recipes'.

    Raises:
        UserError: As ``plan``.
    """
    parts = [_part(name, (), trials) for name in TABLES]
    try:
        parts.insert(1, _part(GENERATED, (), trials))
    except UserError as missing:
        say(f"left out: {missing}")
    return _selected(parts, only)


def smoke(data: Path | None, only: Iterable[str] = ()) -> tuple[list[RobustnessPart], str]:
    """Every row of every table but the generated one, for a few batches, on CIFAR-100 if it is there.

    Args:
        data: Folder of data sets; None for the default.
        only: As ``full`` takes it.

    Returns:
        The tables, and on which images they run and why.

    Raises:
        UserError: As ``plan``.
    """
    place = datasets.data_dir(data)
    try:
        images = f"CIFAR-100 ({datasets.locate(Dataset(name='cifar100'), place)})"
        overrides: tuple[str, ...] = ("dataset=cifar100", *SMOKE)
    except UserError:
        images = f"scikit-learn's digits, since there is no CIFAR-100 in {place}"
        overrides = (*SMOKE_ON_DIGITS, *SMOKE)
    return _selected([_part(name, overrides, 1) for name in TABLES], only), images


def _part(name: str, overrides: Iterable[str], trials: int | None) -> RobustnessPart:
    recipe, context = read_recipe(name, overrides, trials), str(find_recipe(name))
    published = plan(read_recipe(name), context)
    firsts: dict[str, str] = {}
    for one in published:
        firsts.setdefault(one.label, one.trial_id)
    return RobustnessPart(name, recipe, context, plan(recipe, context), RADII.get(name, RADIUS), firsts)


def _selected(parts: list[RobustnessPart], only: Iterable[str]) -> list[RobustnessPart]:
    every = [cell for part in parts for cell in part.planned]
    chosen = {id(cell) for cell in select(every, only)}
    kept = []
    for part in parts:
        cells = [cell for cell in part.planned if id(cell) in chosen]
        if cells:
            kept.append(RobustnessPart(part.name, part.recipe, part.context, cells, part.radii, part.as_published))
    return kept
