"""What ``kd-bench reproduce`` runs: a paper's table in full, or all of its parts on a handful of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_bench.config.data import Dataset
from kd_bench.config.load import find_recipe, read_recipe
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import PlannedTrial
from kd_bench.data import registry as datasets
from kd_bench.models import cards
from kd_bench.plan import plan, select, teacher_of
from kd_bench.trials.folder import TEACHERS
from kd_bench.utils.errors import RunFailed, UserError

#: The recipe that gives the paper's Table 6, and those that between them have all published pairs of CIFAR-100.
TABLE6 = "cifar100/table6"
ALL_PAIRS = (TABLE6, "cifar100/other_pairs")

#: A smoke run: two epochs, so that what happens between them happens, of two batches.
SMOKE = ("epochs=2", "batch_size=8", "dataset.train_images=16", "dataset.test_images=32")
#: The digits have neither CIFAR's crop nor a mirror image.
SMOKE_ON_DIGITS = ("dataset=digits", "augment.crop=null", "augment.flip=null")


@dataclass(frozen=True)
class CifarPart:
    """A recipe of what is reproduced, and those of its trials that were asked for."""

    recipe: Recipe
    context: str
    planned: list[PlannedTrial]


def full(
    out: Path,
    fetch: Callable[[cards.Card], Any] | None,
    say: Callable[[str], None],
    only: Iterable[str] = (),
    trials: int | None = None,
) -> list[CifarPart]:
    """Table 6, with the published teachers as far as they can be had; those that cannot are trained.

    A teacher whose training was begun in this results folder stays the one, so that a run that is taken up again keeps
    the trials it has.

    Args:
        out: The results folder.
        fetch: Gets the weights of a card; None has all teachers trained.
        say: Told, a line each, where teachers come from.
        only: As ``plan`` takes it.
        trials: Seeds a cell, over the recipe's.

    Raises:
        UserError: As ``plan``.
    """
    context = str(find_recipe(TABLE6))
    recipe = read_recipe(TABLE6, trials=trials)
    names = dict.fromkeys(cell.teacher for cell in plan(recipe, context, only))
    given = [name for name in names if fetch and _fetched(recipe, name, context, out, fetch, say)]
    recipe = read_recipe(TABLE6, [f"teachers.{name}.weights=published" for name in given], trials)
    return [CifarPart(recipe, context, plan(recipe, context, only))]


def _fetched(
    recipe: Recipe,
    name: str,
    context: str,
    out: Path,
    fetch: Callable[[cards.Card], Any],
    say: Callable[[str], None],
) -> bool:
    """Whether the published weights of a teacher are there and to be used."""
    trained, _ = teacher_of(recipe, name, context)
    folder = out / TEACHERS / trained.id
    if folder.exists():
        say(f"{name}: its training was begun here and goes on, in {folder}")
        return False
    card = cards.find("teachers", recipe.dataset.name, name)
    if card is None or not (card.weights or card.timm):
        say(f"{name}: no published weights are known; it is trained here")
        return False
    try:
        fetch(card)
    except RunFailed as failure:
        say(f"{name}: its published weights could not be fetched, so it is trained here ({failure})")
        return False
    say(f"{name}: published weights")
    return True


def smoke(data: Path | None, only: Sequence[str] = ()) -> tuple[list[CifarPart], str]:
    """Every method on every published pair, for a few batches, on CIFAR-100 if it is there.

    Args:
        data: Folder of data sets; None for the default.
        only: As ``plan`` takes it, over the trials of all recipes together.

    Returns:
        The recipes, and on which images they run and why.

    Raises:
        UserError: As ``plan``.
    """
    place = datasets.data_dir(data)
    try:
        images = f"CIFAR-100 ({datasets.locate(Dataset(name='cifar100'), place)})"
        overrides: tuple[str, ...] = SMOKE
    except UserError:
        images = f"scikit-learn's digits, since there is no CIFAR-100 in {place}"
        overrides = (*SMOKE_ON_DIGITS, *SMOKE)
    parts = []
    for name in ALL_PAIRS:
        recipe, context = read_recipe(name, overrides, trials=1), str(find_recipe(name))
        parts.append(CifarPart(recipe, context, plan(recipe, context)))
    chosen = {id(cell) for cell in select([cell for part in parts for cell in part.planned], only)}
    kept = [CifarPart(one.recipe, one.context, [cell for cell in one.planned if id(cell) in chosen]) for one in parts]
    return [part for part in kept if part.planned], images
