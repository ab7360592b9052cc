"""What can be evaluated: a file of weights, or a trial."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from kd_bench import plan as planning
from kd_bench.config.attack import Attack
from kd_bench.config.data import Input
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import PlannedTrial, PretrainedTeacher, Trial, identity
from kd_bench.data import registry as datasets
from kd_bench.models import cards
from kd_bench.models import registry as models
from kd_bench.trials.evaluation_file import EVALUATION
from kd_bench.trials.folder import TrialFolder
from kd_bench.trials.reader import WEIGHTS, read_trial, trial_settings
from kd_bench.utils.errors import UserError
from kd_bench.utils.files import sha256

Normalisation = Literal["none", "dataset", "network"]

#: Folder of evaluations under attack, in a trial's folder and in the results folder.
ATTACKS_FOLDER = "attacks"

#: Folder of the other evaluations of files of weights, in the results folder.
EVALUATIONS_FOLDER = "evaluations"


@dataclass(frozen=True)
class EvaluationTarget:
    """A network to evaluate.

    Attributes:
        trained: The trial or teacher whose weights these are.
        weights: The file of weights.
        key: Key of the weights in the file; None searches for them.
        normalise: Normalisation of the images; None for a trial, whose settings say it.
        folder: The trial's folder; the results folder for a file of weights.
        name: Name for people.
    """

    trained: Trial | PretrainedTeacher
    weights: Path
    key: str | None
    normalise: Normalisation | None
    folder: Path
    name: str

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file of weights."""
        return sha256(self.weights)

    def subject(self) -> dict[str, Any]:
        """Returns everything that an evaluation depends on besides its own settings."""
        # a file may have several networks' weights; without a key there are evaluations of earlier versions
        key = {} if self.key is None else {"key": self.key}
        # the code of a user's network may change; that of a trial's network must not
        source = {} if self.is_trial or not self.trained.model_source else {"source": self.trained.model_source}
        return {
            **key,
            **source,
            "model": self.trained.model,
            "weights": self.sha256,
            "dataset": self.trained.dataset.model_dump(mode="json"),
            "pipeline": self.trained.pipeline.model_dump(mode="json") if self.trained.pipeline else None,
            "normalise": self.normalise or self.trained.input.normalise,
            "size": self.trained.input.size,
        }

    def record_path(self, attack: Attack) -> Path:
        """Returns the file of an evaluation. In a trial's folder its name depends on the attack's settings alone."""
        name = attack.id if self.is_trial else identity({"attack": attack.id, "subject": self.subject()})
        return self.folder / ATTACKS_FOLDER / f"{name}.json"

    @property
    def input_description(self) -> str:
        """A sentence on the normalisation of a file's network, which the file does not say; empty for a trial."""
        if self.normalise is None:
            return ""
        ways = {
            "none": "gets pixels from 0 to 1",
            "dataset": f"gets images normalised with mean and standard deviation of {self.trained.dataset.name}",
            "network": "gets images normalised as its configuration in timm says",
        }
        others = " or ".join(way for way in ways if way != self.normalise)
        return f"{self.name}: {self.trained.model} {ways[self.normalise]}; for others: --normalise {others}"

    @property
    def is_trial(self) -> bool:
        """Whether the weights are those of a trial's folder, and not a file of weights."""
        return self.normalise is None

    def check_weights(self) -> None:
        """Raises a UserError if the weights are not those that a trial's ``result.json`` is about."""
        if not self.is_trial:
            return
        result = read_trial(self.folder.resolve()).result or {}
        if self.sha256 != result.get("weights_sha256"):
            raise UserError(
                f"{self.weights}: is not what was written: its checksum differs from that in result.json; restore it, "
                f"or remove {self.folder} to train this trial again"
            )

    @property
    def evaluation_path(self) -> Path:
        """The file of all evaluations except those under attack."""
        if self.is_trial:
            return self.folder / EVALUATION
        return self.folder / EVALUATIONS_FOLDER / f"{identity({'evaluation': self.subject()})}.json"


