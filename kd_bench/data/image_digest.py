"""Digests of images and labels, by which results say what images they are from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, TypedDict

import numpy as np

from kd_bench.utils.cpu import usable_cores

_DIGEST = 16  # bytes
_CHUNK = 256  # images that a thread digests at a time
_SMALL = 64  # pixels up to which threads only wait for one another

#: What is digested: the pixels of the decoded images, or the names and sizes of files that are decoded when needed.
Kind = Literal["pixels", "names and sizes"]


class ImageRecord(TypedDict):
    """What images a result is from: hexadecimal digests of the training and test images that the settings select.

    Attributes:
        digest: Digest of the images and their labels in any order, so that copies of a set in different files have one.
        order: The same in the order in which they are numbered, which the batches depend on.
        kind: What is digested.
    """

    digest: str
    order: str
    kind: Kind


def digest_each(images: np.ndarray) -> np.ndarray:
    """Returns the BLAKE2b digest of the pixels of each image.

    Args:
        images: (N, 3, H, W) uint8, C-contiguous.

    Returns:
        (N, 16) uint8.
    """

    def digest_chunk(start: int) -> bytes:
        chunk = images[start : start + _CHUNK]
        return b"".join(hashlib.blake2b(image.data, digest_size=_DIGEST).digest() for image in chunk)

    with ThreadPoolExecutor(usable_cores() if images.shape[-1] > _SMALL else 1) as pool:
        chunks = b"".join(pool.map(digest_chunk, range(0, len(images), _CHUNK)))
    return _rows(chunks)


def digest_texts(texts: Sequence[bytes]) -> np.ndarray:
    """Returns the BLAKE2b digest of each text: (N, 16) uint8."""
    chunks = b"".join(hashlib.blake2b(text, digest_size=_DIGEST).digest() for text in texts)
    return _rows(chunks)


def _rows(digests: bytes) -> np.ndarray:
    return np.frombuffer(digests, np.uint8).reshape(-1, _DIGEST).copy()  # torch requires writable memory


def image_record(kind: Kind, splits: Sequence[tuple[np.ndarray, np.ndarray]], shape: Sequence[int] = ()) -> ImageRecord:
    """Returns the record of some images.

    Args:
        kind: What the digests of the images are of.
        splits: (N, 16) uint8 digests and (N,) int64 labels of the training images, and of the test images.
        shape: Shape of an image, if all have the same.
    """
    header = json.dumps([kind, [len(labels) for _, labels in splits], list(shape)]).encode()
    digest, order = (hashlib.blake2b(header, digest_size=_DIGEST) for _ in range(2))
    for digests, labels in splits:
        numbers = np.ascontiguousarray(labels, "<i8").view(np.uint8).reshape(len(labels), -1)
        rows = np.concatenate([digests, numbers], axis=1)
        order.update(rows.data)
        # One text of bytes for each image: NumPy sorts these, but no rows.
        digest.update(np.sort(rows.view(f"S{rows.shape[1]}"), axis=None).tobytes())
    return {"digest": digest.hexdigest(), "order": order.hexdigest(), "kind": kind}
