"""The attacks of AutoAttack (Croce and Hein, 2020), run one at a time with seeded random draws.

The package's own evaluation takes its seed from the clock unless one is set, uses one seed for all batches, and resumes
whole attacks only. So its attacks are called here one by one, with the settings of its standard version.
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
from kd_bench.utils.errors import UserError, install_command

PACKAGE = "pyautoattack"

#: Fewest classes for which the loss of an attack is defined.
MIN_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


def autoattack_version() -> str:
    """Returns the version of the package.

    Raises:
        UserError: If it is not installed.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError(f"AutoAttack needs the package pyautoattack; install it with: {install_command('robust')}")
    return version(PACKAGE)


class AutoAttack:
    """The attacks on one network, in one ball.

    Args:
        network: (B, C, H, W) images in [0, 1] to (B, K) logits; in evaluation mode, without gradients of parameters.
        eps: Radius.
        norm: Norm of the ball.
        classes: K. Targeted attacks have min(9, K - 1) targets.
        device: The network's device.
    """

    def __init__(self, network: nn.Module, eps: float, norm: Norm, classes: int, device: torch.device) -> None:
        from pyautoattack.autoattack import AutoAttack as StandardAutoAttack

        with _capture_warnings():
            self._standard = StandardAutoAttack(network, norm=norm, eps=eps, seed=0, version="standard", device=device)
        targets = min(self._standard.apgd_targeted.n_target_classes, classes - 1)
        self._standard.apgd_targeted.n_target_classes = self._standard.fab.n_target_classes = targets
        self.warnings: list[str] = []

    def perturb(self, name: str, images: Tensor, labels: Tensor, seed: int) -> Tensor:
        """Attacks images that the network classifies correctly. The package's warnings are added to ``warnings``.

        Args:
            name: Name of the attack.
            images: (B, C, H, W) in [0, 1].
            labels: (B,).
            seed: Seed of all random draws, also of torch's global generator.

        Returns:
            (B, C, H, W) images: original if the attack fails, and possibly outside the ball by the rounding of single
            precision.
        """
        attack = self._attack(name)
        attack.seed = seed
        with _capture_warnings() as warnings:
            adversarial: Tensor = attack.perturb(images, labels)
        self.warnings = list(dict.fromkeys([*self.warnings, *warnings]))
        return adversarial.detach()

    def _attack(self, name: str) -> Any:
        standard = self._standard
        if name in ("apgd-ce", "apgd-dlr"):
            standard.apgd.loss = name.removeprefix("apgd-")
            return standard.apgd
        if name in ("fab", "fab-t"):
            standard.fab.targeted = name == "fab-t"
            return standard.fab
        return {"apgd-t": standard.apgd_targeted, "square": standard.square}[name]


def find_unreliable(network: nn.Module, images: Tensor) -> list[str]:
    """Returns reasons why AutoAttack is unreliable for this network in evaluation mode. The package checks the same."""
    reasons = []
    with torch.no_grad():
        first, second = network(images), network(images)
    scale = first.norm(dim=1).clamp_min(1e-10)
    if ((first - second).norm(dim=1) / scale > 1e-4).any():
        reasons.append("the network is randomised: two passes over the same images differ; AutoAttack needs equal ones")
    if first.min() > -1e-5 and ((first.sum(1) - 1).abs() < 1e-5).all():
        reasons.append("the network returns probabilities; attacks need logits")
    return reasons


class _WarningHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if "zero gradient" in line:  # without the number of images, so that it is one warning
            line = "some images have a gradient of zero, which blinds the attacks that follow gradients"
        self.lines.append(line)


@contextmanager
def _capture_warnings() -> Iterator[list[str]]:
    """Inside, the package logs nothing. Yields a list to which its warnings are added."""
    logger = logging.getLogger("auto-attack")
    handler, propagate, level = _WarningHandler(), logger.propagate, logger.level
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
        logger.setLevel(level)
