"""The commands. Thin, and quick to start: torch is imported only by a command that needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from kd_bench.errors import RunFailed, UserError, unknown

if TYPE_CHECKING:
    from kd_bench.recipe import Dataset, Planned, Recipe
    from kd_bench.runner.run import Options

app = typer.Typer(
    name="kd-bench",
    help="The benchmark suite for knowledge distillation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
teacher_app = typer.Typer(help="Teachers: train, fetch, verify, convert.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(teacher_app, name="teacher")
data_app = typer.Typer(help="Fetch data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

Only = Annotated[list[str] | None, typer.Option("--only", help="KEY=VALUE[,VALUE]: method, student, teacher or seed.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe, e.g. epochs=2.")]
Trials = Annotated[int | None, typer.Option("--trials", min=1, help="Seeds a cell, over the recipe's.")]
Out = Annotated[Path, typer.Option("--out", envvar="KD_BENCH_OUT", help="Results folder.")]
Data = Annotated[Path | None, typer.Option("--data", envvar="KD_BENCH_DATA", help="Folder of data sets.")]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, help="Cohorts at once; by default as many as fit.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="CPU threads of a cohort; results are bitwise for one.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
CohortSize = Annotated[int, typer.Option("--cohort-size", min=1, help="Most students that share one process.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Train again what failed before.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events as well.")]
Format = Annotated[str, typer.Option("--format", help="terminal, markdown, plain, latex or csv.")]
RecipeName = Annotated[str, typer.Argument(help="A recipe's file, or the name of one that comes with kd-bench.")]

Weights = Annotated[
    str | None, typer.Option("--weights", help="The teacher's weights: a file, or: published (see teacher fetch).")
]

OUT = Path("runs")


@app.command()
def run(
    recipe: RecipeName,
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
    format_: Format = "terminal",
) -> None:
    """Train everything that is missing of a recipe, and print its table."""
    read, where, planned = _plan(recipe, only, trials, set_)
    options = _options(out, data, jobs, threads, device, cohort_size, retry_failed, tensorboard)
    _run(read, where, planned, options, format_)


@app.command()
def compare(
    dataset: Annotated[str, typer.Option("--dataset", help="See: kd-bench list datasets.")],
    teacher: Annotated[str, typer.Option("--teacher", help="The network that teaches.")],
    student: Annotated[str, typer.Option("--student", help="The network that learns.")],
    methods: Annotated[str, typer.Option("--methods", help="Names, with commas between.")] = "kd,dkd,ikl_kd",
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
    format_: Format = "terminal",
) -> None:
    """Compare methods on a pair of your own, with the published settings of the data set."""
    from kd_bench.reading import read_recipe
    from kd_bench.runner.plan import plan

    rows = [name.strip() for name in methods.split(",") if name.strip()]
    content = _base(dataset) | {
        "name": "-".join(["compare", dataset, teacher, student]).replace("/", "-"),
        "pairs": [{"teacher": teacher, "student": student}],
        "methods": list(dict.fromkeys(["none", *rows])),
    }
    if weights is not None:
        content["teachers"] = {teacher: {"weights": weights}}
    read = read_recipe(content, set_ or (), trials)
    options = _options(out, data, jobs, threads, device, cohort_size, retry_failed, tensorboard)
    _run(read, "compare", plan(read, "compare"), options, format_)


@app.command()
def table(
    recipe: RecipeName,
    only: Only = None,
    trials: Trials = None,
    set_: Set = None,
    out: Out = OUT,
    format_: Format = "terminal",
) -> None:
    """Print the table of what a recipe has so far."""
    from kd_bench.runner.folder import check_all

    _check_format(format_)
    read, _, planned = _plan(recipe, only, trials, set_)
    check_all(planned, out / read.name)
    _print_table(read, planned, out, format_)


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
    from kd_bench.runner.describe import describe

    typer.echo(describe(name))


@app.command()
def doctor(out: Out = OUT, data: Data = None) -> None:
    """Check the installation, devices, data sets and folders, and say what to do about what is missing."""
    from kd_bench.runner.doctor import examine

    sound = True
    for finding in examine(out, data):
        typer.echo(str(finding))
        sound = sound and finding.sound
    if not sound:
        raise RunFailed("something above keeps kd-bench from working")


@teacher_app.command("train")
def teacher_train(
    name: Annotated[str | None, typer.Argument(help="The network; all that have a card where it is left out.")] = None,
    dataset: Annotated[str, typer.Option("--dataset", help="See: kd-bench list datasets.")] = "cifar100",
    trials: Trials = None,
    set_: Set = None,
    out: Out = OUT,
    data: Data = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    device: Device = "auto",
    retry_failed: RetryFailed = False,
) -> None:
    """Train a teacher, as the data set's recipes do; they then find it in the results folder."""
    from kd_bench.reading import packaged_recipes

    if name is None:
        recipe = f"{dataset}/teachers"
        if recipe not in packaged_recipes():
            raise UserError(f"there is no recipe {recipe}; name the network: kd-bench teacher train NETWORK")
        read, where, planned = _plan(recipe, None, trials, set_)
        options = _options(out, data, jobs, threads, device, 8, retry_failed, False)
        _run(read, where, planned, options, "terminal")
        return
    from kd_bench.runner.display import Display
    from kd_bench.runner.plan import teachers
    from kd_bench.runner.run import Runner, prepare

    read, model, where = _teacher(name, dataset, trials or 1, set_)
    planned = teachers(read, model, where)
    _locate(read.dataset, data)
    options = _options(out, data, jobs, threads, device, 8, retry_failed, False)
    prepare(options)
    runner = Runner(read.name, options, Display(where))
    outcome = runner.run(planned)
    for one in planned:
        if one.trial_id not in outcome.failed:
            folder = runner.teacher_folder(one.trial)
            top1 = (folder.result() or {})["top1_last"]
            typer.echo(f"{one.student} on {one.dataset}, seed {one.seed}: {top1:.2f} %, {folder.path}")
    if outcome.failed:
        raise RunFailed(f"{where}: {_reasons(outcome.failed)}")


