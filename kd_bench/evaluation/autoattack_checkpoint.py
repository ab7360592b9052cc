"""Evaluates checkpoints by AutoAttack and writes the evaluations."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd_bench.config.attack import Attack
from kd_bench.config.trial import PretrainedTeacher, Trial
from kd_bench.data import registry as datasets
from kd_bench.evaluation.attack_target import AttackTarget
from kd_bench.models import registry as models
from kd_bench.robustness.evaluation_record import EvaluationRecord
from kd_bench.utils import plugins
from kd_bench.utils.errors import RunFailed, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kd_bench.robustness.adversarial_images import ImageCheck
    from kd_bench.robustness.evaluation import ReportProgress
    from kd_bench.training.loaders import Images

#: Images of a batch that is read from a data set on disk.
_BATCH_SIZE = 256


class AutoAttackEvaluator:
    """Evaluates targets one after another. Targets of one data set share its images.

    Args:
        data: Folder of data sets; None for the default.
        device: ``cpu`` or ``cuda:<n>``.
        threads: CPU threads of one operation.
    """

    def __init__(self, data: Path | None, device: str, threads: int) -> None:
        self.data, self.device, self.threads = data, device, threads
        self._dataset: tuple[Any, Images] | None = None

    def evaluate(
        self, target: AttackTarget, attack: Attack, save_images: bool, report_progress: ReportProgress | None = None
    ) -> EvaluationRecord:
        """Evaluates a target, or continues an unfinished evaluation.

        Args:
            target, attack: The network and the settings.
            save_images: Whether to save the adversarial images.
            report_progress: Called after each batch.

        Raises:
            UserError: If the weights do not fit the network, or a file is damaged.
            RunFailed: If the logits are not finite, or another process is doing the same evaluation.
        """
        with _lock(target.record_path(attack)):
            record, images, labels, classes = self._open(target, attack)
            resumed = record.resume()
            if resumed and record.done and (record.saves_images or not save_images):
                return record
            from kd_bench.robustness.adversarial_images import AdversarialImageFiles
            from kd_bench.robustness.evaluation import evaluate_robustness
            from kd_bench.trials.environment import describe_environment, utc_timestamp

            restart = not resumed or (save_images and not record.saves_images)
            if restart:
                record, *_ = self._open(target, attack)
                record.saves_images = save_images
            image_files = AdversarialImageFiles(record) if record.saves_images else None
            if restart and image_files is not None:
                image_files.remove_batches()
            earlier = [*record.provenance.pop("earlier", []), record.provenance] if record.provenance else []
            record.provenance = {
                "file": str(target.weights.resolve()),
                **describe_environment(self.device, self.threads),
                "library": attack.library,
                "earlier": earlier,
            }
            network = self.load_network(target)
            evaluate_robustness(network, images, labels, classes, record, image_files, report_progress)
            if image_files is not None:
                image_files.merge()
            record.provenance["finished"] = utc_timestamp()
            record.save()
            if image_files is not None:
                image_files.remove_batches()
            return record

    def check_images(self, target: AttackTarget, attack: Attack) -> list[ImageCheck]:
        """Checks the saved adversarial images of an evaluation.

        Raises:
            UserError: If it is not finished, or its images were not saved.
        """
        from kd_bench.robustness.adversarial_images import check_adversarial_images

        record, images, labels, _ = self._open(target, attack)
        if not record.resume() or not record.done:
            raise UserError(f"{record.path}: no finished evaluation; run the same command without --check first")
        return check_adversarial_images(self.load_network(target), images, labels, record)

    def load_network(self, target: AttackTarget) -> nn.Module:
        """Returns the network on its device. It maps pixels from 0 to 1 to logits.

        Raises:
            UserError: If the weights do not fit.
        """
        import torch

        from kd_bench.models import weights
        from kd_bench.models.input_transform import InputTransform
        from kd_bench.robustness.pixel_input import NormalisedNetwork

        torch.set_num_threads(self.threads)
        trained, dataset = target.trained, self._open_dataset(target.trained)
        image_size = dataset.image_shape[-1]
        plugins.refuse_changes(trained.model, models.source_hash(trained.model), trained.model_source)
        network = models.create(trained.model, dataset.num_classes, trained.input.size or image_size)
        weights.load_into(network, weights.read(target.weights, target.key).state, target.weights, trained.model)
        mean, std = dataset.mean, dataset.std
        if target.normalise == "none":
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        elif target.normalise == "network":
            cfg = getattr(network, "pretrained_cfg", {})
            mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
        # A trial's network expects images as in training, where they have the data set's normalisation first.
        update = {} if target.normalise is None else {"normalise": "dataset"}
        view = InputTransform(network, trained.input.model_copy(update=update), image_size, dataset.mean, dataset.std)
        return NormalisedNetwork(network.eval(), mean, std, view).to(self.device)

    def _open(self, target: AttackTarget, attack: Attack) -> tuple[EvaluationRecord, Tensor, Tensor, int]:
        """Returns a new record, the images and labels to attack, and the number of classes."""
        from kd_bench.data.array_dataset import balanced_indices

        dataset = self._open_dataset(target.trained)
        labels = dataset.test_labels
        if attack.images is not None and attack.images > len(labels):
            raise UserError(f"--images {attack.images} is more than {target.trained.dataset.title} has, {len(labels)}")
        selected = balanced_indices(labels, attack.images)
        index = list(range(len(labels))) if selected is None else selected.tolist()
        record = EvaluationRecord(target.record_path(attack), attack, target.subject(), index, len(labels))
        return record, _test_images(dataset, index), labels[index], dataset.num_classes

    def _open_dataset(self, trained: Trial | PretrainedTeacher) -> Images:
        key = (trained.dataset, trained.pipeline)
        if self._dataset is None or self._dataset[0] != key:
            self._dataset = key, datasets.open_dataset(*key, datasets.resolve_data_dir(self.data))
        return self._dataset[1]


def _test_images(dataset: Images, index: Sequence[int]) -> Tensor:
    """Returns test images as (N, C, H, W) uint8."""
    import torch

    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.streaming import StreamTestLoader

    if isinstance(dataset, ArrayDataset):
        return dataset.test_images[torch.tensor(index)]
    selected = set(index)
    images = {}
    # Decoded and resized images are whole numbers again once their normalisation is undone.
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    loader = StreamTestLoader(dataset, batch_size=_BATCH_SIZE)
    for batch in loader:
        for image, position in zip(batch.images, batch.index.tolist(), strict=True):
            if position in selected:
                images[position] = ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        if len(images) == len(selected):
            break
    loader.close()
    if len(images) < len(selected):
        missing = len(selected) - len(images)
        raise UserError(f"{missing} of the test images cannot be decoded; choose others with --images")
    return torch.stack([images[position] for position in index])


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """Inside, no other process of this machine does the same evaluation. The system unlocks it for a killed process."""
    path = file.with_suffix(".lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "wb")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{path}: results cannot be written there: {error.strerror or error}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunFailed(f"{file}: another process is evaluating this") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # the folder is not empty if something was written
                file.parent.rmdir()
