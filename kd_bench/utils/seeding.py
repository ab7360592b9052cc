"""Every random draw is a function of (seed, stream, epoch, step).

Nothing in the suite reads a global generator whose state depends on what ran before: code that draws asks for a
generator by name, or, for code that only knows torch's global generator (dropout, weight initialisation), has that
generator seeded by name immediately before. The numbers behind the names come from BLAKE2 over the names themselves, so
they are the same in every process, on every machine and under every ``PYTHONHASHSEED``.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Streams in use, so that two rooms never draw from the same one by accident.
SPLIT = "split"
WEIGHTS = "weights"
METHOD_WEIGHTS = "method-weights"
ORDER = "order"
AUGMENT = "augment"
POLICY = "policy"
CUTOUT = "cutout"
ERASE = "erase"
OWN = "own"
MIX = "mix"
VIEW = "view"
GENERATED = "generated"
STUDENT = "student"
METHOD = "method"
PERTURBATION = "perturbation"
WEIGHT_PERTURBATION = "weight-perturbation"
ATTACK = "attack"


def derive(seed: int, stream: str, epoch: int = 0, step: int = 0) -> int:
    """The integer in [0, 2**63) that belongs to these names.

    Args:
        seed: The trial's seed.
        stream: What is drawn, e.g. ``seeding.ORDER``.
        epoch: Epoch from 0.
        step: Step within the epoch from 0.
    """
    name = f"kd-bench\0{int(seed)}\0{stream}\0{int(epoch)}\0{int(step)}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1


def generator(seed: int, stream: str, epoch: int = 0, step: int = 0) -> torch.Generator:
    """A CPU generator for these names; draws made with it are the same whatever device they go to."""
    import torch

    return torch.Generator().manual_seed(derive(seed, stream, epoch, step))


def seed_global(seed: int, stream: str, epoch: int = 0, step: int = 0) -> None:
    """Seeds torch's global generators (all devices) by name, for code that can draw from nothing else."""
    import torch

    torch.manual_seed(derive(seed, stream, epoch, step))


def seed_everything(seed: int, stream: str, epoch: int = 0, step: int = 0) -> None:
    """Seeds the global generators of torch, NumPy and Python by name, for code of others that may draw from any."""
    import random

    import numpy as np

    number = derive(seed, stream, epoch, step)
    seed_global(seed, stream, epoch, step)
    np.random.seed(number % 2**32)
    random.seed(number)
