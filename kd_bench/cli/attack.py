"""``kd-bench attack``: accuracy under adversarial attacks, of a file of weights, a trial, or all trials of a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kd_bench.cli import common
from kd_bench.cli.options import OUT, Data, Device, Only, Out, Set, Threads, Trials
from kd_bench.utils.errors import RunFailed, UserError, unknown

if TYPE_CHECKING:
    from kd_bench.config.attack import Attack
    from kd_bench.config.recipe import Recipe
    from kd_bench.config.trial import PlannedTrial
    from kd_bench.evaluation.attack import Evaluator, Normalisation, Target
    from kd_bench.report.attack_table import AttackTable
    from kd_bench.robustness.evaluation import Progress

NORMALISATIONS = ("none", "dataset", "network")

#: Radii that published robust accuracies are of.
_PUBLISHED = ("Linf", 8 / 255)

_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar")


def attack(
    target: Annotated[str, typer.Argument(help="A file of weights, a trial's folder, or a recipe.")],
    model: Annotated[str | None, typer.Option("--model", help="The network that a file of weights is of.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="The images, for a file of weights.")] = None,
    eps: Annotated[str, typer.Option("--eps", help="Radii of the ball, e.g. 8/255, or 2/255,4/255.")] = "8/255",
    norm: Annotated[str, typer.Option("--norm", help="Linf or L2.")] = "Linf",
    attacks_: Annotated[
        str | None, typer.Option("--attacks", help="In their order; by default apgd-ce,apgd-t,fab-t,square.")
    ] = None,
    screen: Annotated[
        str | None, typer.Option("--screen", help="pgd-20 or apgd-ce alone: a cheap upper bound of the accuracy.")
    ] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Only so many test images, evenly over the classes.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at once.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="What all draws follow from.")] = 0,
    normalise: Annotated[
        str | None, typer.Option("--normalise", help="none, dataset or network, for a file of weights.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Where in a file the weights are, e.g. ema.model.")] = None,
    save_examples: Annotated[bool, typer.Option("--save-examples", help="Keep the adversarial images.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Examine the adversarial images that were kept, in float64.")
    ] = False,
    only: Only = None,
    trials: Trials = None,
    set_: Set = None,
    out: Out = OUT,
    data: Data = None,
    threads: Threads = 1,
    device: Device = "auto",
    format_: Annotated[str, typer.Option("--format", help="terminal, markdown, plain, latex or csv.")] = "terminal",
) -> None:
    """Measure accuracy under AutoAttack, attack by attack on what still stands; goes on where it was stopped."""
    from kd_bench.config.attack import title
    from kd_bench.config.load import packaged_recipes
    from kd_bench.report.attack_table import FORMATS

    if format_ not in FORMATS:
        raise unknown("format", format_, FORMATS, "--format")
    planned = _attacks(norm, eps, attacks_, screen, images, batch_size, seed)
    path = Path(target).expanduser()
    recipe = None
    if path.is_dir() and ((path / "trial.json").is_file() or target not in packaged_recipes()):
        _refuse("a trial", model=model, dataset=dataset, key=key, normalise=normalise, only=only, trials=trials)
        from kd_bench.evaluation.attack import trial

        targets = [trial(path)]
    elif path.suffix in _WEIGHTS or model is not None:
        _refuse("a file of weights", only=only, trials=trials)
        targets = [_checkpoint(path, model, dataset, key, normalise, set_, out)]
    else:
        _refuse("a recipe", model=model, dataset=dataset, key=key, normalise=normalise)
        recipe = common.plan(target, only, trials, set_)
        targets = _trials(recipe, out)
    evaluator = _evaluator(data, device, threads)
    if check:
        _check(evaluator, targets, planned)
        return
    for one in targets:
        for how in planned:
            place = f"{one.name}, {one.folder.parent.name}" if recipe is not None else one.name
            _say(f"{place}: {how.title}, {', '.join(map(title, how.attacks))}")
            evaluator.evaluate(one, how, save_examples, _progress())
    if recipe is not None:
        _print_recipe(recipe, out, planned, format_)
    else:
        _print(targets[0], planned, format_)


def _attacks(
    norm: str, eps: str, names: str | None, screen: str | None, images: int | None, batch_size: int, seed: int
) -> list[Attack]:
    from kd_bench.config import attack as attacks

    if norm not in ("Linf", "L2"):
        raise unknown("norm", norm, ("Linf", "L2"), "--norm")
    if screen is not None:
        if names is not None:
            raise UserError("--screen runs one attack alone, so --attacks must be left out")
        if screen not in attacks.SCREENS:
            raise unknown("screen", screen, attacks.SCREENS, "--screen")
        names = screen
    chosen = attacks.STANDARD if names is None else attacks.read_attacks(names, "--attacks")
    library = None
    if any(not attacks.is_pgd(name) for name in chosen):
        from kd_bench.robustness.autoattack import library as installed

        library = installed()
    if seed >= 2**31:
        raise UserError(f"--seed {seed}: should be below {2**31}")
    return [
        attacks.Attack(
            norm="L2" if norm == "L2" else "Linf",
            eps=radius,
            attacks=chosen,
            images=images,
            batch_size=batch_size,
            seed=seed,
            library=library,
        )
        for radius in attacks.read_eps(eps, "--eps")
    ]


def _checkpoint(
    file: Path,
    model: str | None,
    dataset: str | None,
    key: str | None,
    normalise: str | None,
    set_: list[str] | None,
    out: Path,
) -> Target:
    from kd_bench.config.load import read_recipe
    from kd_bench.evaluation.attack import checkpoint

    if not file.is_file():
        raise UserError(f"{file}: there is no such file of weights")
    if model is None or dataset is None:
        missing = [option for option, value in (("--model", model), ("--dataset", dataset)) if value is None]
        raise UserError(f"{file}: a file of weights needs {' and '.join(missing)}, e.g. --model cifar_wrn_34_10 "
                        "--dataset cifar100")  # fmt: skip
    if normalise is not None and normalise not in NORMALISATIONS:
        raise unknown("normalisation", normalise, NORMALISATIONS, "--normalise")
    wanted: Normalisation | None = normalise  # type: ignore[assignment]
    content = common.base(dataset) | {
        "name": "attack",
        "pairs": [{"teacher": model, "student": model}],
        "methods": ["none"],
    }
    return checkpoint(file, model, read_recipe(content, set_ or ()), key, wanted, out)


def _trials(recipe: tuple[Recipe, str, list[PlannedTrial]], out: Path) -> list[Target]:
    from kd_bench.evaluation.attack import trials_of

    read, context, planned = recipe
    folders = dict.fromkeys(out / read.name / one.trial_id for one in planned)
    targets = trials_of(folders, _say)
    if not targets:
        raise UserError(f"{context}: none of its {len(folders)} trials is finished in {out / read.name}; "
                        f"train them with: kd-bench run {context} --out {out}")  # fmt: skip
    return targets


def _evaluator(data: Path | None, device: str, threads: int) -> Evaluator:
    from kd_bench.evaluation.attack import Evaluator
    from kd_bench.launch.local_process import devices

    return Evaluator(data, devices(device)[0], threads)


def _check(evaluator: Evaluator, targets: list[Target], planned: list[Attack]) -> None:
    from kd_bench.config import attack as attacks

    unsound = 0
    for target in targets:
        for how in planned:
            for one in evaluator.examine(target, how):
                unsound += not one.sound
                typer.echo(
                    f"{target.name}, {how.title}, {attacks.title(one.attack)}: {one.images} adversarial images, "
                    f"{one.lacking} lacking, {one.outside} outside the ball or [0, 1] (farthest {one.farthest:.9f}, "
                    f"eps {how.eps:.9f}), {one.misclassified} misclassified in float64, {one.ties} ties"
                )
    if unsound:
        raise RunFailed("the adversarial images do not hold what the evaluation says of them")


def _print(target: Target, planned: list[Attack], format_: str) -> None:
    from kd_bench.report.attack_table import read_evaluation, table_of

    found = [read_evaluation(target.file(how)) for how in planned]
    about = f"{target.made.model} on {target.made.dataset.title}"
    _write([table_of(target.name, about, one) for one in found if one is not None], format_)
    if format_ in ("terminal", "plain"):
        _published(target, planned)
        for how in planned:
            typer.echo(f"kept in {target.file(how)}")


def _published(target: Target, planned: list[Attack]) -> None:
    from kd_bench.models import cards

    if all((how.norm, how.eps) != _PUBLISHED for how in planned):
        return
    name = target.made.dataset.name
    card = cards.find("students", name, target.made.model) or cards.find("teachers", name, target.made.model)
    for one in card.robust if card else ():
        typer.echo(f"published: {one.clean:.2f} % clean, {one.autoattack:.2f} % AA ({one.setting}; {one.source})")


def _print_recipe(
    recipe: tuple[Recipe, str, list[PlannedTrial]], out: Path, planned: list[Attack], format_: str
) -> None:
    from kd_bench.report.attack_table import attack_frame, summarise_attacks

    read, _, cells = recipe
    frame = attack_frame(out / read.name, cells)
    wanted = frame[frame["attack_id"].isin([how.id for how in planned])]
    _write(summarise_attacks(wanted, read.baseline), format_)


def _write(tables: list[AttackTable], format_: str) -> None:
    from kd_bench.report.attack_table import render_attacks

    encoding = (sys.stdout.encoding or "utf-8").lower()
    typer.echo(render_attacks(tables, format_, ascii_only=not encoding.startswith("utf")), nl=False)


def _progress() -> Progress | None:
    """A line after each attack; on a terminal also one that changes with each batch."""
    from kd_bench.config import attack as attacks

    terminal = sys.stderr.isatty()

    def told(name: str, done: int, of: int, standing: int) -> None:
        line = f"{attacks.title(name) if name != 'clean' else 'clean'}: batch {done} of {of}, {standing} images stand"
        if terminal:
            typer.echo(f"\r\x1b[K{line}", err=True, nl=done == of)
        elif done == of:
            typer.echo(line, err=True)

    return told


def _refuse(of: str, **options: object) -> None:
    """An option that has no meaning here is an error, not ignored."""
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name} has no meaning for {of}, so it must be left out")


def _say(line: str) -> None:
    typer.echo(f"attack: {line}", err=True)
