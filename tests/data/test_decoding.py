import io
import re
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_bench.data import decoding
from kd_bench.data.decoding import BadImage, decode_all, decode_square
from kd_bench.utils.errors import UserError
from tests.data import make

SMALL = make.image(0, 8, 8)
GREY = SMALL.convert("L")
CLEAR = Image.merge("RGBA", [*SMALL.split(), Image.new("L", (8, 8), 0)])
DEEP = (np.arange(64, dtype=np.uint16) * 1031).reshape(8, 8)


def palette() -> bytes:
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=1)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    buffer = io.BytesIO()
    SMALL.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (make.encode(SMALL, "PPM"), make.as_array(SMALL)),
        (make.encode(SMALL, "BMP"), make.as_array(SMALL)),
        (make.encode(SMALL, "TIFF"), make.as_array(SMALL)),
        (make.encode(SMALL, "WEBP"), make.as_array(SMALL)),
        (make.encode(GREY), np.broadcast_to(np.asarray(GREY), (3, 8, 8))),
        (make.encode(CLEAR), make.as_array(SMALL)),
        (make.encode(Image.new("LA", (8, 8), (77, 0))), np.full((3, 8, 8), 77)),
        (make.encode(Image.new("1", (8, 8), 1)), np.full((3, 8, 8), 255)),
        (palette(), np.broadcast_to(np.array([10, 20, 30])[:, None, None], (3, 8, 8))),
        (make.encode(Image.fromarray(DEEP)), np.broadcast_to(DEEP >> 8, (3, 8, 8))),
        (make.encode(Image.fromarray(DEEP), "TIFF"), np.broadcast_to(DEEP >> 8, (3, 8, 8))),
        (turned(), make.as_array(SMALL)),
    ],
    ids=[
        "ppm",
        "bmp",
        "tiff",
        "webp",
        "grey",
        "rgba",
        "grey_alpha",
        "black_white",
        "palette",
        "deep_png",
        "deep_tiff",
        "exif",
    ],
)
def test_every_kind_of_colour(encoded: bytes, expected: np.ndarray) -> None:
    assert np.array_equal(decode_square(encoded, 8, 8), expected)


def test_cmyk_jpeg_is_that_of_pillow() -> None:
    encoded = make.encode(make.image(0).resize((8, 8)).convert("CMYK"), "JPEG")
    with Image.open(io.BytesIO(encoded)) as picture:
        assert picture.mode == "CMYK"
        assert np.array_equal(decode_square(encoded, 8), make.as_array(picture))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 57), (80, 32), (41, 33), (9, 5), (8, 500)])
def test_the_middle_square_is_resized(height: int, width: int) -> None:
    picture = make.image(1, height, width)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    expected = square if side == 32 else square.resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(decode_square(make.encode(picture), 32), make.as_array(expected))


def test_shrinking_has_antialias() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = decode_square(make.encode(Image.fromarray(stripes)), 8)
    assert abs(small[:, :, 1:-1].astype(int) - 127).max() <= 2


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(side: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "cannot be decoded (it is no JPEG, PNG, WebP, PPM, BMP or TIFF)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "cannot be decoded (it is no JPEG, PNG, WebP, PPM"),
        (make.encode(make.image(0))[:-400], "cannot be decoded (image file is truncated"),
        (make.encode(make.image(0), "JPEG")[:-400], "cannot be decoded (image file is truncated"),
        (make.encode(make.image(0)).replace(b"IDAT", b"IDAX", 1), "cannot be decoded ("),
        (bomb(10_000), "has 100,000,000 pixels, more than the 89,478,485 that are allowed"),
        (bomb(60_000), "cannot be decoded (Image size (3600000000 pixels) exceeds limit"),
        (make.encode(Image.new("F", (8, 8), 0.5), "TIFF"), "has floating-point pixels"),
        (make.encode(Image.new("I", (8, 8), 70_000), "TIFF"), "has pixels of 32 bits"),
    ],
    ids=["empty", "eps", "cut_png", "cut_jpeg", "damaged_png", "bomb", "huge_bomb", "float", "deep"],
)
def test_bad_images_say_why(encoded: bytes, message: str) -> None:
    with pytest.raises(BadImage, match=f"^{re.escape(message)}") as error:
        decode_square(encoded, 8)
    assert "\n" not in str(error.value)


def test_another_size_than_the_sets_own_is_refused() -> None:
    with pytest.raises(BadImage, match=r"^is 16x24, not 8x8$"):
        decode_square(make.encode(make.image(0, 16, 24)), 8, 8)


def test_all_are_decoded_in_order_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "usable_cores", lambda: 4)
    barrier, seen = threading.Barrier(4, timeout=10), set()
    encoded = [make.encode(make.image(seed, 9, 9)) for seed in range(80)]

    def read(number: int) -> bytes:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            barrier.wait()  # until all four are at it
        return encoded[number]

    out = np.empty((80, 3, 9, 9), np.uint8)
    decode_all(out, read, str)
    assert len(seen) == 4
    assert all(np.array_equal(image, make.as_array(make.image(seed, 9, 9))) for seed, image in enumerate(out))


def test_the_first_bad_image_is_named_and_the_rest_is_left(tmp_path: Path) -> None:
    reads: list[int] = []

    def read(number: int) -> bytes:
        reads.append(number)
        return b"" if number in (20, 5000) else make.encode(SMALL)

    with pytest.raises(UserError, match=r"^row 20 cannot be decoded \("):
        decode_all(np.empty((10_000, 3, 8, 8), np.uint8), read, lambda number: f"row {number}")
    assert len(reads) < 10_000
