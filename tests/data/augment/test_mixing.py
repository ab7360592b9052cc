from typing import Any

import numpy
import pytest
import torch
from scipy import stats

from kd_bench.data.augment.crop_flip import box_mask
from kd_bench.data.augment.mixing import MixParams, draw_mix, mix_images, mix_labels

KINDS = [{"mixup": 0.2}, {"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}]
NAMES = ["mixup 0.2", "mixup 1", "cutmix", "both"]
HEIGHT, WIDTH = 12, 20


def make(size: int, seed: int = 3, epoch: int = 4, **kind: Any) -> MixParams:
    return draw_mix(seed, epoch, size, HEIGHT, WIDTH, **kind)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("size", [2, 3, 1000])
def test_everyone_has_another_as_partner_and_is_one_once(kind: dict[str, float], size: int) -> None:
    partner = make(size, **kind).partner
    assert torch.equal(partner.sort().values, torch.arange(size))
    assert (partner != torch.arange(size)).all()
    assert torch.equal(partner, make(size, mixup=5.0).partner)  # alpha changes the weights only


def test_a_sample_alone_is_mixed_with_itself() -> None:
    assert make(1, mixup=1.0).partner.tolist() == [0]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_of_mixup_are_beta(alpha: float) -> None:
    mix = make(20_000, mixup=alpha)
    assert not mix.cut.any()
    assert not mix.boxes.any()
    # By bins: in single precision a weight close to 1 is 1.
    edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    counts = torch.histogram(mix.weight.double(), edges).hist.numpy()
    expected = 20_000 * numpy.diff(stats.beta(alpha, alpha).cdf(edges.numpy()))
    assert counts.sum() == 20_000
    assert stats.chisquare(counts, expected).pvalue > 1e-4


@pytest.mark.parametrize("kind", KINDS[2:], ids=NAMES[2:])
def test_shares_of_cutmix_are_what_the_boxes_leave(kind: dict[str, float]) -> None:
    mix = make(20_000, **kind)
    area = box_mask(mix.boxes, HEIGHT, WIDTH).flatten(1).sum(1)
    assert torch.equal(mix.weight[mix.cut], (1 - area.double() / (HEIGHT * WIDTH)).float()[mix.cut])
    assert (area[~mix.cut] == 0).all()
    assert (mix.boxes >= 0).all()
    assert (mix.boxes[:, 2:] <= torch.tensor([HEIGHT, WIDTH])).all()


def test_boxes_of_cutmix_are_the_papers() -> None:
    mix = make(40_000, cutmix=1.0)
    assert mix.cut.all()
    top, left, bottom, right = mix.boxes.unbind(1)
    whole = (top > 0) & (left > 0) & (bottom < HEIGHT) & (right < WIDTH)  # nothing was cut off
    proportion = (bottom - top)[whole & (right - left > 8)] / (right - left)[whole & (right - left > 8)]
    assert 0.4 < proportion.min() < proportion.max() < 0.67  # 12:20, rounded down
    # The centre is uniform, so each pixel is covered as often as its mirror image, and those in the middle most.
    covered = box_mask(mix.boxes, HEIGHT, WIDTH).double().mean(0)[0]
    assert covered[4:8, 8:12].min() > covered[0].max() > 0.15


def test_cutmix_takes_as_much_as_the_paper() -> None:
    # With lambda uniform and s the square root of 1 - lambda, a side covers s - s^2 / 4 of its axis on average.
    taken = 1 - draw_mix(0, 0, 40_000, 1000, 1000, cutmix=1.0).weight.double()
    assert abs(float(taken.mean()) - (1 / 2 - 1 / 5 + 1 / 48)) < 5 * float(taken.std()) / 40_000**0.5 + 0.001


def test_with_both_each_gets_one_and_half_of_them_either() -> None:
    both, mixup, cutmix = (make(10_000, **kind) for kind in (KINDS[3], {"mixup": 0.8}, {"cutmix": 1.0}))
    assert abs(int(both.cut.sum()) - 5_000) < 5 * 2_500**0.5
    assert torch.equal(both.weight, torch.where(both.cut, cutmix.weight, mixup.weight))
    assert torch.equal(both.boxes[both.cut], cutmix.boxes[both.cut])
    assert not torch.equal(both.cut, make(10_000, epoch=5, **KINDS[3]).cut)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_images_and_labels_are_those_of_the_definition(kind: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(50, 3, HEIGHT, WIDTH, generator=generator)
    labels = torch.randint(7, (50,), generator=generator)
    mix = make(50, **kind)
    mixed = mix_images(images, images[mix.partner], mix)
    shares = mix_labels(labels, labels[mix.partner], mix, 7)
    assert shares.dtype == mixed.dtype == torch.float32
    for index in range(50):
        share, other = mix.weight[index], int(mix.partner[index])
        if mix.cut[index]:
            top, left, bottom, right = mix.boxes[index].tolist()
            expected = images[index].clone()
            expected[:, top:bottom, left:right] = images[other, :, top:bottom, left:right]
            assert torch.equal(mixed[index], expected)
        else:
            torch.testing.assert_close(mixed[index], share * images[index] + (1 - share) * images[other])
        soft = torch.zeros(7)
        soft[labels[index]] += share
        soft[labels[other]] += 1 - share
        torch.testing.assert_close(shares[index], soft)
    torch.testing.assert_close(shares.sum(1), torch.ones(50), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 7), (8, 8)])
def test_a_sample_is_mixed_the_same_in_any_batch(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(101, 3, *shape, generator=generator)
    mix = draw_mix(0, 0, 101, *shape, mixup=0.5, cutmix=1.0)
    whole = mix_images(images, images[mix.partner], mix)
    for size in (1, 3, 64):
        parts = [
            mix_images(images[index], images[mix.partner[index]], mix.select(index))
            for index in torch.arange(101).split(size)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_seeds_and_epochs_differ_and_nothing_depends_on_history() -> None:
    first = make(100, **KINDS[3])
    torch.manual_seed(5)
    again = make(100, **KINDS[3])
    for other in (make(100, seed=4, **KINDS[3]), make(100, epoch=5, **KINDS[3])):
        for name in ("partner", "weight", "cut", "boxes"):
            assert torch.equal(getattr(first, name), getattr(again, name))
            assert not torch.equal(getattr(first, name), getattr(other, name))


def test_there_must_be_something_to_draw() -> None:
    with pytest.raises(ValueError, match="neither mixup nor cutmix"):
        make(10)
