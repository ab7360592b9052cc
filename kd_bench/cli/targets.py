"""What ``attack`` and ``evaluate`` take: a file of weights, a trial's folder, or all finished trials of a recipe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from kd_bench.cli import options as opt
from kd_bench.utils.errors import Terminated, UserError
from kd_bench.utils.paths import expand_user

if TYPE_CHECKING:
    from kd_bench.evaluation.target import EvaluationTarget
    from kd_bench.launch.run_recipe import PlannedRecipe

_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar")

NORMALISATIONS = ("none", "dataset", "network")


class Targets(NamedTuple):
    """The networks to evaluate, at least one, and the recipe that plans them; None without a recipe."""

    networks: list[EvaluationTarget]
    recipe: PlannedRecipe | None = None


def find_targets(
    target: str,
    out: Path,
    log: Callable[[str], None],
    *,
    model: str | None,
    dataset: str | None,
    key: str | None,
    normalise: str | None,
    only: list[str] | None,
    trials: int | None,
    overrides: list[str] | None,
) -> Targets:
    """Returns what the user named.

    Args:
        target: A file of weights, a trial's folder, or a recipe.
        out: The results folder.
        log: Called with a sentence for each trial of a recipe that is not finished.
        model, dataset, key, normalise: Options for a file of weights only.
        only, trials: Options for a recipe only.
        overrides: Settings that replace those of a recipe, or of a file's images.

    Raises:
        UserError: If there is no such target, an option has no meaning for it, or no trial of a recipe is finished.
    """
    from kd_bench import api
    from kd_bench.config.load import packaged_recipes
    from kd_bench.evaluation.target import checkpoint_target, finished_trial_targets, trial_target
    from kd_bench.trials.recipe_file import find_recipe_in

    path = expand_user(target)
    if path.is_dir() and ((path / "trial.json").is_file() or target not in packaged_recipes()):
        if count := sum(1 for _ in path.glob("*/trial.json")):
            raise UserError(f"{path}: is a folder of trials ({count}), not a trial's; name one of the folders in it, "
                            f"or their recipe with --out {path.parent}")  # fmt: skip
        _refuse("a trial", model=model, dataset=dataset, key=key, normalise=normalise, only=only, trials=trials)
        return Targets([trial_target(path)])
    if path.suffix in _WEIGHTS or model is not None:
        _refuse("a file of weights", only=only, trials=trials)
        if not path.is_file():
            raise UserError(f"{path}: there is no such file of weights")
        if model is None or dataset is None:
            missing = [option for option, value in (("--model", model), ("--dataset", dataset)) if value is None]
            raise UserError(f"{path}: a file of weights needs {' and '.join(missing)}, e.g. --model cifar_wrn_34_10 "
                            "--dataset cifar100")  # fmt: skip
        if normalise is not None:
            opt.check_choice("normalisation", normalise, NORMALISATIONS, "--normalise")
        recipe = api.pair_recipe("weights", dataset, model, model, overrides=overrides)
        return Targets([checkpoint_target(path, model, recipe, key, normalise, out)])  # type: ignore[arg-type]
    _refuse("a recipe", model=model, dataset=dataset, key=key, normalise=normalise)
    planned = api.plan(find_recipe_in(target, out), only=only, trials=trials, overrides=overrides)
    results = out / planned.recipe.name
    folders = dict.fromkeys(results / trial.trial_id for trial in planned.planned)
    networks = finished_trial_targets(folders, log)
    if not networks:
        raise UserError(f"{planned.context}: none of its {len(folders)} trials is finished in {results}; "
                        f"train them with: kd-bench run {planned.context} --out {out}")  # fmt: skip
    return Targets(networks, planned)


@contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises ``Terminated``: locks and processes end, and the command says that it can go on."""

    def raise_terminated(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():  # which alone may set a handler
        yield
        return
    before = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _refuse(target: str, **options: object) -> None:
    """Raises a UserError for an option that has no meaning for the target."""
    for name, value in options.items():
        if value is not None:
            raise UserError(f"--{name} has no meaning for {target}, so it must be left out")
