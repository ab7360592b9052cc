"""Projected gradient ascent (Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_bench.models.timm_interface import evaluation_mode
from kd_bench.robustness.norm_ball import Ball, Norm

#: Start of the ascent: the image, the image with normal noise, or a random point of the ball.
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
    """Returns images in the ball with a high loss, after ``steps`` steps of steepest ascent with projection.

    x_0 = x + noise;  x_i+1 = project(x_i + step_size * u_i), u_i the sign of the loss's gradient by the image (Linf),
    or the gradient divided by its norm (L2).

    The network is in evaluation mode during the ascent and afterwards in its former modes. Its buffers and the
    gradients of its parameters do not change. In float64 the result never leaves the ball or [0, 1].

    Args:
        network: (B, C, H, W) images in [0, 1] to (B, K) logits.
        images: (B, C, H, W) in [0, 1].
        loss: Maps the (B, K) logits of adversarial images to the loss: a scalar, or one value per image. An image's
            loss must not depend on the other images. Other inputs (labels, natural logits) must be detached.
        eps: Radius of the ball.
        steps: Steps of ascent. With 0 the result is the start, projected.
        step_size: Length of a step, in the units of eps.
        norm: Norm of the ball.
        start: Start of the ascent. Normal noise is not projected before the first step, as in TRADES' code.
        generator: Source of the noise; None for torch's global generator.

    Returns:
        (B, C, H, W), detached, in the images' precision.
    """
    ball = Ball(images, eps, norm)
    if start == "uniform":
        points = ball.sample_uniform(generator)
    elif start == "gaussian":
        points = ball.add_normal_noise(NOISE, generator)
    else:
        points = ball.images
    if not steps:
        return ball.project(points)
    with evaluation_mode(network):
        for _ in range(steps):
            with torch.enable_grad():
                points = points.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(loss(network(points)).sum(), [points])
            points = ball.project(points.detach() + step_size * ball.steepest_direction(gradient))
    return points


def cross_entropy(labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns the loss of untargeted attacks: the cross-entropy with (B,) labels, one value per image."""
    return lambda logits: F.cross_entropy(logits, labels, reduction="none")
