"""The fraction of the machine's peak that a cohort's step reaches, compared with convolutions alone.

The peak is the best of several convolutions that networks for small images have, in float32 with one thread. The
arithmetic is that of all convolutions and matrix products, forward and backward, counted as they run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from benchmarks.column_times import ColumnTimes
from benchmarks.markdown import Section, Table, median_and_range
from benchmarks.measure import cpu_seconds

#: Channels, edge in pixels and kernel size of the convolutions, in batches of 64.
SHAPES = ((64, 32, 3), (128, 16, 3), (256, 8, 3), (512, 8, 1), (256, 16, 1))


@torch.inference_mode()
def measure_peak(batch: int = 64, calls: int = 3) -> float:
    """Returns the most floating-point operations per CPU second that a convolution reaches."""
    peak = 0.0
    for channels, edge, kernel in SHAPES:
        images, weight = torch.randn(batch, channels, edge, edge), torch.randn(channels, channels, kernel, kernel)
        flops = 2 * batch * channels**2 * kernel**2 * edge**2
        for layout in (torch.contiguous_format, torch.channels_last):
            x, w = images.to(memory_format=layout), weight.to(memory_format=layout)
            for _ in range(calls):
                peak = max(
                    peak, flops / cpu_seconds(lambda x=x, w=w, kernel=kernel: F.conv2d(x, w, padding=kernel // 2))
                )
    return peak


def section(columns: Sequence[ColumnTimes]) -> Section:
    """Returns a table of the columns' cohorts."""
    rows = []
    for column in columns:
        reached = [column.flops / step.total / 1e9 for step in column.cohort]
        percent = [100e9 * value / column.peak_flops for value in reached]
        numbers = [f"{column.flops / 1e9:,.0f}", median_and_range(reached, digits=1), f"{column.peak_flops / 1e9:.0f}"]
        rows.append([column.title, column.rounds, *numbers, median_and_range(percent, digits=0)])
    return Section(
        "Fraction of the machine's peak",
        "A cohort of all eight methods: GFLOP of a step, GFLOP a second of one core, the most that convolutions alone "
        "achieve in the same process, and the fraction. Depthwise and grouped convolutions, batch norms and losses are "
        "bound by memory, and have little arithmetic or none.",
        [Table(["pair", "n", "GFLOP", "GFLOP/s", "peak", "percent"], rows)],
    )
