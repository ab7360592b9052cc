"""Searches a row's hyper-parameters for a pair, and chooses by the accuracy on held-out images.

Every try is an ordinary trial. The search depends on nothing but its settings and the results of earlier tries, so
after a kill the same command asks for the same tries, of which those that are done are only read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.data import Dataset
from kd_bench.config.load import merge
from kd_bench.config.recipe import MethodEntry, PairEntry, Recipe
from kd_bench.config.teacher_seeds import with_first_teachers
from kd_bench.config.training_notes import training_notes
from kd_bench.config.trial import PlannedTrial
from kd_bench.data import registry as datasets
from kd_bench.launch.options import RunOptions, require_package
from kd_bench.launch.run_recipe import train_trials, training_failure
from kd_bench.methods import _registry as methods
from kd_bench.plan import plan, resolve_network
from kd_bench.report.paper_layout import short_names
from kd_bench.trials.reader import TrialRecord, read_trial
from kd_bench.tuning.search_space import LEARNING_RATE, SearchSpace, search_space
from kd_bench.utils import seeding
from kd_bench.utils.errors import RunFailed, UserError, unknown

if TYPE_CHECKING:
    import optuna

#: Significant digits of tried values. More would only make them hard to read.
_DIGITS = 3


@dataclass(frozen=True)
class TuningSettings:
    """How rows are tuned. Equal settings give every row the same budget.

    Attributes:
        labels: The rows.
        budget: Number of tries for each row and pair, the published settings included.
        batch: Tries that are asked for, and trained in a cohort, at a time.
        holdout: Number of held-out images; None for the recipe's.
        ranges: Ranges that replace those of the hyper-parameters' types.
        seed: Seed of the search, and of the tries.
    """

    labels: Sequence[str]
    budget: int
    batch: int = 4
    holdout: int | None = None
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Try:
    """A try and its result.

    Attributes:
        number: From 1; the first one has the published settings.
        values: The searched values by name.
        trial: The trial.
        val_top1: Accuracy on held-out images after the last epoch, in percent; None if the training has failed.
        top1: Accuracy on the test set, which chooses nothing; None if the training has failed.
    """

    number: int
    values: dict[str, float]
    trial: PlannedTrial
    val_top1: float | None
    top1: float | None


@dataclass(frozen=True)
class TunedRow:
    """The tries of a row for a pair.

    Attributes:
        label: The row.
        pair: The pair.
        space: What was searched.
        tries: The tries in their order.
    """

    label: str
    pair: PairEntry
    space: SearchSpace
    tries: tuple[Try, ...]

    @property
    def best(self) -> Try:
        """The try with the highest accuracy on held-out images; of equal ones the first."""
        return max(self._done, key=lambda of_try: (of_try.val_top1 or 0.0, -of_try.number))

    @property
    def best_on_test(self) -> Try:
        """The try that the test set would have chosen, for comparison only."""
        return max(self._done, key=lambda of_try: (of_try.top1 or 0.0, -of_try.number))

    @property
    def _done(self) -> list[Try]:
        done = [of_try for of_try in self.tries if of_try.val_top1 is not None]
        if not done:
            raise RunFailed(
                f"{self.label}, {_title(self.pair)}: the losses of all {len(self.tries)} tries diverged, so that there "
                f"is nothing to choose from; leave {self.label} out of --method, or search other ranges, e.g. of lr"
            )
        return done


def holdout_recipe(recipe: Recipe, settings: TuningSettings, context: str) -> Recipe:
    """Returns the recipe of the tries: its training images without the held-out ones, and one seed, also of teachers.

    Raises:
        UserError: If nothing is held out, or a row does not exist.
    """
    for label in settings.labels:
        if label not in recipe.methods:
            raise unknown("row", label, recipe.methods, "--method")
        if f"{label} tuned" in settings.labels:
            raise UserError(f"--method {label}: its tuned row would be named {label} tuned, as another row to tune is")
    dataset = recipe.dataset
    if settings.holdout is not None:
        dataset = dataset.model_copy(update={"holdout": settings.holdout})
    if dataset.holdout is None:
        raise UserError(
            f"{context}: dataset.holdout is missing, and the tries are compared on held-out images; "
            f"add {_holdout_advice(dataset)}"
        )
    update = {"dataset": dataset, "seeds": (settings.seed,), "name": f"tune-{recipe.name}", "published": None}
    return with_first_teachers(recipe.model_copy(update=update))


def _holdout_advice(dataset: Dataset) -> str:
    """Returns the option for a tenth of the training images."""
    images = datasets.known_train_size(dataset)
    if images is None:
        return "--holdout N, where N is e.g. a tenth of the training images"
    return f"e.g. --holdout {max(2, images // 10)}"


def selected_pairs(recipe: Recipe, planned: Sequence[PlannedTrial]) -> list[PairEntry]:
    """Returns the pairs of which some trial is selected, in the recipe's order."""
    chosen = {(trial.teacher, trial.student) for trial in planned}

    def names(pair: PairEntry) -> tuple[str, str]:
        teacher = "-" if pair.teacher is None else resolve_network(recipe, pair.teacher, recipe.name)
        return teacher, resolve_network(recipe, pair.student, recipe.name)

    return [pair for pair in recipe.pairs if names(pair) in chosen]


