"""Images that a network was not trained to classify: the test images of other data sets, and folders of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kd_bench.config.data import Dataset
from kd_bench.data import registry
from kd_bench.data.sources._find_files import is_image, read_bytes
from kd_bench.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

#: The data sets whose test images are compared with, as far as they are in the data folder.
SETS = ("digits", "cifar10", "cifar100", "tiny_imagenet")

#: Bytes of pixels that are in memory at a time.
_PART_BYTES = 1 << 26


@dataclass(frozen=True)
class OtherImages:
    """A set of images without labels.

    Attributes:
        name: Name of the data set, or of the folder.
        digest: Digest of the images in any order: of their pixels, or for a folder of the content of its files.
        count: Number of images.
        folder: The folder; None for a data set.
        read: Returns the images with numbers from ``start`` to before ``end``: (n, 3, size, size) uint8 for a size.
    """

    name: str
    digest: str
    count: int
    folder: Path | None
    read: Callable[[int, int, int], Tensor]

    def parts(self, size: int) -> Iterator[Tensor]:
        """Yields all images, (n, 3, size, size) uint8, as many at a time as fit into 64 MiB."""
        step = max(1, _PART_BYTES // (3 * size * size))
        for start in range(0, self.count, step):
            yield self.read(start, min(start + step, self.count), size)


def is_there(name: str, data_dir: Path) -> bool:
    """Returns whether the files of one of ``SETS`` are in the data folder."""
    try:
        registry.locate(Dataset(name=name), data_dir)
    except UserError:
        return False
    return True


def open_set(name: str, data_dir: Path) -> OtherImages:
    """Returns the test images of one of ``SETS``. Images of another size are resized, bicubically and with antialias.

    Raises:
        UserError: If the files are not there, or are not those of the set.
    """
    from kd_bench.data.array_dataset import ArrayDataset
    from kd_bench.data.image_digest import digest_each

    dataset = registry.open_dataset(Dataset(name=name), None, data_dir)
    assert isinstance(dataset, ArrayDataset)
    images, digests = dataset.test_images, dataset.test_digests
    rows = digest_each(images.contiguous().numpy()) if digests is None else digests.numpy()

    def read(start: int, end: int, size: int) -> Tensor:
        return _resize(images[start:end], size)

    return OtherImages(name, _digest_of(row.tobytes() for row in rows), len(images), None, read)


def open_folder(folder: Path) -> OtherImages:
    """Returns the images in a folder and in the folders below it, apart from hidden ones. Links are followed.

    Of an image of another shape the square in its middle is resized, bicubically and with antialias.

    Raises:
        UserError: If the folder cannot be read or has no images. ``read`` raises it for a damaged image.
    """
    files = sorted(_image_files(folder))
    if not files:
        raise UserError(f"{folder}: has no images (JPEG, PNG, WebP, PPM, BMP or TIFF) in it or in folders below it")
    digest = _digest_of(hashlib.blake2b(read_bytes(file), digest_size=16).digest() for file in files)

    def read(start: int, end: int, size: int) -> Tensor:
        import numpy as np
        import torch

        from kd_bench.data.decoding import decode_all

        part = files[start:end]
        pixels = np.empty((len(part), 3, size, size), np.uint8)
        decode_all(pixels, lambda i: read_bytes(part[i]), lambda i: f"{part[i]}: the image")
        return torch.from_numpy(pixels)

    return OtherImages(folder.resolve().name, digest, len(files), folder.resolve(), read)


def _image_files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    walked = set()
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(parent)
        if real in walked:  # by a link to it
            folders.clear()
            continue
        walked.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in names if is_image(name) and not name.startswith("."))


def _digest_of(digests: Iterable[bytes]) -> str:
    """Returns one digest of the digests of images, whatever their order."""
    return hashlib.blake2b(b"".join(sorted(digests)), digest_size=16).hexdigest()


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    import torch.nn.functional as F

    resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True)
    return resized.round().clamp(0, 255).byte()
