"""The images that an attack may show: those near the original image, with pixels from 0 to 1.

All bounds hold exactly: in float64, no image leaves the ball by as much as one bit. In single precision alone
``image + eps`` may be rounded to a number that is further from ``image`` than ``eps``.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: ``Linf``: no pixel's channel changes by more than eps. ``L2``: the Euclidean norm of the change is at most eps.
Norm = Literal["Linf", "L2"]

#: By how much the L2 ball is made smaller, relative to it: above the rounding of a norm in float64, below all else.
_MARGIN = 1e-9


class Ball:
    """The ball around each image of a batch, cut to [0, 1].

    Args:
        images: (B, ...) in [0, 1], in single or double precision; the centres.
        eps: Radius.
        norm: Norm of the distance.
    """

    def __init__(self, images: Tensor, eps: float, norm: Norm) -> None:
        self.images, self.eps, self.norm = images.detach(), eps, norm
        if norm == "Linf":
            self._low, self._high = self._bounds()

    def project(self, points: Tensor) -> Tensor:
        """Returns the nearest images of the ball (L2: nearest in the ball, then cut to [0, 1], which stays in it)."""
        if self.norm == "Linf":
            return points.clamp(self._low, self._high)
        centre = self.images.double()
        change = points.double() - centre
        radius = self.eps * (1 - _MARGIN)
        length = _per_image(change.flatten(1).norm(dim=1), change)
        exact = (centre + change * (radius / length.clamp_min(radius))).clamp(0, 1)
        # In single precision each pixel is rounded towards the original one.
        rounded = exact.to(self.images.dtype)
        too_far = (rounded.double() - centre).abs() > (exact - centre).abs()
        return torch.where(too_far, torch.nextafter(rounded, self.images), rounded)

    def steepest_direction(self, gradient: Tensor) -> Tensor:
        """Returns for each image the change of length one by which a function with this gradient grows most."""
        if self.norm == "Linf":
            return gradient.sign()
        length = gradient.flatten(1).norm(dim=1)
        return gradient / _per_image(length.clamp_min(torch.finfo(gradient.dtype).tiny), gradient)

    def sample_uniform(self, generator: torch.Generator | None) -> Tensor:
        """Returns images drawn uniformly from the ball and then cut to [0, 1]."""
        if self.norm == "Linf":
            noise = _draw(torch.rand, self.images, generator).mul_(2).sub_(1)
            return self.project(self.images + self.eps * noise)
        noise = _draw(torch.randn, self.images, generator)
        quantile = _draw(torch.rand, self.images[:, :1].flatten(1)[:, 0], generator)
        radius = self.eps * quantile ** (1 / self.images[0].numel())
        return self.project(self.images + _per_image(radius, noise) * self.steepest_direction(noise))

    def add_normal_noise(self, std: float, generator: torch.Generator | None) -> Tensor:
        """Returns the images with normal noise of this standard deviation, which may leave the ball and [0, 1]."""
        return self.images + std * _draw(torch.randn, self.images, generator)

    def _bounds(self) -> tuple[Tensor, Tensor]:
        centre = self.images.double()
        bounds = []
        for sign in (-1.0, 1.0):
            bound = (centre + sign * self.eps).clamp(0, 1).to(self.images.dtype)
            too_far = (bound.double() - centre).abs() > self.eps
            bounds.append(torch.where(too_far, torch.nextafter(bound, self.images), bound))
        return bounds[0], bounds[1]


def distance(points: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """Returns the distances of points from images, both (B, ...), as (B,) float64."""
    change = (points.double() - images.double()).flatten(1)
    return change.abs().amax(dim=1) if norm == "Linf" else change.norm(dim=1)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Returns (B,) values in a shape that broadcasts with the images."""
    return values.view(-1, *[1] * (images.ndim - 1))


def _draw(sample: object, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws on the generator's device, so that a CPU generator has the same numbers for every device."""
    device = like.device if generator is None else generator.device
    drawn: Tensor = sample(like.shape, generator=generator, device=device, dtype=like.dtype)  # type: ignore[operator]
    return drawn.to(like.device)
