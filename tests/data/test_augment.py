import torch
import torchvision.transforms.functional as TF
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_bench.data.augment import Normalise, crop_and_flip, draw

MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 33), width=st.integers(1, 33), crop=st.integers(0, 5), seed=st.integers(0, 2**31))
def test_pixel_identical_with_torchvision(height: int, width: int, crop: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (9, 3, height, width), dtype=torch.uint8, generator=generator)
    draws = draw(seed, 3, len(images), crop)
    ours = Normalise(MEAN, STD, torch.device("cpu"))(crop_and_flip(images, draws, crop))
    for image, (top, left), flip, result in zip(images, draws.offsets.tolist(), draws.flips, ours, strict=True):
        picture = TF.crop(TF.pad(TF.to_pil_image(image), [crop]), top, left, height, width)
        if flip:
            picture = TF.hflip(picture)
        assert torch.equal(result, TF.normalize(TF.to_tensor(picture), list(MEAN), list(STD)))


def test_every_value_is_normalised_as_torchvision_does() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    ours = Normalise(MEAN, STD, torch.device("cpu"))(images)
    assert torch.equal(ours[0], TF.normalize(TF.to_tensor(TF.to_pil_image(images[0])), list(MEAN), list(STD)))


def test_draws_cover_what_they_may_and_flip_half() -> None:
    draws = draw(0, 0, 20_000, 4)
    for axis in (0, 1):
        counts = draws.offsets[:, axis].bincount()
        assert len(counts) == 9
        assert (counts - 20_000 / 9).abs().max() < 5 * (20_000 / 9) ** 0.5
    assert abs(int(draws.flips.sum()) - 10_000) < 5 * 5_000**0.5
    assert len({(int(row), int(column)) for row, column in draws.offsets}) == 81


def test_flips_do_not_depend_on_the_crop() -> None:
    assert torch.equal(draw(1, 2, 100, 0).flips, draw(1, 2, 100, 4).flips)
