"""What ``attack`` and ``evaluate`` take: a file of weights, a trial, or all finished trials of a recipe."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kd_bench.cli import options as opt
from kd_bench.trials import results_folder
from kd_bench.utils.errors import UserError
from kd_bench.utils.paths import expand_user
from kd_bench.utils.text import count

if TYPE_CHECKING:
    from kd_bench.evaluation.target import EvaluationTarget
    from kd_bench.launch.run_recipe import PlannedRecipe

_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar")

#: Keys of a recipe that the evaluation of a file of weights reads.
_FILE_SETTINGS = ("dataset", "input", "pipeline", "teacher_training", "teachers")

NORMALISATIONS = ("none", "dataset", "network")


class Targets(NamedTuple):
    """The networks to evaluate, at least one, and the recipe that plans them; None without a recipe."""

    networks: list[EvaluationTarget]
    recipe: PlannedRecipe | None = None

    def describe(self, network: EvaluationTarget) -> str:
        """Returns a network's name for people; of a recipe's trial also its rows, if they are called otherwise."""
        if self.recipe is None:
            return network.name
        from kd_bench.evaluation.target import describe_in_recipe

        return describe_in_recipe(network, self.recipe.planned)


def find_targets(
    target: str,
    out: Path,
    log: Callable[[str], None],
    *,
    data: Path | None = None,
    model: str | None,
    dataset: str | None,
    key: str | None,
    normalise: str | None,
    methods: list[str] | None,
    only: list[str] | None,
    trials: int | None,
    overrides: list[str] | None,
) -> Targets:
    """Returns what the user named.

    Args:
        target: A file of weights, a trial's folder or id, or a recipe.
        out: The results folder.
        log: Called with a sentence for each trial of a recipe that is not finished.
        data: Folder of the data sets; None for the default.
        model, dataset, key, normalise: Options for a file of weights only.
        methods, only, trials: Options for a recipe only.
        overrides: Settings that replace those of a recipe, or of a file's images.

    Raises:
        UserError: If there is no such target, an option has no meaning for it, or no trial of a recipe is finished.
    """
    from kd_bench import api
    from kd_bench.config.load import packaged_recipes
    from kd_bench.evaluation.target import (
        checkpoint_target,
        finished_trial_targets,
        is_without_weights,
        trial_target,
    )
    from kd_bench.trials.missing_results import describe_unplanned
    from kd_bench.trials.recipe_file import find_recipe_in

    results_folder.check_results_folder(out, must_exist=False)
    path = expand_user(target)
    if results_folder.is_trial_id(target) and not os.path.lexists(path):
        path = trial_of_id(target, out)
    if path.is_dir() and ((path / "trial.json").is_file() or target not in packaged_recipes()):
        if number := sum(1 for _ in path.glob("*/trial.json")):
            raise UserError(f"{path}: is a folder of trials ({number}), not a trial's; name one of the folders in it, "
                            f"or their recipe with --out {path.parent}")  # fmt: skip
        of_file = {"model": model, "dataset": dataset, "key": key, "normalise": normalise}
        _refuse("a trial", **of_file, method=methods, only=only, trials=trials, set=overrides)
        return Targets([trial_target(path)])
    if path.suffix in _WEIGHTS or model is not None:
        _refuse("a file of weights", method=methods, only=only, trials=trials)
        if not path.is_file():
            raise UserError(f"{path}: there is no such file of weights")
        if model is None or dataset is None:
            missing = [option for option, value in (("--model", model), ("--dataset", dataset)) if value is None]
            raise UserError(f"{path}: a file of weights needs {' and '.join(missing)}, e.g. --model cifar_wrn_34_10 "
                            "--dataset cifar100")  # fmt: skip
        if normalise is not None:
            opt.check_choice("normalisation", normalise, NORMALISATIONS, "--normalise")
        _refuse_training_settings(overrides)
        recipe = api.pair_recipe("weights", dataset, model, model, overrides=overrides)
        return Targets([checkpoint_target(path, model, recipe, key, normalise, out)])  # type: ignore[arg-type]
    _refuse("a recipe", model=model, dataset=dataset, key=key, normalise=normalise)
    opt.check_out(out)
    source = find_recipe_in(target, out)
    planned = api.plan(source, methods=methods, only=only, trials=trials, overrides=overrides, results=out, data=data)
    results = out / planned.recipe.name
    folders = dict.fromkeys(results / trial.trial_id for trial in planned.planned)
    networks = finished_trial_targets(folders, log)
    if not networks:
        option = results_folder.out_option(out)
        if without_weights := sum(map(is_without_weights, folders)):
            raise UserError(f"{target}: {share(without_weights, len(folders), 'trial')} finished in {results}, but the "
                            "weights were not kept, so there is no network to evaluate; what was measured is shown "
                            f"by: kd-bench report --recipe {shlex.quote(target)}{option}")  # fmt: skip
        if unplanned := describe_unplanned(planned.recipe, planned.context, out):
            raise UserError(f"{target}: none of its {len(folders)} trials is finished; {unplanned}")
        raise UserError(f"{target}: none of its {len(folders)} trials is finished in {results}; train them with: "
                        f"kd-bench run {shlex.quote(target)}{option}")  # fmt: skip
    return Targets(networks, planned)


def trial_of_id(trial_id: str, out: Path) -> Path:
    """Returns the folder of a student or teacher in the results folder. Raises a UserError if there is none."""
    folder = results_folder.find_trial(trial_id, out)
    if folder is None:
        listing = f"kd-bench status --all{results_folder.out_option(out)}"
        raise UserError(f"{trial_id}: there is no trial of this id in {out}; list them with: {listing}")
    return folder


def trial_path(trial: str, out: Path) -> Path:
    """Returns the folder of a trial that the user names by its folder or its id.

    Raises:
        UserError: If there is no such trial.
    """
    path = expand_user(trial)
    if os.path.lexists(path / "trial.json") or (results_folder.is_trial_id(path.name) and os.path.lexists(path)):
        return path
    if not results_folder.is_trial_id(trial):
        raise UserError(f"{trial or repr(trial)}: is neither the folder of a trial nor the id of one in {out}")
    return trial_of_id(trial, out)


def share(part: int, whole: int, noun: str) -> str:
    """Returns the subject and verb of a sentence: ``1 of 2 networks is``."""
    return f"{part} of {count(whole, noun)} {'is' if part == 1 else 'are'}"


def _refuse_training_settings(overrides: list[str] | None) -> None:
    """Raises a UserError for a setting that changes neither the images nor the input of a file of weights."""
    for text in overrides or ():
        if text.partition("=")[0].strip().partition(".")[0] not in _FILE_SETTINGS:
            raise UserError(f"{opt.SET_OPTIONS}: {text} has no meaning for a file of weights, which is not trained; "
                            "only settings of its images have one, e.g. dataset.test_images=100")  # fmt: skip


def _refuse(target: str, **options: object) -> None:
    """Raises a UserError for an option that has no meaning for the target."""
    for name, value in options.items():
        if value is not None:
            option = opt.SET_OPTIONS if name == "set" else f"--{name}"
            raise UserError(f"{option} has no meaning for {target}, so it must be left out")
