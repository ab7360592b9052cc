"""Writes small files of generated images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def write_images(
    file: Path,
    images: int = 20,
    size: int = 32,
    classes: int = 10,
    save: Callable[..., None] = np.savez,
    **changes: Any,
) -> dict[str, np.ndarray[Any, Any]]:
    """Writes random images, with labels in turn, and returns the arrays; ``changes`` replace them."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, size, size, 3), dtype=np.uint8)
    arrays = {"image": pixels, "label": np.arange(images) % classes, **changes}
    file.parent.mkdir(parents=True, exist_ok=True)
    save(file, **arrays)
    return arrays
