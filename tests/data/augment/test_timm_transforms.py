"""The pipeline's settings, and their effect on an image and on a batch."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import create_transform
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from kd_bench.config.data import Dataset, Pipeline
from kd_bench.config.trial import Training, Trial
from kd_bench.config.validate import parse
from kd_bench.data import registry
from kd_bench.data.augment.crop_flip import Normalise, zero_boxes
from kd_bench.data.augment.timm_transforms import (
    EvaluationTransform,
    TimmMixup,
    TrainTransform,
    preserve_rng_state,
    seed_globals,
)
from kd_bench.utils.errors import UserError
from tests.data import make, photos

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flip": 0.0, "interpolation": "bilinear", "scale": (0.5, 0.8), "ratio": (1.0, 1.0)},
        {"color_jitter": 0.4, "interpolation": "bicubic"},
        {"auto_augment": "rand-m7-mstd0.5", "erase": 0.7},
        {"auto_augment": "rand-m15-n3-p0.8-mstd101-mmax20-inc1-tweights", "interpolation": "bicubic"},
        {"auto_augment": "3a", "color_jitter": 0.3},
        {"auto_augment": "augmix-m5-w4-d2", "erase": 1.0},
        {"auto_augment": "original-mstd0.5"},
    ],
    ids=str,
)
def test_a_training_image_is_timms(settings: dict[str, Any]) -> None:
    pipeline = Pipeline(size=32, **settings)
    transform = TrainTransform(pipeline, MEAN, seed=3)
    reference = create_transform(
        32,
        is_training=True,
        scale=pipeline.scale,
        ratio=pipeline.ratio,
        hflip=pipeline.flip,
        color_jitter=pipeline.color_jitter,
        auto_augment=pipeline.auto_augment,
        interpolation=pipeline.interpolation,
        mean=MEAN,
        std=STD,
        re_prob=pipeline.erase or 0.0,
    )
    normalise, erased = Normalise(MEAN, STD, torch.device("cpu")), 0
    for index in range(12):
        photo = photos.photo(index)
        with preserve_rng_state():
            image, box = transform(make.encode(photo), 7, index, 2)
        result = zero_boxes(normalise(image[None]), box[None])[0]
        erased += int(box.any())
        with preserve_rng_state():
            seed_globals(3, "augment/image/2", 7, index)
            assert torch.equal(result, reference(photo))
    assert erased == 12 if pipeline.erase == 1.0 else bool(erased) == bool(pipeline.erase)


@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("test_size", [None, 40])
def test_a_test_image_is_timms(crop_pct: float, interpolation: Any, test_size: int | None) -> None:
    pipeline = Pipeline(size=32, crop_pct=crop_pct, test_size=test_size, test_interpolation=interpolation)
    transform, size = EvaluationTransform(pipeline), test_size or 32
    reference = create_transform(size, interpolation=interpolation, crop_pct=crop_pct, mean=MEAN, std=STD)
    shorter = {0.875: {32: 36, 40: 45}, 0.95: {32: 33, 40: 42}, 1.0: {32: 32, 40: 40}}[crop_pct][size]
    plain = Compose([Resize(shorter, InterpolationMode(interpolation)), CenterCrop(size), PILToTensor()])
    for index in range(4):
        photo = photos.photo(index)
        image, box = transform(make.encode(photo), 0, index, 0)
        assert torch.equal(image, plain(photo)) and not box.any()
        assert torch.equal(Normalise(MEAN, STD, torch.device("cpu"))(image), reference(photo))


def test_the_three_generators_have_nothing_in_common_and_are_put_back() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.random(), np.random.random_sample(), float(torch.rand(()))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    draws = []
    with preserve_rng_state():
        for step in range(2):
            seed_globals(0, "here", 0, step)
            draws += [random.random(), float(np.random.random_sample()), float(torch.rand(()))]
    assert len(set(draws)) == 6
    assert (random.random(), np.random.random_sample(), float(torch.rand(()))) == before


def test_mixup_weighs_by_one_draw_and_smooths() -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 4])
    mixing = TimmMixup(Pipeline(mixup=1.0, smoothing=0.1), 5, seed=0)
    shares = set()
    for number in range(5):
        mixed = images.clone()
        targets = mixing(mixed, labels, 2, number)
        share = photos.share(mixed, images)
        soft_labels = torch.nn.functional.one_hot(labels, 5) * 0.9 + 0.02
        torch.testing.assert_close(mixed, share * images + (1 - share) * images.flip(0))
        torch.testing.assert_close(targets, share * soft_labels + (1 - share) * soft_labels.flip(0), atol=1e-4, rtol=0)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        again = images.clone()
        assert torch.equal(mixing(again, labels, 2, number), targets) and torch.equal(again, mixed)
        some = images[[1, 4]]  # part of a batch has the draw of the whole
        assert torch.equal(mixing(some, labels[[1, 4]], 2, number), targets[[1, 4]])
        assert torch.equal(some, mixed[[1, 4]])
        shares.add(round(share, 4))
    assert len(shares) == 5


def test_cutmix_pastes_one_box_and_counts_its_pixels() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    mixing = TimmMixup(Pipeline(cutmix=1.0), 4, seed=0)
    for number in range(5):
        mixed = images.clone()
        targets = mixing(mixed, torch.arange(4), 0, number)
        partner_mask = mixed == images.flip(0)
        assert (partner_mask == partner_mask[0]).all() and (partner_mask | (mixed == images)).all()
        share = 1 - partner_mask[0, 0].float().mean()
        one_hot = torch.eye(4)
        torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.flip(0))


def test_mixing_by_probability_and_not_at_all() -> None:
    labels = torch.arange(4)
    half = TimmMixup(Pipeline(mixup=1.0, cutmix=1.0, mixup_prob=0.5), 4, seed=0)
    mixed = [bool((half(torch.rand(4, 3, 8, 8), labels, 0, number).max(1).values < 1).any()) for number in range(60)]
    assert 15 < sum(mixed) < 45
    images = torch.rand(4, 3, 8, 8)
    before = images.clone()
    assert TimmMixup(Pipeline(), 4, seed=0)(images, labels, 0, 0) is labels
    smooth = TimmMixup(Pipeline(smoothing=0.2), 4, seed=0)(images, labels, 0, 0)
    torch.testing.assert_close(smooth, torch.eye(4) * 0.8 + 0.05)
    assert torch.equal(images, before)


POLICIES = (
    *("rand", "rand-m9", "rand-m7-mstd0.5", "rand-m9-n3-p0.3-mstd101-mmax10-inc1", "rand-n14-tweights", "rand-t3a"),
    *("rand-n14-t3aw", "augmix", "augmix-m5-w4-d2-a0.5-b1-mstd1", "original", "originalr-mstd0.5", "v0", "v0r", "3a"),
)


@pytest.mark.parametrize("policy", POLICIES)
def test_timm_knows_the_policies_that_are_accepted(policy: str) -> None:
    transform = TrainTransform(Pipeline(size=16, auto_augment=policy), MEAN, seed=0)
    with preserve_rng_state():
        assert transform(make.encode(photos.photo(0)), 0, 0, 0)[0].shape == (3, 16, 16)


def test_posterising_to_no_bits_is_black() -> None:
    pipeline = Pipeline(size=16, auto_augment="rand-m10-n1-p1-inc1", interpolation="bilinear")
    transform = TrainTransform(pipeline, MEAN, seed=0)
    with preserve_rng_state():
        black = [not transform(make.encode(photos.photo(0)), 0, index, 0)[0].any() for index in range(100)]
    assert 0 < sum(black) < 25  # one operation in fifteen


def refused(**settings: Any) -> str:
    with pytest.raises(UserError) as error:
        parse(Pipeline, settings, "r.yaml: pipeline")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_timm_would_leave_out_silently_is_refused() -> None:
    at = "r.yaml: pipeline: auto_augment:"
    assert refused(auto_augment="random") == (
        f"{at} must begin with one of rand, augmix, original, originalr, v0, v0r, 3a, as in 'rand-m7-mstd0.5' "
        "(it is 'random')"
    )
    known = "after 'rand' come, each once and with its value, m, n, p, mstd, mmax, inc, t"
    for policy, part in (("rand-x7", "x7"), ("rand-m", "m"), ("rand-m7.5", "m7.5"), ("rand-", ""), ("rand-n15", "n15")):
        assert refused(auto_augment=policy) == f"{at} timm does not know {part!r}; {known} (it is {policy!r})"
    assert refused(auto_augment="rand-m7-m9") == f"{at} 'm9' sets 'm' a second time; {known} (it is 'rand-m7-m9')"
    assert "timm does not know 'a0'" in refused(auto_augment="augmix-a0")
    assert "color_jitter must be left out: timm has none with auto_augment 'rand-m7'" in refused(
        auto_augment="rand-m7", color_jitter=0.4
    )


def test_settings_that_make_no_sense_are_refused() -> None:
    assert "scale must have its smaller value first" in refused(scale=[0.5, 0.2])
    assert "ratio must have its smaller value first" in refused(ratio=[2, 1])
    for fault in ({"interpolation": "nearest"}, {"corrupt": "ignore"}, {"crop_pct": 1.5}, {"repeats": 0}, {"erase": 0}):
        assert next(iter(fault)) in refused(**fault)
    assert "did you mean 'cutmix'" in refused(cutmux=1)


def training(**settings: Any) -> Training:
    return parse(Training, settings, "r.yaml")


def test_a_pipeline_takes_the_place_of_augment() -> None:
    for augment in ({}, {"crop": 0, "flip": False}):
        assert training(pipeline={}, augment=augment).pipeline == Pipeline()
    for augment in ({"crop": 4}, {"flip": True}, {"mixup": 0.1}):
        with pytest.raises(UserError, match="augment must be left out with a pipeline"):
            training(pipeline={}, augment=augment)


def test_mixing_needs_even_batches() -> None:
    assert training(batch_size=9, pipeline={})
    with pytest.raises(UserError, match=r"batch_size must be even for pipeline\.mixup"):
        training(batch_size=9, pipeline={"mixup": 0.1})
    with pytest.raises(UserError, match=r"micro_batch must be even for pipeline\.mixup"):
        training(batch_size=18, micro_batch=9, pipeline={"cutmix": 1})


def test_it_is_part_of_a_trial_only_where_it_is_given() -> None:
    fields = {"dataset": {"name": "imagenet"}, "model": "resnet18", "method": {"name": "none"}, "seed": 0}
    plain, piped = parse(Trial, fields, "t"), parse(Trial, fields | {"pipeline": {}}, "t")
    other = parse(Trial, fields | {"pipeline": {"corrupt": "skip"}}, "t")
    assert "pipeline" not in plain.settings()
    assert piped.settings()["pipeline"] == Pipeline().model_dump(mode="json")
    assert (
        len({trial.id for trial in (plain, piped, other)})
        == len({trial.cohort_key for trial in (plain, piped, other)})
        == 3
    )
    assert parse(Trial, piped.settings(), "t").id == piped.id


def test_only_sets_of_files_have_one(tmp_path: Path) -> None:
    registry.check(Dataset(name="imagenet", size=160), pipeline=Pipeline(size=160))
    with pytest.raises(UserError, match=r"d: cifar100 is decoded once, so pipeline must be left out; it is for folder"):
        registry.check(Dataset(name="cifar100"), "d", Pipeline())
    with pytest.raises(UserError, match=r"size: 160 must be left out, because pipeline.size says 224"):
        registry.list_files(Dataset(name="imagenet", size=160), Pipeline(), tmp_path)
    assert registry.resolve(Dataset(name="imagenet"), Pipeline()).size is None
    assert registry.resolve(Dataset(name="imagenet")).size == 224
