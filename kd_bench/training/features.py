"""The inputs of a frozen network's classifier for all images of a data set, computed once and kept.

If only the classifier is trained, and images are not augmented, everything before it computes the same numbers in every
epoch. They are computed in the set's order, in batches of one size, so that they have the same bits whether they come
from the file or not, and whatever the batches of the training are. With torch on a CPU, the last bits of a network's
outputs may depend on the batch, so in the batches of a training they could be others (by less than 1e-5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.models.timm_interface import dry_run
from kd_bench.models.trainable import classifier_modules
from kd_bench.training.forward_pass import precision_context
from kd_bench.training.loaders import TestLoader, evaluation_loader
from kd_bench.training.logit_cache import LogitCache
from kd_bench.types import Batch

#: Opens the file of the features, given their number and their length; None if there is no space for it.
OpenFeatureFile = Callable[[int, int], "FeatureFile | None"]


class FeatureFile(LogitCache):
    """A file of features, in the format of the file of logits: a row counts only if its checksum fits."""

    @property
    def is_complete(self) -> bool:
        """Whether all rows are known."""
        return bool(self._read(np.arange(self.rows))[1].all())

    def read_or_compute(self, rows: np.ndarray, compute: Callable[[], Tensor]) -> Tensor:
        """Returns the features of some rows, (B, D) float32 on the CPU. Unless all are known, computes and keeps all.

        Args:
            rows: (B,) numbers of the rows.
            compute: Computes their features.
        """
        if self._file is None:  # the disk is full
            return compute()
        values, is_written = self._read(rows)
        if is_written.all():
            return torch.from_numpy(values)
        computed = compute()
        self._write(rows[~is_written], computed.numpy()[~is_written])
        return computed


def feature_length(network: nn.Module, image: tuple[int, ...]) -> int | None:
    """Returns D, the length of the classifier's input; None unless the logits are the output of a single classifier.

    Args:
        network: The network.
        image: (C, H, W) of an image that it can process.
    """
    layers = classifier_modules(network)
    if len(layers) != 1:
        return None
    with dry_run(network, image) as black, torch.no_grad():
        inputs, logits = _classifier_inputs(network, layers[0], black)
        fits = len(inputs) == 1 and inputs[0].ndim == 2 and torch.equal(layers[0](inputs[0]), logits)
    return inputs[0].shape[1] if fits else None


def _classifier_inputs(network: nn.Module, classifier: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    inputs: list[Tensor] = []

    def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0])

    hook = classifier.register_forward_pre_hook(note)
    try:
        logits = network(images)
    finally:
        hook.remove()
    return inputs, logits


def compute_features(
    trial: Trial,
    network: nn.Module,
    view: nn.Module,
    images: ArrayDataset,
    device: torch.device,
    file: FeatureFile | None,
) -> dict[str, Tensor]:
    """Returns the features of all images by split ("train", "test", "holdout"): (N, D) float32 each.

    Args:
        trial: The settings.
        network: The network, in evaluation mode but for its classifier.
        view: Transforms images into the network's input.
        images: The data set.
        device: Where they are computed and kept.
        file: Where they are kept for other processes; None for nowhere.
    """
    (classifier,) = classifier_modules(network)

    @torch.no_grad()
    def compute(batch: Batch) -> Tensor:
        with precision_context(trial.precision, device):
            (features,), _ = _classifier_inputs(network, classifier, view(batch.images))
        return features.float().cpu()

    splits: dict[str, Tensor] = {}
    begin = 0
    for split, loader in _loaders(images, device):
        parts = []
        for batch in loader:
            rows = begin + batch.index.cpu().numpy()
            parts.append(compute(batch) if file is None else file.read_or_compute(rows, partial(compute, batch)))
        begin += sum(map(len, parts))
        splits[split] = torch.cat(parts).to(device)
    return splits


def image_count(images: ArrayDataset) -> int:
    """Returns the number of images of all splits."""
    held_out = 0 if images.holdout is None else len(images.holdout.test_labels)
    return len(images.train_labels) + len(images.test_labels) + held_out


def _loaders(images: ArrayDataset, device: torch.device) -> Iterator[tuple[str, TestLoader]]:
    """Yields the splits without augmentation, each in its order."""
    training = replace(images, test_images=images.train_images, test_labels=images.train_labels)
    splits = zip(("train", "test", "holdout"), (training, images, images.holdout), strict=True)
    yield from ((split, evaluation_loader(part, device)) for split, part in splits if part is not None)
