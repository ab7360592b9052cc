import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from kd_bench.config.data import Dataset
from kd_bench.data import registry
from kd_bench.data.array_dataset import ArrayDataset


@pytest.fixture(scope="module")
def digits() -> ArrayDataset:
    return registry.load(Dataset(name="digits"))


def test_shapes_and_types(digits: ArrayDataset) -> None:
    spec = registry.spec("digits")
    assert digits.train_images.shape == (spec.train_size, 3, 32, 32)
    assert digits.test_images.shape == (spec.test_size, 3, 32, 32)
    for images, labels in ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels)):
        assert images.dtype == torch.uint8
        assert images.is_contiguous()
        assert labels.dtype == torch.int64
        assert len(labels) == len(images)
    assert digits.class_names == tuple("0123456789")
    assert digits.num_classes == 10


def test_split_is_stratified_and_holds_every_image_once(digits: ArrayDataset) -> None:
    assert digits.train_labels.bincount().tolist() == [20] * 10
    original = load_digits()
    expected = sorted(
        (image.tobytes(), int(label))
        for image, label in zip((original.images * 255 / 16).round().astype(np.uint8), original.target, strict=True)
    )
    small = torch.cat([digits.train_images, digits.test_images])[:, 0, ::4, ::4].contiguous()
    labels = torch.cat([digits.train_labels, digits.test_labels])
    samples = sorted((image.numpy().tobytes(), int(label)) for image, label in zip(small, labels, strict=True))
    assert samples == expected


def test_enlarging_repeats_pixels(digits: ArrayDataset) -> None:
    small = digits.train_images[:, :1, ::4, ::4]
    again = torch.nn.functional.interpolate(small, scale_factor=4, mode="nearest").expand(-1, 3, -1, -1)
    assert torch.equal(digits.train_images, again)
    assert (int(digits.train_images.min()), int(digits.train_images.max())) == (0, 255)


def test_split_is_the_same_everywhere_and_always(digits: ArrayDataset) -> None:
    torch.manual_seed(7)
    again = registry.load(Dataset(name="digits"))
    assert torch.equal(again.train_images, digits.train_images)
    digest = hashlib.blake2b(digits.train_images.numpy().tobytes() + digits.train_labels.numpy().tobytes())
    assert digest.hexdigest()[:16] == "5be19b4eec6008cd"


def test_mean_and_std_are_those_of_the_training_images(digits: ArrayDataset) -> None:
    scaled = digits.train_images.double() / 255
    assert scaled.mean((0, 2, 3)).tolist() == pytest.approx(digits.mean, abs=1e-4)
    assert scaled.std((0, 2, 3)).tolist() == pytest.approx(digits.std, abs=1e-4)


def test_first_classes_keep_their_order(digits: ArrayDataset) -> None:
    few = registry.load(Dataset(name="digits", classes=3))
    kept = digits.train_labels < 3
    assert torch.equal(few.train_images, digits.train_images[kept])
    assert torch.equal(few.train_labels, digits.train_labels[kept])
    assert torch.equal(few.test_labels, digits.test_labels[digits.test_labels < 3])
    assert len(few.test_images) == len(few.test_labels)
    assert few.class_names == ("0", "1", "2")
    assert torch.equal(registry.load(Dataset(name="digits", classes=10)).train_images, digits.train_images)
