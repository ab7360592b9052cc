import pytest
import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_bench.data.augment.crop_flip import (
    Normalise,
    box_mask,
    crop_and_flip,
    draw_crop_flip,
    draw_cutout,
    draw_erasing,
    zero_boxes,
)

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


@settings(max_examples=30)
@given(height=st.integers(1, 33), width=st.integers(1, 33), crop=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_pixel_identical_with_torchvision(height: int, width: int, crop: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (9, 3, height, width), dtype=torch.uint8, generator=generator)
    draws = draw_crop_flip(seed, 3, len(images), crop)
    results = Normalise(MEAN, STD, torch.device("cpu"))(crop_and_flip(images, draws, crop))
    for image, (top, left), flip, result in zip(images, draws.offsets.tolist(), draws.flips, results, strict=True):
        picture = TF.crop(TF.pad(TF.to_pil_image(image), [crop]), top, left, height, width)
        if flip:
            picture = TF.hflip(picture)
        assert torch.equal(result, TF.normalize(TF.to_tensor(picture), list(MEAN), list(STD)))


def test_every_value_is_normalised_as_torchvision_does() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    result = Normalise(MEAN, STD, torch.device("cpu"))(images)
    assert torch.equal(result[0], TF.normalize(TF.to_tensor(TF.to_pil_image(images[0])), list(MEAN), list(STD)))


def test_draws_cover_what_they_may_and_flip_half() -> None:
    draws = draw_crop_flip(0, 0, 20_000, 4)
    for axis in (0, 1):
        counts = draws.offsets[:, axis].bincount()
        assert len(counts) == 9
        assert (counts - 20_000 / 9).abs().max() < 5 * (20_000 / 9) ** 0.5
    assert abs(int(draws.flips.sum()) - 10_000) < 5 * 5_000**0.5
    assert len({(int(row), int(column)) for row, column in draws.offsets}) == 81


def test_flips_do_not_depend_on_the_crop() -> None:
    assert torch.equal(draw_crop_flip(1, 2, 100, 0).flips, draw_crop_flip(1, 2, 100, 4).flips)


def test_crops_and_flips_are_those_of_the_first_release() -> None:
    draws = draw_crop_flip(1, 3, 6, 4)
    assert draws.offsets.tolist() == [[8, 0], [8, 6], [8, 8], [7, 4], [3, 3], [3, 7]]
    assert draws.flips.tolist() == [True, False, True, True, True, False]


def test_blank_clears_the_boxes_and_nothing_else() -> None:
    boxes = torch.tensor([[1, 2, 3, 6], [-2, -2, 2, 2], [4, 5, 9, 9], [3, 3, 3, 3]])
    images = torch.rand(4, 3, 5, 7, generator=torch.Generator().manual_seed(0)) + 1
    expected = images.clone()
    expected[0, :, 1:3, 2:6] = 0
    expected[1, :, :2, :2] = 0
    expected[2, :, 4:, 5:] = 0
    assert torch.equal(zero_boxes(images, boxes), expected)


@pytest.mark.parametrize("side", [1, 3, 8, 40])
def test_cutout_squares_have_their_centre_anywhere(side: int) -> None:
    boxes = draw_cutout(0, 1, 20_000, side, 6, 9)
    assert torch.equal(boxes[:, 2:] - boxes[:, :2], torch.full((20_000, 2), side))
    centres = boxes[:, :2] + side // 2
    counts = (centres[:, 0] * 9 + centres[:, 1]).bincount(minlength=54)
    assert len(counts) == 54
    assert (counts - 20_000 / 54).abs().max() < 5 * (20_000 / 54) ** 0.5


def test_erased_rectangles_lie_in_the_image_and_have_the_published_sizes() -> None:
    height, width = 32, 48
    boxes = draw_erasing(0, 1, 20_000, 1.0, height, width)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([height, width])).all()
    area = sides.prod(1) / (height * width)
    # Rectangles that do not fit are drawn again, so that large ones are rarer.
    assert 0.015 < area.min() < 0.025
    assert 0.39 < area.max() < 0.42
    assert 0.17 < area.median() < 0.21
    aspect = sides[:, 0] / sides[:, 1]
    assert 0.24 < aspect.min() < 0.32
    assert 3.2 < aspect.max() < 4.2
    margin = torch.tensor([height, width]) - sides
    relative_offset = (boxes[:, :2] / margin)[(margin > 10).all(1)]
    assert (relative_offset.mean(0) - 0.5).abs().max() < 0.02
    assert (box_mask(boxes, height, width).flatten(1).sum(1) == sides.prod(1)).all()


def test_the_probability_of_erasing_decides_who_and_not_where() -> None:
    all_of_them, some = (draw_erasing(3, 2, 10_000, probability, 32, 32) for probability in (1.0, 0.3))
    erased = some[:, 2] > some[:, 0]
    assert abs(int(erased.sum()) - 3_000) < 5 * (10_000 * 0.3 * 0.7) ** 0.5
    assert torch.equal(some[erased], all_of_them[erased])
    assert not box_mask(some[~erased], 32, 32).any()


@pytest.mark.parametrize("again", [(4, 2), (3, 1)], ids=["seed", "epoch"])
def test_another_seed_or_epoch_draws_others(again: tuple[int, int]) -> None:
    for drawing, number in ((draw_cutout, 8), (draw_erasing, 1.0)):
        boxes = drawing(3, 2, 100, number, 32, 32)
        assert torch.equal(boxes, drawing(3, 2, 100, number, 32, 32))
        assert not torch.equal(boxes, drawing(*again, 100, number, 32, 32))
