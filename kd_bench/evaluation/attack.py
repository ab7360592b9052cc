"""What there is to attack: a file of weights, a trial, all trials of a recipe; and where the evaluation is written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kd_bench import plan as planning
from kd_bench.config.attack import Attack
from kd_bench.config.data import Input
from kd_bench.config.load import parse
from kd_bench.config.recipe import Recipe
from kd_bench.config.trial import PretrainedTeacher, Trial, identity
from kd_bench.data import registry as datasets
from kd_bench.models import cards
from kd_bench.models import registry as models
from kd_bench.robustness.evaluation_record import Record
from kd_bench.trials.folder import TrialFolder
from kd_bench.utils.errors import RunFailed, UserError
from kd_bench.utils.files import read_json, sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kd_bench.robustness.adversarial_images import Examined
    from kd_bench.robustness.evaluation import Progress
    from kd_bench.training.fit import Images

Normalisation = Literal["none", "dataset", "network"]

#: Folder of evaluations, in a trial's folder and in that of results.
FOLDER = "attacks"

#: Images that are read at once of a data set that is not held in memory.
_SOME = 256


@dataclass(frozen=True)
class Target:
    """A network to attack.

    Attributes:
        made: What its weights are of.
        weights: The file.
        key: Where in the file they are; None looks for them.
        normalise: How its images are normalised; None for a trial's, which its settings say.
        folder: Of its evaluations.
        name: For people.
    """

    made: Trial | PretrainedTeacher
    weights: Path
    key: str | None
    normalise: Normalisation | None
    folder: Path
    name: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256(self.weights)

    def subject(self) -> dict[str, Any]:
        """What an evaluation depends on besides the attack's settings."""
        return {
            "model": self.made.model,
            "weights": self.digest,
            "dataset": self.made.dataset.model_dump(mode="json"),
            "pipeline": self.made.pipeline.model_dump(mode="json") if self.made.pipeline else None,
            "normalise": self.normalise or self.made.input.normalise,
            "size": self.made.input.size,
        }

    def file(self, attack: Attack) -> Path:
        """Where an evaluation is written: in a trial's folder the attack's settings alone tell them apart."""
        name = attack.id if self.normalise is None else identity({"attack": attack.id, "subject": self.subject()})
        return self.folder / f"{name}.json"


def checkpoint(
    file: Path, model: str, recipe: Recipe, key: str | None, normalise: Normalisation | None, out: Path
) -> Target:
    """A file of weights.

    Args:
        file: In any layout that ``kd_bench.models.weights`` reads.
        model: The network.
        recipe: Says which images, and how large the network wants them.
        key: Where in the file the weights are; None looks for them.
        normalise: None asks the network's card; where it has none, networks that are made for pixels from 0 to 1 get
            them, others are normalised as the data set is.
        out: The results folder.

    Raises:
        UserError: For names that do not exist, and weights that are not there.
    """
    datasets.check(recipe.dataset, "--dataset")
    network = planning.network(recipe, model, "--model")
    with_weights = recipe.model_copy(update={"teachers": {network: {"weights": str(file)}}})
    made, _ = planning.teacher_of(with_weights, network, "attack")
    assert isinstance(made, PretrainedTeacher)
    return Target(made, file, key, normalise or _usual(network, made.dataset.name), out / FOLDER, file.name)


def trial(folder: Path) -> Target:
    """A finished trial.

    Raises:
        UserError: For a folder that is none, or whose trial is not finished.
    """
    place = TrialFolder(folder.resolve())
    if not (folder / "trial.json").is_file():
        raise UserError(f"{folder}: is no trial's folder: there is no trial.json in it")
    place.check()
    settings = read_json(folder / "trial.json")
    kind: type[Trial] | type[PretrainedTeacher] = Trial if "method" in settings else PretrainedTeacher
    made = parse(kind, settings, str(folder / "trial.json"))
    if place.status() != "done":
        raise UserError(f"{folder}: the trial is {place.status() if place.result() else 'not finished'}, "
                        "so there is no network to attack")  # fmt: skip
    label = f"{made.method.name}, seed {made.seed}" if isinstance(made, Trial) else "given"
    return Target(made, place.weights, None, None, folder / FOLDER, f"{made.model} ({label})")


def _usual(network: str, dataset: str) -> Normalisation:
    card = cards.find("students", dataset, network) or cards.find("teachers", dataset, network)
    if card is not None and card.input != Input():
        return card.input.normalise
    models.register()
    import timm

    cfg = timm.get_pretrained_cfg(network)
    return "network" if cfg is not None and not any(cfg.mean) else "dataset"


