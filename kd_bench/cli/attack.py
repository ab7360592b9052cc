"""``kd-bench attack``: accuracy under adversarial attacks of a file of weights, a trial, or all trials of a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import options as opt
from kd_bench.cli.option_types import whole_number
from kd_bench.cli.targets import find_targets, share
from kd_bench.cli.terminal import show_progress
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.text import count

if TYPE_CHECKING:
    from kd_bench.config.attack import Attack
    from kd_bench.evaluation.autoattack_checkpoint import AutoAttackEvaluator
    from kd_bench.evaluation.target import EvaluationTarget
    from kd_bench.launch.run_recipe import PlannedRecipe

#: Norm and radius of published robust accuracies.
_PUBLISHED = ("Linf", 8 / 255)


@opt.with_settings("epochs", "lr")  # --batch-size has another meaning here
def attack(
    target: opt.Target,
    model: opt.Model = None,
    dataset: opt.ModelDataset = None,
    eps: Annotated[
        str | None,
        typer.Option("--eps", help="Radii of the ball, e.g. 8/255, or 2/255,4/255. By default, 8/255 in Linf."),
    ] = None,
    norm: Annotated[str, typer.Option("--norm", help="Linf or L2.")] = "Linf",
    attacks_: opt.Attacks = None,
    screen: Annotated[
        str | None, typer.Option("--screen", help="Only pgd-20 or apgd-ce: a cheap upper bound of the accuracy.")
    ] = None,
    images: opt.AttackImages = None,
    batch_size: Annotated[int, whole_number("--batch-size", "Images per batch.", 1, 2**20)] = 200,
    seed: Annotated[int, whole_number("--seed", "Seed of all random draws.", 0, 2**31 - 1)] = 0,
    normalise: opt.Normalise = None,
    key: opt.Key = None,
    save_examples: Annotated[bool, typer.Option("--save-examples", help="Keep the adversarial images.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Verify the kept adversarial images, in float64.")] = False,
    method: opt.Method = None,
    only: opt.Only = None,
    trials: opt.Trials = None,
    set_: opt.Set = None,
    out: opt.Out = opt.OUT,
    data: opt.Data = None,
    threads: opt.Threads = 1,
    device: opt.Device = "auto",
    format_: opt.Format = "terminal",
) -> None:
    """Measure accuracy under AutoAttack. Each attack gets the images that are still classified correctly.

    A stopped evaluation continues.
    """
    from kd_bench.config.attack import SCREENS
    from kd_bench.evaluation.attack_settings import parse_attacks, parse_radii

    opt.check_format(format_)
    opt.check_choice("norm", norm, ("Linf", "L2"), "--norm")
    parse_radii(eps, norm)

    # These import torch, so what the user typed is checked first.
    from kd_bench.evaluation.attack_networks import attack_networks
    from kd_bench.evaluation.autoattack_checkpoint import AutoAttackEvaluator
    from kd_bench.launch.devices import find_devices
    from kd_bench.utils.allocator import keep_freed_memory

    if screen is not None:
        if attacks_ is not None:
            raise UserError("--screen runs one attack alone, so --attacks must be left out")
        opt.check_choice("screen", screen, SCREENS, "--screen")
    settings = parse_attacks(eps, screen or attacks_, norm=norm, images=images, batch_size=batch_size, seed=seed)
    targets = find_targets(
        target, out, _log, data=data, model=model, dataset=dataset, key=key, normalise=normalise, methods=method,
        only=only, trials=trials, overrides=set_,
    )  # fmt: skip
    keep_freed_memory()
    evaluator = AutoAttackEvaluator(data, find_devices(device)[0], threads)
    if check:
        _check(evaluator, targets.networks, settings)
        return
    failed = attack_networks(
        evaluator, targets.networks, settings, describe=targets.describe, log=_log, save_images=save_examples,
        report_progress=log_progress,
    )  # fmt: skip
    if targets.recipe is None:
        _print_network(targets.networks[0], settings, format_)
        return
    _print_recipe(targets.recipe, out, settings, format_)
    if failed:
        raise RunFailed(f"{share(failed, len(targets.networks), 'network')} not attacked, see above; for the others "
                        "nothing is attacked again when the command is repeated")  # fmt: skip


def _check(evaluator: AutoAttackEvaluator, targets: list[EvaluationTarget], settings: list[Attack]) -> None:
    from kd_bench.config.attack import title

    wrong = 0
    for target in targets:
        for attack in settings:
            for result in evaluator.check_images(target, attack):
                wrong += not result.passed
                typer.echo(
                    f"{target.name}, {attack.title}, {title(result.attack)}: "
                    f"{count(result.images, 'adversarial image')}, "
                    f"{result.missing} lacking, {result.outside} outside the ball or [0, 1] (farthest "
                    f"{result.max_distance:.9f}, eps {attack.eps:.9f}), {result.misclassified} misclassified in "
                    f"float64, {count(result.ties, 'tie')}"
                )
    if wrong:
        raise RunFailed("the adversarial images do not agree with the evaluation")


def _print_network(target: EvaluationTarget, settings: list[Attack], format_: str) -> None:
    from kd_bench.models import cards
    from kd_bench.report import attack_table, render

    model, dataset = target.trained.model, target.trained.dataset
    evaluations = filter(None, (attack_table.read_evaluation(target.record_path(attack)) for attack in settings))
    tables = [attack_table.network_table(target.name, f"{model} on {dataset.title}", item) for item in evaluations]
    render.write(attack_table.render_tables(tables, format_), format_, sys.stdout)
    if format_ not in ("terminal", "plain"):
        return
    if any((attack.norm, attack.eps) == _PUBLISHED for attack in settings):
        card = cards.find("students", dataset.name, model) or cards.find("teachers", dataset.name, model)
        for number in card.robust if card else ():
            typer.echo(f"published: {number.clean:.2f} % clean, {number.autoattack:.2f} % AA "
                       f"({number.setting}; {number.source})")  # fmt: skip
    for attack in settings:
        typer.echo(f"kept in {target.record_path(attack)}")


def _print_recipe(recipe: PlannedRecipe, out: Path, settings: list[Attack], format_: str) -> None:
    from kd_bench import api
    from kd_bench.report import attack_table, render

    ids = {attack.id for attack in settings}
    evaluations = attack_table.trial_evaluations(out / recipe.recipe.name, recipe.planned)
    tables = attack_table.summarise_attacks(
        [(cell, evaluation) for cell, evaluation in evaluations if evaluation.attack.id in ids],
        recipe.recipe.baseline,
        api.table([recipe], out).incomparable,
    )
    render.write(attack_table.render_tables(tables, format_), format_, sys.stdout)


def log_progress(name: str, batch: int, batches: int, correct: int) -> None:
    """Prints a line after each attack; on a terminal also one that changes with each batch."""
    from kd_bench.config.attack import title

    attack, still = ("clean", "") if name == "clean" else (title(name), "still ")
    images = f"{count(correct, 'image')} {'is' if correct == 1 else 'are'}"
    line = f"{attack}: batch {batch} of {batches}, {images} {still}classified correctly"
    show_progress(line, done=batch == batches)


def _log(line: str) -> None:
    typer.echo(f"attack: {line}", err=True)
