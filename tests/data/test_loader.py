import hashlib
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_bench.data.augment import Normalise, crop_and_flip, draw
from kd_bench.data.loader import InMemoryLoader
from kd_bench.types import Batch

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def make(size: int, batch_size: int = 8, **settings: Any) -> InMemoryLoader:
    images = torch.arange(size * 3 * 6 * 5).view(size, 3, 6, 5).remainder(251).to(torch.uint8)
    labels = torch.arange(size) % 7
    return InMemoryLoader(images, labels, batch_size=batch_size, mean=MEAN, std=STD, **settings)


def training(size: int, batch_size: int = 8, seed: int = 0) -> InMemoryLoader:
    return make(size, batch_size, crop=2, flip=True, shuffle=True, seed=seed)


def epoch(loader: InMemoryLoader, number: int) -> list[Batch]:
    loader.set_epoch(number)
    return list(loader)


def by_sample(batches: list[Batch], size: int) -> dict[int, Tensor]:
    found = {int(index): image for batch in batches for index, image in zip(batch.index, batch.images, strict=True)}
    assert len(found) == size
    return found


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 60), batch_size=st.integers(1, 20), number=st.integers(0, 500), seed=st.integers(0, 9))
def test_every_epoch_is_a_permutation(size: int, batch_size: int, number: int, seed: int) -> None:
    loader = training(size, batch_size, seed)
    batches = epoch(loader, number)
    index = torch.cat([batch.index for batch in batches]) if batches else torch.empty(0, dtype=torch.int64)
    dropped = 1 if batch_size > 1 and size % batch_size == 1 else 0
    assert len(set(index.tolist())) == len(index) == size - dropped
    assert len(batches) == len(loader)
    assert all(len(batch.index) == batch_size for batch in batches[:-1])
    for step, batch in enumerate(batches):
        assert (batch.epoch, batch.step) == (number, step)
        assert torch.equal(batch.labels, loader.labels[batch.index])
        assert batch.images.shape == (len(batch.index), 3, 6, 5)
        assert batch.images.dtype == torch.float32


def test_batches_are_the_sets_images_cropped_and_flipped_by_the_epochs_draws() -> None:
    loader = training(50, seed=3)
    draws = draw(3, 4, 50, 2)
    whole = Normalise(MEAN, STD, torch.device("cpu"))(crop_and_flip(loader.images, draws, 2))
    for batch in epoch(loader, 4):
        assert torch.equal(batch.images, whole[batch.index])


@settings(max_examples=20, deadline=None)
@given(one=st.integers(2, 40), other=st.integers(2, 40), number=st.integers(0, 99))
def test_a_sample_looks_the_same_in_any_batch(one: int, other: int, number: int) -> None:
    size = 2 * one * other  # neither leaves a single image over
    first = by_sample(epoch(training(size, one), number), size)
    second = by_sample(epoch(training(size, other), number), size)
    assert all(torch.equal(first[sample], second[sample]) for sample in range(size))


def test_batch_size_does_not_change_the_order() -> None:
    orders = [torch.cat([batch.index for batch in epoch(training(36, size), 5)]) for size in (4, 9, 36)]
    assert torch.equal(orders[0], orders[1])
    assert torch.equal(orders[0], orders[2])


def test_seeds_and_epochs_differ_and_nothing_depends_on_history() -> None:
    loader = training(64)
    seen = {}
    for seed in (0, 1):
        for number in (0, 1):
            batches = epoch(training(64, seed=seed), number)
            seen[seed, number] = (torch.cat([batch.index for batch in batches]), by_sample(batches, 64))
    keys = list(seen)
    for place, one in enumerate(keys):
        for other in keys[:place]:
            assert not torch.equal(seen[one][0], seen[other][0])
            assert not all(torch.equal(seen[one][1][sample], seen[other][1][sample]) for sample in range(64))
    epoch(loader, 9)
    torch.manual_seed(1)
    for number in (1, 0):  # backwards, after another epoch
        assert torch.equal(torch.cat([batch.index for batch in epoch(loader, number)]), seen[0, number][0])
    assert torch.equal(next(iter(loader)).images, next(iter(loader)).images)


def test_two_iterations_at_once_do_not_disturb_each_other() -> None:
    loader = training(32)
    expected = epoch(loader, 1)
    loader.set_epoch(1)
    running = iter(loader)
    first = next(running)
    epoch(loader, 2)
    for batch, other in zip([first, *running], expected, strict=True):
        assert batch.epoch == 1
        assert torch.equal(batch.images, other.images)


def test_evaluation_gives_every_image_untouched_in_order() -> None:
    loader = make(17, 8)
    batches = epoch(loader, 3)
    assert [len(batch.index) for batch in batches] == [8, 8, 1]
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(17))
    expected = (loader.images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)


def test_flip_alone_and_crop_alone() -> None:
    images = make(64).images
    plain = by_sample(epoch(make(64), 0), 64)
    flips = draw(0, 0, 64, 0).flips
    flipped = by_sample(epoch(make(64, flip=True), 0), 64)
    for sample in range(64):
        assert torch.equal(flipped[sample], plain[sample].flip(-1) if flips[sample] else plain[sample])
    draws = draw(0, 0, 64, 2)
    cropped = by_sample(epoch(make(64, crop=2), 0), 64)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    normalise = Normalise(MEAN, STD, torch.device("cpu"))
    for sample, (top, left) in enumerate(draws.offsets.tolist()):
        assert torch.equal(cropped[sample], normalise(padded[sample, :, top : top + 6, left : left + 5]))


def test_images_are_neither_copied_nor_changed() -> None:
    loader = training(20)
    images = loader.images
    again = InMemoryLoader(images, loader.labels, batch_size=4, mean=MEAN, std=STD, crop=2, flip=True)
    before = images.clone()
    epoch(again, 0)
    assert again.images.data_ptr() == images.data_ptr()
    assert torch.equal(images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_batches_on_another_device_are_the_same() -> None:
    here = training(100, seed=1)
    there = InMemoryLoader(
        here.images,
        here.labels,
        batch_size=8,
        mean=MEAN,
        std=STD,
        device="cuda",
        crop=2,
        flip=True,
        shuffle=True,
        seed=1,
    )
    for one, other in zip(epoch(here, 2), epoch(there, 2), strict=True):
        assert other.images.is_cuda
        assert torch.equal(one.images, other.images.cpu())
        assert torch.equal(one.labels, other.labels.cpu())
        assert torch.equal(one.index, other.index.cpu())


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"crop": -1}])
def test_wrong_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        make(4, **wrong)
    with pytest.raises(ValueError, match="do not fit"):
        InMemoryLoader(make(4).images, torch.zeros(3), batch_size=1, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="do not fit"):
        InMemoryLoader(make(4).images.float(), torch.zeros(4), batch_size=1, mean=MEAN, std=STD)


def digest() -> str:
    whole = hashlib.blake2b()
    for number in (0, 7):
        for batch in epoch(training(40, seed=5), number):
            whole.update(batch.index.numpy().tobytes() + batch.images.numpy().tobytes())
    return whole.hexdigest()


def test_another_process_gives_the_same_batches() -> None:
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", "from tests.data.test_loader import digest; print(digest())"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert out.strip() == digest()
