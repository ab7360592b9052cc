"""Projected gradient ascent (Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.robustness.norm_ball import Ball, Norm

#: Where the ascent starts: at the image, with normal noise around it, or at a random point of the ball.
Start = Literal["none", "gaussian", "uniform"]

#: Standard deviation of the normal noise, as TRADES has it (Zhang et al., 2019).
NOISE = 0.001


def pgd(
    network: nn.Module,
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    eps: float,
    steps: int,
    step_size: float,
    norm: Norm = "Linf",
    start: Start = "uniform",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images in the ball with a high loss: ``steps`` times a step of steepest ascent and the projection.

    x_0 = x + noise;  x_i+1 = project(x_i + step_size * u_i), u_i the sign of the loss's gradient by the image (Linf),
    or the gradient divided by its norm (L2).

    The network is in evaluation mode meanwhile and afterwards in the modes it had; its buffers and the gradients of its
    parameters stay as they are. Seen in float64 the result never leaves the ball or [0, 1].

    Args:
        network: (B, C, H, W) images in [0, 1] to (B, K) logits.
        images: (B, C, H, W) in [0, 1].
        loss: The (B, K) logits of adversarial images to what is made large: a number, or one an image; an image's loss
            must not depend on the other images. What else it is made of (labels, natural logits) must be detached.
        eps: Radius of the ball.
        steps: Steps of ascent; with 0 the result is the start, in the ball.
        step_size: Length of a step, in the units of eps.
        norm: Which distance.
        start: Where it begins. Normal noise is not projected before the first step, as in TRADES' code.
        generator: What the noise is drawn from; None for torch's global one.

    Returns:
        (B, C, H, W), detached, in the images' precision.
    """
    ball = Ball(images, eps, norm)
    if start == "uniform":
        points = ball.uniform(generator)
    elif start == "gaussian":
        points = ball.normal(NOISE, generator)
    else:
        points = ball.images
    if not steps:
        return ball.project(points)
    with evaluating(network):
        for _ in range(steps):
            with torch.enable_grad():
                points = points.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(loss(network(points)).sum(), [points])
            points = ball.project(points.detach() + step_size * ball.steepest(gradient))
    return points


def cross_entropy(labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The loss of untargeted attacks: the cross-entropy of (B,) labels, an image each."""
    return lambda logits: F.cross_entropy(logits, labels, reduction="none")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Inside, the network and all its parts are in evaluation mode; afterwards each is as it was."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
