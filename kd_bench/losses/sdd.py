"""Scale-decoupled distillation: logits of regions of the last feature map, and their weights.

A loss between logits is applied to the regions as if they were samples: (B, N, C) logits as (B N, C), with the weights
as its ``sample_weights``.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_bench.losses.arguments import check_shapes, check_whole
from kd_bench.losses.maps import average_cells
from kd_bench.losses.precision import at_least_float32


def pool_regions(feature_map: Tensor, grids: Sequence[int] = (1, 2, 4)) -> Tensor:
    """Averages of a feature map over the cells of several grids, (B, N, D); N is the sum of the squared grid sizes.

    Wei et al., "Scale Decoupled Distillation" (2024), as released: the map is averaged to 4 x 4 first, and all grids
    are averaged from that, so for other sizes than multiples of 4 the whole map's region is not the network's pooled
    feature. Regions are in the order of ``grids``, row by row. The network's classifier turns them into logits.

    Args:
        feature_map: (B, D, H, W), the last one.
        grids: Cells per edge. Published are 1 and 2 if student and teacher are of the same family, else 1, 2 and 4.

    >>> import torch
    >>> from kd_bench.losses import pool_regions
    >>> pool_regions(torch.arange(64.0).view(1, 1, 8, 8), grids=(1, 2)).flatten().tolist()
    [31.5, 13.5, 17.5, 45.5, 49.5]
    """
    check_shapes(feature_map=(feature_map, "B D H W"))
    for grid in grids:
        check_whole(1, grids=grid)
    base = average_cells(at_least_float32(feature_map), (4, 4))
    return torch.cat([average_cells(base, (grid, grid)).flatten(2) for grid in grids], -1).transpose(1, 2)


@torch.no_grad()
def region_weights(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Weights of SDD's regions, (B, N): 2 if the teacher is right in the region or for the whole map but not both.

    Wei et al. (2024), with the released weight 2 of complementary regions; other regions have 1.

    Args:
        teacher_logits: (B, N, C), region 0 is the whole map.
        labels: (B,) int64.

    >>> import torch
    >>> from kd_bench.losses import region_weights
    >>> logits = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]])
    >>> region_weights(logits, torch.tensor([0]))
    tensor([[1., 1., 2.]])
    """
    check_shapes(teacher_logits=(teacher_logits, "B N C"), labels=(labels, "B"))
    right = teacher_logits.argmax(-1) == labels[:, None]
    return 1 + (right != right[:, :1]).to(at_least_float32(teacher_logits).dtype)
