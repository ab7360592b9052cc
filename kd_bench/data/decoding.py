"""Encoded images to pixels: what is read, what is refused, and how an image is brought to a size."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np
from PIL import Image, UnidentifiedImageError

from kd_bench.utils.errors import UserError

#: An image of more pixels is taken for an attack on the memory; Pillow warns from here on.
MOST_PIXELS = 89_478_485

#: By content, whatever a file is called; others are not even tried, because Pillow's readers of rarer formats start
#: programs and are little tested.
_FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "TIFF")
_CHUNK = 16  # images a thread takes at a time
_SMALL = 64  # pixels up to which threads do not pay


class BadImage(Exception):
    """An image that cannot be used; the end of a sentence that begins with its place."""


def decode(encoded: bytes, size: int, native: int | None = None) -> np.ndarray:
    """Decodes an image and brings it to ``size`` x ``size`` pixels.

    Of an image of another size the square in its middle is cut out and resized, bicubically and with antialias: so its
    shorter side becomes ``size``. Training and test images are treated alike.

    Args:
        encoded: As ``picture`` takes it.
        size: Height and width wanted, in pixels.
        native: As ``picture`` takes it.

    Returns:
        (3, size, size) uint8, maybe not contiguous.

    Raises:
        BadImage: As ``picture``.
    """
    whole = picture(encoded, native)
    if whole.size != (size, size):
        width, height = whole.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        whole = whole.crop((left, top, left + side, top + side))
        whole = whole.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(whole).transpose(2, 0, 1)


def picture(encoded: bytes, native: int | None = None) -> Image.Image:
    """Decodes an image.

    The colours are those of Pillow's ``convert("RGB")``, as torchvision has them: grey is repeated, transparency left
    out (what is below it shows), a palette looked up, CMYK converted without a colour profile. Of grey with 16 bits the
    upper eight count (Pillow would make all above 255 white). EXIF is ignored, also an orientation; of an animation the
    first image counts.

    Args:
        encoded: JPEG, PNG, WebP, PPM, PGM, BMP or TIFF.
        native: Height and width that the image must have, in pixels; None allows any.

    Returns:
        In mode RGB.

    Raises:
        BadImage: It is damaged, too large, or something else.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MOST_PIXELS:
                raise BadImage(f"has {width * height:,} pixels, more than the {MOST_PIXELS:,} that are allowed")
            if native is not None and (width, height) != (native, native):
                raise BadImage(f"is {height}x{width}, not {native}x{native}")
            return _rgb(image)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage("cannot be decoded (it is no JPEG, PNG, WebP, PPM, BMP or TIFF)") from error
    except Exception as error:  # what Pillow raises for garbage depends on the garbage
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"cannot be decoded ({reason})") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 0xFFFF:
            raise BadImage("has pixels of 32 bits; it must have 8 or 16")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise BadImage("has floating-point pixels; they must be whole numbers of 8 or 16 bits")
    return image.convert("RGB")


class Decoder:
    """Decodes many images, in threads: Pillow lets others work while it decodes and resizes.

    With small images threads only wait for one another and make it slower, so there is one.

    Args:
        size: As ``decode`` takes it.
        native: As ``decode`` takes it.
    """

    def __init__(self, size: int, native: int | None = None) -> None:
        self.size = size
        self.native = native
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self._pool = ThreadPoolExecutor(1 if native is not None and native <= _SMALL else cores)

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def fill(self, images: np.ndarray, read: Callable[[int], bytes], place: Callable[[int], str]) -> None:
        """Decodes as many images as there is room for.

        Args:
            images: (N, 3, size, size) uint8, to be filled.
            read: Gives the i-th image, encoded; called from several threads.
            place: Where the i-th image is, e.g. "a.parquet: the image in row 3".

        Raises:
            UserError: One is bad: the first of them.
        """

        def some(start: int) -> None:
            for number in range(start, min(start + _CHUNK, len(images))):
                try:
                    images[number] = decode(read(number), self.size, self.native)
                except BadImage as error:
                    raise UserError(f"{place(number)} {error}") from error

        for _ in self._pool.map(some, range(0, len(images), _CHUNK)):
            pass