def rows_to_tune(recipe: Recipe, pairs: Sequence[PairEntry], settings: TuningSettings) -> list[tuple[PairEntry, str]]:
    """Returns the pairs and rows to tune, in their order. A row that a pair leaves out is not tuned for it.

    Everything that a user can have got wrong is found here, before hours of training.

    Args:
        recipe: From ``holdout_recipe``.
        pairs: The selected pairs.
        settings: How to tune.

    Raises:
        UserError: If a row is in none of the pairs, or a range fits none of the rows or not the values of one.
    """
    chosen = [(pair, label) for pair in pairs for label in settings.labels if label not in pair.leave_out]
    for label in settings.labels:
        if label not in (of for _, of in chosen):
            raise UserError(f"--method {label}: leave_out takes this row from all selected pairs")
    for pair, label in chosen:
        row_space(recipe, pair, label, settings)
    return chosen


def tuning_notes(recipe: Recipe, rows: Sequence[tuple[PairEntry, str]], data: Path | None = None) -> list[str]:
    """Returns sentences about the rows of ``rows_to_tune`` whose warm-up is longer than their training."""
    plans = (
        _plan(recipe, pair, recipe.methods[label], {label: pair.methods.get(label, {})}, data) for pair, label in rows
    )
    return training_notes(recipe, chain.from_iterable(plans))


def row_space(recipe: Recipe, pair: PairEntry, label: str, settings: TuningSettings) -> SearchSpace:
    """Returns what is searched for a row and a pair.

    A range of a hyper-parameter that the row does not have, and another tuned row has, is not for this row.

    Raises:
        UserError: If a setting is invalid.
    """
    row, of_pair = recipe.methods[label], pair.methods.get(label, {})
    (start,) = _plan(recipe, pair, row, {label: of_pair})
    if start.trial.adversarial is not None:
        raise UserError(
            f"--method {label}: {row.method} trains for robustness, and tune compares the accuracy on images that are "
            "not perturbed, which would choose settings that are not robust; leave this row out"
        )
    parameters = methods.check(row.method, start.trial.method.hyperparameters)
    others = {name for other in settings.labels for name in _hyperparameters(recipe.methods[other].method)}
    foreign = others - parameters.keys() - {LEARNING_RATE}
    ranges = {name: bounds for name, bounds in settings.ranges.items() if name not in foreign}
    for rate in ranges.get(LEARNING_RATE, ()):
        try:
            _plan(recipe, pair, row, {label: merge(of_pair, _changes({LEARNING_RATE: rate}))})
        except UserError as error:
            raise UserError(f"--search {LEARNING_RATE}: {error}") from None
    return search_space(row.method, parameters, start.trial.optimizer.lr, ranges, f"row {label}")


def _hyperparameters(method: str) -> list[str]:
    return [parameter.name for parameter in methods.describe(method).parameters]


