"""A cache of the accuracies of given weights, so that they are measured once for all results folders.

An accuracy is a JSON file that is named after a hash of everything that it depends on, and that contains this.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from kd_bench.config.trial import PretrainedTeacher, canonical
from kd_bench.data.array_dataset import ArrayDataset
from kd_bench.trials.environment import numerics_fingerprint
from kd_bench.utils.files import read_json, write_json
from kd_bench.utils.paths import cache_folder

#: Changes when the same network gets another accuracy, or the format of the file changes.
VERSION = 1


def accuracies_folder() -> Path:
    """Returns the folder of the files."""
    return cache_folder() / "accuracies"


def accuracy_key(teacher: PretrainedTeacher, images: ArrayDataset, device: str, threads: int) -> dict[str, Any]:
    """Returns what the accuracy of given weights depends on: weights, test set, input, machine."""
    return {
        "version": VERSION,
        "teacher": teacher.settings(),  # with the hash of the weights
        "images": _digest(images.test_images),
        "labels": _digest(images.test_labels),
        "normalised": [list(images.mean), list(images.std)],
        "machine": numerics_fingerprint(device, threads),
    }


def cached_accuracy(key: dict[str, Any], measure: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Returns top-1 and top-5 accuracy in percent, from the cache if they are there.

    A damaged file is replaced. A cache folder that cannot be written is no error.

    Args:
        key: Everything that the accuracy depends on, for JSON.
        measure: Measures it.
    """
    path = accuracies_folder() / f"{hashlib.sha256(canonical(key).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, LookupError, TypeError):
        content = read_json(path)
        if content["about"] == key and all(0 <= content[name] <= 100 for name in ("top1", "top5")):
            return float(content["top1"]), float(content["top5"])
    top1, top5 = measure()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"about": key, "top1": top1, "top5": top5})
    return top1, top5


def _digest(values: Tensor) -> str:
    content = values.contiguous().numpy()
    return hashlib.blake2b(content.data, digest_size=16).hexdigest() + f" {content.dtype} {list(content.shape)}"
