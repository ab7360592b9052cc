"""The images that an attack may show: those near the original one, with pixels from 0 to 1.

Everything here holds exactly: seen in float64, no image leaves the ball by as much as one bit. In single precision
alone ``image + eps`` may be rounded to a number that is further from ``image`` than ``eps``.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

#: ``Linf``: no pixel's channel changes by more than eps. ``L2``: the Euclidean norm of an image's change is no more.
Norm = Literal["Linf", "L2"]
NORMS: tuple[Norm, ...] = get_args(Norm)

#: By how much the L2 ball is made smaller, relative to it: above the rounding of a norm in float64, below all else.
_MARGIN = 1e-9


class Ball:
    """The ball around each image of a batch, cut to [0, 1].

    Args:
        images: (B, ...) in [0, 1], in single or double precision; the centres.
        eps: Radius.
        norm: Which distance.
    """

    def __init__(self, images: Tensor, eps: float, norm: Norm) -> None:
        self.images, self.eps, self.norm = images.detach(), eps, norm
        if norm == "Linf":
            self._low, self._high = self._bounds()

    def project(self, points: Tensor) -> Tensor:
        """The nearest images of the ball (for L2: nearest in the ball and then cut to [0, 1], which stays in it)."""
        if self.norm == "Linf":
            return points.clamp(self._low, self._high)
        centre = self.images.double()
        change = points.double() - centre
        longest = self.eps * (1 - _MARGIN)
        length = _per_image(change.flatten(1).norm(dim=1), change)
        wanted = (centre + change * (longest / length.clamp_min(longest))).clamp(0, 1)
        # In single precision each pixel is rounded towards the original one.
        rounded = wanted.to(self.images.dtype)
        beyond = (rounded.double() - centre).abs() > (wanted - centre).abs()
        return torch.where(beyond, torch.nextafter(rounded, self.images), rounded)

    def steepest(self, gradient: Tensor) -> Tensor:
        """The change of length one by which a linear function with this gradient grows most, image by image."""
        if self.norm == "Linf":
            return gradient.sign()
        length = gradient.flatten(1).norm(dim=1)
        return gradient / _per_image(length.clamp_min(torch.finfo(gradient.dtype).tiny), gradient)

    def uniform(self, generator: torch.Generator | None) -> Tensor:
        """Images drawn uniformly from the ball, and then cut to [0, 1]."""
        if self.norm == "Linf":
            noise = _draw(torch.rand, self.images, generator).mul_(2).sub_(1)
            return self.project(self.images + self.eps * noise)
        noise = _draw(torch.randn, self.images, generator)
        share = _draw(torch.rand, self.images[:, :1].flatten(1)[:, 0], generator)
        radius = self.eps * share ** (1 / self.images[0].numel())
        return self.project(self.images + _per_image(radius, noise) * self.steepest(noise))

    def normal(self, std: float, generator: torch.Generator | None) -> Tensor:
        """Images with normal noise of this standard deviation, which may leave the ball and [0, 1]."""
        return self.images + std * _draw(torch.randn, self.images, generator)

    def distance(self, points: Tensor) -> Tensor:
        """(B,) float64, how far points are from the images, in the ball's norm."""
        return distance(points, self.images, self.norm)

    def _bounds(self) -> tuple[Tensor, Tensor]:
        centre = self.images.double()
        ends = []
        for towards in (-1.0, 1.0):
            end = (centre + towards * self.eps).clamp(0, 1).to(self.images.dtype)
            beyond = (end.double() - centre).abs() > self.eps
            ends.append(torch.where(beyond, torch.nextafter(end, self.images), end))
        return ends[0], ends[1]


def distance(points: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """(B,) float64, how far points are from images, both (B, ...)."""
    change = (points.double() - images.double()).flatten(1)
    return change.abs().amax(dim=1) if norm == "Linf" else change.norm(dim=1)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.ndim - 1))


def _draw(kind: object, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws where the generator is: a CPU generator gives the same numbers whatever device they go to."""
    device = like.device if generator is None else generator.device
    drawn: Tensor = kind(like.shape, generator=generator, device=device, dtype=like.dtype)  # type: ignore[operator]
    return drawn.to(like.device)