def tune_row(
    recipe: Recipe,
    pair: PairEntry,
    label: str,
    settings: TuningSettings,
    options: RunOptions,
    log: Callable[[str], None],
) -> TunedRow:
    """Tunes a row for a pair.

    Args:
        recipe: From ``holdout_recipe``.
        pair: The pair.
        label: The row.
        settings: How to tune.
        options: How to train.
        log: Receives a line for each try.

    Raises:
        UserError: If a setting is invalid.
    """
    row, of_pair = recipe.methods[label], pair.methods.get(label, {})
    space = row_space(recipe, pair, label, settings)
    study = _study(space, settings, f"{pair.teacher}/{pair.student}/{label}")
    tries: list[Try] = []
    while len(tries) < settings.budget:
        suggested = [study.ask(_distributions(space)) for _ in range(min(settings.batch, settings.budget - len(tries)))]
        values = [
            {name: _rounded(suggestion.params[name], name, space) for name in space.ranges} for suggestion in suggested
        ]
        numbers = range(len(tries) + 1, len(tries) + len(suggested) + 1)
        settings_of_tries = (merge(of_pair, _changes(of_try)) for of_try in values)
        labels = (f"{label} try {number}" for number in numbers)
        planned = _plan(recipe, pair, row, dict(zip(labels, settings_of_tries, strict=True)), options.data)
        shown = f"try {numbers[0]}" if len(numbers) == 1 else f"tries {numbers[0]} to {numbers[-1]}"
        title = f"{recipe.name}: {label}, {shown}"
        failures = train_trials(recipe.name, planned, options, title)
        records = [read_trial(options.out / recipe.name / cell.trial_id) for cell in planned]
        if any(record.result is None for record in records):
            raise training_failure(recipe.name, failures)
        for suggestion, number, of_try, cell, record in zip(suggested, numbers, values, planned, records, strict=True):
            result = _result(record)
            tries.append(Try(number, of_try, cell, *result))
            study.tell(suggestion, result[0], state=None if result[0] is not None else _failed())
            diverged = "its loss diverged, so it cannot be chosen"
            outcome = diverged if result[0] is None else f"{result[0]:.2f} % on held-out images"
            log(f"{label}, try {number} of {settings.budget}: {_text(of_try)}: {outcome}")
    return TunedRow(label, pair, space, tuple(tries))


def tuned_recipe(recipe: Recipe, tuned: Sequence[TunedRow], seeds: int | None) -> Recipe:
    """Returns the recipe that compares published with tuned settings on all training images.

    The tuned rows are named after their row, e.g. "kd tuned". Other rows than those and the student alone are left out.

    Args:
        recipe: The recipe that was tuned.
        tuned: The result for all pairs.
        seeds: Number of seeds; None for the recipe's.
    """
    labels = list(dict.fromkeys(row.label for row in tuned))
    pairs = list({id(row.pair): row.pair for row in tuned}.values())
    rows = {label: row for label, row in recipe.methods.items() if row.method == "none"}
    for label in labels:
        row = recipe.methods[label]
        rows |= {label: row, f"{label} tuned": row.model_copy(update={"untuned": False})}
    changed = []
    for pair in pairs:
        of_pair = {label: values for label, values in pair.methods.items() if label in rows}
        for tuned_row in (tuned_row for tuned_row in tuned if tuned_row.pair is pair):
            of_row = {key: value for key, value in pair.methods.get(tuned_row.label, {}).items() if key != "untuned"}
            of_pair[f"{tuned_row.label} tuned"] = merge(of_row, _changes(tuned_row.best.values))
        left_out = (label for label in pair.leave_out if label in rows)
        leave_out = tuple(name for label in left_out for name in (label, f"{label} tuned") if name in rows)
        changed.append(pair.model_copy(update={"methods": of_pair, "leave_out": leave_out}))
    update: dict[str, Any] = {
        "name": f"tuned-{recipe.name}",
        "description": f"The recipe {recipe.name} with its own and with tuned settings of {', '.join(labels)}.",
        "notes": tuple(describe_choice(row) for row in tuned),
        "dataset": recipe.dataset.model_copy(update={"holdout": None}),
        "methods": rows,
        "baseline": recipe.baseline if recipe.baseline in rows else labels[0],
        "published": None,
    }
    if seeds is not None:
        update |= {"trials": seeds, "seeds": None}
    return _with_pairs(recipe, changed).model_copy(update=update)


