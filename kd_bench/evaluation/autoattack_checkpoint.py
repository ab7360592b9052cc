"""Evaluates checkpoints by AutoAttack and writes the evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.config.attack import Attack, show_eps
from kd_bench.evaluation.dataset_reader import DatasetReader
from kd_bench.evaluation.lock import evaluation_lock
from kd_bench.evaluation.target import EvaluationTarget
from kd_bench.robustness.evaluation_record import EvaluationRecord
from kd_bench.utils.errors import UserError

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
        self.device, self.threads = device, threads
        self._images = DatasetReader(data)

    def evaluate(
        self, target: EvaluationTarget, attack: Attack, save_images: bool, report_progress: ReportProgress | None = None
    ) -> EvaluationRecord:
        """Evaluates a target, or continues an unfinished evaluation.

        Args:
            target, attack: The network and the settings.
            save_images: Whether to save the adversarial images.
            report_progress: Called after each batch.

        Raises:
            UserError: If the weights do not fit the network, weights or images are not the trial's, or a file is
                damaged.
            RunFailed: If the logits are not finite, or another process is doing the same evaluation.
        """
        target.check_weights()
        images_record = self._images.open(target.trained).record
        if target.is_trial:
            from kd_bench.trials.folder import TrialFolder
            from kd_bench.trials.images import check_same_images

            result = TrialFolder(target.folder.resolve()).result() or {}
            check_same_images(target.folder, "its result is", result, images_record)
        with evaluation_lock(target.record_path(attack)):
            record, dataset = self._open(target, attack)
            # Earlier versions did not record the images.
            resumed = record.resume() and record.provenance.get("images") in (None, images_record)
            if resumed and record.done and (record.saves_images or not save_images):
                return record
            from kd_bench.robustness.adversarial_images import AdversarialImageFiles
            from kd_bench.robustness.evaluation import evaluate_robustness
            from kd_bench.trials.environment import describe_environment, utc_timestamp

            restart = not resumed or (save_images and not record.saves_images)
            if restart:
                record, _ = self._open(target, attack)
                record.saves_images = save_images
            image_files = AdversarialImageFiles(record) if record.saves_images else None
            if restart and image_files is not None:
                image_files.remove_batches()
            earlier = [*record.provenance.pop("earlier", []), record.provenance] if record.provenance else []
            record.provenance = {
                "file": str(target.weights.resolve()),
                **describe_environment(self.device, self.threads),
                "library": attack.library,
                "images": images_record,
                "earlier": earlier,
            }
            network, images = self.load_network(target), _test_images(dataset, record.index)
            labels, classes = dataset.test_labels[record.index], dataset.num_classes
            evaluate_robustness(network, images, labels, classes, record, image_files, report_progress)
            if image_files is not None:
                image_files.merge()
            record.provenance["finished"] = utc_timestamp()
            record.save()
            if image_files is not None:
                image_files.remove_batches()
            return record

    def check_images(self, target: EvaluationTarget, attack: Attack) -> list[ImageCheck]:
        """Checks the saved adversarial images of an evaluation.

        Raises:
            UserError: If it is not finished, or its images were not saved.
        """
        from kd_bench.robustness.adversarial_images import check_adversarial_images

        record, dataset = self._open(target, attack)
        if not record.resume() or not record.done:
            raise UserError(f"{record.path}: no finished evaluation; run the same command without --check first")
        images, labels = _test_images(dataset, record.index), dataset.test_labels[record.index]
        return check_adversarial_images(self.load_network(target), images, labels, record)

    def load_network(self, target: EvaluationTarget) -> nn.Module:
        """Returns the network on its device. It maps pixels from 0 to 1 to logits.

        Raises:
            UserError: If the weights do not fit.
        """
        import torch

        from kd_bench.evaluation.target_network import load_pixel_network

        torch.set_num_threads(self.threads)
        return load_pixel_network(target, self._images.open(target.trained)).to(self.device)

    def _open(self, target: EvaluationTarget, attack: Attack) -> tuple[EvaluationRecord, Images]:
        """Returns a new record and the data set with the images to attack."""
        from kd_bench.data.array_dataset import balanced_indices

        dataset = self._images.open(target.trained)
        labels = dataset.test_labels
        if attack.images is not None and attack.images > len(labels):
            raise UserError(f"--images {attack.images} is more than {target.trained.dataset.title} has, {len(labels)}")
        selected = balanced_indices(labels, attack.images)
        values, name = math.prod(dataset.image_shape), target.trained.dataset.title
        if attack.norm == "L2" and attack.eps >= math.sqrt(values):
            raise UserError(f"--eps: {show_eps(attack.eps)} in L2 reaches all images of {name}, whose {values} values "
                            "go from 0 to 1; 0.5 is usual for CIFAR-10")  # fmt: skip
        index = list(range(len(labels))) if selected is None else selected.tolist()
        record = EvaluationRecord(target.record_path(attack), attack, target.subject(), index, len(labels))
        return record, dataset


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
