"""The commands. Thin, and quick to start: torch is imported only by a command that needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from kd_bench.cli import common
from kd_bench.cli.attack import attack
from kd_bench.cli.cache import cache_app
from kd_bench.cli.estimate import estimate
from kd_bench.cli.export import export_app
from kd_bench.cli.new import new
from kd_bench.cli.options import (
    OUT,
    CheckpointMinutes,
    CohortSize,
    Data,
    Device,
    Devices,
    ExecutorName,
    ExecutorOption,
    Format,
    Jobs,
    Method,
    Nodes,
    Only,
    Out,
    RecipeName,
    RecipeOrNone,
    Retries,
    RetryFailed,
    Set,
    TensorBoard,
    Threads,
    Trials,
    WandB,
    Weights,
    Workers,
    loggers,
)
from kd_bench.cli.report import report
from kd_bench.cli.reproduce import reproduce_app
from kd_bench.cli.reproduce_robustness import reproduce_robustness
from kd_bench.cli.status import status, verify
from kd_bench.cli.teacher import teacher_app
from kd_bench.utils.errors import RunFailed, Terminated, UserError, unknown

app = typer.Typer(
    name="kd-bench",
    help="The benchmark suite for knowledge distillation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.add_typer(teacher_app, name="teacher")
app.add_typer(reproduce_app, name="reproduce")
reproduce_app.command("robustness")(reproduce_robustness)
app.command()(attack)
app.command()(estimate)
app.add_typer(cache_app, name="cache")
app.add_typer(export_app, name="export")
data_app = typer.Typer(help="Fetch data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")


@app.command()
def run(
    recipe: RecipeName,
    method: Method = None,
    only: Only = None,
    trials: Trials = None,
    set_: Set = None,
    out: Out = OUT,
    data: Data = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    device: Device = "auto",
    cohort_size: CohortSize = 8,
    retry_failed: RetryFailed = False,
    tensorboard: TensorBoard = False,
    wandb: WandB = False,
    workers: Workers = 2,
    devices: Devices = None,
    nodes: Nodes = None,
    retries: Retries = 2,
    checkpoint_minutes: CheckpointMinutes = 10.0,
    executor: ExecutorName = "local",
    executor_option: ExecutorOption = None,
    format_: Format = "terminal",
) -> None:
    """Train everything that is missing of a recipe, and print its table."""
    from kd_bench.launch.scheduler import RunOptions

    read, context, planned = common.plan(recipe, only, trials, set_, method)
    options = RunOptions(
        out, data, jobs, threads, device, cohort_size, retry_failed, loggers(tensorboard, wandb), workers,
        devices, nodes, retries, checkpoint_minutes, executor, tuple(executor_option or ()),
    )  # fmt: skip
    common.run(read, context, planned, options, format_)


@app.command()
def compare(
    dataset: Annotated[str, typer.Option("--dataset", help="See: kd-bench list datasets.")],
    teacher: Annotated[str, typer.Option("--teacher", help="The network that teaches, or FILE.py:NAME.")],
    student: Annotated[str, typer.Option("--student", help="The network that learns, or FILE.py:NAME.")],
    methods: Annotated[
        str, typer.Option("--methods", help="Names or [LABEL=]FILE.py:CLASS, with commas between.")
    ] = "kd,dkd,ikl_kd",
    weights: Weights = None,
    trials: Trials = 3,
    set_: Set = None,
    out: Out = OUT,
    data: Data = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    device: Device = "auto",
    cohort_size: CohortSize = 8,
    retry_failed: RetryFailed = False,
    tensorboard: TensorBoard = False,
    wandb: WandB = False,
    workers: Workers = 2,
    devices: Devices = None,
    nodes: Nodes = None,
    retries: Retries = 2,
    checkpoint_minutes: CheckpointMinutes = 10.0,
    executor: ExecutorName = "local",
    executor_option: ExecutorOption = None,
    format_: Format = "terminal",
) -> None:
    """Compare methods on a pair of your own, with the published settings of the data set."""
    from kd_bench.config.load import read_recipe
    from kd_bench.launch.scheduler import RunOptions
    from kd_bench.plan import plan

    rows = common.rows((name.strip() for name in methods.split(",") if name.strip()), "--methods")
    content = common.base(dataset) | {
        "name": common.folder_name("compare", dataset, teacher, student),
        "pairs": [{"teacher": teacher, "student": student}],
        "methods": {label: {"method": name} for label, name in ({"none": "none"} | rows).items()},
    }
    if weights is not None:
        content["teachers"] = {teacher: {"weights": weights}}
    read = read_recipe(content, set_ or (), trials)
    options = RunOptions(
        out, data, jobs, threads, device, cohort_size, retry_failed, loggers(tensorboard, wandb), workers,
        devices, nodes, retries, checkpoint_minutes, executor, tuple(executor_option or ()),
    )  # fmt: skip
    common.run(read, "compare", plan(read, "compare"), options, format_)


@app.command()
def table(
    recipe: RecipeOrNone = None,
    published: Annotated[
        bool, typer.Option("--published", help="Without a recipe: print the paper's Tables 6 to 12 again.")
    ] = False,
    method: Method = None,
    only: Only = None,
    trials: Trials = None,
    set_: Set = None,
    out: Out = OUT,
    format_: Format = "terminal",
) -> None:
    """Print the table of what a recipe has so far, or the published tables."""
    from kd_bench.trials.folder import check_all

    if published or recipe is None:
        common.reprint(recipe, published, format_)
        return
    common.check_format(format_)
    read, context, planned = common.plan(recipe, only, trials, set_, method)
    check_all(planned, out / read.name)
    common.write(common.table([(read, context, planned)], out), format_)


app.command()(report)
app.command()(status)
app.command()(new)
app.command()(verify)


@app.command("list")
def list_(
    kind: Annotated[str, typer.Argument(help="methods, networks, teachers, students, datasets or recipes")],
) -> None:
    """List what there is."""
    entries = _kinds()
    if kind not in entries:
        raise unknown("list", kind, entries)
    found = entries[kind]()
    width = max(len(name) for name in found)
    for name, about in found.items():
        typer.echo(f"{name:{width}}  {about}".rstrip())


@app.command()
def show(name: Annotated[str, typer.Argument(help="A method, network, teacher, student, data set or recipe.")]) -> None:
    """Show what is known of a method, network, teacher, student, data set or recipe."""
    from kd_bench.cli.show import describe

    typer.echo(describe(name))


@app.command()
def doctor(out: Out = OUT, data: Data = None) -> None:
    """Check the installation, devices, data sets and folders, and say what to do about what is missing."""
    from kd_bench.launch.doctor import examine

    sound = True
    for finding in examine(out, data):
        typer.echo(str(finding))
        sound = sound and finding.sound
    if not sound:
        raise RunFailed("something above keeps kd-bench from working")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="See: kd-bench list datasets.")],
    data: Data = None,
) -> None:
    """Download a data set into the data folder, with its checksum."""
    from kd_bench.config.data import Dataset
    from kd_bench.data import registry as datasets

    data_folder = datasets.data_dir(data)
    datasets.download(Dataset(name=name), data_folder)
    typer.echo(f"{name}: {datasets.locate(Dataset(name=name), data_folder)}")


def main() -> None:
    """The entry point: every error a user can cause is one line on standard error."""
    try:
        app(standalone_mode=False)
    except UserError as error:
        _leave(str(error), 2)
    except RunFailed as error:
        _leave(str(error), 1)
    except Terminated:
        _leave("stopped by SIGTERM; the same command goes on from here", 143)
    except KeyboardInterrupt:
        _leave("stopped; the same command goes on from here", 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        # typer's own complaints about the command line; anything else is a fault of ours and keeps its traceback.
        if not hasattr(error, "format_message"):
            raise
        _leave(f"{error.format_message()}{_given(error)}", getattr(error, "exit_code", 2))


def _given(error: Any) -> str:
    """The value that a complaint about an option is about, which typer leaves out."""
    options = getattr(getattr(error, "param", None), "opts", ())
    values = [value for option, value in zip(sys.argv, sys.argv[1:], strict=False) if option in options]
    return f" (it is {values[-1]!r})" if values else ""


def _leave(message: str, code: int) -> None:
    typer.echo(f"kd-bench: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _kinds() -> dict[str, Callable[[], dict[str, str]]]:
    def method_names() -> dict[str, str]:
        from kd_bench.methods import registry

        families = ("baseline", "logits", "features", "adversarial")
        found = sorted((registry.describe(name) for name in registry.names()), key=lambda i: families.index(i.family))
        return {info.name: f"{info.family:<{max(map(len, families))}}  {info.summary}" for info in found}

    def carded(role: Literal["teachers", "students"]) -> dict[str, str]:
        from kd_bench.models import cards

        return {f"{one.dataset}/{one.name}": cards.summary(one) for one in cards.cards(role)}

    def networks() -> dict[str, str]:
        from kd_bench.models import registry

        return registry.own_models() | registry.offered_models()

    def dataset_names() -> dict[str, str]:
        from kd_bench.data import registry

        specs = (registry.spec(name) for name in registry.names())
        return {spec.name: spec.summary for spec in specs}

    def recipe_names() -> dict[str, str]:
        from kd_bench.config.load import packaged_recipes, recipe_description

        return {name: recipe_description(name) for name in packaged_recipes()}

    return {
        "methods": method_names,
        "networks": networks,
        "teachers": lambda: carded("teachers"),
        "students": lambda: carded("students"),
        "datasets": dataset_names,
        "recipes": recipe_names,
    }