@teacher_app.command("fetch")
def teacher_fetch(
    name: Annotated[str, typer.Argument(help="The teacher, as its card calls it.")],
    dataset: Annotated[str, typer.Option("--dataset", help="See: kd-bench list datasets.")] = "cifar100",
) -> None:
    """Download a teacher's published weights: resumed if interrupted, checksummed, kept for all runs."""
    from kd_bench.models import zoo
    from kd_bench.runner import published
    from kd_bench.runner.display import download_bar

    card = zoo.card("teachers", dataset, name, "teacher fetch")
    with download_bar(card.name) as progress:
        found = published.fetch(card, progress)
    origin = f"from {found.url}" if found.url else "was there already"
    pinned = " (of the first download; none is published)" if found.pinned else ""
    typer.echo(f"{card.name}: {found.path}, {origin}, sha256 {found.sha256}{pinned}")
    typer.echo(f"verify it with: kd-bench teacher verify {card.name} --dataset {dataset} --weights published")


@teacher_app.command("verify")
def teacher_verify(
    name: Annotated[str, typer.Argument(help="The network.")],
    dataset: Annotated[str, typer.Option("--dataset", help="See: kd-bench list datasets.")] = "cifar100",
    weights: Weights = None,
    set_: Set = None,
    out: Out = OUT,
    data: Data = None,
    device: Device = "cpu",
) -> None:
    """Measure a teacher on the test set, class by class, and compare with what was recorded or published."""
    from kd_bench.runner.plan import teacher_of
    from kd_bench.runner.verify import verify

    read, model, where = _teacher(name, dataset, 1, set_, weights)
    taught, file = teacher_of(read, model, where)
    _locate(taught.dataset, data)
    typer.echo(verify(taught, file, out, data, device))


@teacher_app.command("convert")
def teacher_convert(
    source: Annotated[Path, typer.Argument(help="A file of weights, in any layout.")],
    target: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    model: Annotated[str | None, typer.Option("--model", help="The network, to check that the weights fit.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Where in the file the weights are, e.g. ema.model.")] = None,
) -> None:
    """Convert weights of any layout to safetensors, strictly checked against the network if one is named."""
    from kd_bench.runner.convert import convert

    typer.echo(convert(source, target, model, key))


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="See: kd-bench list datasets.")],
    data: Data = None,
) -> None:
    """Download a data set into the data folder, with its checksum."""
    from kd_bench.data import registry as datasets
    from kd_bench.recipe import Dataset

    where = datasets.data_dir(data)
    datasets.download(Dataset(name=name), where)
    typer.echo(f"{name}: {datasets.locate(Dataset(name=name), where)}")


def main() -> None:
    """The entry point: every error a user can cause is one line on standard error."""
    try:
        app(standalone_mode=False)
    except UserError as error:
        _leave(str(error), 2)
    except RunFailed as error:
        _leave(str(error), 1)
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


