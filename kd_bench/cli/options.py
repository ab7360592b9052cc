"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from kd_bench.launch.options import RunOptions
from kd_bench.utils.errors import unknown

OUT = Path("runs")

RecipeName = Annotated[str, typer.Argument(help="A recipe's file, or the name of a packaged recipe.")]
Recipes = Annotated[
    list[str] | None, typer.Option("--recipe", help="A recipe's file or name; repeatable. By default, all results.")
]
Method = Annotated[
    list[str] | None,
    typer.Option("--method", help="Another row: a method, FILE.py:CLASS or LABEL=FILE.py:CLASS; repeatable."),
]
Only = Annotated[list[str] | None, typer.Option("--only", help="KEY=VALUE[,VALUE]: method, student, teacher or seed.")]
Trials = Annotated[int | None, typer.Option("--trials", min=1, help="Number of seeds, instead of the recipe's.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE changes a setting, e.g. epochs=2; repeatable.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="The teacher's weights: a file, or: published (see teacher fetch).")
]
Out = Annotated[Path, typer.Option("--out", envvar="KD_BENCH_OUT", help="Results folder.")]
Data = Annotated[Path | None, typer.Option("--data", envvar="KD_BENCH_DATA", help="Folder of the data sets.")]
Threads = Annotated[
    int, typer.Option("--threads", min=1, help="CPU threads per cohort; results with 1 are bitwise reproducible.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Format = Annotated[str, typer.Option("--format", help="terminal, markdown, plain, latex, latex-long or csv.")]
Key = Annotated[str | None, typer.Option("--key", help="Key of the weights in the file, with dots, e.g. ema.model.")]
Attacks = Annotated[
    str | None, typer.Option("--attacks", help="Attacks in their order. By default, apgd-ce,apgd-t,fab-t,square.")
]
AttackImages = Annotated[
    int | None, typer.Option("--images", min=1, help="Number of test images to attack, evenly over the classes.")
]


def _option(kind: Any, name: str, help: str, **limits: Any) -> Any:
    return Annotated[kind, typer.Option(name, help=help, **limits)]


#: Command-line options for the fields of ``RunOptions``: type and default by the parameter's name.
RUN_OPTIONS: dict[str, tuple[Any, Any]] = {
    "out": (Out, OUT),
    "data": (Data, None),
    "jobs": (_option(int | None, "--jobs", "Cohorts at a time. By default, as many as fit.", min=1), None),
    "threads": (Threads, 1),
    "device": (Device, "auto"),
    "cohort_size": (_option(int, "--cohort-size", "Largest number of students per process.", min=1), 8),
    "retry_failed": (_option(bool, "--retry-failed", "Train failed trials again."), False),
    "tensorboard": (_option(bool, "--tensorboard", "Also write TensorBoard events."), False),
    "wandb": (_option(bool, "--wandb", "Also log to Weights & Biases (locally with WANDB_MODE=offline)."), False),
    "workers": (_option(int, "--workers", "Processes that decode images not held in memory.", min=0), 2),
    "devices": (_option(int | None, "--devices", "Devices per machine that share a cohort's batches.", min=1), None),
    "nodes": (_option(int | None, "--nodes", "Machines that share a cohort's batches (torchrun, srun).", min=1), None),
    "retries": (_option(int, "--retries", "Restarts of a cohort whose worker died.", min=0), 2),
    "checkpoint_minutes": (_option(float, "--checkpoint-minutes", "Minutes between checkpoints.", min=0), 10.0),
    "executor": (_option(str, "--executor", "Where cohorts run: local, ray or slurm."), "local"),
    "executor_option": (_option(list[str] | None, "--executor-option", "KEY=VALUE, e.g. partition=gpu."), None),
}


def with_run_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that replaces a command's parameter ``options`` by ``RUN_OPTIONS``: ``names``, or all."""
    chosen = names or tuple(RUN_OPTIONS)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            if parameter.name != "options":
                parameters.append(parameter)
                continue
            for name in chosen:
                annotation, default = RUN_OPTIONS[name]
                parameters.append(parameter.replace(name=name, annotation=annotation, default=default))

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            given = {name: values.pop(name) for name in chosen}
            loggers = tuple(name for name in ("tensorboard", "wandb") if given.pop(name, False))
            executor_options = tuple(given.pop("executor_option", None) or ())
            command(options=RunOptions(**given, loggers=loggers, executor_options=executor_options), **values)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def check_choice(kind: str, value: str, choices: Iterable[str], option: str = "") -> None:
    """Raises a UserError if there is no such choice."""
    if value not in choices:
        raise unknown(kind, value, choices, option)


def check_format(format_: str) -> None:
    """Raises a UserError if there is no such format."""
    from kd_bench.report.render import FORMATS

    check_choice("format", format_, FORMATS, "--format")