class Evaluator:
    """Evaluates targets, of which those of one data set share its images.

    Args:
        data: Where data sets are; None for the default.
        device: ``cpu`` or ``cuda:<n>``.
        threads: Threads of one operation on the CPU.
    """

    def __init__(self, data: Path | None, device: str, threads: int) -> None:
        self.data, self.device, self.threads = data, device, threads
        self._held: tuple[Any, Images] | None = None

    def evaluate(self, target: Target, attack: Attack, keep: bool, progress: Progress | None = None) -> Record:
        """Evaluates what is missing of a target, and returns all of it.

        Args:
            target: The network.
            attack: The settings.
            keep: Whether to keep the adversarial images.
            progress: Told after each batch.

        Raises:
            UserError: Where the weights do not fit the network, or something is damaged.
            RunFailed: Where the logits are not finite, or another process is at it.
        """
        with _alone(target.file(attack)):
            return self._evaluate(target, attack, keep, progress)

    def _evaluate(self, target: Target, attack: Attack, keep: bool, progress: Progress | None) -> Record:
        record, images, labels, classes = self._open(target, attack)
        resumed = record.resume()
        if resumed and record.done and (record.examples or not keep):
            return record
        from kd_bench.robustness.adversarial_images import Examples
        from kd_bench.robustness.evaluation import evaluate
        from kd_bench.trials.environment import describe, now

        fresh = not resumed or (keep and not record.examples)
        if fresh:
            record, *_ = self._open(target, attack)
            record.examples = keep
        examples = Examples(record) if record.examples else None
        if fresh and examples is not None:
            examples.forget()
        earlier = [*record.about.pop("earlier", []), record.about] if record.about else []
        record.about = {
            "file": str(target.weights.resolve()),
            **describe(self.device, self.threads),
            "library": attack.library,
            "earlier": earlier,
        }
        evaluate(self.network(target), images, labels, classes, record, examples, progress)
        if examples is not None:
            examples.gather()
        record.about["finished"] = now()
        record.save()
        if examples is not None:
            examples.forget()
        return record

    def examine(self, target: Target, attack: Attack) -> list[Examined]:
        """Examines the adversarial images that were kept of an evaluation.

        Raises:
            UserError: Where it is not finished, or its images were not kept.
        """
        from kd_bench.robustness.adversarial_images import examine

        record, images, labels, _ = self._open(target, attack)
        if not record.resume() or not record.done:
            raise UserError(
                f"{record.path}: there is no finished evaluation; run the same command without --check first"
            )
        return examine(self.network(target), images, labels, record)

    def network(self, target: Target) -> nn.Module:
        """The network on its device, from pixels between 0 and 1 to logits.

        Raises:
            UserError: Where the weights do not fit.
        """
        import torch

        from kd_bench.models import weights
        from kd_bench.models.input_transform import InputTransform
        from kd_bench.robustness.pixel_input import Pixels

        torch.set_num_threads(self.threads)
        splits = self._splits(target.made)
        size = splits.image_shape[-1]
        wanted = target.made.input
        models.check_source(target.made.model, target.made.model_source)
        network = models.create(target.made.model, splits.num_classes, wanted.size or size)
        weights.load_into(network, weights.read(target.weights, target.key).state, target.weights, target.made.model)
        mean, std = splits.mean, splits.std
        if target.normalise == "none":
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        elif target.normalise == "network":
            cfg = getattr(network, "pretrained_cfg", {})
            mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
        # A trial sees its images as it was trained to, by way of the data set's normalisation.
        seen = wanted if target.normalise is None else wanted.model_copy(update={"normalise": "dataset"})
        view = InputTransform(network, seen, size, splits.mean, splits.std)
        return Pixels(network.eval(), mean, std, view).to(self.device)

    def _open(self, target: Target, attack: Attack) -> tuple[Record, Tensor, Tensor, int]:
        from kd_bench.data.array_dataset import evenly

        splits = self._splits(target.made)
        labels = splits.test_labels
        if attack.images is not None and attack.images > len(labels):
            raise UserError(f"--images {attack.images} is more than {target.made.dataset.title} has, {len(labels)}")
        chosen = evenly(labels, attack.images)
        index = list(range(len(labels))) if chosen is None else chosen.tolist()
        images = self._images(splits, index)
        record = Record(target.file(attack), attack, target.subject(), index, len(labels))
        return record, images, labels[index], splits.num_classes

    def _splits(self, made: Trial | PretrainedTeacher) -> Images:
        wanted = (made.dataset, made.pipeline)
        if self._held is None or self._held[0] != wanted:
            self._held = wanted, datasets.images(made.dataset, made.pipeline, datasets.data_dir(self.data))
        return self._held[1]

    def _images(self, splits: Images, index: Sequence[int]) -> Tensor:
        import torch

        from kd_bench.data.array_dataset import ArrayDataset

        if isinstance(splits, ArrayDataset):
            return splits.test_images[torch.tensor(index)]
        from kd_bench.data.streaming import StreamTestLoader

        wanted = set(index)
        found = {}
        # Decoded and resized images are whole numbers again once their normalisation is undone.
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (splits.mean, splits.std))
        loader = StreamTestLoader(splits, batch_size=_SOME)
        for batch in loader:
            for image, place in zip(batch.images, batch.index.tolist(), strict=True):
                if place in wanted:
                    found[place] = ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
            if len(found) == len(wanted):
                break
        loader.close()
        if len(found) < len(wanted):
            raise UserError(
                f"{len(wanted) - len(found)} of the test images cannot be decoded; choose others with --images"
            )
        return torch.stack([found[place] for place in index])


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Inside, no other process of this machine evaluates the same. The system takes the lock off a killed one."""
    lock = file.with_suffix(".lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held = open(lock, "wb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{lock}: results cannot be written there: {error.strerror or error}") from None
    with held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunFailed(f"{file}: another process is evaluating this") from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            with suppress(OSError):  # where something was written
                file.parent.rmdir()


def trials_of(folders: Iterable[Path], say: Callable[[str], None]) -> list[Target]:
    """The finished ones among trials, and a line about each that is not."""
    found = []
    for folder in folders:
        status = TrialFolder(folder).status()
        if status == "done":
            found.append(trial(folder))
        else:
            say(f"{os.fspath(folder)}: {status if status == 'failed' else 'not trained yet'}, left out")
    return found
