"""Class-balanced subsets of a set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kd_bench.config.data import Dataset
from kd_bench.data import registry
from kd_bench.utils.errors import UserError

DIGITS = registry.load(Dataset(name="digits"))


@pytest.mark.parametrize(("train", "test"), [(64, 33), (200, 1597), (2, 1), (199, None), (None, 10)])
def test_they_are_even_over_the_classes_and_the_first_of_each(train: int | None, test: int | None) -> None:
    subset = registry.load(Dataset(name="digits", train_images=train, test_images=test))
    for wanted, images, labels, all_images, all_labels in (
        (train, subset.train_images, subset.train_labels, DIGITS.train_images, DIGITS.train_labels),
        (test, subset.test_images, subset.test_labels, DIGITS.test_images, DIGITS.test_labels),
    ):
        assert len(images) == len(labels) == (wanted or len(all_labels))
        if wanted is None or wanted == len(all_labels):
            assert torch.equal(images, all_images)
            continue
        counts = labels.bincount(minlength=10)
        assert counts.max() - counts.min() <= 1
        for label in range(10):
            assert torch.equal(images[labels == label], all_images[all_labels == label][: counts[label]])
        places = [
            next(i for i, candidate in enumerate(all_images) if torch.equal(candidate, image)) for image in images[:20]
        ]
        assert places == sorted(places)
    assert subset.class_names == DIGITS.class_names and subset.mean == DIGITS.mean


def test_classes_are_cut_first() -> None:
    subset = registry.load(Dataset(name="digits", classes=3, train_images=9))
    assert subset.train_labels.bincount().tolist() == [3, 3, 3]


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"r.yaml: dataset: train_images: 201 is more than digits has, 200"):
        registry.check(Dataset(name="digits", train_images=201), "r.yaml: dataset")
    with pytest.raises(UserError, match="test_images: 1500 is more than digits has"):
        registry.load(Dataset(name="digits", classes=2, test_images=1500), Path())


def test_a_trial_without_the_setting_keeps_its_identity() -> None:
    assert "train_images" not in Dataset(name="digits").model_dump(mode="json")
    assert Dataset(name="digits", train_images=32, test_images=64).title == (
        "digits (32 training images, 64 test images)"
    )
    assert Dataset(name="cifar100", labels="fine", classes=20, train_images=40).title == (
        "cifar100 (first 20 fine classes, 40 training images)"
    )
