"""``kd-bench teacher``: train, fetch, verify, convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import common
from kd_bench.cli.options import OUT, Data, Device, Jobs, Out, RetryFailed, Set, Threads, Trials, Weights
from kd_bench.utils.errors import RunFailed, UserError

if TYPE_CHECKING:
    from kd_bench.config.recipe import Recipe

teacher_app = typer.Typer(help="Teachers: train, fetch, verify, convert.", no_args_is_help=True, rich_markup_mode=None)


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
    from kd_bench.config.load import packaged_recipes
    from kd_bench.launch.scheduler import RunOptions, Scheduler, check_options

    if name is None:
        recipe = f"{dataset}/teachers"
        if recipe not in packaged_recipes():
            raise UserError(f"there is no recipe {recipe}; name the network: kd-bench teacher train NETWORK")
        read, context, planned = common.plan(recipe, None, trials, set_)
        options = RunOptions(out, data, jobs, threads, device, retry_failed=retry_failed)
        common.run(read, context, planned, options, "terminal")
        return
    from kd_bench.launch.progress_display import Display
    from kd_bench.plan import teachers

    read, model, context = _teacher(name, dataset, trials or 1, set_)
    planned = teachers(read, model, context)
    common.locate(read.dataset, data)
    options = RunOptions(out, data, jobs, threads, device, retry_failed=retry_failed)
    check_options(options)
    runner = Scheduler(read.name, options, Display(context))
    outcome = runner.run(planned)
    for one in planned:
        if one.trial_id not in outcome.failed:
            folder = runner.teacher_folder(one.trial)
            top1 = (folder.result() or {})["top1_last"]
            typer.echo(f"{one.student} on {one.dataset}, seed {one.seed}: {top1:.2f} %, {folder.path}")
    if outcome.failed:
        raise RunFailed(f"{context}: {common.reasons(outcome.failed)}")


@teacher_app.command("fetch")
def teacher_fetch(
    name: Annotated[str, typer.Argument(help="The teacher, as its card calls it.")],
    dataset: Annotated[str, typer.Option("--dataset", help="See: kd-bench list datasets.")] = "cifar100",
) -> None:
    """Download a teacher's published weights: resumed if interrupted, checksummed, kept for all runs."""
    from kd_bench.launch.progress_display import download_bar
    from kd_bench.models import cards, pretrained

    card = cards.card("teachers", dataset, name, "teacher fetch")
    with download_bar(card.name) as progress:
        found = pretrained.fetch(card, progress)
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
    from kd_bench.evaluation.verify_teacher import verify
    from kd_bench.plan import teacher_of

    read, model, context = _teacher(name, dataset, 1, set_, weights)
    taught, file = teacher_of(read, model, context)
    common.locate(taught.dataset, data)
    typer.echo(verify(taught, file, out, data, device))


@teacher_app.command("convert")
def teacher_convert(
    source: Annotated[Path, typer.Argument(help="A file of weights, in any layout.")],
    target: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    model: Annotated[str | None, typer.Option("--model", help="The network, to check that the weights fit.")] = None,
    key: Annotated[str | None, typer.Option("--key", help="Where in the file the weights are, e.g. ema.model.")] = None,
) -> None:
    """Convert weights of any layout to safetensors, strictly checked against the network if one is named."""
    from kd_bench.models.convert import convert

    typer.echo(convert(source, target, model, key))


def _teacher(
    name: str, dataset: str, trials: int, overrides: list[str] | None, weights: str | None = None
) -> tuple[Recipe, str, str]:
    """A recipe with a teacher as the data set's recipes train it, the network's name, and what errors call it."""
    from kd_bench.config.load import read_recipe
    from kd_bench.plan import network
    from kd_bench.trials.folder import TEACHERS

    content = common.base(dataset) | {
        "name": TEACHERS,
        "pairs": [{"teacher": name, "student": name}],
        "methods": ["none"],
        "trials": trials,
    }
    if weights is not None:
        content["teachers"] = {name: {"weights": weights}}
    recipe = read_recipe(content, overrides or ())
    return recipe, network(recipe, name, f"teacher {name}"), f"teacher {name}"
