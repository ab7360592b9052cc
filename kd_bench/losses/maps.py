"""What the losses of feature maps share: maps of equal sizes, and vectors of length 1."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_bench.losses.arguments import check_shapes
from kd_bench.losses.precision import at_least_float32, matmul


def equal_sizes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Returns two feature maps, (B, C, h, w) and (B, D, h, w), in float32 or float64, the larger one averaged.

    Published code pools the larger map to the smaller one's size. h and w are each the smaller of the two edges.

    Args:
        student: (B, C, H, W).
        teacher: (B, D, H', W').

    >>> import torch
    >>> from kd_bench.losses import equal_sizes
    >>> [tuple(one.shape) for one in equal_sizes(torch.ones(2, 3, 8, 8), torch.ones(2, 5, 4, 4))]
    [(2, 3, 4, 4), (2, 5, 4, 4)]
    """
    check_shapes(student=(student, "B C H W"), teacher=(teacher, "B D h w"))
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return _pooled(student, size), _pooled(teacher, size)


def _pooled(maps: Tensor, size: tuple[int, int]) -> Tensor:
    maps, (height, width) = at_least_float32(maps), size
    if maps.shape[2:] == size:
        return maps
    if (
        maps.shape[2] % height == 0 and maps.shape[3] % width == 0
    ):  # equal cells, which this averages in 2/3 of the time
        return F.avg_pool2d(maps, (maps.shape[2] // height, maps.shape[3] // width))
    return average_cells(maps, size)


def average_cells(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns maps, (B, C, H, W), averaged to (B, C, *size) as by ``F.adaptive_avg_pool2d``.

    If H and W are not multiples of ``size``, cells overlap. On a GPU, torch then adds up the gradient in an order that
    varies, so its last bits vary from step to step. There the averages are matrix products, whose order is fixed.

    >>> import torch
    >>> from kd_bench.losses.maps import average_cells
    >>> average_cells(torch.arange(3.0).view(1, 1, 1, 3), (1, 2)).flatten().tolist()  # the pixel in the middle twice
    [0.5, 1.5]
    """
    height, width = size
    if maps.device.type == "cpu" or (maps.shape[2] % height == 0 and maps.shape[3] % width == 0):
        return F.adaptive_avg_pool2d(maps, size)
    return average_by_products(maps, size)


def average_by_products(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Returns what ``average_cells`` returns, up to rounding, as two matrix products: one for rows, one for columns."""
    values = at_least_float32(maps)
    rows, columns = (_averages(values, dim, cells) for dim, cells in zip((2, 3), size, strict=True))
    return matmul(rows, matmul(values, columns.mT)).to(maps.dtype)


def _averages(maps: Tensor, dim: int, cells: int) -> Tensor:
    """Returns the matrix that averages the pixels along ``dim`` to cells, (cells, pixels)."""
    pixels = maps.shape[dim]
    cell, pixel = (torch.arange(count, device=maps.device) for count in (cells, pixels))
    first, last = cell * pixels // cells, ((cell + 1) * pixels - 1) // cells
    inside = ((pixel >= first[:, None]) & (pixel <= last[:, None])).to(maps.dtype)
    return inside / inside.sum(1, keepdim=True)


def unit_vectors(vectors: Tensor, dim: int = -1) -> Tensor:
    """Returns vectors divided by their L2 norms along ``dim``, in float32 or float64.

    A vector of zeros stays one and has no gradient, because it has no direction. Published code has a gradient of the
    order of 1e12 there. A norm whose square is not a normal number of the precision counts as 0.

    >>> import torch
    >>> from kd_bench.losses import unit_vectors
    >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    vectors = at_least_float32(vectors)
    norms = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    is_positive = norms > torch.finfo(norms.dtype).tiny ** 0.5
    return vectors * torch.where(is_positive, 1 / torch.where(is_positive, norms, 1), 0)
