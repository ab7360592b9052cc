"""Comparisons from Python: ``kd_bench.compare`` and ``kd_bench.run`` train what the commands of these names train."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from kd_bench import api
from kd_bench.config.base import NonEmpty, Settings
from kd_bench.config.numbers import Count, NonNegative, PositiveCount
from kd_bench.config.recipe import Recipe
from kd_bench.config.validate import nested_key, parse
from kd_bench.launch.options import RunOptions
from kd_bench.launch.run_recipe import PlannedRecipe, training_failure
from kd_bench.python_api.arguments import (
    conditions,
    json_text,
    method_names,
    named_as_in_python,
    plain,
    plain_mapping,
    results_folder,
    text,
)
from kd_bench.python_api.results import Results
from kd_bench.utils.command_line import python_call
from kd_bench.utils.errors import Terminated, UserError, unknown
from kd_bench.utils.notebook import LastLines, in_notebook
from kd_bench.utils.paths import expand_user, logit_cache_limit

if TYPE_CHECKING:
    from rich.console import Console

#: Longest text of a call in a trial's ``environment.json``.
_CALL_LENGTH = 1000


class Options(Settings):
    """How to train, as opposed to what. As the options of ``kd-bench run`` with the same names.

    Attributes:
        data: Folder of the data sets; None for ``KD_BENCH_DATA`` or the default.
        jobs: Largest number of cohorts at a time; None for as many as fit.
        threads: CPU threads of a cohort; results with 1 are bitwise reproducible.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``.
        cohort_size: Largest number of students in a process.
        retry_failed: Whether to train trials again that have failed before.
        tensorboard, wandb: Whether to log there, too.
        workers: Processes per cohort that decode images not held in memory.
        devices, nodes: Devices per machine, and machines, that share a cohort's batches.
        retries: How often to restart a cohort whose process died.
        checkpoint_minutes: Minutes between two checkpoints.
        eager: Whether a GPU runs steps operation by operation; the results are the same.
        executor: ``local``, ``ray`` or ``slurm``.
        executor_options: Options of the executor, e.g. ``{"partition": "gpu"}``.
    """

    data: NonEmpty | None = None
    jobs: PositiveCount | None = None
    threads: PositiveCount = 1
    device: str = "auto"
    cohort_size: PositiveCount = 8
    retry_failed: bool = False
    tensorboard: bool = False
    wandb: bool = False
    workers: Count = 2
    devices: PositiveCount | None = None
    nodes: PositiveCount | None = None
    retries: Count = 2
    checkpoint_minutes: NonNegative = 10.0
    eager: bool = False
    executor: str = "local"
    executor_options: dict[str, str | int | float] = {}

    def run_options(self, out: Path) -> RunOptions:
        """Returns the options of a run whose results go to ``out``."""
        values = self.model_dump(exclude={"data", "tensorboard", "wandb", "executor_options"})
        return RunOptions(
            out=out,
            data=None if self.data is None else expand_user(self.data),
            loggers=tuple(name for name in ("tensorboard", "wandb") if getattr(self, name)),
            executor_options=tuple(f"{key}={value}" for key, value in self.executor_options.items()),
            **values,
        )


def compare(
    dataset: str,
    teacher: str | None,
    student: str,
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]] = ("kd", "dkd", "ikl_kd"),
    *,
    trials: int | None = None,
    weights: str | None = None,
    out: str | Path = "runs",
    **settings: Any,
) -> Results:
    """Compares methods on a pair of networks, as ``kd-bench compare`` does, and returns the results.

    What is missing in the folder is trained, the student alone and the teacher too, in processes of their own. Ctrl-C,
    or interrupting the kernel, saves checkpoints; the same call goes on from there.

    Args:
        dataset: Name of the data set, or ``FILE.py:NAME``.
        teacher, student: Names of the networks, or ``FILE.py:NAME``; for adversarial training, the teacher may be None.
        methods: Names of the methods, or ``[LABEL=]FILE.py:CLASS``; or a mapping from the labels of the table's rows to
            hyper-parameters, as in a recipe: ``{"kd": {}, "ikl_4": {"method": "ikl_kd", "alpha": 4}}``.
        trials: Number of seeds; None for 3, or for all of the setting ``seeds``.
        weights: File of the teacher's weights, or "published"; None trains the teacher.
        out: The results folder.
        **settings: Settings of a recipe, e.g. ``epochs=30`` or ``optimizer={"lr": 0.1}`` (a mapping changes what it
            names, and None goes back to the default), and options of ``Options``, e.g. ``jobs=1``.

    Returns:
        The results of this comparison. Trials that failed are named in a warning, in the table, and in ``failed``.

    Raises:
        UserError: If an argument is invalid or the images are missing.
        RunFailed: If no trial has a result.
    """
    overrides, options = _split(settings, out, "compare")
    if "pairs" in settings:  # which would replace the two networks
        raise UserError(
            "compare: pairs: teacher and student are the pair; kd_bench.run trains recipes with other pairs"
        )
    dataset, student = text(dataset, "dataset", "compare"), text(student, "student", "compare")
    teacher = None if teacher is None else text(teacher, "teacher", "compare")
    weights = None if weights is None else text(weights, "weights", "compare")
    rows: dict[str, Any] | list[str]
    if isinstance(methods, Mapping):
        rows = plain_mapping(methods, "compare: methods")
    else:
        rows = method_names(methods, "compare")
    if not rows:
        raise UserError("compare: methods: should name at least one method, e.g. 'kd'")
    trials = None if trials is None else _trials(trials, "compare")
    with named_as_in_python():
        planned = api.plan_comparison(
            dataset, teacher, student, rows, weights=weights, trials=trials, overrides=overrides, data=options.data
        )
    arguments = {"dataset": dataset, "teacher": teacher, "student": student, "methods": rows, "trials": trials}
    return _train(planned, options, _call_text("compare", arguments | {"weights": weights, "out": out} | settings))


def run(
    recipe: str | Path | Mapping[str, Any],
    *,
    methods: Iterable[str] = (),
    only: Mapping[str, Any] | None = None,
    trials: int | None = None,
    out: str | Path = "runs",
    **settings: Any,
) -> Results:
    """Trains the missing trials of a recipe, as ``kd-bench run`` does, and returns the results.

    Args:
        recipe: A file, the name of a packaged recipe, or the content of a recipe as a mapping.
        methods: Additional rows: methods, ``FILE.py:CLASS`` or ``LABEL=FILE.py:CLASS``.
        only: Values that trials must have, e.g. ``{"method": ["kd", "ikl_kd"], "seed": 0}``.
        trials: Number of seeds; None for the recipe's.
        out: The results folder.
        **settings: As for ``compare``.

    Returns:
        The results of the selected trials, with ``failed`` as for ``compare``.

    Raises:
        UserError: If an argument is invalid or the images are missing.
        RunFailed: If no trial has a result.
    """
    overrides, options = _split(settings, out, "run")
    names = method_names(methods, "run")
    source: str | dict[str, Any]
    source = plain_mapping(recipe, "run: recipe") if isinstance(recipe, Mapping) else text(recipe, "recipe", "run")
    selection = conditions(only, "run")
    if trials is not None:
        trials = _trials(trials, "run")
    with named_as_in_python():
        planned = api.plan(source, methods=names, only=selection, trials=trials, overrides=overrides, data=options.data)
    arguments = {"recipe": source, "methods": names, "only": only, "trials": trials, "out": out}
    return _train(planned, options, _call_text("run", arguments | settings))


def _train(planned: PlannedRecipe, options: RunOptions, call: str) -> Results:
    logit_cache_limit()  # an error in KD_BENCH_LOGITS_GB must come before hours of training
    with python_call(call), named_as_in_python():
        try:
            _, failed = api.run(planned, options, _notebook_console())
        except KeyboardInterrupt:
            print("stopped; the same call goes on from here", file=sys.stderr)
            raise
        except Terminated as error:
            sys.exit(error.exit_code)
    results = Results([api.planned_part(planned, options.out)], failed)
    if failed:
        failure = training_failure(planned.context, failed)
        if not (results.frame()["status"] == "done").any():
            raise failure
        warnings.warn(str(failure), RuntimeWarning, stacklevel=3)
    return results


def _notebook_console() -> Console | None:
    """Returns a console that shows its last lines below the cell of a notebook; None elsewhere."""
    if not in_notebook():
        return None
    from rich.console import Console

    # kernels set FORCE_COLOR, with which rich would take the stream for a terminal
    stream = cast(IO[str], LastLines())
    return Console(file=stream, force_terminal=False, force_jupyter=False, highlight=False, soft_wrap=True)


def _split(settings: Mapping[str, Any], out: str | Path, context: str) -> tuple[list[str], RunOptions]:
    """Returns the settings of the recipe as overrides, and the options."""
    options: dict[str, Any] = {}
    overrides: list[str] = []
    for key, value in ((key, plain(value)) for key, value in settings.items()):
        if key in Options.model_fields:
            options[key] = os.fspath(value) if isinstance(value, os.PathLike) else value
        elif key.partition(".")[0] in Recipe.model_fields:
            overrides.append(f"{key}={json_text(value, f'{context}: {key}')}")
        else:
            raise _unknown_setting(key, value, context)
    return overrides, parse(Options, options, context).run_options(results_folder(out, context))


def _unknown_setting(key: str, value: Any, context: str) -> UserError:
    parent, _, last = (nested_key(Recipe, key) or "").rpartition(".")
    if not parent:
        return unknown("setting", key, {*Options.model_fields, *Recipe.model_fields}, context)
    written = (
        f'{parent}={{"{last}": {value!r:.60}}}' if parent.isidentifier() else f'**{{"{parent}.{last}": {value!r:.60}}}'
    )
    return UserError(f"{context}: no setting is called {key!r}; did you mean {written}?")


def _trials(trials: Any, context: str) -> int:
    trials = plain(trials)
    if isinstance(trials, bool) or not isinstance(trials, int) or trials < 1:
        raise UserError(f"{context}: trials: should be a whole number, at least 1 (it is {trials!r})")
    return trials


def _call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """Returns the call as Python text, without the arguments that are None or empty."""
    empty = (type(None), list, tuple)
    values = {key: plain(value) for key, value in arguments.items() if not isinstance(value, empty) or value}
    arguments_text = ", ".join(f"{key}={value!r}" for key, value in values.items())
    text = f"kd_bench.{name}({arguments_text})"
    return text if len(text) <= _CALL_LENGTH else f"{text[: _CALL_LENGTH - 4]}...)"
