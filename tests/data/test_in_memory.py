import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_bench.config.data import Augment, RandAugment
from kd_bench.data import in_memory as module
from kd_bench.data.augment import mixing
from kd_bench.data.augment.crop_flip import Normalise, crop_and_flip, draw_crop_flip
from kd_bench.data.generated import GeneratedImages, MixedLoader
from kd_bench.data.in_memory import InMemoryLoader
from kd_bench.data.two_views import TwoViews
from kd_bench.types import Batch
from kd_bench.utils.errors import UserError
from tests.plugin_files import write

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
PLAIN = Augment(crop=2, flip=True)
EVERYTHING = Augment(
    crop=2, flip=True, randaugment=RandAugment(magnitude=20), cutout=3, erase=0.5, mixup=0.8, cutmix=1.0
)


def make(size: int, batch_size: int = 8, **settings: Any) -> InMemoryLoader:
    images = torch.arange(size * 3 * 6 * 5).view(size, 3, 6, 5).remainder(251).to(torch.uint8)
    labels = torch.arange(size) % 7
    settings = {"batch_size": batch_size, "num_classes": 7} | settings
    return InMemoryLoader(images, labels, mean=MEAN, std=STD, **settings)


def training(size: int, batch_size: int = 8, seed: int = 0, augment: Augment = PLAIN) -> InMemoryLoader:
    return make(size, batch_size, augment=augment, shuffle=True, seed=seed)


def epoch(loader: InMemoryLoader | TwoViews, number: int) -> list[Batch]:
    loader.set_epoch(number)
    return list(loader)


def by_sample(batches: list[Batch], size: int) -> dict[int, Tensor]:
    images = {int(index): image for batch in batches for index, image in zip(batch.index, batch.images, strict=True)}
    assert len(images) == size
    return images


@settings(max_examples=60)
@given(size=st.integers(1, 60), batch_size=st.integers(1, 20), number=st.integers(0, 500), seed=st.integers(0, 9))
def test_every_epoch_is_a_permutation(size: int, batch_size: int, number: int, seed: int) -> None:
    batch_size = min(batch_size, size)
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
    draws = draw_crop_flip(3, 4, 50, 2)
    whole = Normalise(MEAN, STD, torch.device("cpu"))(crop_and_flip(loader.images, draws, 2))
    for batch in epoch(loader, 4):
        assert torch.equal(batch.images, whole[batch.index])


