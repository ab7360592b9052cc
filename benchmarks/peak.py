"""What fraction of the machine's peak a cohort's step achieves: its arithmetic in its time, beside convolutions alone.

The peak is the best of some convolutions as networks for small images have them, in float32 with one thread. The
arithmetic is that of all convolutions and products of matrices, forward and backward, counted as they run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from benchmarks.writing import Section, Table, spread

if TYPE_CHECKING:
    from benchmarks.column import Found

#: Channels, edge in pixels and kernel of batches of 64.
SHAPES = ((64, 32, 3), (128, 16, 3), (256, 8, 3), (512, 8, 1), (256, 16, 1))


@torch.inference_mode()
def flops_a_second(batch: int = 64, calls: int = 3) -> float:
    """The most that a convolution achieves, in floating-point operations a second of the CPU."""
    best = 0.0
    for channels, edge, kernel in SHAPES:
        images, weight = torch.randn(batch, channels, edge, edge), torch.randn(channels, channels, kernel, kernel)
        operations = 2 * batch * channels**2 * kernel**2 * edge**2
        for layout in (torch.contiguous_format, torch.channels_last):
            given, weights = images.to(memory_format=layout), weight.to(memory_format=layout)
            for _ in range(calls):
                begin = time.process_time()
                F.conv2d(given, weights, padding=kernel // 2)
                best = max(best, operations / (time.process_time() - begin))
    return best


def section(found: Sequence[Found]) -> Section:
    """Of the cohorts of ``benchmarks/column.py``."""
    rows = []
    for one in found:
        achieved = [one.flops / step.total / 1e9 for step in one.cohort]
        fractions = [100e9 * value / one.peak for value in achieved]
        numbers = f"{one.flops / 1e9:,.0f}", spread(achieved, digits=1), f"{one.peak / 1e9:.0f}"
        rows.append([one.title, one.rounds, *numbers, spread(fractions, digits=0)])
    return Section(
        "Fraction of the machine's peak",
        "A cohort of all eight methods: GFLOP of a step, GFLOP a second of one core, the most that convolutions alone "
        "achieve in the same process, and the fraction. Depthwise and grouped convolutions, batch norms and losses are "
        "bound by memory, and have little arithmetic or none.",
        [Table(["pair", "n", "GFLOP", "GFLOP/s", "peak", "percent"], rows)],
    )
