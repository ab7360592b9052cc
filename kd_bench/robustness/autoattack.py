"""The attacks of AutoAttack (Croce and Hein, 2020), one at a time, with draws that follow from a seed.

The package's own evaluation takes its seeds from the clock unless one is given, gives the same one to every batch, and
resumes whole attacks only; so its attacks are called here one by one, with the settings that its standard version has.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from kd_bench.robustness.norm_ball import Norm
from kd_bench.utils.errors import UserError

PACKAGE = "pyautoattack"

#: Classes that the loss of a targeted or an untargeted attack takes the logits of, at least.
FEWEST = {"apgd-dlr": 3, "apgd-t": 4}


def library() -> str:
    """The version of the package.

    Raises:
        UserError: Where it is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError("AutoAttack needs a package more; get it with: pip install 'kd-bench[robust]'")
    return version(PACKAGE)


class AutoAttack:
    """The attacks, for one network and one ball.

    Args:
        network: (B, C, H, W) images in [0, 1] to (B, K) logits; in evaluation mode, without gradients of parameters.
        eps: Radius.
        norm: Which distance.
        classes: K. Targeted attacks have min(9, K - 1) targets.
        device: Where the network is.
    """

    def __init__(self, network: nn.Module, eps: float, norm: Norm, classes: int, device: torch.device) -> None:
        from pyautoattack.autoattack import AutoAttack as Standard

        with _quiet() as _:
            self._all = Standard(network, norm=norm, eps=eps, seed=0, version="standard", device=device)
        targets = min(self._all.apgd_targeted.n_target_classes, classes - 1)
        self._all.apgd_targeted.n_target_classes = self._all.fab.n_target_classes = targets
        self.warnings: list[str] = []

    def perturb(self, name: str, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """(B, C, H, W) images for (B, C, H, W) ones that the network classifies correctly; unchanged where it fails.

        Single-precision arithmetic may leave the ball by some bits. What the package warns of goes to ``warnings``.

        Args:
            name: Of the attack.
            images: In [0, 1].
            labels: (B,).
            seed: Of all draws; torch's global generator is seeded with it.
        """
        attack = self._attack(name)
        attack.seed = seed
        with _quiet() as said:
            found: Tensor = attack.perturb(images, labels)
        self.warnings = list(dict.fromkeys([*self.warnings, *said]))
        return found.detach()

    def _attack(self, name: str) -> Any:
        every = self._all
        if name in ("apgd-ce", "apgd-dlr"):
            every.apgd.loss = name.removeprefix("apgd-")
            return every.apgd
        if name in ("fab", "fab-t"):
            every.fab.targeted = name == "fab-t"
            return every.fab
        return {"apgd-t": every.apgd_targeted, "square": every.square}[name]


def suspicions(network: nn.Module, images: Tensor) -> list[str]:
    """What would make an evaluation by AutoAttack unreliable, found on a few images; the package checks the same.

    Args:
        network: In evaluation mode.
        images: (B, C, H, W) in [0, 1].
    """
    found = []
    with torch.no_grad():
        first, second = network(images), network(images)
    scale = first.norm(dim=1).clamp_min(1e-10)
    if ((first - second).norm(dim=1) / scale > 1e-4).any():
        found.append("the network is randomised: two passes over the same images differ, and AutoAttack underrates it")
    if first.min() > -1e-5 and ((first.sum(1) - 1).abs() < 1e-5).all():
        found.append("the network gives probabilities; attacks need logits")
    return found


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if "zero gradient" in line:  # with their number it would be another line each time
            line = "some images have a gradient of zero, which blinds the attacks that follow gradients"
        self.lines.append(line)


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Inside, the package's log is silent, and its warnings are kept."""
    logger = logging.getLogger("auto-attack")
    handler, propagate, level = _Kept(), logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)