def describe_choice(row: TunedRow) -> str:
    """Returns sentences about the choice, and about the one that the test set would have made."""
    best, on_test, first = row.best, row.best_on_test, row.tries[0]
    published = "no accuracy" if first.val_top1 is None else f"{first.val_top1:.2f} %"
    equal = sum(of_try.val_top1 == best.val_top1 for of_try in row.tries)
    diverged = sum(of_try.val_top1 is None for of_try in row.tries)
    ties = f"{equal} tries have it, and the first of them is chosen; " if equal > 1 else ""
    text = (
        f"{row.label} tuned, {_title(row.pair)}: try {best.number} of {len(row.tries)} has the best accuracy on "
        f"held-out images, {best.val_top1:.2f} % ({ties}the recipe's settings: {published}): {_text(best.values)}."
    )
    if diverged:
        text += f" The loss of {'1 try' if diverged == 1 else f'{diverged} tries'} diverged."
    if on_test.number == best.number:
        return f"{text} The test set would have chosen the same."
    if on_test.top1 == best.top1:
        return f"{text} No try has a higher accuracy on the test set."
    return (
        f"{text} The test set would have chosen try {on_test.number} and claimed {on_test.top1:.2f} %, "
        f"where the choice has {best.top1:.2f} %."
    )


def _title(pair: PairEntry) -> str:
    networks = [name for name in (pair.teacher, pair.student) if name is not None]
    names = short_names(networks)
    return " → ".join(names[name] for name in networks)


def _plan(
    recipe: Recipe, pair: PairEntry, row: MethodEntry, values: dict[str, dict[str, Any]], data: Path | None = None
) -> list[PlannedTrial]:
    """Plans the trials of one row with different settings of the pair, by label."""
    alone = pair.model_copy(update={"methods": values, "leave_out": ()})
    update = {"methods": dict.fromkeys(values, row), "baseline": next(iter(values))}
    return plan(_with_pairs(recipe, [alone]).model_copy(update=update), recipe.name, data=data)


def _with_pairs(recipe: Recipe, pairs: Sequence[PairEntry]) -> Recipe:
    """Returns the recipe with these pairs only. A recipe must not have settings of teachers that are in no pair."""
    used = {resolve_network(recipe, pair.teacher, recipe.name) for pair in pairs if pair.teacher is not None}
    settings = recipe.teachers.items()
    teachers = {name: of_one for name, of_one in settings if resolve_network(recipe, name, recipe.name) in used}
    return recipe.model_copy(update={"pairs": tuple(pairs), "teachers": teachers})


def _changes(values: dict[str, float]) -> dict[str, Any]:
    """Returns the values as a pair's settings of a row."""
    changes: dict[str, Any] = {name: value for name, value in values.items() if name != LEARNING_RATE}
    if LEARNING_RATE in values:
        changes["training"] = {"optimizer": {"lr": values[LEARNING_RATE]}}
    return changes


def _result(record: TrialRecord) -> tuple[float | None, float | None]:
    result = record.result if record.verdict == "done" else None
    return (None, None) if result is None else (result.get("val_top1_last"), result["top1_last"])


def _study(space: SearchSpace, settings: TuningSettings, name: str) -> optuna.Study:
    require_package("optuna", "kd-bench tune", "tune")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seed = seeding.derive(settings.seed, f"{seeding.TUNING}/{name}") % 2**32
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, settings.budget // 3), multivariate=True)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial(space.start)
    return study


def _distributions(space: SearchSpace) -> dict[str, Any]:
    from optuna.distributions import FloatDistribution

    return {name: FloatDistribution(low, high, log=True) for name, (low, high) in space.ranges.items()}


def _failed() -> Any:
    from optuna.trial import TrialState

    return TrialState.FAIL


def _rounded(value: float, name: str, space: SearchSpace) -> float:
    low, high = space.ranges[name]
    return value if value == space.start[name] else min(max(float(f"{value:.{_DIGITS}g}"), low), high)


def _text(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