@pytest.mark.parametrize("augment", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@settings(max_examples=20)
@given(batch_size=st.integers(2, 40), other=st.integers(2, 40), number=st.integers(0, 99))
def test_a_sample_looks_the_same_in_any_batch(augment: Augment, batch_size: int, other: int, number: int) -> None:
    size = 2 * batch_size * other  # neither leaves a single image over
    first = by_sample(epoch(training(size, batch_size, augment=augment), number), size)
    second = by_sample(epoch(training(size, other, augment=augment), number), size)
    assert all(torch.equal(first[sample], second[sample]) for sample in range(size))


def test_how_far_policies_run_ahead_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    far = epoch(training(50, augment=EVERYTHING), 2)
    for values in (1, 8 * 90 * 2, 8 * 90 * 3 + 1):  # images have 90 values
        monkeypatch.setattr(module, "_POLICY_VALUES", values)
        for batch, other in zip(far, epoch(training(50, augment=EVERYTHING), 2), strict=True):
            assert torch.equal(batch.images, other.images)
            assert torch.equal(batch.labels, other.labels)


@pytest.mark.parametrize(
    "augment",
    [
        None,
        PLAIN,
        EVERYTHING,
        Augment(flip=True),
        Augment(autoaugment=True),
        Augment(randaugment=RandAugment()),
        Augment(cutout=3),
        Augment(erase=0.5),
        Augment(mixup=0.8),
        Augment(cutmix=1.0),
        Augment(own="own.py"),
        Augment(crop=2, flip=True, autoaugment=True, cutout=3, mixup=0.8, own="own.py"),
    ],
    ids=lambda augment: "none" if augment is None else "-".join(augment.model_dump(exclude_defaults=True)),
)
@pytest.mark.parametrize("kind", [InMemoryLoader, MixedLoader, TwoViews])
def test_how_many_batches_are_made_at_once_changes_nothing(
    kind: type, augment: Augment | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plugin = write(tmp_path)["augmentation"]
    if augment is not None and augment.own is not None:
        augment = augment.model_copy(update={"own": plugin})
    source = make(50)

    def batches(values: int) -> list[Batch]:
        options: dict[str, Any] = {"batch_size": 8, "num_classes": 7, "mean": MEAN, "std": STD, "seed": 3}
        options |= {"augment": augment, "values_at_once": values}
        if kind is MixedLoader:
            arrays = source.images.flip(0).permute(0, 2, 3, 1), source.labels.flip(0)
            generated = GeneratedImages(*(array.numpy() for array in arrays))
            return epoch(MixedLoader(source.images, source.labels, generated=generated, share=0.3, **options), 2)
        first, second = (
            InMemoryLoader(source.images, source.labels, shuffle=True, view=view, **options) for view in (0, 1)
        )
        return epoch(first if kind is InMemoryLoader else TwoViews(first, second), 2)

    each = batches(1)
    for values in (8 * 90 * 2, 8 * 90 * 3 + 1, 2**24):  # images have 90 values
        result = batches(values)
        assert len(result) == len(each) == 7
        for batch, other in zip(each, result, strict=True):
            assert batch.images.is_contiguous()
            assert other.images.is_contiguous()
            for name in ("images", "labels", "index"):
                assert torch.equal(getattr(batch, name), getattr(other, name))
            assert (batch.epoch, batch.step) == (other.epoch, other.step)
            assert batch.views is None if other.views is None else torch.equal(batch.views, other.views)


def test_batches_at_once_are_normalised_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = Normalise.__call__

    def record(self: Normalise, images: Tensor) -> Tensor:
        sizes.append(len(images))
        return real(self, images)

    monkeypatch.setattr(Normalise, "__call__", record)
    for values, expected in ((1, [8, 8, 8, 8, 8, 8, 2]), (8 * 90 * 3, [24, 24, 2]), (None, [8, 8, 8, 8, 8, 8, 2])):
        sizes.clear()
        epoch(make(50, augment=PLAIN, values_at_once=values), 0)
        assert sizes == expected


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
    for index, key in enumerate(keys):
        for other in keys[:index]:
            assert not torch.equal(seen[key][0], seen[other][0])
            assert not all(torch.equal(seen[key][1][sample], seen[other][1][sample]) for sample in range(64))
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
    flips = draw_crop_flip(0, 0, 64, 0).flips
    flipped = by_sample(epoch(make(64, augment=Augment(flip=True)), 0), 64)
    for sample in range(64):
        assert torch.equal(flipped[sample], plain[sample].flip(-1) if flips[sample] else plain[sample])
    draws = draw_crop_flip(0, 0, 64, 2)
    cropped = by_sample(epoch(make(64, augment=Augment(crop=2)), 0), 64)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    normalise = Normalise(MEAN, STD, torch.device("cpu"))
    for sample, (top, left) in enumerate(draws.offsets.tolist()):
        assert torch.equal(cropped[sample], normalise(padded[sample, :, top : top + 6, left : left + 5]))


@pytest.mark.parametrize("policy", [{"autoaugment": True}, {"randaugment": RandAugment()}], ids=["auto", "rand"])
def test_a_policy_changes_most_images(policy: dict[str, Any]) -> None:
    plain, changed = (by_sample(epoch(training(64, augment=augment), 0), 64) for augment in (PLAIN, Augment(**policy)))
    assert sum(not torch.equal(plain[sample], changed[sample]) for sample in range(64)) > 50


@pytest.mark.parametrize("blanks", [{"cutout": 3}, {"erase": 0.5}, {"cutout": 2, "erase": 1.0}])
def test_blanks_are_of_the_mean_colour_and_everything_else_is_as_without(blanks: dict[str, Any]) -> None:
    policy = {"crop": 2, "flip": True, "autoaugment": True}
    plain = epoch(training(64, augment=Augment(**policy)), 1)
    blanked = epoch(training(64, augment=Augment(**policy, **blanks)), 1)
    cleared = 0
    for batch, other in zip(plain, blanked, strict=True):
        assert torch.equal(batch.labels, other.labels)
        assert torch.equal(other.images[other.images != 0], batch.images[other.images != 0])
        cleared += int(((other.images == 0) & (batch.images != 0)).sum())
    assert 0.01 < cleared / (64 * 90) < 0.7


@pytest.mark.parametrize("mixes", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_is_of_what_both_look_like_alone(mixes: dict[str, float]) -> None:
    alone = {"crop": 2, "flip": True, "autoaugment": True, "cutout": 2}
    views = by_sample(epoch(training(70, augment=Augment(**alone)), 3), 70)
    whole = torch.stack([views[sample] for sample in range(70)])
    loader = training(70, augment=Augment(**alone, **mixes))
    mix = mixing.draw_mix(0, 3, 70, 6, 5, **mixes)
    for batch in epoch(loader, 3):
        batch_mix = mix.select(batch.index)
        assert torch.equal(batch.images, mixing.mix_images(whole[batch.index], whole[batch_mix.partner], batch_mix))
        labels, partners = loader.labels[batch.index], loader.labels[batch_mix.partner]
        assert torch.equal(batch.labels, mixing.mix_labels(labels, partners, batch_mix, 7))
        assert batch.labels.shape == (len(batch.index), 7)


def test_a_single_image_that_is_left_out_is_still_a_partner() -> None:
    batches = epoch(training(17, augment=Augment(mixup=1.0)), 0)
    seen = torch.cat([batch.index for batch in batches])
    left_out = (set(range(17)) - set(seen.tolist())).pop()
    partner = mixing.draw_mix(0, 0, 17, 6, 5, mixup=1.0).partner
    assert left_out in partner[seen].tolist()


def test_images_are_neither_copied_nor_changed() -> None:
    for augment in (PLAIN, EVERYTHING, Augment(), Augment(cutout=3, autoaugment=True)):
        images = make(20).images
        before = images.clone()
        loader = InMemoryLoader(
            images, torch.arange(20) % 7, batch_size=4, mean=MEAN, std=STD, augment=augment, num_classes=7
        )
        epoch(loader, 0)
        assert loader.images.data_ptr() == images.data_ptr()
        assert torch.equal(images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize(
    "augment", [PLAIN, EVERYTHING.model_copy(update={"randaugment": None})], ids=["plain", "everything but a policy"]
)
def test_batches_on_another_device_are_the_same(augment: Augment) -> None:
    cpu_loader = training(100, seed=1, augment=augment)
    cuda_loader = make(100, augment=augment, shuffle=True, seed=1, device="cuda")
    for batch, other in zip(epoch(cpu_loader, 2), epoch(cuda_loader, 2), strict=True):
        assert other.images.is_cuda
        assert torch.equal(batch.images, other.images.cpu())
        assert torch.equal(batch.labels, other.labels.cpu())
        assert torch.equal(batch.index, other.index.cpu())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("policy", [{"autoaugment": True}, {"randaugment": RandAugment()}], ids=["auto", "rand"])
def test_a_policy_does_almost_the_same_on_another_device(policy: dict[str, Any]) -> None:
    cpu_loader, cuda_loader = (make(500, augment=Augment(**policy), device=device) for device in ("cpu", "cuda"))
    for batch, other in zip(epoch(cpu_loader, 2), epoch(cuda_loader, 2), strict=True):
        # Rounding differs: by one level of 255, or, of a pixel that is moved, in where it comes from.
        differ = (batch.images - other.images.cpu()).abs() > 1.01 / 255 / min(STD)
        assert differ.double().mean() < 0.02


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        make(4, 0)
    with pytest.raises(ValueError, match="do not fit"):
        InMemoryLoader(make(4).images, torch.zeros(3), batch_size=1, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="do not fit"):
        InMemoryLoader(make(4).images.float(), torch.zeros(4), batch_size=1, mean=MEAN, std=STD)
    with pytest.raises(UserError, match="batch_size: 5 is more than the 4 images of an epoch"):
        training(4, 5)
    with pytest.raises(ValueError, match="need num_classes"):
        make(4, augment=Augment(cutmix=1.0), num_classes=None)


def digest() -> str:
    whole = hashlib.blake2b()
    for number, augment in ((0, PLAIN), (7, PLAIN), (7, EVERYTHING)):
        for batch in epoch(training(40, seed=5, augment=augment), number):
            whole.update(batch.index.numpy().tobytes() + batch.images.numpy().tobytes())
            whole.update(batch.labels.numpy().tobytes())
    return whole.hexdigest()


def test_another_process_gives_the_same_batches_and_imports_torchvision_for_a_policy_only() -> None:
    code = """
import sys
from tests.data.test_in_memory import EVERYTHING, digest, epoch, training
epoch(training(20, augment=EVERYTHING.model_copy(update={"randaugment": None})), 0)
assert "torchvision" not in sys.modules
print(digest())
assert "torchvision" in sys.modules
"""
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert out.strip() == digest()
