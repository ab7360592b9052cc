"""``kd-bench reproduce robustness``: adversarial training and its evaluation, Tables 7 and 9 to 12 of the appendix."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import common
from kd_bench.cli.options import OUT, CohortSize, Data, Device, Jobs, Only, Out, RetryFailed, Threads, Trials
from kd_bench.utils.errors import UserError, unknown

if TYPE_CHECKING:
    from pathlib import Path

    from kd_bench.launch.scheduler import RunOptions
    from kd_bench.paper.robustness import RobustnessPart

#: Most networks in one process of a smoke run.
SMOKE_COHORT = 16


def reproduce_robustness(
    budget: Annotated[
        str, typer.Option("--budget", help="full, or smoke: all rows on a few images, minutes.")
    ] = "full",
    attacks: Annotated[
        str | None, typer.Option("--attacks", help="In their order; by default apgd-ce,apgd-t,fab-t,square.")
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Attack only so many test images, evenly over the classes.")
    ] = None,
    only: Only = None,
    trials: Trials = None,
    out: Out = OUT,
    data: Data = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    device: Device = "auto",
    cohort_size: CohortSize = 8,
    retry_failed: RetryFailed = False,
    format_: Annotated[str, typer.Option("--format", help="terminal, markdown, plain, latex or csv.")] = "terminal",
) -> None:
    """Train and attack all that is missing of Tables 7 and 9 to 12, print them beside the published ones; resumes.

    Networks that several tables have are trained and attacked once. With --budget smoke every row runs on a small
    network for a few batches, into OUT/smoke, and nothing is measured.
    """
    from kd_bench.launch.scheduler import RunOptions, check_options
    from kd_bench.paper import robustness as parts_of
    from kd_bench.report.published_robustness import FORMATS

    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS, "--format")
    common.check_budget(budget)
    _check_attacks(attacks)
    if budget == "smoke":
        if trials is not None:
            raise UserError("--budget smoke trains each row once, so --trials must be left out")
        parts, on = parts_of.smoke(data, only or ())
        _say(f"smoke run on {on}; it measures nothing")
        options = RunOptions(out / "smoke", data, jobs, threads, device, max(cohort_size, SMOKE_COHORT), retry_failed)
    else:
        parts = parts_of.full(_say, only or (), trials)
        for part in parts:
            common.locate(part.recipe.dataset, data)
        options = RunOptions(out, data, jobs, threads, device, cohort_size, retry_failed)
    check_options(options)
    failed: dict[str, str] = {}
    for part in parts:
        failed |= common.train(part.recipe, part.context, part.planned, options)
        _attack(part, options, attacks, images)
    _print(parts, options.out, format_, budget == "smoke")
    if failed:
        raise common.lost("reproduce robustness", failed)


def _check_attacks(attacks: str | None) -> None:
    """Makes sure before hours of training that there will be something to attack with."""
    from kd_bench.config.attack import STANDARD, is_pgd, read_attacks

    names = STANDARD if attacks is None else read_attacks(attacks, "--attacks")
    if any(not is_pgd(name) for name in names):
        from kd_bench.robustness.autoattack import library

        library()


def _attack(part: RobustnessPart, options: RunOptions, names: str | None, images: int | None) -> None:
    from kd_bench.config import attack
    from kd_bench.evaluation.attack import Evaluator, trials_of
    from kd_bench.launch.local_process import devices

    chosen = attack.STANDARD if names is None else attack.read_attacks(names, "--attacks")
    library = None
    if any(not attack.is_pgd(name) for name in chosen):
        from kd_bench.robustness.autoattack import library as installed

        library = installed()
    evaluator = Evaluator(options.data, devices(options.device)[0], options.threads)
    folders = dict.fromkeys(options.out / part.recipe.name / one.trial_id for one in part.planned)
    for target in trials_of(folders, _say):
        for eps in attack.read_eps(",".join(part.radii), "--eps"):
            how = attack.Attack(norm="Linf", eps=eps, attacks=chosen, images=images, library=library)
            _say(f"{part.name}: {target.name}, {target.made.id}, {how.title}")
            evaluator.evaluate(target, how, False)


def _print(parts: list[RobustnessPart], out: Path, format_: str, smoke: bool) -> None:
    from kd_bench.report.published_robustness import lines, render

    encoding = (sys.stdout.encoding or "utf-8").lower()
    blocks = []
    for part in parts:
        found = lines(part.name, part.planned, out / part.recipe.name, part.radii, part.as_published)
        title = f"{part.name}, {part.recipe.dataset.title}"
        if smoke:
            title = f"smoke run, measures nothing: {title}, {part.recipe.epochs} epochs"
        blocks.append(render(title, found, format_, ascii_only=not encoding.startswith("utf")))
    typer.echo("\n".join(blocks), nl=False)


def _say(line: str) -> None:
    typer.echo(f"reproduce robustness: {line}", err=True)
