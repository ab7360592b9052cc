"""Options that several commands share."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from kd_bench.cli import completion
from kd_bench.cli.option_types import decimal_number, path_option, whole_number
from kd_bench.config.limits import MAX_TRIALS
from kd_bench.config.yaml_reader import YamlError, parse_yaml
from kd_bench.launch.options import RunOptions
from kd_bench.trials import results_folder
from kd_bench.utils.errors import UserError, unknown
from kd_bench.utils.paths import expand_user, is_file, logit_cache_limit

OUT = results_folder.DEFAULT
WORKERS = 2


def _check_methods(methods: list[str] | None) -> list[str] | None:
    """Raises a UserError if commas stand between methods, as in the option --methods."""
    for text in methods or ():
        if "," in text and ".py:" not in text:
            each = " ".join(f"--method {shlex.quote(name.strip())}" for name in text.split(",") if name.strip())
            raise UserError(f"--method {text}: should be one method each time: {each}")
    return methods


RecipeName = Annotated[
    str,
    typer.Argument(
        help="A recipe's file, the name of a packaged recipe, or the name of a comparison in the results folder.",
        autocompletion=completion.recipes,
    ),
]
OptionalRecipe = Annotated[
    str | None,
    typer.Argument(
        help="A recipe's file, the name of a packaged recipe, or the name of a comparison in the results folder. By "
        "default, all results.",
        autocompletion=completion.recipes,
    ),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe",
        metavar="<recipe>",
        help="A recipe's file or name, or the name of a comparison; repeatable. By default, all results.",
        autocompletion=completion.recipes,
    ),
]
Method = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="<method>",
        help="Another row: a method, FILE.py:CLASS or LABEL=FILE.py:CLASS; repeatable.",
        callback=_check_methods,
        autocompletion=completion.methods,
    ),
]
DatasetName = Annotated[
    str,
    typer.Option("--dataset", help="The data set; see: kd-bench list datasets.", autocompletion=completion.datasets),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="<key=value>",
        help="Only the trials of a method, student, teacher, seed or teacher_seed, e.g. method=kd,ikl_kd; repeatable.",
        autocompletion=completion.conditions,
    ),
]
OtherImages = Annotated[
    list[str] | None,
    typer.Option(
        "--ood",
        metavar="<images>",
        help="A folder of images, or a data set, that the network was not trained for; repeatable. By default, the "
        "test images of digits, cifar10, cifar100 and tiny_imagenet, as far as they are in the data folder.",
    ),
]
Trials = Annotated[int | None, whole_number("--trials", "Number of seeds, instead of the recipe's.", 1, MAX_TRIALS)]
ComparisonTrials = Annotated[
    int | None,
    whole_number("--trials", "Number of seeds; by default 3, or all of those that --set seeds names.", 1, MAX_TRIALS),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="<key=value>", help="Change a setting of the recipe, e.g. epochs=2; repeatable."),
]
Weights = Annotated[
    str | None, typer.Option("--weights", help="The teacher's weights: a file, or: published (see teacher fetch).")
]
Out = Annotated[Path, path_option("--out", "Results folder.", "KD_BENCH_OUT")]
Data = Annotated[Path | None, path_option("--data", "Folder of the data sets.", "KD_BENCH_DATA")]
Threads = Annotated[
    int, whole_number("--threads", "CPU threads of a process; results with 1 are bitwise reproducible.", 1, 1024)
]
Workers = Annotated[int, whole_number("--workers", "Processes that decode images not held in memory.", 0, 1000)]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.", autocompletion=completion.devices)]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        help="terminal, markdown, plain, latex, latex-long, csv or html.",
        autocompletion=completion.formats,
    ),
]
Columns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="Columns instead of the usual ones, with commas, e.g. top1,ece,agreement,latency.",
        autocompletion=completion.columns,
    ),
]
Key = Annotated[str | None, typer.Option("--key", help="Key of the weights in the file, with dots, e.g. ema.model.")]
Target = Annotated[
    str,
    typer.Argument(
        help="A file of weights, a trial (its folder or its id), or a recipe.", autocompletion=completion.recipes
    ),
]
Model = Annotated[str | None, typer.Option("--model", help="For a file of weights: the network.")]
ModelDataset = Annotated[str | None, typer.Option("--dataset", help="For a file of weights: the data set.")]
Normalise = Annotated[str | None, typer.Option("--normalise", help="For a file of weights: none, dataset or network.")]
Attacks = Annotated[
    str | None,
    typer.Option("--attacks", help="Attacks in their order, with commas. By default, apgd-ce,apgd-t,fab-t,square."),
]
AttackImages = Annotated[
    int | None, whole_number("--images", "Number of test images to attack, evenly over the classes.", 1, 10**9)
]


def _option(kind: Any, name: str, help: str) -> Any:
    return Annotated[kind, typer.Option(name, help=help)]


def _whole(kind: Any, name: str, help: str, least: int, most: int) -> Any:
    return Annotated[kind, whole_number(name, help, least, most)]


#: Command-line options for the fields of ``RunOptions``: type and default by the parameter's name.
RUN_OPTIONS: dict[str, tuple[Any, Any]] = {
    "out": (Out, OUT),
    "data": (Data, None),
    "jobs": (_whole(int | None, "--jobs", "Cohorts at a time. By default, as many as fit.", 1, 10_000), None),
    "threads": (Threads, 1),
    "device": (Device, "auto"),
    "cohort_size": (_whole(int, "--cohort-size", "Largest number of students per process.", 1, 1000), 8),
    "retry_failed": (_option(bool, "--retry-failed", "Train failed trials again."), False),
    "tensorboard": (_option(bool, "--tensorboard", "Also write TensorBoard events."), False),
    "wandb": (_option(bool, "--wandb", "Also log to Weights & Biases (locally with WANDB_MODE=offline)."), False),
    "workers": (Workers, WORKERS),
    "devices": (_whole(int | None, "--devices", "Devices per machine that share a cohort's batches.", 1, 1000), None),
    "nodes": (
        _whole(int | None, "--nodes", "Machines that share a cohort's batches (torchrun, srun).", 1, 10_000),
        None,
    ),
    "retries": (_whole(int, "--retries", "Restarts of a cohort whose worker died.", 0, 1000), 2),
    "checkpoint_minutes": (
        Annotated[float, decimal_number("--checkpoint-minutes", "Minutes between checkpoints.", 0, 1e6)],
        10.0,
    ),
    "eager": (_option(bool, "--eager", "On a GPU, run steps operation by operation; same results."), False),
    "executor": (
        Annotated[
            str,
            typer.Option(
                "--executor",
                help="Where cohorts run: local, ray or slurm.",
                autocompletion=completion.executors,
            ),
        ],
        "local",
    ),
    "executor_option": (
        Annotated[
            list[str] | None,
            typer.Option(
                "--executor-option",
                metavar="<key=value>",
                help="Setting of the executor, e.g. partition=gpu.",
            ),
        ],
        None,
    ),
}


#: Options that are short for ``--set``, and the settings that they change: type and key by the parameter's name.
SETTINGS: dict[str, tuple[Any, str]] = {
    "epochs": (_whole(int | None, "--epochs", "Epochs; short for --set epochs=N.", 1, 100_000), "epochs"),
    "batch_size": (
        _whole(int | None, "--batch-size", "Images per step; short for --set batch_size=N.", 2, 2**20),
        "batch_size",
    ),
    "lr": (
        Annotated[float | None, decimal_number("--lr", "Learning rate; short for --set optimizer.lr=X.", 0, 10**9)],
        "optimizer.lr",
    ),
}


#: How messages name ``--set`` and the options of ``SETTINGS``.
SET_OPTIONS = "--set (or an option that is short for it)"


def with_run_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that replaces a command's parameter ``options`` by ``RUN_OPTIONS``: ``names``, or all."""
    chosen = names or tuple(RUN_OPTIONS)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            logit_cache_limit()  # an error in KD_BENCH_LOGITS_GB must come before hours of training
            run_values = {name: values.pop(name) for name in chosen}
            if "out" in run_values:
                results_folder.check_results_folder(run_values["out"], must_exist=False)
            loggers = tuple(name for name in ("tensorboard", "wandb") if run_values.pop(name, False))
            executor_options = tuple(run_values.pop("executor_option", None) or ())
            command(options=RunOptions(**run_values, loggers=loggers, executor_options=executor_options), **values)

        return _with_parameters(wrapper, command, "options", {name: RUN_OPTIONS[name] for name in chosen})

    return decorate


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that adds ``SETTINGS``, ``names`` or all, to a command.

    The command's parameter ``set_`` is the settings to change.
    """
    chosen = names or tuple(SETTINGS)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            row_values = {name: values.pop(name, None) for name in chosen}
            texts = values.get("set_") or ()
            overrides = list(texts)
            for name, value in row_values.items():
                if value is not None:
                    key = SETTINGS[name][1]
                    _check_conflict(f"--{name.replace('_', '-')}", value, key, texts)
                    overrides.append(f"{key}={value}")
            command(**values | {"set_": overrides or None})

        added = {name: (SETTINGS[name][0], None) for name in chosen}
        return _with_parameters(wrapper, command, "set_", {"set_": (Set, None), **added})

    return decorate


def _with_parameters(
    wrapper: Callable[..., None], command: Callable[..., None], name: str, new: Mapping[str, tuple[Any, Any]]
) -> Callable[..., None]:
    """Returns ``wrapper`` with the signature of ``command``, in which ``new`` stands for the parameter ``name``."""
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if parameter.name != name:
            parameters.append(parameter)
            continue
        for new_name, (annotation, default) in new.items():
            parameters.append(parameter.replace(name=new_name, annotation=annotation, default=default))
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return wrapper


def _check_conflict(option: str, value: Any, key: str, overrides: Iterable[str]) -> None:
    """Raises a UserError if one of the overrides sets a key that an option sets, too."""
    for text in overrides:
        name, _, raw = text.partition("=")
        parent, _, last = key.rpartition(".")
        mapping: Any = None
        if parent and name.strip() == parent:
            with suppress(YamlError):  # an error in the text is reported when it is used
                mapping = parse_yaml(raw)
        if name.strip() == key or (isinstance(mapping, dict) and last in mapping):
            raise UserError(f"{option} {value}: --set {text} sets {key}, too; leave one of them out")


def check_choice(kind: str, value: str, choices: Iterable[str], option: str = "") -> None:
    """Raises a UserError if there is no such choice."""
    if value not in choices:
        raise unknown(kind, value, choices, option)


def parse_columns(text: str | None) -> tuple[str, ...]:
    """Returns the names of ``--columns``. Raises a UserError if there is no such column."""
    if text is None:
        return ()
    from kd_bench.report.columns import parse_columns as parse

    return parse(text)


def check_weights(weights: str | None) -> None:
    """Raises a UserError if ``--weights`` names a file that does not exist."""
    if weights not in (None, "published") and not is_file(expand_user(weights)):
        raise UserError(
            f"--weights {weights}: there is no such file; write published for those of: kd-bench teacher fetch NAME"
        )


def check_format(format_: str) -> None:
    """Raises a UserError if there is no such format."""
    from kd_bench.report.render import FORMATS

    check_choice("format", format_, FORMATS, "--format")


def check_out(out: Path) -> None:
    """Checks the results folder that a command reads. The default folder may be missing: nothing has run yet.

    Raises:
        UserError: If it is missing, is a file, or cannot be read.
    """
    results_folder.check_results_folder(out, must_exist=out != OUT)


def refuse_without_recipe(how: str = "", **options: Any) -> None:
    """Raises a UserError if one of the options, by name, was given, because it changes or selects from a recipe.

    ``how`` is how the command takes a recipe: ", with --recipe".
    """
    for name, value in options.items():
        if value is not None:
            shown = SET_OPTIONS if name == "set" else f"--{name}"
            raise UserError(
                f"{shown}: name the recipe that is changed or selected from{how}; see: kd-bench list recipes"
            )
