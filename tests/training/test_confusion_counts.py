"""The confusion matrix that is counted during the evaluation of a network."""

from __future__ import annotations

import torch

from kd_bench.training.metrics import MetricSums


def test_every_image_is_counted_once() -> None:
    sums = MetricSums(by_class=True)
    generator = torch.Generator().manual_seed(0)
    expected = torch.zeros(7, 7, dtype=torch.int64)
    for size in (64, 64, 13):
        logits, labels = torch.randn(size, 7, generator=generator), torch.randint(6, (size,), generator=generator)
        sums.update({}, logits, labels)
        for label, predicted in zip(labels.tolist(), logits.argmax(1).tolist(), strict=True):
            expected[label, predicted] += 1
    confusion = sums.compute_confusion()
    assert confusion is not None and torch.equal(confusion.long(), expected)
    accuracies = sums.compute_by_class()
    for index, accuracy in enumerate(accuracies):
        images = int(confusion[index].sum())
        assert accuracy == (100 * int(confusion[index, index]) / images if images else None)
    assert accuracies[6] is None


def test_ties_are_counted_as_the_accuracy_counts_them() -> None:
    sums = MetricSums(by_class=True)
    sums.update({}, torch.zeros(32, 5), torch.arange(32) % 5)
    confusion = sums.compute_confusion()
    assert confusion is not None
    assert 100 * int(confusion.diagonal().sum()) / 32 == sums.compute()["top1"]


def test_an_epoch_counts_from_zero_in_the_same_memory() -> None:
    sums = MetricSums(by_class=True)
    assert sums.compute_confusion() is None
    sums.update({}, torch.eye(3), torch.arange(3))
    places = [tensor.data_ptr() for tensor in sums.tensors()]
    first = sums.compute_confusion()
    sums.update({}, torch.eye(3), torch.zeros(3, dtype=torch.int64))
    assert [tensor.data_ptr() for tensor in sums.tensors()] == places, "recorded steps write to them"
    second = sums.compute_confusion()
    assert first is not None and torch.equal(first, torch.eye(3, dtype=torch.int32))
    assert second is not None and second.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]


def test_none_for_very_many_classes_and_for_training() -> None:
    many, training = MetricSums(by_class=True), MetricSums()
    many.update({}, torch.eye(1001)[:2], torch.tensor([0, 3]))
    assert many.compute_confusion() is None and many.compute_by_class()[:4] == [100.0, None, None, 0.0]
    training.update({}, torch.eye(3), torch.arange(3))
    assert training.compute_confusion() is None and training.compute_by_class() == []