def _plan(
    name: str, only: list[str] | None, trials: int | None, overrides: list[str] | None
) -> tuple[Recipe, str, list[Planned]]:
    from kd_bench.reading import find_recipe, read_recipe
    from kd_bench.runner.plan import plan

    recipe = read_recipe(name, overrides or (), trials)
    where = str(find_recipe(name))
    return recipe, where, plan(recipe, where, only or ())


def _base(dataset: str) -> dict[str, Any]:
    """What recipes of a data set share, for a recipe made from the command line."""
    from kd_bench.data import registry as datasets
    from kd_bench.resources import share

    datasets.spec(dataset, "--dataset")
    name = f"{dataset}/base.yaml"
    return {"extends": name} if share("recipes", name).is_file() else {"dataset": {"name": dataset}}


def _teacher(
    name: str, dataset: str, trials: int, overrides: list[str] | None, weights: str | None = None
) -> tuple[Recipe, str, str]:
    """A recipe with a teacher as the data set's recipes train it, the network's name, and what errors call it."""
    from kd_bench.reading import read_recipe
    from kd_bench.runner.folder import TEACHERS
    from kd_bench.runner.plan import network

    content = _base(dataset) | {
        "name": TEACHERS,
        "pairs": [{"teacher": name, "student": name}],
        "methods": ["none"],
        "trials": trials,
    }
    if weights is not None:
        content["teachers"] = {name: {"weights": weights}}
    recipe = read_recipe(content, overrides or ())
    return recipe, network(recipe, name, f"teacher {name}"), f"teacher {name}"


def _locate(dataset: Dataset, data: Path | None) -> None:
    from kd_bench.data import registry as datasets

    datasets.locate(dataset, datasets.data_dir(data))


def _options(
    out: Path,
    data: Path | None,
    jobs: int | None,
    threads: int,
    device: str,
    cohort_size: int,
    retry_failed: bool,
    tensorboard: bool,
) -> Options:
    from kd_bench.runner.run import Options

    return Options(out, data, jobs, threads, device, cohort_size, retry_failed, tensorboard)


def _run(recipe: Recipe, where: str, planned: list[Planned], options: Options, format_: str) -> None:
    from kd_bench.runner.display import Display
    from kd_bench.runner.run import Runner, prepare

    _check_format(format_)
    _locate(recipe.dataset, options.data)
    prepare(options)
    outcome = Runner(recipe.name, options, Display(recipe.name)).run(planned)
    _print_table(recipe, planned, options.out, format_)
    if outcome.failed:
        raise RunFailed(f"{where}: {len(outcome.failed)} trainings have no result: {_reasons(outcome.failed)}")


def _reasons(failed: dict[str, str]) -> str:
    return "; ".join(f"{trial}: {reason}" for trial, reason in list(failed.items())[:3]) + " ..." * (len(failed) > 3)


def _print_table(recipe: Recipe, planned: list[Planned], out: Path, format_: str) -> None:
    from kd_bench.report.formats import write
    from kd_bench.report.frame import read_results
    from kd_bench.report.table import summarise

    write(summarise(read_results(out / recipe.name, planned), recipe.baseline), format_, sys.stdout)


def _check_format(format_: str) -> None:
    from kd_bench.report.formats import FORMATS

    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS, "--format")


def _kinds() -> dict[str, Callable[[], dict[str, str]]]:
    def method_names() -> dict[str, str]:
        from kd_bench.methods import registry

        return {name: registry.describe(name).summary for name in registry.names()}

    def carded(role: Literal["teachers", "students"]) -> dict[str, str]:
        from kd_bench.models import zoo

        return {f"{one.dataset}/{one.name}": zoo.summary(one) for one in zoo.cards(role)}

    def networks() -> dict[str, str]:
        from kd_bench.models import registry

        return registry.own_models()

    def dataset_names() -> dict[str, str]:
        from kd_bench.data import registry

        specs = (registry.spec(name) for name in registry.names())
        return {spec.name: spec.summary for spec in specs}

    def recipe_names() -> dict[str, str]:
        from kd_bench.reading import packaged_recipes, recipe_description

        return {name: recipe_description(name) for name in packaged_recipes()}

    return {
        "methods": method_names,
        "networks": networks,
        "teachers": lambda: carded("teachers"),
        "students": lambda: carded("students"),
        "datasets": dataset_names,
        "recipes": recipe_names,
    }


if __name__ == "__main__":
    main()
