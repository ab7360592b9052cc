"""``kd-bench teacher``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kd_bench.cli import completion
from kd_bench.cli import options as opt
from kd_bench.cli.command_group import CommandGroup
from kd_bench.cli.option_types import path_argument, whole_number
from kd_bench.cli.run import train_and_print
from kd_bench.config.limits import MAX_TRIALS
from kd_bench.launch.options import RunOptions
from kd_bench.utils.errors import UserError

teacher_app = typer.Typer(help="Teachers: train, fetch, verify, convert.", cls=CommandGroup, rich_markup_mode=None)


@teacher_app.command("train")
@opt.with_run_options("out", "data", "jobs", "threads", "device", "retry_failed")
@opt.with_settings()
def teacher_train(
    name: Annotated[
        str | None,
        typer.Argument(
            help="The network. By default, all teachers of the data set that have a card.",
            autocompletion=completion.networks,
        ),
    ] = None,
    dataset: opt.DatasetName = "cifar100",
    trials: Annotated[
        int | None,
        whole_number("--trials", "Number of seeds; by default 1, or the recipe's for all teachers.", 1, MAX_TRIALS),
    ] = None,
    set_: opt.Set = None,
    *,
    options: RunOptions,
) -> None:
    """Train a teacher as the recipes of the data set do. They find it in the results folder."""
    from kd_bench import api
    from kd_bench.config.load import packaged_recipes
    from kd_bench.data import registry as datasets
    from kd_bench.launch.run_recipe import train, training_failure
    from kd_bench.trials.folder import TEACHERS, TrialFolder

    datasets.spec(dataset, "--dataset")
    if name is None:
        recipe = f"{dataset}/teachers"
        if recipe not in packaged_recipes():
            raise UserError(
                f"there is no recipe {recipe}; name the network: kd-bench teacher train NETWORK --dataset {dataset}"
            )
        train_and_print(api.plan(recipe, trials=trials, overrides=set_), options, "terminal")
        return
    planned = api.plan_teachers(name, dataset, trials=trials or 1, overrides=set_)
    datasets.locate(planned.recipe.dataset, options.data)
    failed = train(planned, options, title=planned.context)
    for trial in planned.planned:
        if trial.trial_id not in failed:
            folder = TrialFolder(options.out / TEACHERS / trial.trial_id)
            top1 = (folder.result() or {})["top1_last"]
            typer.echo(f"{trial.student} on {trial.dataset}, seed {trial.seed}: {top1:.2f} %, {folder.path}")
    if failed:
        raise training_failure(planned.context, failed)


@teacher_app.command("fetch")
def teacher_fetch(
    name: Annotated[
        str,
        typer.Argument(help="Name of the teacher's card, or of weights in timm.", autocompletion=completion.teachers),
    ],
    dataset: opt.DatasetName = "cifar100",
) -> None:
    """Download a teacher's published weights, or timm's weights that a teacher's training starts from."""
    from kd_bench import api
    from kd_bench.models import cards, pretrained
    from kd_bench.models.timm_names import timm_names

    if cards.find("teachers", dataset, name) is None and name in timm_names().pretrained:
        start = pretrained.fetch_initial_weights(name)
        typer.echo(f"{name}: {start.path}, sha256 {start.sha256}")
        typer.echo(f"train a teacher from it with: teachers: {{{name}: {{pretrained: timm}}}}")
        return
    card = cards.load("teachers", dataset, name, "teacher fetch")
    file = api.fetch_weights(card)
    origin = f"from {file.url}" if file.url else "was there already"
    pinned = " (of the first download; none is published)" if file.pinned else ""
    typer.echo(f"{card.name}: {file.path}, {origin}, sha256 {file.sha256}{pinned}")
    typer.echo(f"verify it with: kd-bench teacher verify {card.name} --dataset {dataset} --weights published")


@teacher_app.command("verify")
@opt.with_settings()
def teacher_verify(
    name: Annotated[str, typer.Argument(help="The network.", autocompletion=completion.networks)],
    dataset: opt.DatasetName = "cifar100",
    weights: opt.Weights = None,
    set_: opt.Set = None,
    out: opt.Out = opt.OUT,
    data: opt.Data = None,
    device: opt.Device = "cpu",
    workers: opt.Workers = opt.WORKERS,
) -> None:
    """Measure a teacher on the test set, class by class, and compare with the recorded and published accuracies."""
    from kd_bench import api
    from kd_bench.data import registry as datasets
    from kd_bench.evaluation.verify_teacher import verify_teacher
    from kd_bench.launch.devices import find_devices
    from kd_bench.plan import plan_teacher
    from kd_bench.trials.results_folder import check_results_folder

    check_results_folder(out, must_exist=False)
    opt.check_weights(weights)
    recipe, model, context = api.teacher_recipe(name, dataset, weights=weights, overrides=set_)
    teacher, file = plan_teacher(recipe, model, context)
    datasets.locate(teacher.dataset, data)
    typer.echo(verify_teacher(teacher, file, out, data, find_devices(device)[0], workers, set_ or ()))


@teacher_app.command("convert")
def teacher_convert(
    source: Annotated[Path, path_argument("source", "A file of weights, in any layout.")],
    target: Annotated[Path, path_argument("target", "The safetensors file to write.")],
    model: Annotated[
        str | None, typer.Option("--model", help="The network, to check that the weights fit it exactly.")
    ] = None,
    key: opt.Key = None,
) -> None:
    """Convert weights of any layout to safetensors.

    A target that exists is replaced, and the output says so.
    """
    from kd_bench.models.convert import convert

    if target.suffix != ".safetensors":
        raise UserError(f"{target}: should end in .safetensors, the layout that is written")
    existed = target.exists()
    if existed and source.exists() and target.samefile(source):
        raise UserError(f"{target}: is the file that is read, so another one has to be written")
    line = convert(source, target, model, key)
    typer.echo(f"{line}{'; replaced the file that was there' * existed}")