def checkpoint_target(
    file: Path, model: str, recipe: Recipe, key: str | None, normalise: Normalisation | None, out: Path
) -> EvaluationTarget:
    """Returns the target for a file of weights.

    Args:
        file: The weights, in any layout that ``kd_bench.models.weights`` reads.
        model: The network.
        recipe: Recipe with the data set and the network's input size.
        key: Key of the weights in the file; None searches for them.
        normalise: Normalisation of the images; None for that of the network's card. Without a card, networks made for
            pixels from 0 to 1 have none, and others have the data set's.
        out: The results folder.

    Raises:
        UserError: If a name does not exist or the weights are missing.
    """
    datasets.check(recipe.dataset, "--dataset")
    network = planning.resolve_network(recipe, model, "--model")
    recipe = recipe.model_copy(update={"teachers": {network: {"weights": str(file)}}})
    trained, _ = planning.plan_teacher(recipe, network, str(file))
    assert isinstance(trained, PretrainedTeacher)
    normalise = normalise or _default_normalisation(network, trained.dataset.name)
    return EvaluationTarget(trained, file, key, normalise, out, file.name)


def trial_target(path: Path) -> EvaluationTarget:
    """Returns the target for a finished trial.

    Raises:
        UserError: If the folder is not a trial's or is damaged, or the trial is not finished or has lost its weights.
    """
    if not (path / "trial.json").is_file():
        raise UserError(f"{path}: is no trial's folder: there is no trial.json in it")
    record = read_trial(path.resolve())
    if record.is_damaged:
        raise UserError(record.advice)
    trained = trial_settings(record)
    if record.verdict != "done" or not record.has_weights:
        states = {"failed": "the trial has failed", "done": "its weights are gone"}
        state = states.get(record.verdict, "the trial is not finished")
        raise UserError(f"{path}: {state}, so there is no network to evaluate")
    label = f"{trained.method.title}, seed {trained.seed}" if isinstance(trained, Trial) else "given"
    return EvaluationTarget(trained, record.path / WEIGHTS, None, None, path, f"{trained.model} ({label})")


def finished_trial_targets(folders: Iterable[Path], log: Callable[[str], None]) -> list[EvaluationTarget]:
    """Returns the targets for the finished trials in these folders.

    Logs a line for each damaged trial and, if there are targets, one for all trials that are none.
    """
    targets = []
    unfinished: Counter[str] = Counter()
    for folder in folders:
        try:
            status = TrialFolder(folder).status()
        except UserError as error:
            log(f"{error}; left out")
            continue
        if status == "done":
            targets.append(trial_target(folder))
        elif is_without_weights(folder):
            unfinished["kept without weights"] += 1
        else:
            unfinished["failed" if status == "failed" else "not trained yet"] += 1
    if targets and unfinished:
        log(f"left out: {', '.join(f'{number} {state}' for state, number in unfinished.items())}")
    return targets


def describe_in_recipe(network: EvaluationTarget, planned: Iterable[PlannedTrial]) -> str:
    """Returns the name of a recipe's trial for people, with its rows if they are called otherwise than the method."""
    name = network.folder.name
    labels = dict.fromkeys(cell.label for cell in planned if cell.trial_id == name)
    rows = "" if all(f"({label}, " in network.name for label in labels) else f"{', '.join(labels)}: "
    return f"{rows}{network.name}, {name}"


def is_without_weights(folder: Path) -> bool:
    """Whether a trial is finished, but only its results were kept."""
    record = read_trial(folder)
    return record.verdict == "done" and not record.has_weights


def _default_normalisation(network: str, dataset: str) -> Normalisation:
    card = cards.find("students", dataset, network) or cards.find("teachers", dataset, network)
    if card is not None and card.input != Input():
        return card.input.normalise
    models.register()
    import timm

    cfg = timm.get_pretrained_cfg(network)
    return "network" if cfg is not None and not any(cfg.mean) else "dataset"
