"""A member of a cohort that trains a classifier on features that are computed once."""

from __future__ import annotations

from torch import Tensor, nn

from kd_bench.config.trial import Trial
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.methods.base import Method
from kd_bench.models.trainable import classifier_modules
from kd_bench.training.features import OpenFeatureFile, compute_features, image_count
from kd_bench.training.forward_pass import ForwardPass
from kd_bench.training.metrics import MetricSums
from kd_bench.training.partly_trained import PartlyTrainedModule
from kd_bench.training.result_writer import ResultWriter
from kd_bench.types import Batch, Output, Outputs


class HeadOnFeaturesModule(PartlyTrainedModule):
    """One trial in training, of whose network the classifier is trained, on images without augmentation.

    The features, which the classifier reads, are computed in the first step, and count as its time.

    Args:
        trial, network, view, method, writer, trained: As for ``PartlyTrainedModule``.
        images: The data set.
        length: Length of the features, see ``features.feature_length``.
        open_file: Opens the file of the features. If there is none, they are kept in memory only.
    """

    def __init__(
        self,
        trial: Trial,
        network: nn.Module,
        view: nn.Module,
        method: Method,
        writer: ResultWriter,
        trained: frozenset[nn.Module],
        images: ArrayDataset,
        length: int,
        open_file: OpenFeatureFile,
    ) -> None:
        super().__init__(trial, network, view, method, writer, trained)
        self._images, self._length, self._open_file = images, length, open_file
        self._features: dict[str, Tensor] = {}
        self._classifier = _forward_pass(network)
        self._tested = [(self._classifier, self.test_sums)]
        if self.average is not None:
            self._tested.append((_forward_pass(self.average.module), self.extra_sums))

    def _rows(self, split: str, batch: Batch) -> Tensor:
        """Returns the features of a batch, (B, D)."""
        if not self._features:
            self._compute(batch)
        return self._features[split].index_select(0, batch.index)

    def _compute(self, batch: Batch) -> None:
        count = image_count(self._images)
        file = self._open_file(count, self._length)
        if file is None or not file.is_complete:
            kept_in = "for this training" if file is None else f"in {file.path}"
            text = f"computes the features of {count:,} images once, and keeps them {kept_in}"
            self.writer.report_note(self, text)
        try:
            arguments = self.trial, self.network, self.view, self._images, batch.images.device, file
            self._features = compute_features(*arguments)
        finally:
            if file is not None:
                file.close()

    def _student_outputs(self, batch: Batch, needs: frozenset[Output]) -> Outputs:
        return self._classifier(self._rows("train", batch))

    def _networks_to_test(self) -> list[tuple[ForwardPass, MetricSums]]:
        return self._tested

    def _test_inputs(self, batch: Batch, held_out: bool) -> Tensor:
        return self._rows("holdout" if held_out else "test", batch)


def _forward_pass(network: nn.Module) -> ForwardPass:
    """Returns the forward pass from features to logits."""
    (classifier,) = classifier_modules(network)
    return lambda features: Outputs(classifier(features))
