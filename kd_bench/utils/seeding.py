"""Random numbers as a function of (seed, stream, epoch, step).

Nothing reads a global generator whose state depends on earlier code. Code that draws requests a generator by name. Code
that knows only torch's global generator (dropout, weight initialisation) has that generator seeded by name immediately
before. Seeds are BLAKE2 hashes of the names, so that they are the same in every process and on every machine.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: All streams, so that no two parts of the code use the same one by accident.
SPLIT = "split"
HOLDOUT = "holdout"
WEIGHTS = "weights"
METHOD_WEIGHTS = "method-weights"
ORDER = "order"
AUGMENT = "augment"
POLICY = "policy"
CUTOUT = "cutout"
ERASE = "erase"
PLUGIN = "own"
MIX = "mix"
VIEW = "view"
GENERATED = "generated"
STUDENT = "student"
METHOD = "method"
PERTURBATION = "perturbation"
WEIGHT_PERTURBATION = "weight-perturbation"
ATTACK = "attack"
CALIBRATION = "calibration"
TIMING = "timing"
TUNING = "tuning"
CORRUPTIONS = "corruptions"


def derive(seed: int, stream: str, epoch: int = 0, step: int = 0) -> int:
    """Returns the number in [0, 2**63) for these names.

    Args:
        seed: The trial's seed.
        stream: The purpose of the draws, e.g. ``seeding.ORDER``.
        epoch: Epoch from 0.
        step: Step within the epoch from 0.
    """
    name = f"kd-bench\0{int(seed)}\0{stream}\0{int(epoch)}\0{int(step)}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def generator(seed: int, stream: str, epoch: int = 0, step: int = 0) -> torch.Generator:
    """Returns a CPU generator for these names, so that draws do not depend on the device."""
    import torch

    return torch.Generator().manual_seed(derive(seed, stream, epoch, step))


def seed_global(seed: int, stream: str, epoch: int = 0, step: int = 0) -> None:
    """Seeds torch's global generators of all devices, for code that draws from nothing else."""
    import torch

    torch.manual_seed(derive(seed, stream, epoch, step))


def seed_everything(seed: int, stream: str, epoch: int = 0, step: int = 0) -> None:
    """Seeds the global generators of torch, NumPy and Python, for third-party code."""
    import random

    import numpy as np

    number = derive(seed, stream, epoch, step)
    seed_global(seed, stream, epoch, step)
    np.random.seed(number % 2**32)
    random.seed(number)
