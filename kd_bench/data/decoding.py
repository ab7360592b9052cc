"""Decodes images: which formats are read, what is refused, and how an image is resized."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, UnidentifiedImageError

from kd_bench.utils.cpu import usable_cores
from kd_bench.utils.errors import UserError

#: An image of more pixels is taken for an attack on the memory; Pillow warns from this number on.
MOST_PIXELS = 89_478_485

#: By content, not by the name of the file. Others are not tried, because Pillow's readers of rarer formats start
#: programs and are little tested.
_FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "TIFF")
_CHUNK = 16  # images that a thread decodes at a time
_SMALL = 64  # pixels up to which threads do not pay


class BadImage(Exception):
    """An image that cannot be used. The message is the end of a sentence that begins with the image's place."""


def decode_square(encoded: bytes, size: int, native_size: int | None = None) -> np.ndarray:
    """Decodes an image, training or test, and resizes it to ``size`` x ``size`` pixels.

    The square in the middle of an image of another size is cut out and resized, bicubically and with antialias: so its
    shorter side becomes ``size``. The other arguments are those of ``decode_image``.

    Returns:
        (3, size, size) uint8, maybe not contiguous.
    """
    image = decode_image(encoded, native_size)
    if image.size != (size, size):
        width, height = image.size
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def decode_image(encoded: bytes, native_size: int | None = None) -> Image.Image:
    """Decodes an image.

    The colours are those of Pillow's ``convert("RGB")``, as in torchvision: grey is repeated, transparency dropped (the
    colour below it shows), a palette looked up, CMYK converted without a colour profile. Of grey with 16 bits the upper
    eight are used (Pillow would make all above 255 white). EXIF is ignored, including the orientation; of an animation
    the first image is used.

    Args:
        encoded: JPEG, PNG, WebP, PPM, PGM, BMP or TIFF.
        native_size: Height and width that the image must have, in pixels; None allows any.

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
            if native_size is not None and (width, height) != (native_size, native_size):
                raise BadImage(f"is {height}x{width}, not {native_size}x{native_size}")
            return _rgb(image)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage("cannot be decoded (it is no JPEG, PNG, WebP, PPM, BMP or TIFF)") from error
    except Exception as error:  # Pillow raises many types for garbage
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


def decode_all(
    images: np.ndarray, read: Callable[[int], bytes], describe: Callable[[int], str], native_size: int | None = None
) -> None:
    """Decodes images into an array, in threads: Pillow releases the GIL while it decodes.

    With small images threads only wait for one another and make it slower, so there is one.

    Args:
        images: (N, 3, size, size) uint8, to be filled.
        read: Returns the i-th image, encoded; called from several threads.
        describe: Names the i-th image, e.g. "a.parquet: the image in row 3".
        native_size: As for ``decode_image``.

    Raises:
        UserError: Names the first image that is bad.
    """

    def decode_chunk(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(images))):
            try:
                images[i] = decode_square(read(i), images.shape[-1], native_size)
            except BadImage as error:
                raise UserError(f"{describe(i)} {error}") from error

    with ThreadPoolExecutor(1 if native_size is not None and native_size <= _SMALL else usable_cores()) as pool:
        for _ in pool.map(decode_chunk, range(0, len(images), _CHUNK)):
            pass
