"""Reproduces the tables of the paper. ``tables.yaml`` says which recipes they need and with which settings."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from kd_bench.config.base import Settings
from kd_bench.config.data import Dataset
from kd_bench.config.load import read_recipe, recipe_context
from kd_bench.config.selection import select
from kd_bench.config.trial import PlannedTrial
from kd_bench.config.validate import parse
from kd_bench.config.yaml_reader import read_mapping
from kd_bench.data import registry as datasets
from kd_bench.evaluation.attack_settings import parse_attacks
from kd_bench.launch import run_recipe
from kd_bench.launch.devices import find_devices
from kd_bench.launch.options import RunOptions, check_options
from kd_bench.launch.run_recipe import PlannedRecipe
from kd_bench.models import cards
from kd_bench.paper.smoke_inputs import image_folder, random_weights
from kd_bench.plan import plan, plan_teacher, resolve_network
from kd_bench.trials.folder import TEACHERS, TrialFolder
from kd_bench.utils.errors import RunFailed, UserError, unknown
from kd_bench.utils.text import count

Fetch = Callable[[cards.Card], Any]
Log = Callable[[str], None]

BUDGETS = ("full", "smoke")

#: Largest number of students per process in a smoke run. Starting a process takes longer than training them.
SMOKE_COHORT = 16


class TableRecipe(Settings):
    """How a recipe is run; see ``tables.yaml``."""

    budgets: tuple[str, ...] = BUDGETS
    optional: bool = False
    radii: tuple[str, ...] = ("8/255",)
    smoke: tuple[str, ...] = ()


class TableGroup(Settings):
    """The tables that one command reproduces; see ``tables.yaml``."""

    recipes: dict[str, TableRecipe]
    teachers: Literal["published", "published or trained"] | None = None
    output: Literal["one table", "table per recipe", "robustness"]
    smoke: tuple[str, ...]
    without_cifar100: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part(PlannedRecipe):
    """A recipe of a group and its selected trials.

    Attributes:
        name: Name of the packaged recipe.
        radii: Radii of the attacks on its networks, e.g. ``8/255``.
        data: Folder of the data sets; None for the default.
    """

    name: str
    radii: tuple[str, ...]
    data: Path | None = None

    @cached_property
    def as_published(self) -> dict[str, str]:
        """Identities of the trials of the first seed with the published settings, by label."""
        planned = plan(read_recipe(self.name), self.context, data=self.data)
        return {trial.label: trial.trial_id for trial in reversed(planned)}


@cache
def groups() -> dict[str, TableGroup]:
    """Returns the groups of tables by the name of their command."""
    file = Path(__file__).with_name("tables.yaml")
    content = read_mapping(file, "file of tables")
    return {name: parse(TableGroup, group, f"{file}: {name}") for name, group in content.items()}


@dataclass(frozen=True)
class Reproduction:
    """A run of ``kd-bench reproduce``.

    Attributes:
        name: Name of the group of tables.
        options: How to run it. A smoke run writes to ``smoke`` in the results folder.
        log: Receives one line per message.
        only: Conditions that trials must match, as for ``plan``, over the trials of all recipes together.
        trials: Number of seeds; None for the recipes'.
        overrides: Settings that replace those of a smoke run, each ``key=value``.
        fetch: Downloads the weights of a card if they are missing; None trains all teachers.
        weights: Files of teachers' weights that are not fetched, by network.
        attacks: Attacks, with commas between them; None for standard AutoAttack.
        images: Number of test images to attack; None for all.
        report_progress: Called after each batch of an attack.
    """

    name: str
    options: RunOptions
    log: Log
    only: Sequence[str] = ()
    trials: int | None = None
    overrides: Sequence[str] = ()
    fetch: Fetch | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    attacks: str | None = None
    images: int | None = None
    report_progress: Callable[[str, int, int, int], None] | None = None

    @property
    def group(self) -> TableGroup:
        """The group of tables."""
        return groups()[self.name]

    def run(self, budget: str, show: Callable[[Any], None]) -> None:
        """Trains the missing trials, attacks the networks if the tables are about robustness, and shows the tables.

        Args:
            budget: One of ``BUDGETS``.
            show: Receives each table as a ``Summary``; or once, for robustness, a list of ``RobustnessTable``.

        Raises:
            UserError: If a setting is invalid or images are missing.
            RunFailed: If weights cannot be fetched; or, after the tables were shown, if trials have no result or
                networks could not be attacked.
        """
        if self.group.output == "robustness":
            parse_attacks("8/255", self.attacks)  # an error must come before hours of training
        if budget == "smoke":
            jobs = self.options.jobs or (None if self.group.without_cifar100 else 1)  # large networks need the memory
            cohort_size = max(self.options.cohort_size, SMOKE_COHORT)
            options = replace(self.options, out=self.options.out / "smoke", cohort_size=cohort_size, jobs=jobs)
            parts, images = replace(self, options=options).smoke()
            self.log(f"smoke run on {images}; it measures no accuracy")
            note = f"Smoke run on {images}{', teachers with random weights' * (self.group.teachers == 'published')}"
            self._check_images(parts)
        else:
            options, parts, note = self.options, self.full(), ""
            self._check_images(parts)
            parts = self._with_images(parts)
            check_options(options)  # before anything is downloaded
            parts = self.with_published_teachers(parts)
        failed: dict[str, str] = {}
        not_attacked = 0
        for part in parts:
            failed |= run_recipe.train(part, options)
            if self.group.output == "robustness":
                not_attacked += self._attack(part, options)
            elif self.group.output == "table per recipe":
                for line in costs(part, options.out) if note else ():
                    self.log(line)
                show(_summary([part], options.out, note))
        if self.group.output == "robustness":
            show([_robustness_table(part, options.out, note) for part in parts])
        elif self.group.output == "one table":
            show(_summary(parts, options.out, note))
        if failed:
            raise run_recipe.training_failure(f"reproduce {self.name}", failed)
        if not_attacked:
            raise RunFailed(f"reproduce {self.name}: {count(not_attacked, 'network')} could not be attacked, see above")

    def full(self) -> list[Part]:
        """Plans the recipes with the published settings. All teachers are trained; see ``with_published_teachers``.

        Raises:
            UserError: As for ``plan``.
        """
        parts = []
        for name, recipe in self.group.recipes.items():
            if "full" in recipe.budgets:
                try:
                    parts.append(_plan(name, recipe, (), self.trials, self.options.data))
                except UserError as error:
                    if not recipe.optional:
                        raise
                    self.log(f"left out: {error}")
        return _select(parts, self.only)

    def _with_images(self, parts: list[Part]) -> list[Part]:
        """Returns the parts whose images are there; optional ones without images are left out.

        Raises:
            UserError: If the images of another part, or of all parts, are missing.
        """
        complete: list[Part] = []
        for part in parts:
            try:
                datasets.locate(part.recipe.dataset, self.options.data)
            except UserError as error:
                if not self.group.recipes[part.name].optional or (part is parts[-1] and not complete):
                    raise
                self.log(f"left out: {part.name}: {error}")
            else:
                complete.append(part)
        return complete

    def _check_images(self, parts: Iterable[Part]) -> None:
        """Raises a UserError if a part has fewer test images than are to be attacked, before hours of training."""
        if self.images is None:
            return
        for part in parts:
            dataset = part.recipe.dataset
            available = dataset.test_images or datasets.resolve_spec(dataset).test_size
            if available is not None and self.images > available:
                raise UserError(f"--images {self.images} is more test images than {part.name} has, {available}")

    def with_published_teachers(self, parts: list[Part]) -> list[Part]:
        """Fetches published weights and plans the parts with them.

        A teacher whose training has begun in the results folder is still trained, so that a restarted run keeps its
        trials.

        Raises:
            UserError: If ``weights`` names a network that is not a teacher, or a teacher has no card.
            RunFailed: If weights cannot be fetched and their teachers must not be trained. Says where to get the files.
        """
        if self.group.teachers is None or self.fetch is None:
            return parts
        recipe, context = parts[0].recipe, parts[0].context
        names = dict.fromkeys(trial.teacher for part in parts for trial in part.planned)
        files = {resolve_network(recipe, name, "--weights"): file for name, file in self.weights.items()}
        for name in files:
            if name not in names:
                raise unknown("teacher of this run", name, names, "--weights")
        weights, failures = {}, []
        for name in names:
            if self.group.teachers == "published or trained":
                folder = self.options.out / TEACHERS / plan_teacher(recipe, name, context)[0].id
                card = cards.find("teachers", recipe.dataset.name, name)
                if folder.exists():
                    self.log(f"{name}: its training was begun here and goes on, in {folder}")
                    continue
                if card is None or not (card.weights or card.timm):
                    self.log(f"{name}: no published weights are known; it is trained here")
                    continue
            try:
                if name not in files:
                    self.fetch(cards.load("teachers", recipe.dataset.name, name))
            except RunFailed as failure:
                if self.group.teachers == "published or trained":
                    self.log(f"{name}: its published weights could not be fetched, so it is trained here ({failure})")
                else:
                    failures.append(f"{failure}, which is --weights {name}=FILE here")
                continue
            weights[name] = str(files.get(name, "published"))
            self.log(f"{name}: {files.get(name, 'published weights')}")
        if failures:
            raise RunFailed("; ".join(failures))
        return [_with_weights(part, weights) for part in parts]

    def smoke(self) -> tuple[list[Part], str]:
        """Plans a smoke run: all methods on all pairs, for a few batches. Nothing is downloaded.

        Writes generated images and random weights to the results folder if they are needed and missing.

        Returns:
            The recipes, and a description of the images.

        Raises:
            UserError: As for ``plan``, or if a folder of images is damaged.
        """
        group, out, data = self.group, self.options.out, datasets.resolve_data_dir(self.options.data)
        if not group.without_cifar100:
            check_options(self.options)  # before anything is written
            settings, images = image_folder(data, out / "images")
        else:
            try:
                images = f"CIFAR-100 ({datasets.locate(Dataset(name='cifar100'), data)})"
                settings = ("dataset=cifar100",)
            except UserError:
                images = f"scikit-learn's digits, since there is no CIFAR-100 in {data}"
                settings = group.without_cifar100
        parts = [
            _plan(name, recipe, [*settings, *group.smoke, *recipe.smoke, *self.overrides], 1, data)
            for name, recipe in group.recipes.items()
            if "smoke" in recipe.budgets
        ]
        parts = _select(parts, self.only)
        if group.teachers != "published":
            return parts, images
        pipeline = parts[0].recipe.pipeline
        assert pipeline is not None  # all of them have one
        classes = datasets.list_files(parts[0].recipe.dataset, pipeline, data).num_classes
        names = dict.fromkeys(trial.teacher for part in parts for trial in part.planned)
        weights = {name: str(random_weights(name, classes, pipeline.size, out)) for name in names}
        return [_with_weights(part, weights) for part in parts], images

    def _attack(self, part: Part, options: RunOptions) -> int:
        """Attacks the finished networks of a part, and returns the number of those that could not be attacked."""
        from kd_bench.evaluation.attack_networks import attack_networks
        from kd_bench.evaluation.autoattack_checkpoint import AutoAttackEvaluator
        from kd_bench.evaluation.target import describe_in_recipe, finished_trial_targets

        folders = dict.fromkeys(options.out / part.recipe.name / trial.trial_id for trial in part.planned)
        return attack_networks(
            AutoAttackEvaluator(options.data, find_devices(options.device)[0], options.threads),
            finished_trial_targets(folders, self.log),
            parse_attacks(",".join(part.radii), self.attacks, images=self.images),
            describe=lambda network: f"{part.name}: {describe_in_recipe(network, part.planned)}",
            log=self.log,
            report_progress=self.report_progress,
        )


def _plan(name: str, table: TableRecipe, overrides: Iterable[str], trials: int | None, data: Path | None) -> Part:
    """Plans a recipe with teachers that are trained: given weights must exist, but are fetched only if needed."""
    recipe = read_recipe(name, overrides, trials).model_copy(update={"teachers": {}})
    context = recipe_context(name)
    return Part(recipe, context, plan(recipe, context, data=data), name, table.radii, data)


def _select(parts: list[Part], only: Iterable[str]) -> list[Part]:
    """Selects trials over all parts together. Parts without any are left out."""
    selected = {id(trial) for trial in select([trial for part in parts for trial in part.planned], only)}
    parts = [replace(part, planned=[trial for trial in part.planned if id(trial) in selected]) for part in parts]
    return [part for part in parts if part.planned]


def _with_weights(part: Part, weights: Mapping[str, str]) -> Part:
    """Plans the trials of a part again, with the weights of its teachers, by network."""
    networks = {trial.teacher for trial in part.planned}
    teachers = {name: {"weights": file} for name, file in weights.items() if name in networks}
    recipe = part.recipe.model_copy(update={"teachers": teachers})
    cell = attrgetter("teacher", "student", "label", "seed")
    cells = set(map(cell, part.planned))
    planned = [trial for trial in plan(recipe, part.context, data=part.data) if cell(trial) in cells]
    return replace(part, recipe=recipe, planned=planned)


def _summary(parts: Sequence[Part], out: Path, note: str) -> Any:
    summary, recipe = run_recipe.summarise_recipes(parts, out), parts[0].recipe
    if not note:
        return summary
    note += f": {recipe.dataset.train_images} training images, {count(recipe.epochs, 'epoch')}."
    return summary.with_remark("smoke run, measures nothing", f"{note} It shows that every part runs, and no accuracy.")


def _robustness_table(part: Part, out: Path, note: str) -> Any:
    from kd_bench.report.published_robustness import RobustnessTable, robustness_rows

    title = f"{part.name}, {part.recipe.dataset.title}"
    if note:
        title = f"smoke run, measures nothing: {title}, {count(part.recipe.epochs, 'epoch')}"
    folder = out / part.recipe.name
    rows = robustness_rows(part.name, part.planned, folder, part.radii, part.as_published)
    return RobustnessTable(title, tuple(rows))


def costs(part: Part, out: Path) -> list[str]:
    """Returns images per second of each method alone and of all side by side, and the memory that they needed.

    There is a line for the students of each teacher and seed, and for students without a teacher, if they have results.
    """
    cohorts: dict[tuple[str, str], list[PlannedTrial]] = {}
    for trial in part.planned:
        cohorts.setdefault((trial.trial.cohort_key, trial.student), []).append(trial)
    lines = []
    for (_, student), trials in cohorts.items():
        rates: dict[str, float] = {}
        shared = of_students = images = memory = 0.0
        for trial in trials:
            folder = TrialFolder(out / part.recipe.name / trial.trial_id)
            result = folder.result()
            if result and result["status"] == "done":
                rates[trial.label] = result["images_per_second"]
                images = result["images_per_second"] * result["seconds"]
                memory = max(memory, result["peak_memory_bytes"])
                rows = csv.DictReader((folder.path / "metrics.csv").read_text(encoding="utf-8").splitlines())
                seconds = sum(float(row["own_seconds"]) for row in rows)
                of_students, shared = of_students + seconds, result["seconds"] - seconds
        if rates:
            networks = f"{trials[0].teacher} -> {student}" if trials[0].trial.teacher else f"{student} alone"
            alone = ", ".join(f"{label} {rate:.2f}" for label, rate in rates.items())
            side_by_side = f"; side by side {images / (of_students + shared):.2f}" if len(rates) > 1 else ""
            memory_text = f"at most {memory / 2**30:.2f} GiB of memory"
            lines.append(f"{part.recipe.name}, {networks}: images/s: {alone}{side_by_side}; {memory_text}")
    return lines
